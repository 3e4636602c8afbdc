"""Scans: which files belong to which subject.

Both data sets encode everything in their file names. A listing looks at names only, never into a
file: a scan whose file is absent is listed with the path where it belongs, and `read` refuses it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from dcd_core.types import BRATS, ISLES, ContractError, Task

BRATS_ID = re.compile(r"BraTS-GLI-\d{5}-\d{3}")
ISLES_ID = re.compile(r"sub-strokecase\d{4}")
_IDS = {
    BRATS.name: (BRATS_ID, "BraTS-GLI-{:05}-100"),
    ISLES.name: (ISLES_ID, "sub-strokecase{:04}"),
}
_BRATS_FILE = re.compile(r"(BraTS-GLI-\d{5}-\d{3})-(t1n|t1c|t2w|t2f|seg)\.nii(?:\.gz)?", re.I)
_ISLES_FILE = re.compile(
    r"(sub-strokecase\d{4})(?:_ses-\d+)?_(dwi|adc|flair|msk)\.nii(?:\.gz)?", re.I
)


class Scan(NamedTuple):
    """The files of one subject at one time point.

    `task` is a name out of `types.TASKS`; `channels` are paths in the order of that task; `label`
    is None for an unlabelled scan; `group` is the patient, whose scans must stay in one fold.
    """

    id: str
    task: str
    channels: tuple[Path, ...]
    label: Path | None
    group: str


def brats2024(root: str | os.PathLike[str]) -> list[Scan]:
    """List the BraTS 2024 GLI scans under `root`, sorted by id.

    A scan is a folder `BraTS-GLI-PPPPP-TTT` in `root` or one level further down
    (`training_data1_v2/` and its like); PPPPP is the patient, TTT the time point. Labels are those
    of the 2024 edition, in which 4 is the resection cavity: in editions up to 2021 the value 4 was
    enhancing tumour, which no file reveals.
    Raises ContractError when `root` or every scan is absent, or when a scan is there twice.
    """
    base = _existing(root)
    folders: dict[str, Path] = {}
    for folder in sorted((*base.glob("*"), *base.glob("*/*"))):
        if BRATS_ID.fullmatch(folder.name) and _visible(folder, base) and folder.is_dir():
            _refuse_second(folder.name, folders.get(folder.name), folder)
            folders[folder.name] = folder
    if not folders:
        raise _nothing(base, "folders BraTS-GLI-PPPPP-TTT in it or one level down")
    return [_brats_scan(id, folders[id]) for id in sorted(folders)]


def isles2022(root: str | os.PathLike[str]) -> list[Scan]:
    """List the ISLES 2022 cases anywhere under `root`, sorted by id.

    Files are known by their names, `sub-strokecaseNNNN_ses-0001_{dwi,adc,flair,msk}.nii.gz` in any
    case, so that the challenge layout (rawdata/, derivatives/), the Zenodo archive and flat copies
    are all understood; sidecars are not needed.
    Raises ContractError when `root` or every case is absent, or when a file is there twice.
    """
    base = _existing(root)
    cases: dict[str, dict[str, Path]] = {}
    for folder, inner, names in os.walk(base, followlinks=True):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for match in filter(None, map(_ISLES_FILE.fullmatch, names)):
            files = cases.setdefault(match[1].lower(), {})
            path = Path(folder, match[0])
            _refuse_second(match[0], files.get(match[2].lower()), path)
            files[match[2].lower()] = path
    if not cases:
        raise _nothing(base, "files sub-strokecaseNNNN_ses-0001_dwi.nii.gz and so on below it")
    return [_isles_scan(id, cases[id], base) for id in sorted(cases)]


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


def _visible(path: Path, base: Path) -> bool:
    """Tell whether no folder from `base` to `path` is hidden: `write` builds its cases in those."""
    return not any(part.startswith(".") for part in path.relative_to(base).parts)


def _nothing(base: Path, expected: str) -> ContractError:
    attempt = "point to the unpacked data set itself, not to its parent or to an archive"
    return ContractError(f"data root {base}", "no scan", expected, attempt)


def _refuse_second(name: str, first: Path | None, second: Path) -> None:
    if first is not None:
        got = f"it twice: {first} and {second}"
        raise ContractError(name, got, "one copy", "name one edition of the data set as root")


def _brats_scan(id: str, folder: Path) -> Scan:
    matches = filter(None, (_BRATS_FILE.fullmatch(path.name) for path in folder.iterdir()))
    files = {match[2].lower(): folder / match[0] for match in matches if match[1] == id}
    channels = (files.get(name, folder / f"{id}-{name}.nii.gz") for name in BRATS.channels)
    return Scan(id, BRATS.name, tuple(channels), files.get("seg"), patient(id))


def _isles_scan(id: str, files: dict[str, Path], base: Path) -> Scan:
    expected = layout(id, ISLES)
    channels = (files.get(name, base / expected[name]) for name in ISLES.channels)
    return Scan(id, ISLES.name, tuple(channels), files.get("msk"), patient(id))
