"""NIfTI: nothing that is wrong with a file gets past `read`, nothing half done leaves `write`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
from jaxtyping import UInt8
from nibabel.affines import voxel_sizes

from dcd_core.types import TASKS, Case, ContractError, Task
from dcd_lab.data.editions import OWN
from dcd_lab.data.scans import Scan, layout, layout_id, patient
from dcd_lab.data.volumes import (
    GRID_TOLERANCE,
    Volume,
    brain_of,
    is_micro,
    label_of,
    load,
    onto,
    open_image,
    refuse_other_grid,
    refuse_zeros,
    turned_to,
)


def read(scan: Scan, *, grid: str | None = None) -> Case:
    """Read a scan and verify it: one sound case, all channels on one grid, or a ContractError.

    Intensities stay as stored, with two exceptions: an ADC in 1e-6 mm2/s is brought to 1e-3 mm2/s,
    and the FLAIR of ISLES, which has its own grid, is resampled linearly to that of the DWI by the
    two headers. `grid` names another channel whose grid everything is brought to instead, the label
    by its nearest voxel: the release trains ISLES on the grid of the "flair". Scores on such a case
    cannot be compared with the challenge's, which are taken on the grid of the DWI.
    Voxels keep the order of the first channel's file (LAS, LPS, RAS, oblique: its affine tells); a
    file with the same grid in another order is turned. Affines are nibabel's: the sform where it is
    set, else the qform; `audit` reports where the two disagree.
    The label has the numbers of the task: those of the scan's edition are translated. An empty one
    is sound, and so are negative intensities, which interpolation leaves behind.
    Raises ContractError, naming the file, when it is absent, unreadable or truncated, not 3-D (a
    trailing axis of length 1 is dropped), not finite, zero throughout, on another grid than the
    first channel, or when the label holds values that the edition does not have; and for a `grid`
    that the task has no channel of.
    """
    task = TASKS[scan.task]
    volumes = dict(zip(task.channels, map(load, scan.channels), strict=True))
    first = volumes[task.channels[0]]
    target = first if grid is None else volumes[_known(grid, task)]
    for name, volume in volumes.items():
        if name != "flair":
            volumes[name] = _on_the_grid(volume, first)
    if "adc" in volumes:
        volumes["adc"] = _in_milli(volumes["adc"], first)
    label = None if scan.label is None else _label(scan, scan.label, first, target)
    for name, volume in volumes.items():
        volumes[name] = onto(volume, target)
        refuse_zeros(volumes[name])
    image = np.stack([volume.array for volume in volumes.values()])
    return Case(scan.id, image, label, _spacing_mm(target), target.affine)


def read_label(scan: Scan) -> Case:
    """Read the label of a scan alone, on its own grid: a `Case` whose image has no channels.

    All that scoring needs where the prepared case is at hand, in a fraction of the time of `read`:
    of the channels only the first is opened, for its grid. The label is that of `read`.
    Raises ContractError when the scan has no label, and as `read` does for these two files.
    """
    if scan.label is None:
        attempt = "score labelled scans only"
        raise ContractError(f"case {scan.id}", "no label", "a labelled case", attempt)
    first = load(scan.channels[0])
    label = _label(scan, scan.label, first, first)
    image = np.empty((0, *label.shape), np.float32)
    return Case(scan.id, image, label, _spacing_mm(first), first.affine)


def _label(scan: Scan, path: Path, first: Volume, target: Volume) -> UInt8[np.ndarray, "i j k"]:
    """The label of a scan, in the numbers of its task and on the grid of `target`."""
    edition = OWN[scan.task] if scan.edition is None else scan.edition
    stored = _on_the_grid(load(path), first)
    return label_of(onto(stored, target, order=0), scan.task, edition)


def _spacing_mm(volume: Volume) -> tuple[float, float, float]:
    # Headers hold float32: 2.00000001 is 2.
    i, j, k = (round(float(size), 6) for size in voxel_sizes(volume.affine))
    return i, j, k


def _known(grid: str, task: Task) -> str:
    if grid in task.channels:
        return grid
    attempt = "grid=None, the grid on which the challenge scores"
    raise ContractError(f"grid of {task.name}", repr(grid), f"one of {task.channels}", attempt)


def _on_the_grid(volume: Volume, first: Volume) -> Volume:
    turned = turned_to(volume, first)
    refuse_other_grid(turned, first)
    return turned


def _in_milli(adc: Volume, dwi: Volume) -> Volume:
    """Return the ADC in 1e-3 mm2/s."""
    large = is_micro(adc.array, brain_of([dwi.array]))
    return adc._replace(array=adc.array / np.float32(1000)) if large else adc


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
    return Scan(case.id, task.name, channels, label, patient(case.id), OWN[task.name])


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
        there = open_image(base / path)
        same = there.shape == array.shape and np.allclose(
            there.affine, case.affine, rtol=0, atol=GRID_TOLERANCE
        )
        if not same or (index == 0 and not np.array_equal(load(base / path).array, array)):
            attempt = f"remove {base / path.parent}, or write to another root"
            raise ContractError(str(base / path), "another image", f"case {case.id}", attempt)


def _save(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    stored = nib.Nifti1Image(array, affine)
    # Readers differ in which of the two they trust, so both are set.
    stored.set_qform(affine, code=1)
    stored.set_sform(affine, code=1)
    stored.header.set_xyzt_units("mm")
    nib.save(stored, path)
