"""Soundness: what a single file can have wrong, whatever the other files of its scan are."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine

from dcd_lab.audit.findings import Report
from dcd_lab.data import volumes
from dcd_lab.data.volumes import NiftiVolume

FORM_TOLERANCE_MM = 0.1
"""Largest distance between the positions that sform and qform give a corner of the volume."""


def sound_image(path: Path, report: Report) -> NiftiVolume | None:
    """Return what can be used of an image: voxels that are not finite are 0, None if nothing."""
    if (opened := _opened(path, report)) is None:
        return None
    _, volume = opened
    if not report.passes("NaN or infinite values", volumes.refuse_not_finite, volume):
        volume = volume._replace(array=np.nan_to_num(volume.array, posinf=0, neginf=0))
    report.passes("only zeros", volumes.refuse_zeros, volume)
    corners = volume.array[tuple(slice(None, None, max(n - 1, 1)) for n in volume.array.shape)]
    if (corners != 0).mean() > 0.5:  # it is not skull-stripped, or has an offset
        got = f"{path.name}: {np.median(corners):.3g} in the corners of the volume"
        report.add("background not zero", got, "0 outside the brain", "warning")
    return volume


def sound_label(path: Path, report: Report) -> NiftiVolume | None:
    """Return a label in whole numbers, whichever these are; None when there is no such thing."""
    if (opened := _opened(path, report)) is None:
        return None
    stored, volume = opened
    if not report.passes("NaN or infinite values", volumes.refuse_not_finite, volume):
        return None
    if not report.passes("label values not whole", volumes.refuse_fractions, volume):
        return None
    if (kind := stored.get_data_dtype()).kind == "f":
        got = f"{path.name}: whole numbers stored as {kind.name}"
        report.add("float labels", got, "integers", "info")
    return volume


def _opened(path: Path, report: Report) -> tuple[nib.Nifti1Pair, NiftiVolume] | None:
    """Return an opened file and its voxels; None once the report says why it cannot be used."""
    if (stored := report.attempt("damaged file", volumes.open_image, path)) is None:
        return None
    faults = list(volumes.header_faults(path, stored))
    for check, error in faults:
        report.refused(check, error)
    if faults or (volume := report.attempt("damaged file", volumes.voxels, path, stored)) is None:
        return None
    _report_forms(path, stored, report)
    return stored, volume


def _report_forms(path: Path, stored: nib.Nifti1Pair, report: Report) -> None:
    """Report an affine that other tools than nibabel would read differently."""
    sform, qform = (int(stored.header[f"{name}_code"]) for name in ("sform", "qform"))
    if not sform and not qform:
        got = f"{path.name}: neither sform nor qform is set"
        report.add("no placement", got, "at least one of them", "warning")
    elif not qform:
        got = f"{path.name}: only the sform is set"
        report.add("no qform", got, "both, for tools that read the qform alone", "info")
    elif sform and not (distance := _distance_mm(stored)) <= FORM_TOLERANCE_MM:
        got = f"{path.name}: corners up to {distance:.3g} mm apart"
        expected = f"within {FORM_TOLERANCE_MM} mm (the sform is used, as nibabel does)"
        report.add("sform and qform disagree", got, expected, "warning")


def _distance_mm(stored: nib.Nifti1Pair) -> float:
    """Return how far sform and qform place the same corner apart; infinite for a broken qform."""
    try:
        qform = stored.get_qform()
    except volumes.BROKEN:
        return float("inf")
    corners = np.array(list(product(*((0, extent - 1) for extent in stored.shape[:3]))))
    between = apply_affine(stored.get_sform(), corners) - apply_affine(qform, corners)
    return float(np.linalg.norm(between, axis=1).max())
