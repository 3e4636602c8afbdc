"""Where things are, and files that are never half written."""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkstemp

from dcd_core.types import ContractError


def root() -> Path:
    """Return the folder of the project: DCD_ROOT, the checkout around the cwd, or the cwd."""
    if named := os.environ.get("DCD_ROOT"):
        return Path(named).resolve()
    here = Path.cwd().resolve()
    return next((folder for folder in (here, *here.parents) if _is_project(folder)), here)


def _is_project(folder: Path) -> bool:
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8")).get("project", {})
    except (OSError, ValueError):
        return False
    return project.get("name") == "dcd-core"


def real_cases() -> Path | None:
    """Return the folder of real public cases, or None where there is none.

    It is the folder named by DCD_REAL_CASES, else `shared/data` beside the checkout.
    Raises ContractError when DCD_REAL_CASES names a folder that does not exist.
    """
    if named := os.environ.get("DCD_REAL_CASES"):
        if not Path(named).is_dir():
            raise ContractError(
                "DCD_REAL_CASES", named, "an existing folder", "unset it or correct the path"
            )
        return Path(named)
    beside = root().parent / "shared" / "data"
    return beside if beside.is_dir() else None


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` which becomes `path` on success and vanishes on error.

    The temporary name keeps the suffix, since many writers choose the format by it. Parent folders
    are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = "".join(path.suffixes[-2:])
    handle, name = mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        # mkstemp is private to the owner; a result is an ordinary file.
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically, with the line ends it came with."""
    with atomic(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def write_json(path: Path, value: object) -> None:
    """Write plain data as an indented JSON file, atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the known name most like `word`, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if close:
        return f"{close[0]!r}"
    return f"one of {', '.join(names)}" if names else "nothing: there is none yet"


def plain(name: str) -> str:
    """Return `name` if it can be part of a file name; ContractError with a proposal if not."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise ContractError(
            "a name used in a file name",
            repr(name),
            "letters, digits, '-', '_' and '.'",
            repr(re.sub(r"[^\w.-]+", "-", name).strip("-.") or "name"),
        )
    return name
