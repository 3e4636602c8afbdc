"""Jobs: one notebook of one profile each, and whether it is already done."""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dcd_core
from dcd_core.storage import atomic
from dcd_lab import records
from runner.sources import Notebook, source, tags

CHECKOUT = Path(dcd_core.__file__).parents[1]
BOOK_PROFILE = "demo"


def sha256(value: object) -> str:
    """Return the SHA-256 of plain data, written as canonical JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def source_sha256(document: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what a notebook says: its cells and tags, not its outputs."""
    cells = document.get("cells", ())
    return sha256([[cell["cell_type"], tags(cell), source(cell)] for cell in cells])


def imported(texts: Iterable[str]) -> set[str]:
    """Return the modules of the project that Python texts import, such as "dcd_core.dcd"."""
    found: set[str] = set()
    for text in texts:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module in records.ROOMS:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                names = [getattr(node, "module", None) or ""]
            parts = [name.split(".") for name in names]
            found |= {".".join(part[:2]) for part in parts if part[0] in records.ROOMS}
    return found


def package_sha256(document: Mapping[str, Any]) -> str:
    """Return a hash over the modules of the project that a notebook imports, directly or not."""
    code = [source(cell) for cell in document["cells"] if cell["cell_type"] == "code"]
    pending, seen = imported(code), set()
    while pending:
        # Importing any module runs the package's __init__.py, and so depends on what that imports.
        seen |= pending | {name.split(".")[0] for name in pending}
        files = [file for name in seen for file in _module_files(name)]
        pending = imported(file.read_text("utf-8") for file in files) - seen
    modules = sorted(name for name in seen - set(records.ROOMS) if _module_files(name))
    return records.source_hash(*modules) if modules else sha256([])[:12]


def _module_files(name: str) -> list[Path]:
    if name in records.ROOMS:
        return [CHECKOUT / name / "__init__.py"]
    stem = CHECKOUT.joinpath(*name.split("."))
    one = stem.with_suffix(".py")
    return [one] if one.is_file() else sorted(stem.rglob("*.py"))


@dataclass
class Job:
    """One notebook of one profile on its way: waiting, running, run, cached, failed or blocked."""

    notebook: Notebook
    profile: str
    parameters: dict[str, Any]
    hashes: dict[str, str]
    key: str
    forced: bool = False
    state: str = "waiting"
    message: str = ""
    tries: int = 0
    seconds: float = 0.0
    started_s: float = 0.0
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The stem of the notebook, such as "05-brats"."""
        return self.notebook.name

    @property
    def kept(self) -> Path:
        """Where this profile keeps executed copies that are not pages, and the logs."""
        return records.root() / "runs" / "executed" / self.profile

    @property
    def page(self) -> Path:
        """The page of the book."""
        return records.root() / "book" / "notebooks" / f"{self.name}.ipynb"

    @property
    def output(self) -> Path:
        """The executed copy this run writes."""
        return self.page if self.profile == BOOK_PROFILE else self.kept / f"{self.name}.ipynb"

    @property
    def failed(self) -> Path:
        """The executed copy of a run that failed, never inside the book."""
        return self.kept / f"{self.name}.FAILED.ipynb"

    @property
    def log(self) -> Path:
        """What papermill and the kernel printed."""
        return self.kept / f"{self.name}.log"

    @property
    def state_file(self) -> Path:
        """What is remembered of the last successful run."""
        return records.root() / "runs" / "state" / self.profile / f"{self.name}.json"


def plan(
    known: Mapping[str, Notebook],
    names: Sequence[str],
    profile: str,
    parameters: Mapping[str, dict[str, Any]],
    forced: Iterable[str] = (),
) -> dict[str, Job]:
    """Return the jobs of `names` (needed ones first); a key names everything a run depends on."""
    jobs: dict[str, Job] = {}
    for name in names:
        document = known[name].document
        hashes = {
            "source_sha256": source_sha256(document),
            "params_sha256": sha256(parameters[name]),
            "package_sha256": package_sha256(document),
        }
        key = sha256([hashes, [jobs[need].key for need in known[name].needs]])
        jobs[name] = Job(known[name], profile, parameters[name], hashes, key, name in forced)
    return jobs


def is_done(job: Job) -> bool:
    """Tell whether the last run had this key and everything it wrote is still there."""
    try:
        state = json.loads(job.state_file.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    written = [records.root() / path for path in state.get("written", ())]
    same = state.get("key") == job.key and all(path.is_file() for path in written)
    return same and job.output.is_file() and state.get("output") == _file_sha256(job.output)


def _file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def remember(job: Job) -> None:
    """Write down what a successful run depended on and what it left."""
    root = records.root()
    written = [
        path.relative_to(root).as_posix()
        for folder in ("results", "figures")
        for path in sorted((root / folder / job.profile).glob(f"{job.name}-*"))
    ]
    state = {
        "key": job.key,
        "output": _file_sha256(job.output),
        "written": written,
        "seconds": round(job.seconds, 1),
    }
    write_json(job.state_file, state)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically, in the layout notebooks have on disk."""
    with atomic(path) as temporary:
        text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
        temporary.write_bytes((text + "\n").encode("utf-8"))
