"""The record: finished runs of the study, kept with the project in `results/study/runs`.

A run is entered as it lies under `runs/`: recipe, history, threshold and scores, and weights if a
page opens its network. A file `run.json` beside them describes it, names the machine and holds a
hash of every file. A page that asks for a job gets it from `runs/`, or else from here; what is in
neither is trained. The environment variable DCD_RECORD changes that (see `cache.record_policy`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcd_core.storage import atomic
from dcd_core.types import ContractError
from dcd_lab.cache import record_policy
from dcd_lab.records import facts, root
from dcd_lab.records.identity import file_hash, plain_data
from dcd_lab.records.places import write_json
from dcd_lab.records.seals import check, refuse_changed, seal

DESCRIPTION = "run.json"
LAST = "fit.json"
"""File whose presence says that all others are there; it is written last."""
KEPT = (".json", ".csv", ".safetensors")
ATTEMPT = "git checkout results/study"


def home() -> Path:
    """The folder of the record."""
    return root() / "results" / "study" / "runs"


def entries() -> list[Path]:
    """The folders of all recorded runs, by name."""
    return sorted(file.parent for file in home().glob(f"*/{DESCRIPTION}"))


def enter(
    folder: Path,
    description: Mapping[str, Any],
    *,
    seed: int | None = None,
    weights: bool = True,
) -> Path:
    """Add a folder under `runs/` to the record, or replace its entry; returns the entry.

    `description` is what `read` gives back; hashes of the files and the facts of this machine are
    added to it. Files of `weights` may be left out. Raises ContractError when a file has changed
    since it was written.
    """
    check(folder)
    entry = home() / folder.name
    files = [f for f in files_of(folder) if weights or f.suffix != ".safetensors"]
    if entry.is_dir():
        shutil.rmtree(entry)
    _copy(files, entry)
    hashes = {file.name: file_hash(file) for file in files}
    whole = {**description, "files": hashes, "facts": facts(seed=seed)}
    write_json(entry / DESCRIPTION, whole, default=plain_data)
    return entry


def files_of(folder: Path, *more: str) -> list[Path]:
    """The files of a folder under `runs/` that are kept, by name; `more` suffixes count as well."""
    kept = (*KEPT, *more)
    return [f for f in sorted(folder.iterdir()) if f.suffix in kept and f.name[0] != "."]


def has(folder: Path) -> bool:
    """Whether the run of a folder under `runs/` is recorded."""
    return (home() / folder.name / DESCRIPTION).is_file()


def restore(folder: Path) -> bool:
    """Copy the recorded run of that name to `folder`, under `runs/`; whether there is one.

    Raises ContractError as `check_files` does and, where DCD_RECORD is "only", when there is none.
    """
    policy, entry = record_policy(), home() / folder.name
    if policy == "ignore":
        return False
    if not has(folder):
        if policy == "only":
            attempt = "run.py --recompute, which trains every run"
            raise ContractError("recorded run", f"no {folder.name}", "an entry", attempt)
        return False
    check_files(entry)
    names = list(read(entry)["files"])
    _copy([entry / name for name in names], folder)
    seal(folder, *names)
    return True


def read(entry: Path) -> dict[str, Any]:
    """The description of an entry. Raises ContractError when it cannot be read."""
    try:
        description = dict(json.loads((entry / DESCRIPTION).read_text("utf-8")))
        return {**description, "files": dict(description["files"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        got = f"{DESCRIPTION}, unreadable ({error})"
        raise ContractError(f"record, {entry.name}", got, "a whole entry", ATTEMPT) from None


def check_files(entry: Path) -> None:
    """Raise ContractError when a file of an entry is missing or not the one that was entered."""
    refuse_changed(entry, read(entry)["files"], ATTEMPT)


def _copy(files: list[Path], target: Path) -> None:
    for file in sorted(files, key=lambda file: file.name == LAST):
        with atomic(target / file.name) as temporary:
            shutil.copyfile(file, temporary)
