"""Soundness: what a single file can have wrong, whatever lies beside it."""

from __future__ import annotations

import gzip
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine

from dcd_lab.audit.findings import Report
from dcd_lab.data import volumes
from dcd_lab.data.volumes import Volume

FORM_TOLERANCE_MM = 0.1
"""Largest distance between the places that sform and qform give a corner of the volume."""
_CHUNK = 1 << 22


def sound_image(path: Path, report: Report) -> Volume | None:
    """Return what can be used of an image: voxels that are not finite are 0, None if nothing."""
    if (opened := _opened(path, report)) is None:
        return None
    volume, _ = opened
    if not report.passes("NaN or infinite values", volumes.refuse_not_finite, volume):
        volume = volume._replace(array=np.nan_to_num(volume.array, posinf=0, neginf=0))
    report.passes("only zeros", volumes.refuse_zeros, volume)
    _report_background(volume, report)
    return volume


def sound_label(path: Path, report: Report) -> Volume | None:
    """Return a label in whole numbers, whichever these are; None when there is no such thing."""
    if (opened := _opened(path, report)) is None:
        return None
    volume, stored_as = opened
    if not report.passes("NaN or infinite values", volumes.refuse_not_finite, volume):
        return None
    if not report.passes("label values not whole", volumes.refuse_fractions, volume):
        return None
    if stored_as.kind == "f":
        got = f"{path.name}: whole numbers stored as {stored_as.name}"
        report.add("float labels", got, "integers", "info")
    return volume


def _opened(path: Path, report: Report) -> tuple[Volume, np.dtype] | None:
    """Return the voxels of a file and how they are stored, or None once it is known why not."""
    if not report.passes("damaged file", _read_to_the_end, path):
        return None
    stored = report.attempt("damaged file", volumes.open_image, path)
    if stored is None:
        return None
    if not report.passes("number of axes", volumes.refuse_not_3d, path, stored):
        return None
    volume = report.attempt("damaged file", volumes.voxels, path, stored)
    if volume is None or not report.passes("unusable affine", volumes.refuse_no_grid, volume):
        return None
    _report_forms(path, stored, report)
    return volume, stored.get_data_dtype()


def _read_to_the_end(path: Path) -> None:
    """Read a compressed file up to its checksum, which nibabel never reaches; ContractError."""
    if path.suffix.lower() != ".gz" or not path.is_file():
        return
    try:
        with gzip.open(path) as file:
            while file.read(_CHUNK):
                pass
    except volumes.BROKEN as error:
        raise volumes.unreadable(path, error) from error


def _report_forms(path: Path, stored: nib.Nifti1Pair, report: Report) -> None:
    """Report a placement that other tools than nibabel would read differently."""
    header = stored.header
    codes = {name: int(header[f"{name}_code"]) for name in ("sform", "qform")}
    if not any(codes.values()):
        got = f"{path.name}: neither sform nor qform is set"
        report.add("no placement", got, "at least one of them", "warning")
    elif not codes["qform"]:
        got = f"{path.name}: only the sform is set"
        report.add("no qform", got, "both, for tools that read the qform alone", "info")
    elif codes["sform"]:
        apart = _apart_mm(stored)
        if not apart <= FORM_TOLERANCE_MM:
            got = f"{path.name}: corners up to {apart:.3g} mm apart"
            expected = f"within {FORM_TOLERANCE_MM} mm (the sform is used, as nibabel does)"
            report.add("sform and qform disagree", got, expected, "warning")


def _apart_mm(stored: nib.Nifti1Pair) -> float:
    """Return how far sform and qform place the same corner apart; infinite for a broken qform."""
    try:
        qform = stored.get_qform()
    except volumes.BROKEN:
        return float("inf")
    corners = np.array(list(product(*((0, extent - 1) for extent in stored.shape[:3]))))
    between = apply_affine(stored.get_sform(), corners) - apply_affine(qform, corners)
    return float(np.linalg.norm(between, axis=1).max())


def _report_background(volume: Volume, report: Report) -> None:
    """Report an image whose corners are not 0: it is not skull-stripped, or has an offset."""
    ends = tuple(slice(None, None, max(extent - 1, 1)) for extent in volume.array.shape)
    corners = volume.array[ends]
    if (corners != 0).mean() > 0.5:
        got = f"{volume.path.name}: {np.median(corners):.3g} in the corners of the volume"
        report.add("background not zero", got, "0 outside the brain", "warning")
