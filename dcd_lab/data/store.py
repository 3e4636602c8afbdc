"""Store: prepared cases on disk, made once, opened without being read into memory.

A data set of a thousand scans does not fit into memory, and preparing it takes longer than an epoch
of training. So every case is prepared once, by several processes, and kept as plain NumPy arrays
that are mapped when they are opened. A folder appears whole or not at all: interrupted work goes on
where it stopped, and two processes that make the same case do not disturb each other.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dcd_core.progress import progress
from dcd_core.types import TASKS, Case
from dcd_lab.cache import make_once, run_dir
from dcd_lab.data.grid import prepare
from dcd_lab.data.nifti import read
from dcd_lab.data.scans import Scan
from dcd_lab.pool import each
from dcd_lab.records import fingerprint, source_hash

_CODE = (
    "dcd_core.types",
    *(
        f"dcd_lab.data.{name}"
        for name in ("scans", "editions", "volumes", "nifti", "grid", "store")
    ),
)


def prepared(
    scans: Sequence[Scan], *, spacing_mm: float | None = None, workers: int = 1
) -> list[Case]:
    """The cases of `scans`, read, prepared at `spacing_mm` as `prepare` does, and kept on disk.

    Images (c, i, j, k) and labels (i, j, k) are memory-mapped and read-only, so the list takes
    hardly any memory; while it is made, each of `workers` processes holds one case. A case is made
    again when its files, the spacing or the code that prepares it have changed. Old ones stay until
    `runs/` is emptied.
    Raises ContractError as `read` and `prepare` do, for the first scan that is not sound.
    """
    key = spacing_mm, source_hash(*_CODE)
    folders = [run_dir(f"prepared-{scan.task}", *key) / _name(scan) for scan in scans]
    absent = [
        (scan, spacing_mm, folder)
        for scan, folder in zip(scans, folders, strict=True)
        if not folder.is_dir()
    ]
    for done, name in enumerate(each(_make, absent, workers=workers), start=1):
        progress("prepared cases", done, len(absent), name)
    return [_open(folder) for folder in folders]


def _name(scan: Scan) -> str:
    """The folder of a case, named by the files it is made of, not by their place."""
    files = [path for path in (*scan.channels, scan.label) if path is not None]
    return f"{scan.id}-{fingerprint(scan.edition, *map(_stamp, files))}"


def _stamp(path: Path) -> tuple[str, int, int] | None:
    """Name, size and time of a file: what changes when it does. An absent one is for `read`."""
    try:
        found = path.stat()
    except OSError:
        return None
    return path.name, found.st_size, found.st_mtime_ns


_Work = tuple[Scan, float | None, Path]


def _make(work: _Work) -> str:
    scan, spacing_mm, folder = work
    case = prepare(read(scan), spacing_mm=spacing_mm, task=TASKS[scan.task])

    def write(whole: Path) -> None:
        np.save(whole / "image.npy", case.image)
        if case.label is not None:
            np.save(whole / "label.npy", case.label)
        facts = {"id": case.id, "spacing_mm": case.spacing_mm, "affine": case.affine.tolist()}
        (whole / "case.json").write_text(json.dumps(facts), "utf-8")

    make_once(folder, write)
    return scan.id


def _open(folder: Path) -> Case:
    facts = json.loads((folder / "case.json").read_text("utf-8"))
    label = folder / "label.npy"
    i, j, k = facts["spacing_mm"]
    return Case(
        facts["id"],
        np.load(folder / "image.npy", mmap_mode="r"),
        np.load(label, mmap_mode="r") if label.is_file() else None,
        (i, j, k),
        np.array(facts["affine"]),
    )
