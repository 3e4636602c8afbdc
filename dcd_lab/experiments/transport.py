"""Transport: finished runs and checkpoints as archives, from one machine to another."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from dcd_core.storage import atomic
from dcd_core.types import ContractError
from dcd_lab.cache import runs
from dcd_lab.experiments import record

MIB = 2**20


def pack(target: Path, *, mebibytes: int = 16) -> list[Path]:
    """Write archives of all runs under `runs/`, finished ones first; returns their paths.

    Each is at most `mebibytes` large; a run that is larger alone is left out with a ContractError
    after all others are written. Cohorts and prepared cases are not in them: every machine makes
    its own.
    """
    folders = [f for f in runs().glob("*") if (f / "fit.json").is_file()]
    folders += [f for f in runs().glob("*") if (f / "checkpoint.pt").is_file()]
    parts: list[list[Path]] = [[]]
    sizes, too_large = [0], []
    for folder in dict.fromkeys(folders):
        files = record.files_of(folder, ".pt", "")
        size = sum(file.stat().st_size + 1024 for file in files) + 20 * 1024
        if size > mebibytes * MIB:
            too_large.append(folder.name)
            continue
        if sizes[-1] + size > mebibytes * MIB:
            parts.append([])
            sizes.append(0)
        parts[-1].append(folder)
        sizes[-1] += size
    written = []
    for number, part in enumerate(filter(None, parts), start=1):
        path = target / f"runs-{number:02}.tar"
        with atomic(path) as temporary, tarfile.open(temporary, "w") as archive:
            for folder in part:
                for file in record.files_of(folder, ".pt", ""):  # and the seals
                    archive.add(file, f"{folder.name}/{file.name}", recursive=False)
        written.append(path)
    if too_large:
        expected = f"at most {mebibytes} MiB"
        raise ContractError("runs to pack", f"larger ones: {too_large}", expected, "larger parts")
    return written


def unpack(archive: Path) -> list[Path]:
    """Add the runs of an archive to `runs/`; returns their folders.

    A finished run here is left as it is. Raises ContractError for a file that is no archive of
    `pack`: one whose members would lie elsewhere, for example.
    """
    folders: dict[str, None] = {}
    try:
        with tarfile.open(archive) as opened:
            members = list(_members(opened, archive))
            for member in sorted(members, key=lambda m: PurePosixPath(m.name).name == record.LAST):
                folder, name = PurePosixPath(member.name).parts
                target = runs() / folder
                folders[folder] = None
                if (target / "fit.json").is_file():
                    continue
                content = opened.extractfile(member)
                assert content is not None
                with atomic(target / name) as temporary:
                    temporary.write_bytes(content.read())
    except (tarfile.TarError, EOFError, OSError) as error:
        raise _unfit(archive, str(error)) from None
    return [runs() / folder for folder in folders]


def _members(opened: tarfile.TarFile, archive: Path) -> Iterator[tarfile.TarInfo]:
    for member in opened:
        parts = PurePosixPath(member.name).parts
        plain = all(part[0] not in "./" for part in parts)
        if not (member.isfile() and len(parts) == 2 and plain):
            raise _unfit(archive, f"a member {member.name!r}")
        yield member


def _unfit(archive: Path, got: str) -> ContractError:
    return ContractError(
        f"archive {archive}", got, "runs packed by notebooks/study.py", "pack again"
    )
