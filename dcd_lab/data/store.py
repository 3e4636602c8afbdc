"""Store: prepared cases on disk, made once, opened without being read into memory.

A folder appears whole or not at all: interrupted work is continued, and two processes that make the
same case do not disturb each other.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from dcd_core.progress import progress
from dcd_core.types import Case, ContractError
from dcd_lab.cache import make_once, run_dir
from dcd_lab.data.nifti import read
from dcd_lab.data.prepare import prepare
from dcd_lab.data.scans import Scan
from dcd_lab.pool import each
from dcd_lab.records import fingerprint
from dcd_lab.records.seals import check, seal
from dcd_lab.tasks import TASKS

VERSION = 1
"""Raise it by hand when `read` or `prepare` returns other voxels, labels or affines than before."""


def prepared(
    scans: Sequence[Scan], *, spacing_mm: float | None = None, workers: int = 1
) -> list[Case]:
    """The cases of `scans`, read, prepared at `spacing_mm` as `prepare` does, and kept on disk.

    Images (c, i, j, k) and labels (i, j, k) are memory-mapped and read-only; each of `workers`
    processes holds one case. A case is made again when its files, its edition, the spacing or
    `VERSION` have changed.
    Raises ContractError as `read` and `prepare` do, for the first scan that is not sound, and for a
    kept case whose files have changed since.
    """
    folders = [
        run_dir(f"prepared-{scan.task}", spacing_mm, VERSION)
        / f"{scan.id}-{fingerprint(scan.label_edition, scan.state())}"
        for scan in scans
    ]
    absent = [
        (scan, spacing_mm, folder)
        for scan, folder in zip(scans, folders, strict=True)
        if not folder.is_dir()
    ]
    for done, name in enumerate(each(_make, absent, workers=workers), start=1):
        progress("prepared cases", done, len(absent), name)
    return [_open(folder) for folder in folders]


def _make(work: tuple[Scan, float | None, Path]) -> str:
    scan, spacing_mm, folder = work
    case = prepare(read(scan), spacing_mm=spacing_mm, task=TASKS[scan.task])

    def save(scratch: Path) -> None:
        np.save(scratch / "image.npy", case.image)
        if case.label is not None:
            np.save(scratch / "label.npy", case.label)
        facts = {"id": case.id, "spacing_mm": case.spacing_mm, "affine": case.affine.tolist()}
        (scratch / "case.json").write_text(json.dumps(facts), "utf-8")
        seal(scratch, *(file.name for file in scratch.iterdir()))

    make_once(folder, save)
    return scan.id


def _open(folder: Path) -> Case:
    _check(folder, tuple(_state(path) for path in sorted(folder.iterdir())))
    image, label = folder / "image.npy", folder / "label.npy"
    try:
        facts = json.loads((folder / "case.json").read_text("utf-8"))
        i, j, k = facts["spacing_mm"]
        # Unlike `np.load` this reads arrays and nothing else.
        return Case(
            facts["id"],
            np.lib.format.open_memmap(image, mode="r"),
            np.lib.format.open_memmap(label, mode="r") if label.is_file() else None,
            (i, j, k),
            np.array(facts["affine"]),
        )
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:  # of an older version
        got, attempt = f"unreadable ({error})", f"removing {folder}: it is then made again"
        raise ContractError("prepared case", got, "image.npy, case.json", attempt) from None


@lru_cache(maxsize=4096)  # a case is opened many times; its files are read to their end once
def _check(folder: Path, files: tuple[tuple[str, int, int], ...]) -> None:
    check(folder)


def _state(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return path.name, status.st_size, status.st_mtime_ns
