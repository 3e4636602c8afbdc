"""What ran, from which source, on what machine: names and provenance of results."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from dcd_core.types import ContractError
from dcd_lab.records.places import root

_PACKAGES = ("torch", "numpy", "monai", "pywavelets")
_ROOMS = ("dcd_core", "dcd_lab")
_CODE = (*_ROOMS, "notebooks", "constraints.txt")


def fingerprint(*parts: object) -> str:
    """Return 12 hexadecimal digits that name `parts`, the same on every machine and in every run.

    Parts are numbers, strings, paths, None, dataclasses, numpy scalars and arrays, and mappings,
    sequences and sets of these. Raises ContractError for anything else.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=plain_data)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]


def plain_data(value: object) -> object:
    """Return in the words of JSON what JSON has no word for, as its parameter `default` does."""
    if isinstance(value, os.PathLike):
        return os.fspath(value).replace(os.sep, "/")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if hasattr(value, "tolist") and type(value).__module__.startswith("numpy"):
        return value.tolist()
    got = f"{value!r} ({type(value).__name__})"
    expected = "plain data: numbers, strings, paths, dataclasses and containers of these"
    raise ContractError("a part of a fingerprint", got, expected, "pass its name or its settings")


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, 64 hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def source_hash() -> str:
    """Return 12 hexadecimal digits over the source of dcd_core and dcd_lab."""
    home = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for file in sorted(file for room in _ROOMS for file in (home / room).rglob("*")):
        if file.suffix in (".py", ".c"):
            digest.update(f"{file.relative_to(home).as_posix()}\n".encode())
            digest.update(file.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:12]


def facts(*, seed: int | None = None, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what someone needs to know to judge or repeat a number.

    Commit, whether the code differs from it, versions, processor, accelerator, operating system,
    seed, the fingerprint of the parameters and the date. No host, user or folder is named.
    """
    return {
        "commit": _git("rev-parse", "HEAD") or None,
        # Results are rewritten by the very run that asks, so only code counts as dirty.
        "dirty": bool(_git("status", "--porcelain", "--", *_CODE)),
        "versions": versions(),
        "source": source_hash(),
        **_machine(),
        "seed": seed,
        "params": None if params is None else fingerprint(params),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def versions() -> dict[str, str | None]:
    """Return the versions of Python, of the packages that compute, and of dcd_core."""
    from dcd_core import __version__

    installed = {name: _version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **installed, "dcd_core": __version__}


def _version(package: str) -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def _git(*arguments: str) -> str:
    command = ("git", "-C", str(root()), *arguments)
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()


def _machine() -> dict[str, Any]:
    import joblib
    import torch

    from dcd_core.infer import native_bfloat16

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu(),
        "cores": joblib.cpu_count(),  # as far as this process may use them
        "gpu": gpu,
        "bf16": native_bfloat16(torch.device("cuda" if gpu else "cpu")),
        "os": f"{platform.system()} {platform.machine()}",
    }


def _cpu() -> str:
    text = ""
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return name[1].strip() if name else platform.processor() or platform.machine()
