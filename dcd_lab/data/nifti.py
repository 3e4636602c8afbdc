"""NIfTI: how files become cases, and how cases and labels become files.

`read` refuses every file that is not sound. `write` and `export` leave nothing half done.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Shaped, UInt8
from nibabel.affines import voxel_sizes

from dcd_core.storage import atomic
from dcd_core.types import Case, ContractError, checked_case
from dcd_lab.cache import make_once
from dcd_lab.data import volumes
from dcd_lab.data.editions import OWN, renumbered
from dcd_lab.data.scans import Scan, layout, layout_id, patient
from dcd_lab.data.volumes import NiftiVolume, load, onto, open_image
from dcd_lab.tasks import TASKS, Task, checked_task


def read(scan: Scan, *, grid: str | None = None) -> Case:
    """Read a scan and verify it: one sound case, all channels on one grid, or a ContractError.

    Intensities stay as stored, with two exceptions: an ADC in 1e-6 mm2/s is brought to 1e-3 mm2/s,
    and the FLAIR of ISLES, which has its own grid, is resampled linearly to that of the DWI by the
    two headers. `grid` names another channel whose grid everything is brought to instead, the label
    by its nearest voxel: the release trains ISLES on the grid of the "flair". Scores on such a case
    cannot be compared with the challenge's.
    Voxels keep the order of the first channel's file; other orders (LAS, LPS, RAS) are turned. The
    label has the numbers of the task: those of the scan's edition are translated. An empty one is
    sound, and so are negative intensities.
    Raises ContractError, naming the file, when it is absent, unreadable or truncated, complex, not
    3-D, not in mm, not finite, zero throughout, on another grid than the first channel, or when the
    label holds values that the edition does not have; and for an unknown `grid`.
    """
    channels = TASKS[scan.task].channels
    if grid not in (None, *channels):
        attempt = "grid=None, the grid on which the challenge scores"
        raise ContractError(f"grid of {scan.task}", repr(grid), f"one of {channels}", attempt)
    images = dict(zip(channels, map(load, scan.channels), strict=True))
    first, target = images[channels[0]], images[grid or channels[0]]
    for name, image in images.items():
        if name != "flair":
            images[name] = _on_the_grid(image, first)
    if "adc" in images:
        images["adc"] = _in_milli(images["adc"], first)
    label = None if scan.label is None else _label(scan, scan.label, first, target)
    for name, image in images.items():
        images[name] = onto(image, target)
        volumes.refuse_zeros(images[name])
    stacked = np.stack([image.array for image in images.values()])
    return Case(scan.id, stacked, label, _spacing_mm(target), target.affine)


def read_label(scan: Scan) -> Case:
    """Read the label of a scan alone, as `read` does: a `Case` whose image has no channels.

    Of the channels only the first is opened, for its grid. Raises ContractError when the scan has
    no label, and as `read` does for these two files.
    """
    if scan.label is None:
        raise ContractError(f"case {scan.id}", "no label", "a label", "score labelled scans only")
    first = load(scan.channels[0])
    label = _label(scan, scan.label, first, first)
    image = np.empty((0, *label.shape), np.float32)
    return Case(scan.id, image, label, _spacing_mm(first), first.affine)


def _label(
    scan: Scan, path: Path, first: NiftiVolume, target: NiftiVolume
) -> UInt8[np.ndarray, "i j k"]:
    """Return the label of a scan, in the numbers of its task and on the grid of `target`."""
    stored = onto(_on_the_grid(load(path), first), target, order=0)
    volumes.refuse_fractions(stored)
    return renumbered(stored.array, scan.task, scan.label_edition, str(path))


def _on_the_grid(volume: NiftiVolume, first: NiftiVolume) -> NiftiVolume:
    turned = volumes.turned_to(volume, first)
    volumes.refuse_other_grid(turned, first)
    return turned


def _in_milli(adc: NiftiVolume, dwi: NiftiVolume) -> NiftiVolume:
    """Return the ADC in 1e-3 mm2/s."""
    large = volumes.is_micro(adc.array, volumes.brain_of([dwi.array]))
    return adc._replace(array=adc.array / np.float32(1000)) if large else adc


def _spacing_mm(volume: NiftiVolume) -> tuple[float, float, float]:
    # Headers hold float32: 2.00000001 is 2.
    i, j, k = (round(float(size), 6) for size in voxel_sizes(volume.affine))
    return i, j, k


def write(cases: Iterable[Case], root: str | os.PathLike[str], *, task: Task) -> list[Scan]:
    """Write cases below `root` in the layout of their data set and return their scans.

    Images are float32, labels uint8, qform and sform both hold the affine. A folder appears whole
    or not at all. One that exists is kept, so interrupted work is continued by starting it again.
    An id of another form is translated by its last number, "stroke-7" to "sub-strokecase0007".
    Raises ContractError when an id has no number or comes twice, when a case has not the channels
    of the task or a label of another grid, or when its folder holds something else.
    """
    scans: dict[str, Scan] = {}
    for case in map(checked_case, cases):
        named = case._replace(id=layout_id(case.id, checked_task(task)))
        if named.id in scans:
            got = f"a second {named.id}"
            raise ContractError(f"case {case.id}", got, "unique ids", "rename it")
        scans[named.id] = _write_case(named, Path(root), task)
    return list(scans.values())


def _write_case(case: Case, base: Path, task: Task) -> Scan:
    if len(case.image) != len(task.channels):
        got, expected = f"{len(case.image)} channels", ", ".join(task.channels)
        raise ContractError(f"case {case.id}", got, expected, "the task of this case")
    if wrong := int(case.image.size - np.isfinite(case.image).sum()):
        got = f"{wrong} voxels that are not finite"
        raise ContractError(f"case {case.id}", got, "finite voxels", "0 where there is no signal")
    paths = {name: base / path for name, path in layout(case.id, task).items()}
    arrays = dict(zip(task.channels, case.image, strict=True))
    if case.label is not None:
        # Labels go first: cut off in between, a case lacks channels, which `read` refuses. In the
        # other order it would pass for an unlabelled one.
        arrays = {"label": case.label, **arrays}
    folders: dict[Path, dict[Path, np.ndarray]] = {}
    for name, array in arrays.items():
        folder = next(above for above in paths[name].parents if above.name == case.id)
        folders.setdefault(folder, {})[paths[name].relative_to(folder)] = array
    for folder, files in folders.items():
        _write_folder(folder, files, case)
    label = None if case.label is None else paths["label"]
    channels = tuple(paths[name] for name in task.channels)
    return Scan(case.id, task.name, channels, label, patient(case.id), OWN[task.name])


def _write_folder(folder: Path, files: dict[Path, np.ndarray], case: Case) -> None:
    def save_all(scratch: Path) -> None:
        for path, array in files.items():
            stored = nib.Nifti1Image(array, case.affine)
            # Readers differ in which of the two they trust, so both are set.
            stored.set_qform(case.affine, code=1)
            stored.set_sform(case.affine, code=1)
            stored.header.set_xyzt_units("mm")
            (scratch / path).parent.mkdir(parents=True, exist_ok=True)
            nib.save(stored, scratch / path)

    if not make_once(folder, save_all):
        _refuse_foreign(folder, files, case)


def _refuse_foreign(folder: Path, files: dict[Path, np.ndarray], case: Case) -> None:
    """Accept existing files as those of the case: all headers, and the voxels of the first."""
    for index, (path, array) in enumerate(files.items()):
        stored = open_image(folder / path)
        close = np.allclose(stored.affine, case.affine, rtol=0, atol=volumes.GRID_TOLERANCE)
        same = close and stored.shape == array.shape
        if not same or (index == 0 and not np.array_equal(load(folder / path).array, array)):
            attempt = f"remove {folder}, or write to another root"
            raise ContractError(str(folder / path), "another image", f"case {case.id}", attempt)


def export(
    label: Shaped[np.ndarray, "i j k"],
    path: str | os.PathLike[str],
    *,
    reference: str | os.PathLike[str],
) -> Path:
    """Write a label volume (i, j, k) as NIfTI with the header of `reference`, a file of the scan.

    Affine, both transforms with their codes, units and voxel sizes are those of the reference. The
    label is stored unscaled in the smallest unsigned integer type. Returns the path.
    Raises ContractError when the reference is unreadable or of another shape, when the label holds
    anything but whole numbers from 0 on, or when `path` is no NIfTI name.
    """
    path, stored = Path(path), open_image(Path(reference))
    if not path.name.endswith((".nii", ".nii.gz")) or path.name in (".nii", ".nii.gz"):
        raise ContractError("export", path.name, "a name in .nii.gz or .nii", f"{path.name}.nii.gz")
    if path.exists() and path.samefile(reference):
        got, expected = f"{path}, the reference", "another file: the scan would be lost"
        raise ContractError("export", got, expected, "another name")
    what, attempt = f"label for {path.name}", "data.predict_case, which returns such a label"
    if (*label.shape, *(1,) * (len(stored.shape) - label.ndim)) != stored.shape:
        expected = f"{stored.shape}, as in {Path(reference).name}"
        raise ContractError(what, f"shape {label.shape}", expected, attempt)
    if label.dtype.kind not in "iufb":
        raise ContractError(what, label.dtype, "whole numbers", attempt)
    wrong = ~np.isfinite(label) | (label < 0) | (label >= 2**32) | (label != np.rint(label))
    if wrong.any():
        got = f"{wrong.sum()} voxels such as {label[wrong][0]}"
        raise ContractError(what, got, "whole numbers from 0 on, below 2**32", attempt)
    whole = label.astype(np.min_scalar_type(int(label.max(initial=0))))
    header = stored.header.copy()
    header.set_data_dtype(whole.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"], header["cal_max"] = 0, 0  # a display window of intensities hides labels
    with atomic(path) as temporary:
        nib.save(nib.Nifti1Image(whole, None, header), temporary)
    return path
