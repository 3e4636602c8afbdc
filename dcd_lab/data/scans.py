"""Scans: which files belong to which subject, by their names alone.

A scan that lacks a file is listed with the path where the file belongs; `read` refuses it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from dcd_core.types import ContractError
from dcd_lab.data.editions import OWN, numbering
from dcd_lab.tasks import BRATS, ISLES, SIMULATED, TASKS, Task

BRATS_ID = re.compile(r"BraTS-GLI-\d{5}-\d{3}", re.ASCII)
ISLES_ID = re.compile(r"sub-strokecase\d{4}", re.ASCII)
_IDS = {
    BRATS.name: (BRATS_ID, "BraTS-GLI-{:05}-100"),
    ISLES.name: (ISLES_ID, "sub-strokecase{:04}"),
    **{name: (re.compile(rf"{name}-\d{{4}}", re.ASCII), f"{name}-{{:04}}") for name in SIMULATED},
}
_BRATS_FILE = re.compile(
    r"(BraTS-GLI-\d{5}-\d{3})-(t1n|t1c|t2w|t2f|seg)\.nii(?:\.gz)?", re.I | re.A
)
_ISLES_FILE = re.compile(
    r"(?:(sub-strokecase\d{4})(?:_ses-\d+)?_)?(dwi|adc|flair|msk)\.nii(?:\.gz)?", re.I | re.A
)
_SIMULATED_FILE = re.compile(rf"(({'|'.join(SIMULATED)})-\d{{4}})-(\w+)\.nii(?:\.gz)?", re.A)
_LAYOUT = {
    BRATS.name: ("{id}/{id}-seg.nii.gz", "{id}/{id}-{name}.nii.gz"),
    ISLES.name: (
        "derivatives/{id}/ses-0001/{id}_ses-0001_msk.nii.gz",
        "rawdata/{id}/ses-0001/{id}_ses-0001_{name}.nii.gz",
    ),
    **dict.fromkeys(SIMULATED, ("{id}/{id}-label.nii.gz", "{id}/{id}-{name}.nii.gz")),
}
_LABEL_PART = {BRATS.name: "seg", ISLES.name: "msk", **dict.fromkeys(SIMULATED, "label")}
_EXPECTED = {
    **{name: f"files {name}-NNNN-label.nii.gz and so on at any depth" for name in SIMULATED},
    BRATS.name: "folders BraTS-GLI-PPPPP-TTT at any depth",
    ISLES.name: "files sub-strokecaseNNNN_ses-0001_dwi.nii.gz and so on at any depth",
}


class Scan(NamedTuple):
    """The files of one subject at one time point.

    `task` is a name out of `tasks.TASKS`; `channels` are paths in the order of that task; `label`
    is None for an unlabelled scan; `group` is the patient, whose scans must stay in one fold;
    `edition` is the year whose label numbers the file holds, None for those of the task itself.
    """

    id: str
    task: str
    channels: tuple[Path, ...]
    label: Path | None
    group: str
    edition: int | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The channels, then the label if there is one."""
        return self.channels if self.label is None else (*self.channels, self.label)

    def state(self) -> list[tuple[str, int, int] | None]:
        """Name, size and time of every file: what changes when a file does; None for one absent."""
        return [_state(path) for path in self.files]

    @property
    def label_edition(self) -> int:
        """The edition of the label, that of the task where none is named."""
        return OWN[self.task] if self.edition is None else self.edition

    @property
    def post_op(self) -> bool | None:
        """Whether it was made after treatment, by the id; None for ISLES, whose ids do not tell."""
        return int(self.id[-3:]) >= 100 if BRATS_ID.fullmatch(self.id) else None


def _state(path: Path) -> tuple[str, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return path.name, status.st_size, status.st_mtime_ns


class Survey(NamedTuple):
    """All that lies below a root, by name alone.

    `parts` holds the paths of every task, scan and part ("seg", "t1n", "msk", ...), more than one
    where a file is there more than once; `folders` the folders named like a BraTS scan, by id;
    `strays` the NIfTI files that belong to no scan; `closed` the folders that could not be opened.
    """

    base: Path
    parts: dict[str, dict[str, dict[str, list[Path]]]]
    folders: dict[str, list[Path]]
    strays: list[Path]
    closed: list[Path]


def brats2024(root: str | os.PathLike[str], *, edition: int = 2024) -> list[Scan]:
    """List the BraTS GLI scans anywhere under `root`, sorted by id.

    A scan is a folder `BraTS-GLI-PPPPP-TTT` at any depth: PPPPP is the patient, TTT the time point,
    from 100 on after treatment. `edition` is the year whose numbers the labels hold.
    Raises ContractError when `root` or every scan is absent, when a scan is there twice, when a
    folder cannot be opened, and for an unknown edition.
    """
    return _listed(root, BRATS, edition)


def isles2022(root: str | os.PathLike[str]) -> list[Scan]:
    """List the ISLES 2022 cases anywhere under `root`, sorted by id.

    A file is known by its name, `sub-strokecaseNNNN_ses-0001_{dwi,adc,flair,msk}.nii.gz` in any
    case, or by the last part of it in a folder named after the case.
    Raises ContractError as `brats2024` does.
    """
    return _listed(root, ISLES, OWN[ISLES.name])


def _simulated(root: str | os.PathLike[str], *, task: Task) -> list[Scan]:
    """List the phantoms of a task that has no public data, as `isles2022` lists its cases."""
    return _listed(root, task, OWN[task.name])


READERS: Mapping[str, Callable[..., list[Scan]]] = {
    BRATS.name: brats2024,
    ISLES.name: isles2022,
    **{name: partial(_simulated, task=task) for name, task in SIMULATED.items()},
}
"""What lists the scans of each task."""


def _listed(root: str | os.PathLike[str], task: Task, edition: int) -> list[Scan]:
    numbering(task.name, edition)
    tree = survey(root)
    if tree.closed:
        attempt = "change the permissions: scans in it would be missed"
        raise ContractError(str(tree.closed[0]), "no permission", "a readable folder", attempt)
    for _, name, paths in twice(tree, task):
        got = f"it twice: {paths[0]} and {paths[1]}"
        raise ContractError(name, got, "one copy", "name one of the editions as root")
    if not (scans := scans_of(tree, task, edition)):
        raise no_scans(tree.base, [task.name])
    return scans


def no_scans(base: Path, tasks: list[str]) -> ContractError:
    """Return the error of a root that holds no scan of any of the tasks."""
    expected = " or ".join(_EXPECTED[name] for name in tasks)
    attempt = "point to the unpacked data set, not to an archive of it"
    return ContractError(f"data root {base}", "no scan", expected, attempt)


def survey(root: str | os.PathLike[str]) -> Survey:
    """Look at the names of all files and folders below `root`, hidden ones left out.

    Raises ContractError when `root` is absent.
    """
    if not (base := Path(root)).is_dir():
        expected = "the folder that holds the data set"
        attempt = "set DCD_DATA to where the data set lies, or work with the phantoms"
        raise ContractError("data root", f"no folder {base}", expected, attempt)
    tree = Survey(base, {name: {} for name in TASKS}, {}, [], [])
    for folder, names in _walk(base, tree.closed):
        if BRATS_ID.fullmatch(folder.name):
            tree.folders.setdefault(folder.name, []).append(folder)
            tree.parts[BRATS.name].setdefault(folder.name, {})  # a scan, even without a file
        for name in names:
            if owner := _owner(name, folder, base):
                task, id, part = owner
                tree.parts[task].setdefault(id, {}).setdefault(part, []).append(folder / name)
            elif name.lower().endswith((".nii", ".nii.gz")):
                tree.strays.append(folder / name)
    return tree


def _walk(base: Path, closed: list[Path]) -> Iterator[tuple[Path, list[str]]]:
    """Yield every folder below `base` once, with the names of its files; hidden ones left out."""

    def note(error: OSError) -> None:
        closed.append(Path(str(error.filename)))

    seen: set[tuple[int, int]] = set()
    for folder, inner, names in os.walk(base, followlinks=True, onerror=note):
        try:
            status = os.stat(folder)
        except OSError as error:  # the folder has just vanished
            note(error)
            continue
        if (status.st_dev, status.st_ino) in seen:
            inner.clear()  # a link to a folder above or beside it
            continue
        seen.add((status.st_dev, status.st_ino))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield Path(folder), sorted(name for name in names if not name.startswith("."))


def _owner(name: str, folder: Path, base: Path) -> tuple[str, str, str] | None:
    """Return task, id and part of a file, or None when it belongs to no scan."""
    if match := _BRATS_FILE.fullmatch(name):
        same = BRATS_ID.fullmatch(folder.name) and match[1].lower() == folder.name.lower()
        return (BRATS.name, folder.name, match[2].lower()) if same else None
    if match := _ISLES_FILE.fullmatch(name):
        above = reversed(folder.relative_to(base).parts)
        id = match[1] or next(filter(ISLES_ID.fullmatch, above), "")
        return (ISLES.name, id.lower(), match[2].lower()) if id else None
    if match := _SIMULATED_FILE.fullmatch(name):
        return match[2], match[1], match[3]
    return None


def scans_of(tree: Survey, task: Task, edition: int) -> list[Scan]:
    """Return the scans of a task in a survey, sorted by id; of several copies the first counts."""
    return [_scan(id, tree, task, edition) for id in sorted(tree.parts[task.name])]


def _scan(id: str, tree: Survey, task: Task, edition: int) -> Scan:
    files = {part: paths[0] for part, paths in tree.parts[task.name][id].items()}
    base, expected = tree.base, layout(id, task)
    if task.name == BRATS.name:
        base = ([path.parent for path in files.values()] or tree.folders[id])[0].parent
    channels = tuple(files.get(name, base / expected[name]) for name in task.channels)
    return Scan(id, task.name, channels, files.get(_LABEL_PART[task.name]), patient(id), edition)


def twice(tree: Survey, task: Task) -> Iterator[tuple[str, str, list[Path]]]:
    """Yield what is there more than once: the id of the scan, the name of the copy, their paths.

    That is a single file, or a BraTS scan in two folders, which may be of two editions.
    """
    for id, parts in sorted(tree.parts[task.name].items()):
        folders = sorted({path.parent for paths in parts.values() for path in paths})
        folders = folders or tree.folders[id]
        if task.name == BRATS.name and len(folders) > 1:
            yield id, id, folders
        else:
            yield from ((id, paths[0].name, paths) for paths in parts.values() if len(paths) > 1)


def patient(id: str) -> str:
    """Return the patient of a scan: a BraTS id without its time point, any other id as it is."""
    return id.rsplit("-", 1)[0] if BRATS_ID.fullmatch(id) else id


def layout(id: str, task: Task) -> dict[str, Path]:
    """Return where the files of a scan lie below the data root: "label" first, then by channel."""
    label, channel = _LAYOUT[task.name]
    paths = {"label": Path(label.format(id=id))}
    return paths | {name: Path(channel.format(id=id, name=name)) for name in task.channels}


def layout_id(id: str, task: Task) -> str:
    """Return the id under which a case is written: its own, else one made of its last number.

    So a phantom "glioma-7" becomes "BraTS-GLI-00007-100", a first scan after treatment.
    Raises ContractError when the id has no number or one with too many digits.
    """
    pattern, form = _IDS[task.name]
    if not isinstance(id, str):
        raise ContractError("id of a case", repr(id), "text that ends in a number", "'case-1'")
    if pattern.fullmatch(id):
        return id
    number = re.search(r"\d+$", id)
    made = form.format(int(number[0])) if number else ""
    if not pattern.fullmatch(made):
        attempt = f"case._replace(id={form.format(1)!r})"
        raise ContractError(f"case {id!r}", "no usable number", "an id ending in one", attempt)
    return made
