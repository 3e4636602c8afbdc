"""The folder of the project, and the files that are written in it."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dcd_core.storage import atomic
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
            attempt = "unset it or correct the path"
            raise ContractError("DCD_REAL_CASES", named, "an existing folder", attempt)
        return Path(named)
    beside = root().parent / "shared" / "data"
    return beside if beside.is_dir() else None


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically, with the line ends it came with."""
    with atomic(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def write_json(
    path: Path, value: object, *, default: Callable[[object], object] | None = None
) -> None:
    """Write data as an indented JSON file, atomically; `default` is that of `json.dumps`."""
    text = json.dumps(value, indent=1, ensure_ascii=False, default=default)
    write_text(path, text + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read an object of JSON; ContractError, with the path, for a file that holds none."""
    try:
        content = json.loads(path.read_text("utf-8"))
        if isinstance(content, dict):
            return content
        got = f"a {type(content).__name__}"
    except ValueError as error:  # no JSON, or not in UTF-8
        got = f"{type(error).__name__} ({error})"
    attempt = f"removing {path.parent}: what was in it is then made again"
    raise ContractError(str(path), got, "an object of JSON", attempt)


def plain(name: str) -> str:
    """Return `name` if it can be part of a file name; ContractError with a proposal if not."""
    if not isinstance(name, str):
        raise ContractError("a name used in a file name", repr(name), "text", "its name")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        expected = "letters, digits, '-', '_' and '.'"
        attempt = repr(re.sub(r"[^\w.-]+", "-", name).strip("-.") or "name")
        raise ContractError("a name used in a file name", repr(name), expected, attempt)
    return name
