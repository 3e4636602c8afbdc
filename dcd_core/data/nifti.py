"""NIfTI: nothing that is wrong with a file gets past `read`, nothing half done leaves `write`."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import nibabel as nib
import numpy as np
from jaxtyping import Float, Float32, UInt8
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from dcd_core.data.grid import resample
from dcd_core.data.scans import Scan, layout, layout_id, patient
from dcd_core.types import TASKS, Case, ContractError, Task

GRID_TOLERANCE = 1e-3
"""Largest difference between two entries of the affines of one grid, in mm."""
LABEL_TOLERANCE = 1e-3
"""Largest distance of a stored label from a whole number."""
_BROKEN = (OSError, EOFError, zlib.error, ValueError, TypeError, ImageFileError, HeaderDataError)


class _Volume(NamedTuple):
    path: Path
    array: Float32[np.ndarray, "i j k"]
    affine: Float[np.ndarray, "4 4"]


def read(scan: Scan) -> Case:
    """Read a scan and verify it: one sound case, all channels on one grid, or a ContractError.

    Intensities stay as stored, with two exceptions: an ADC in 1e-6 mm2/s is brought to 1e-3 mm2/s,
    and the FLAIR of ISLES, which has its own grid, is resampled linearly to that of the DWI by the
    two headers. An empty label is sound.
    Raises ContractError, naming the file, when it is absent, unreadable or truncated, not 3-D (a
    trailing axis of length 1 is dropped), not finite, zero throughout, on another grid than the
    first channel, or when the label holds values that the task does not have.
    """
    task = TASKS[scan.task]
    volumes = dict(zip(task.channels, map(_load, scan.channels), strict=True))
    first = volumes[task.channels[0]]
    if "flair" in volumes:
        volumes["flair"] = _onto(volumes["flair"], first)
    for volume in volumes.values():
        _refuse_other_grid(volume, first)
        _refuse_zeros(volume)
    if "adc" in volumes:
        volumes["adc"] = _in_milli(volumes["adc"])
    label = None if scan.label is None else _label(_load(scan.label), first, task)
    image = np.stack([volume.array for volume in volumes.values()])
    # Headers hold float32: 2.00000001 is 2.
    i, j, k = (round(float(size), 6) for size in voxel_sizes(first.affine))
    return Case(scan.id, image, label, (i, j, k), first.affine)


def _load(path: Path) -> _Volume:
    stored = open_nifti(path)
    try:
        with np.errstate(over="ignore"):  # beyond float32 becomes inf, which is refused below
            array = np.asarray(stored.dataobj, dtype=np.float32)
    except _BROKEN as error:
        raise _unreadable(path, error) from error
    affine = np.asarray(stored.affine, dtype=np.float64)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3:
        attempt = "store one volume per file"
        raise ContractError(str(path), f"shape {array.shape}", "3 axes", attempt)
    _refuse_not_finite(path, array, affine)
    return _Volume(path, array, affine)


def open_nifti(path: Path) -> nib.Nifti1Pair:
    """A NIfTI image whose header has been read, its voxels not yet.

    Raises ContractError when the file is absent, damaged or of another format.
    """
    if not path.is_file():
        raise ContractError(str(path), "no such file", "a NIfTI file", "fetch this scan again")
    try:
        stored = nib.load(path)
    except _BROKEN as error:
        raise _unreadable(path, error) from error
    if not isinstance(stored, nib.Nifti1Pair):
        raise _unreadable(path, TypeError(f"a {type(stored).__name__}"))
    return stored


def _unreadable(path: Path, error: Exception) -> ContractError:
    attempt = "fetch this file again: it is damaged or cut short"
    got = f"{type(error).__name__} ({error})"
    return ContractError(str(path), got, "a readable NIfTI file", attempt)


def _refuse_not_finite(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    if bad := int(array.size - np.isfinite(array).sum()):
        attempt = "export this volume again, with 0 where there is no signal"
        raise ContractError(str(path), f"{bad} NaN or infinite voxels", "finite voxels", attempt)
    if not (np.isfinite(affine).all() and abs(np.linalg.det(affine)) > 1e-9):
        attempt = "restore the header's sform or qform"
        raise ContractError(str(path), "an affine that cannot be inverted", "a grid", attempt)


def _refuse_other_grid(volume: _Volume, first: _Volume) -> None:
    if volume.array.shape != first.array.shape:
        got, expected = f"shape {volume.array.shape}", f"{first.array.shape}"
    elif not np.allclose(volume.affine, first.affine, rtol=0, atol=GRID_TOLERANCE):
        apart = np.abs(volume.affine - first.affine).max()
        got, expected = f"an affine {apart:.3g} mm off", f"within {GRID_TOLERANCE} mm"
    else:
        return
    attempt = "fetch both files again, or resample this one to the other's grid"
    raise ContractError(str(volume.path), got, f"{expected}, as {first.path.name}", attempt)


def _refuse_zeros(volume: _Volume) -> None:
    if not volume.array.any():
        expected = "signal within the grid of the first channel"
        attempt = "look at this file and its header, and fetch it again"
        raise ContractError(str(volume.path), "zeros throughout", expected, attempt)


def _onto(volume: _Volume, first: _Volume) -> _Volume:
    """Resample a volume to the grid of `first`, unless it is there already."""
    same = volume.array.shape == first.array.shape
    if same and np.allclose(volume.affine, first.affine, rtol=0, atol=GRID_TOLERANCE):
        return volume
    i, j, k = first.array.shape
    moved = resample(volume.array, volume.affine, onto_affine=first.affine, onto_shape=(i, j, k))
    return _Volume(volume.path, moved, first.affine)


def _in_milli(adc: _Volume) -> _Volume:
    """Return the ADC in 1e-3 mm2/s; a median above 50 can only mean that it came in 1e-6 mm2/s."""
    large = np.median(adc.array[adc.array != 0]) > 50
    return adc._replace(array=adc.array / np.float32(1000)) if large else adc


def _label(volume: _Volume, first: _Volume, task: Task) -> UInt8[np.ndarray, "i j k"]:
    _refuse_other_grid(volume, first)
    whole = np.round(volume.array)
    values = np.unique(whole)
    known = range(len(task.labels))
    if np.abs(volume.array - whole).max() >= LABEL_TOLERANCE:
        worst = volume.array.flat[np.abs(volume.array - whole).argmax()]
        got, attempt = f"the value {worst:g}", "resample labels by nearest neighbour"
    elif not np.isin(values, known).all():
        got = "labels " + ", ".join(f"{value:g}" for value in values)
        attempt = f"map them to {', '.join(task.labels)}"
    else:
        return whole.astype(np.uint8)
    expected = f"whole numbers 0 to {known[-1]} ({task.name})"
    raise ContractError(str(volume.path), got, expected, attempt)


def write(cases: Iterable[Case], root: str | os.PathLike[str], *, task: Task) -> list[Scan]:
    """Write cases below `root` in the layout of their data set and return their scans.

    BraTS 2024: one folder per scan; ISLES 2022: the challenge layout, FLAIR on the grid of the DWI.
    Images are float32, labels uint8, qform and sform both hold the affine. A folder appears whole
    or not at all; one that is there already is kept, so that an interrupted run resumes by being
    started again.
    An id of another form is translated by its last number, "stroke-7" to "sub-strokecase0007".
    Raises ContractError when an id has no number or comes twice, when a case has not the channels
    of the task, or when its folder holds something else.
    """
    base = Path(root)
    base.mkdir(parents=True, exist_ok=True)
    scans: dict[str, Scan] = {}
    for case in cases:
        named = case._replace(id=layout_id(case.id, task))
        if named.id in scans:
            raise ContractError(
                f"case {case.id}", f"a second {named.id}", "unique ids", "rename it"
            )
        scans[named.id] = _write_case(named, base, task)
    return list(scans.values())


def _write_case(case: Case, base: Path, task: Task) -> Scan:
    if len(case.image) != len(task.channels):
        got, expected = f"{len(case.image)} channels", ", ".join(task.channels)
        raise ContractError(f"case {case.id}", got, expected, "the task of this case")
    where = layout(case.id, task)
    volumes = dict(zip(task.channels, case.image, strict=True))
    if case.label is not None:
        # Labels go first: cut off in between, a case lacks channels, which `read` refuses. In the
        # other order it would pass for an unlabelled one.
        volumes = {"label": case.label, **volumes}
    folders: dict[Path, dict[Path, np.ndarray]] = {}
    for name, array in volumes.items():
        path = where[name]
        folder = Path(*path.parts[: path.parts.index(case.id) + 1])
        folders.setdefault(folder, {})[path] = array
    for folder, files in folders.items():
        _write_folder(base, folder, files, case)
    label = None if case.label is None else base / where["label"]
    channels = tuple(base / where[name] for name in task.channels)
    return Scan(case.id, task.name, channels, label, patient(case.id))


def _write_folder(base: Path, folder: Path, files: Mapping[Path, np.ndarray], case: Case) -> None:
    if (base / folder).exists():
        _refuse_foreign(base, files, case)
        return
    (base / folder).parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".partial-", dir=base) as scratch:
        for path, array in files.items():
            target = Path(scratch, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            _save(target, array, case.affine)
        try:
            os.replace(Path(scratch, folder), base / folder)
        except OSError:
            if not (base / folder).exists():
                raise
            _refuse_foreign(base, files, case)  # another process has just written the same case


def _refuse_foreign(base: Path, files: Mapping[Path, np.ndarray], case: Case) -> None:
    """Accept the files there as those of the case: all headers, and the voxels of the first."""
    for index, (path, array) in enumerate(files.items()):
        there = open_nifti(base / path)
        same = there.shape == array.shape and np.allclose(
            there.affine, case.affine, rtol=0, atol=GRID_TOLERANCE
        )
        if not same or (index == 0 and not np.array_equal(_load(base / path).array, array)):
            attempt = f"remove {base / path.parent}, or write to another root"
            raise ContractError(str(base / path), "another image", f"case {case.id}", attempt)


def _save(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    stored = nib.Nifti1Image(array, affine)
    # Readers differ in which of the two they trust, so both are set.
    stored.set_qform(affine, code=1)
    stored.set_sform(affine, code=1)
    stored.header.set_xyzt_units("mm")
    nib.save(stored, path)
