"""Jobs: one notebook of one profile each, and whether it is already done."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

import dcd_core
from dcd_lab import records
from dcd_lab.experiments import record
from dcd_lab.records.identity import file_hash
from dcd_lab.records.places import write_json
from runner.sources import Notebook, code, tags

CHECKOUT = Path(dcd_core.__file__).parents[1]
BOOK_PROFILE = "study"


def source_sha256(document: NotebookNode) -> str:
    """Name what a notebook says: its cells and tags, not its outputs."""
    return records.fingerprint([[c.cell_type, tags(c), c.source] for c in document.cells])


def package_sha256(document: NotebookNode) -> str:
    """Name the source of the project's modules that a notebook imports, directly or not."""
    finder = ModuleFinder([str(CHECKOUT)])
    finder.scan_code(compile(code(document), "cells", "exec"), finder.add_module("__main__"))
    modules: dict[str, Any] = finder.modules
    files = {Path(module.__file__) for module in modules.values() if module.__file__}
    return records.fingerprint([f.read_text("utf-8") for f in sorted(files) if f.suffix == ".py"])


@dataclass
class Job:
    """One notebook of one profile on its way: waiting, running, run, cached, failed or blocked.

    `message` says why it failed, or where its executed copy is. `key` names all it depends on.
    """

    notebook: Notebook
    profile: str
    parameters: dict[str, Any]
    hashes: dict[str, str]
    key: str
    published: bool = False
    state: str = "waiting"
    message: str = ""
    started_s: float = 0.0
    seconds: float = 0.0
    scratch: Path = Path()

    @property
    def name(self) -> str:
        """The stem of the notebook, such as "05-brats"."""
        return self.notebook.name

    def progress(self) -> dict[str, Any]:
        """Return the latest state the notebook reported through dcd_core.progress."""
        with suppress(OSError, ValueError):
            return dict(json.loads((self.scratch / "progress").read_text("utf-8")))
        return {}

    def kept(self, suffix: str) -> Path:
        """A file about this job below runs/: its executed copy, its log, its state."""
        return records.root() / "runs" / "executed" / self.profile / f"{self.name}.{suffix}"


def relative(path: Path) -> str:
    """Return a path as seen from the project."""
    return path.relative_to(records.root()).as_posix()


def plan(
    known: Mapping[str, Notebook],
    names: Iterable[str],
    profile: str,
    parameters: Mapping[str, dict[str, Any]],
    entries: Sequence[Path] = (),
    *,
    publish: bool = False,
) -> dict[str, Job]:
    """Return the jobs of `names`, needed ones first; they depend on `entries` of the record."""
    jobs: dict[str, Job] = {}
    recorded = [record.read(entry) for entry in entries]
    for name in names:
        hashes = {
            "source_sha256": source_sha256(known[name].document),
            "params_sha256": records.fingerprint(parameters[name]),
            "package_sha256": package_sha256(known[name].document),
        }
        key = records.fingerprint(hashes, recorded, [jobs[need].key for need in known[name].needs])
        jobs[name] = Job(
            known[name], profile, parameters[name], hashes, key, publish or profile == BOOK_PROFILE
        )
    return jobs


def is_done(job: Job) -> bool:
    """Tell whether the last run had this key and everything it wrote is still as it was."""
    try:
        return bool(json.loads(job.kept("state.json").read_text("utf-8")) == _state(job))
    except (OSError, ValueError):
        return False


def remember(job: Job) -> None:
    """Write down what a successful run depended on and what it left."""
    write_json(job.kept("state.json"), _state(job))


def _state(job: Job) -> dict[str, str]:
    folders = [records.root() / folder / job.profile for folder in ("results", "figures")]
    results = [path for folder in folders for path in folder.glob(f"{job.name}-*")]
    hashes = {relative(path): file_hash(path) for path in [job.kept("ipynb"), *results]}
    return {"key": job.key} | hashes
