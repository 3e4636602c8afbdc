"""Inspection: everything one can say about one scan without knowing the others."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from jaxtyping import Bool, UInt8
from nibabel.affines import voxel_sizes
from scipy import ndimage

from dcd_lab.audit.contrast import contrast, implausible
from dcd_lab.audit.findings import Finding, Report
from dcd_lab.audit.soundness import sound_image, sound_label
from dcd_lab.data import volumes
from dcd_lab.data.editions import renumbered
from dcd_lab.data.scans import Scan
from dcd_lab.data.volumes import NiftiVolume
from dcd_lab.records.identity import file_hash
from dcd_lab.tasks import BRATS, TASKS, Task

MNI_SHAPE = (182, 218, 182)
MNI_AFFINE = np.array([[-1.0, 0, 0, 90], [0, 1, 0, -126], [0, 0, 1, -72], [0, 0, 0, 1]])
"""The grid of BraTS since 2024: FSL's MNI152 at 1 mm, stored LAS."""
SRI_SHAPE = (240, 240, 155)
"""The grid of BraTS up to 2023 and of some scans of 2025: SRI24 at 1 mm."""
LEAST_INSIDE = 0.95
"""Least share of a label that lies inside the brain."""
LEAST_OVERLAP = 0.8
"""Least Dice of the brain in FLAIR and in DWI, by the headers alone; ISLES case 0009 has 0.961."""
ADC_MEDIANS = (0.4, 2.0)
"""Plausible medians of the ADC inside the brain, in 1e-3 mm2/s; ISLES case 0009 has 0.904."""
MOST_NEGATIVE = 0.05
"""Largest share of the brain with negative intensities; interpolation leaves far less behind."""


class Inspection(NamedTuple):
    """The findings of one scan and its row of the manifest (plain data)."""

    findings: list[Finding]
    row: dict[str, Any]


def inspect(scan: Scan, base: Path) -> Inspection:
    """Examine one scan; nothing is raised, whatever its files are. Paths are given from `base`."""
    report = Report(scan.id)
    row: dict[str, Any] = {
        "id": scan.id,
        "task": scan.task,
        "edition": scan.label_edition,
        "group": scan.group,
        "post_op": scan.post_op,
        "files": ";".join(path.relative_to(base).as_posix() for path in scan.files),
        "label_sha256": None,
    }
    if scan.label:
        with suppress(OSError):  # reported when the file is opened as an image
            row["label_sha256"] = file_hash(scan.label)
    try:
        _examine(scan, report, row)
    except Exception as error:  # one scan must not end the audit of a thousand
        got = f"{type(error).__name__}: {error}"
        report.add("not examined", got, "files that can be examined", "error")
    return Inspection(report.findings, row)


def _examine(scan: Scan, report: Report, row: dict[str, Any]) -> None:
    """Report every fault of a scan and add to its row what could be measured."""
    task = TASKS[scan.task]
    opened = [sound_image(path, report) for path in scan.channels]
    if scan.label is None:
        report.add("no label", "images only", "a label, unless for validation", "info")
    label = sound_label(scan.label, report) if scan.label else None
    images = {
        name: image for name, image in zip(task.channels, opened, strict=True) if image is not None
    }
    _report_identical(images, report)
    flair = images.pop("flair", None)  # of ISLES: it has a grid of its own
    files = images if label is None else {**images, "label": label}
    if not files:
        return
    first = _first(files)
    row |= _geometry(first)
    _report_unusual_grid(first, scan, report)
    placed = _placed(files, first, report)
    # A label on another grid still has values that can be checked.
    numbers = None if label is None else _numbers(placed.get("label", label), scan, report)
    numbers = numbers if placed.pop("label", None) is not None else None
    if not placed:
        return
    brain = volumes.brain_of([image.array for image in placed.values()])
    _report_negatives(placed, brain, report)
    row["brain_ml"] = _ml(brain, first)
    if numbers is not None:
        row |= _lesions(numbers, first, task)
        _report_outside(numbers, brain, report)
    if flair is not None and flair.array.any():
        placed["flair"] = volumes.onto(flair, first)
        row["flair_overlap"] = _overlap(placed["flair"], brain, report)
    plausible = _report_contrast(placed, brain, numbers, task, report)
    if "adc" in placed:
        row["adc_median"] = _adc_median(placed["adc"], brain, report if plausible else None)


def _report_identical(images: Mapping[str, NiftiVolume], report: Report) -> None:
    for (one, first), (two, second) in combinations(images.items(), 2):
        if first.array.any() and np.array_equal(first.array, second.array):
            got = f"{second.path.name}: the voxels of {first.path.name}"
            report.add("identical channels", got, f"{one} and {two} to differ", "error")


def _first(files: Mapping[str, NiftiVolume]) -> NiftiVolume:
    """Return the file to compare the others with: the first that agrees with most of them."""

    def agreeing(one: NiftiVolume) -> int:
        return sum(
            volumes.same_grid(volumes.turned_to(other, one), one) for other in files.values()
        )

    return max(files.values(), key=agreeing)


def _geometry(first: NiftiVolume) -> dict[str, Any]:
    return {
        "shape": "x".join(map(str, first.array.shape)),
        "spacing_mm": "x".join(f"{size:.4g}" for size in voxel_sizes(first.affine)),
        "orientation": _axes(first),
    }


def _axes(volume: NiftiVolume) -> str:
    return "".join(nib.aff2axcodes(volume.affine))


def _report_unusual_grid(first: NiftiVolume, scan: Scan, report: Report) -> None:
    if scan.task != BRATS.name:
        return
    edition, shape = scan.label_edition, first.array.shape
    close = np.allclose(first.affine, MNI_AFFINE, rtol=0, atol=volumes.GRID_TOLERANCE)
    is_mni, is_sri = shape == MNI_SHAPE and close, shape == SRI_SHAPE
    if (is_mni and edition >= 2024) or (is_sri and edition != 2024):
        return
    name, usual = ("SRI24", SRI_SHAPE) if edition < 2024 else ("MNI152", MNI_SHAPE)
    origin = ", ".join(f"{value:.4g}" for value in first.affine[:3, 3])
    got = f"{first.path.name}: {_geometry(first)['shape']}, {_axes(first)}, origin ({origin}) mm"
    expected = f"{'x'.join(map(str, usual))} ({name} at 1 mm, edition {edition})"
    if edition >= 2024:
        expected += ", LAS, origin (90, -126, -72) mm"
    report.add("grid of another data set", got, expected, "warning")


def _placed(
    files: Mapping[str, NiftiVolume], first: NiftiVolume, report: Report
) -> dict[str, NiftiVolume]:
    """Return the files that lie on the grid of `first`, their axes in its order."""
    placed = {}
    for name, file in files.items():
        turned = volumes.turned_to(file, first)
        same_shape = turned.array.shape == first.array.shape
        check = "affine differs" if same_shape else "shape differs"
        if not report.passes(check, volumes.refuse_other_grid, turned, first):
            continue
        if not volumes.same_grid(file, first):
            got = f"{file.path.name}: stored as {_axes(file)}"
            report.add("axis order", got, f"{_axes(first)}, as {first.path.name}", "warning")
        placed[name] = turned
    return placed


def _numbers(label: NiftiVolume, scan: Scan, report: Report) -> UInt8[np.ndarray, "i j k"] | None:
    stored = label.array, scan.task, scan.label_edition, str(label.path)
    if (numbers := report.attempt("unknown label value", renumbered, *stored)) is None:
        return None
    if not numbers.any():
        report.add("empty mask", f"{label.path.name}: background only", "a lesion, mostly", "info")
    if scan.post_op and scan.label_edition < 2024:
        expected = f"none in edition {scan.label_edition}: name the edition of the labels"
        report.add("edition", f"{scan.id}: a scan after treatment", expected, "warning")
    if scan.post_op is False and (numbers == 4).any():
        got = f"{label.path.name}: label 4 (resection cavity) before treatment"
        expected = "a scan after treatment, or the edition in which 4 was enhancing tumour"
        report.add("edition", got, expected, "warning")
    return numbers


def _report_negatives(
    images: Mapping[str, NiftiVolume], brain: Bool[np.ndarray, "i j k"], report: Report
) -> None:
    for image in images.values():
        share = (image.array[brain] < 0).mean() if brain.any() else 0
        if share > MOST_NEGATIVE:
            got = f"{image.path.name}: {share:.0%} of the brain below 0"
            expected = "intensities as scanned: negative at a few edges only"
            report.add("negative values", got, expected, "warning")


def _ml(mask: Bool[np.ndarray, "i j k"], grid: NiftiVolume) -> float:
    voxel_mm3 = abs(float(np.linalg.det(grid.affine[:3, :3])))
    return round(int(mask.sum()) * voxel_mm3 / 1000, 4)


def _lesions(numbers: UInt8[np.ndarray, "i j k"], grid: NiftiVolume, task: Task) -> dict[str, Any]:
    """Return volume and number of components (26 neighbours) of every label."""
    row: dict[str, Any] = {}
    for value, name in enumerate(task.labels[1:], start=1):
        mask = numbers == value
        row[f"{name}_ml"] = _ml(mask, grid)
        row[f"{name}_components"] = int(ndimage.label(mask, np.ones((3, 3, 3)))[1])
    return row


def _report_outside(
    numbers: UInt8[np.ndarray, "i j k"], brain: Bool[np.ndarray, "i j k"], report: Report
) -> None:
    mask = numbers != 0
    inside = (mask & brain).sum() / max(mask.sum(), 1)
    if mask.any() and inside < LEAST_INSIDE:
        got = f"label: {inside:.1%} of it inside the brain"
        report.add("mask outside the brain", got, f"at least {LEAST_INSIDE:.0%}", "warning")


def _overlap(flair: NiftiVolume, brain: Bool[np.ndarray, "i j k"], report: Report) -> float:
    covered = flair.array != 0
    dice = 2 * (covered & brain).sum() / max(covered.sum() + brain.sum(), 1)
    if dice < LEAST_OVERLAP:
        got = f"{flair.path.name}: Dice {dice:.3f} with the brain in DWI"
        report.add("FLAIR misplaced", got, f"at least {LEAST_OVERLAP}", "warning")
    return round(float(dice), 4)


def _report_contrast(
    images: Mapping[str, NiftiVolume],
    brain: Bool[np.ndarray, "i j k"],
    numbers: UInt8[np.ndarray, "i j k"] | None,
    task: Task,
    report: Report,
) -> bool:
    """Report channels that look like others; True when nothing speaks against their names."""
    if set(images) != set(task.channels) or not all(v.array.any() for v in images.values()):
        return True
    if any(finding.check == "identical channels" for finding in report.findings):
        return False
    lesion = None if numbers is None else numbers == (3 if task.name == BRATS.name else 1)
    measured = contrast([images[name].array for name in task.channels], brain, lesion)
    fault = "" if measured is None else implausible(task, measured)
    if fault:
        report.add("implausible contrast", fault, "the contrast the names promise", "warning")
    return not fault


def _adc_median(
    adc: NiftiVolume, brain: Bool[np.ndarray, "i j k"], report: Report | None
) -> float | None:
    """Return the median in 1e-3 mm2/s; the unit is reported where a report is given."""
    inside = adc.array[brain & (adc.array != 0)]
    if not inside.size:
        return None
    micro = volumes.is_micro(adc.array, brain)
    median = float(np.median(inside)) / (1000 if micro else 1)
    low, high = ADC_MEDIANS
    if report and not low <= median <= high:
        got = f"{adc.path.name}: median {np.median(inside):.3g} inside the brain"
        report.add("ADC unit", got, f"{low} to {high} in 1e-3 mm2/s", "warning")
    elif report and micro:
        got = f"{adc.path.name}: stored in 1e-6 mm2/s (median {np.median(inside):.0f})"
        report.add("ADC unit", got, "1e-3 mm2/s, to which it is brought on reading", "info")
    return round(median, 4)
