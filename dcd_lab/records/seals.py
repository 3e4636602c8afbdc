"""Seals: hashes of files, kept beside them, by which none that has changed is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dcd_core.types import ContractError
from dcd_lab.records.identity import file_hash
from dcd_lab.records.places import write_text

SUMS = "SHA256SUMS"
"""File of the hashes, as `sha256sum --check` reads it."""


def seal(folder: Path, *names: str) -> None:
    """Note the hashes of files of a folder; those noted before stay."""
    sums = _noted(folder) | {name: file_hash(folder / name) for name in names}
    write_text(folder / SUMS, "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))


def check(folder: Path) -> None:
    """Raise ContractError when a file that was sealed is absent or not as it was.

    A folder without seals, of an older version, passes.
    """
    refuse_changed(folder, _noted(folder), f"removing {folder}: what was in it is then made again")


def refuse_changed(folder: Path, hashes: Mapping[str, str], attempt: str) -> None:
    """Raise ContractError when a file of `hashes`, by name, is absent or has another hash."""
    for name, sha256 in hashes.items():
        file = folder / name
        if not file.is_file() or file_hash(file) != sha256:
            got = "changed since it was written" if file.is_file() else "no such file"
            raise ContractError(str(file), got, f"sha256 {sha256[:12]}...", attempt)


def _noted(folder: Path) -> dict[str, str]:
    if not (folder / SUMS).is_file():
        return {}
    lines = (folder / SUMS).read_text("utf-8", "replace").splitlines()
    return {name: sha256 for sha256, _, name in (line.partition("  ") for line in lines)}
