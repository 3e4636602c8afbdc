"""Scans: which files belong to which subject.

Both data sets encode everything in their file names. A survey looks at names only, never into a
file: a scan whose file is absent is listed with the path where it belongs, and `read` refuses it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dcd_core.types import BRATS, ISLES, TASKS, ContractError, Task
from dcd_lab.data.editions import OWN, numbering

BRATS_ID = re.compile(r"BraTS-GLI-\d{5}-\d{3}")
ISLES_ID = re.compile(r"sub-strokecase\d{4}")
_IDS = {
    BRATS.name: (BRATS_ID, "BraTS-GLI-{:05}-100"),
    ISLES.name: (ISLES_ID, "sub-strokecase{:04}"),
}
_BRATS_FILE = re.compile(r"(BraTS-GLI-\d{5}-\d{3})-(t1n|t1c|t2w|t2f|seg)\.nii(?:\.gz)?", re.I)
_ISLES_FILE = re.compile(
    r"(?:(sub-strokecase\d{4})(?:_ses-\d+)?_)?(dwi|adc|flair|msk)\.nii(?:\.gz)?", re.I
)
LABEL_PART = {BRATS.name: "seg", ISLES.name: "msk"}
"""How file names call the label."""
EXPECTED = {
    BRATS.name: "folders BraTS-GLI-PPPPP-TTT in it or further down",
    ISLES.name: "files sub-strokecaseNNNN_ses-0001_dwi.nii.gz and so on below it",
}


class Scan(NamedTuple):
    """The files of one subject at one time point.

    `task` is a name out of `types.TASKS`; `channels` are paths in the order of that task; `label`
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
    def post_op(self) -> bool | None:
        """Whether it was made after treatment, by the id; None where ids do not tell (ISLES)."""
        return int(self.id[-3:]) >= 100 if BRATS_ID.fullmatch(self.id) else None


class Survey(NamedTuple):
    """Everything below a root, by name: nothing is judged, so that an audit can list all of it.

    `parts` holds the paths of every task, scan and part ("seg", "t1n", "msk", ...), more than one
    where a file is there more than once; `folders` the folders named like a BraTS scan, by id;
    `strays` the NIfTI files that belong to no scan; `closed` the folders that could not be opened.
    """

    base: Path
    parts: dict[str, dict[str, dict[str, list[Path]]]]
    folders: dict[str, list[Path]]
    strays: list[Path]
    closed: list[Path]


class Copies(NamedTuple):
    """Something that is there more than once: the `name` of a scan `id` or of one of its files."""

    id: str
    name: str
    places: list[Path]


def brats2024(root: str | os.PathLike[str], *, edition: int = 2024) -> list[Scan]:
    """List the BraTS GLI scans anywhere under `root`, sorted by id.

    A scan is a folder `BraTS-GLI-PPPPP-TTT` at any depth: `training_data1_v2/`,
    `training_data_additional/` and `validation_data/`, which has no labels, may lie below one root.
    PPPPP is the patient; TTT the time point, from 100 on after treatment. `edition` is the year
    whose numbers the labels hold, which no file reveals: 4 was enhancing tumour up to 2022, unknown
    in 2023 and the resection cavity since 2024. `read` brings them to those of 2024.
    Raises ContractError when `root` or every scan is absent, when a scan is there twice, when a
    folder cannot be opened, and for an unknown edition.
    """
    return _listed(root, BRATS, edition)


def isles2022(root: str | os.PathLike[str]) -> list[Scan]:
    """List the ISLES 2022 cases anywhere under `root`, sorted by id.

    Files are known by their names, `sub-strokecaseNNNN_ses-0001_{dwi,adc,flair,msk}.nii.gz` in any
    case, or by the last part of them in a folder named after the case, so that the challenge layout
    (rawdata/, derivatives/), the Zenodo archive and flat copies are all understood; sidecars are
    not needed.
    Raises ContractError when `root` or every case is absent, when a file is there twice, and when a
    folder cannot be opened.
    """
    return _listed(root, ISLES, OWN[ISLES.name])


def _listed(root: str | os.PathLike[str], task: Task, edition: int) -> list[Scan]:
    numbering(task.name, edition)
    found = survey(root)
    if found.closed:
        attempt = "the permissions of that folder: scans in it would be missed"
        raise ContractError(str(found.closed[0]), "a folder that is shut", "it readable", attempt)
    for copies in twice(found, task):
        got = f"it twice: {copies.places[0]} and {copies.places[1]}"
        raise ContractError(copies.name, got, "one copy", "name one of the editions as root")
    if not (scans := scans_of(found, task, edition)):
        raise nothing(found.base, EXPECTED[task.name])
    return scans


def survey(root: str | os.PathLike[str]) -> Survey:
    """Look at the names of all files and folders below `root`, hidden ones left out.

    Raises ContractError when `root` is absent.
    """
    base = _existing(root)
    found = Survey(base, {name: {} for name in TASKS}, {}, [], [])
    for folder, names in _walk(base, found.closed):
        if BRATS_ID.fullmatch(folder.name):
            found.folders.setdefault(folder.name, []).append(folder)
        for name in names:
            if owner := _owner(name, folder, base):
                task, id, part = owner
                found.parts[task].setdefault(id, {}).setdefault(part, []).append(folder / name)
            elif name.lower().endswith((".nii", ".nii.gz")):
                found.strays.append(folder / name)
    return found


def scans_of(found: Survey, task: Task, edition: int) -> list[Scan]:
    """Return the scans of a task in a survey, sorted by id; of several copies the first counts."""
    parts = found.parts[task.name]
    ids = parts.keys() | (found.folders.keys() if task.name == BRATS.name else set())
    return [_scan(id, parts.get(id, {}), found, task, edition) for id in sorted(ids)]


def twice(found: Survey, task: Task) -> list[Copies]:
    """Return what is there more than once: scans whose files lie in two folders, or single files.

    A BraTS scan is one folder: files of two folders are two scans, perhaps of two editions, even
    when no file is there twice.
    """
    result: list[Copies] = []
    for id, parts in sorted(found.parts[task.name].items()):
        homes = sorted({path.parent for paths in parts.values() for path in paths})
        if task.name == BRATS.name and len(homes) > 1:
            result.append(Copies(id, id, homes))
        else:
            several = (paths for paths in parts.values() if len(paths) > 1)
            result += (Copies(id, paths[0].name, paths) for paths in several)
    if task.name == BRATS.name:
        empty = sorted(found.folders.keys() - found.parts[task.name].keys())
        folders = ((id, found.folders[id]) for id in empty)
        result += (Copies(id, id, places) for id, places in folders if len(places) > 1)
    return result


def _walk(base: Path, closed: list[Path]) -> Iterator[tuple[Path, list[str]]]:
    """Yield every folder below `base` once, with the names of its files; hidden ones left out."""

    def shut(error: OSError) -> None:
        closed.append(Path(str(error.filename)))

    seen: set[tuple[int, int]] = set()
    for folder, inner, names in os.walk(base, followlinks=True, onerror=shut):
        try:
            known = os.stat(folder)
        except OSError as error:  # it has just vanished
            shut(error)
            continue
        if (known.st_dev, known.st_ino) in seen:
            inner.clear()  # a link to a folder above or beside it
            continue
        seen.add((known.st_dev, known.st_ino))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield Path(folder), sorted(name for name in names if not name.startswith("."))


def _owner(name: str, folder: Path, base: Path) -> tuple[str, str, str] | None:
    """Return task, id and part of a file, or None when it belongs to no scan."""
    if match := _BRATS_FILE.fullmatch(name):
        same = BRATS_ID.fullmatch(folder.name) and match[1].lower() == folder.name.lower()
        return (BRATS.name, folder.name, match[2].lower()) if same else None
    if match := _ISLES_FILE.fullmatch(name):
        above = (part for part in reversed(folder.relative_to(base).parts))
        id = match[1] or next(filter(ISLES_ID.fullmatch, above), "")
        return (ISLES.name, id.lower(), match[2].lower()) if id else None
    return None


def patient(id: str) -> str:
    """Return the patient of a scan: a BraTS id without its time point, any other id as it is.

    The usual `group` of `folds`.
    """
    return id.rsplit("-", 1)[0] if BRATS_ID.fullmatch(id) else id


def layout(id: str, task: Task) -> dict[str, Path]:
    """Return where the files of a scan lie below the data root: "label" first, then by channel."""
    if task.name == BRATS.name:
        label = {"label": Path(id, f"{id}-seg.nii.gz")}
        return label | {name: Path(id, f"{id}-{name}.nii.gz") for name in task.channels}
    session, stem = Path(id, "ses-0001"), f"{id}_ses-0001"
    label = {"label": Path("derivatives", session, f"{stem}_msk.nii.gz")}
    return label | {
        name: Path("rawdata", session, f"{stem}_{name}.nii.gz") for name in task.channels
    }


def layout_id(id: str, task: Task) -> str:
    """Return the id under which a case is written: its own, else one made of its last number.

    So a phantom "glioma-7" becomes "BraTS-GLI-00007-100", a first scan after treatment, and
    "stroke-7" becomes "sub-strokecase0007".
    Raises ContractError when the id has no number or one with too many digits.
    """
    pattern, form = _IDS[task.name]
    if pattern.fullmatch(id):
        return id
    number = re.search(r"\d+$", id)
    made = form.format(int(number[0])) if number else ""
    if not pattern.fullmatch(made):
        attempt = f"case._replace(id={form.format(1)!r})"
        raise ContractError(f"case {id!r}", "no usable number", "an id ending in one", attempt)
    return made


def _existing(root: str | os.PathLike[str]) -> Path:
    if (base := Path(root)).is_dir():
        return base
    raise ContractError(
        "data root",
        f"no folder {base}",
        "the folder that holds the data set",
        "set DCD_DATA to where the data set lies, or work with the phantoms",
    )


def nothing(base: Path, expected: str) -> ContractError:
    """Return the error of a root that holds no scan."""
    attempt = "point to the unpacked data set, not to an archive of it"
    return ContractError(f"data root {base}", "no scan", expected, attempt)


def _scan(id: str, parts: dict[str, list[Path]], found: Survey, task: Task, edition: int) -> Scan:
    files = {part: paths[0] for part, paths in parts.items()}
    home = found.base
    expected = layout(id, task)
    if task.name == BRATS.name:
        # Where its files are, since an empty folder of the same name may lie around them.
        home = next((path.parent for path in files.values()), found.folders[id][0]).parent
    channels = tuple(files.get(name, home / expected[name]) for name in task.channels)
    label = files.get(LABEL_PART[task.name])
    return Scan(id, task.name, channels, label, patient(id), edition)
