"""What ran, from which source, on what machine: names and provenance of results."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dcd_core.records.places import nearest, plain, root
from dcd_core.types import ContractError

if TYPE_CHECKING:
    import torch

_PACKAGES = ("torch", "numpy", "monai", "pywavelets")
_CODE = ("dcd_core", "notebooks", "constraints.txt")


def fingerprint(*parts: object) -> str:
    """Return 12 hexadecimal digits that name `parts`, the same on every machine and in every run.

    Parts are numbers, strings, paths, None, dataclasses, named tuples, numpy scalars and arrays,
    and mappings, sequences and sets of these. Raises ContractError for anything else (a function
    has no value to compare).
    """
    text = json.dumps([canonical(part) for part in parts], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]


def canonical(value: object) -> object:
    """Return `value` as plain JSON data; ContractError for what has no value to compare."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value).replace(os.sep, "/")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: canonical(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return canonical(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((canonical(item) for item in value), key=json.dumps)
    if hasattr(value, "tolist") and type(value).__module__.startswith("numpy"):
        return value.tolist()
    raise ContractError(
        "a part of a fingerprint",
        f"{value!r} ({type(value).__name__})",
        "plain data: numbers, strings, paths, dataclasses and containers of these",
        "pass its name or its settings",
    )


def source_hash(*module_names: str) -> str:
    """Return 12 hexadecimal digits over the source files of dcd_core, or of the modules named.

    Names are given as "dcd" or "dcd_core.dcd"; only the files of these modules count, not what
    they import. Raises ContractError for a module that is not there.
    """
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in _files(package, module_names):
        digest.update(f"{file.relative_to(package).as_posix()}\n".encode())
        digest.update(file.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:12]


def _files(package: Path, module_names: Sequence[str]) -> list[Path]:
    def sources(folder: Path) -> list[Path]:
        return sorted(file for file in folder.rglob("*") if file.suffix in (".py", ".c"))

    if not module_names:
        return sources(package)
    files: set[Path] = set()
    for name in module_names:
        stem = package.joinpath(*name.removeprefix("dcd_core").strip(".").split("."))
        found = [stem.with_suffix(".py")] if stem.with_suffix(".py").is_file() else []
        found += [package / "__init__.py"] if stem == package else sources(stem)
        if not found:
            known = {
                file.relative_to(package).parts[0].removesuffix(".py")
                for file in package.rglob("*.py")
            }
            raise ContractError("module", repr(name), "a module of dcd_core", nearest(name, known))
        files.update(found)
    return sorted(files)


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
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    from dcd_core import __version__

    return {**found, "dcd_core": __version__}


def _git(*arguments: str) -> str:
    command = ("git", "-C", str(root()), *arguments)
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()


def _machine() -> dict[str, Any]:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu(),
        "cores": capacity()["cores"],
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


def native_bfloat16(device: torch.device) -> bool:
    """Return whether bfloat16 products are native; emulated ones are slower than float32."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def capacity() -> dict[str, Any]:
    """Return what this process may use: `cores` (affinity and quota) and `memory_gib`."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = _first_line("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        cores = max(1, min(cores, round(int(quota[0]) / int(quota[1]))))
    limits = []
    with suppress(AttributeError, ValueError, OSError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    if (limit := _first_line("/sys/fs/cgroup/memory.max")).isdigit():
        limits.append(int(limit))
    return {"cores": cores, "memory_gib": round(min(limits) / 2**30, 1) if limits else None}


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text("utf-8").split("\n", 1)[0]
    except OSError:
        return ""


def resident_bytes(which: Literal["VmRSS", "VmHWM"]) -> int:
    """Memory that this process holds ("VmRSS") or has held at most ("VmHWM"), on Linux.

    Unlike `ru_maxrss`, which begins at the peak of the process that started this one.
    """
    status = Path("/proc/self/status").read_text("ascii", errors="replace")
    line = next(line for line in status.splitlines() if line.startswith(f"{which}:"))
    return 1024 * int(line.split()[1])


def run_dir(label: str, *key: object) -> Path:
    """Return the folder `runs/<label>-<fingerprint of key>` of one run; it is not created here."""
    return root() / "runs" / f"{plain(label)}-{fingerprint(*key)}"
