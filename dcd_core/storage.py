"""Files that are never half written, and archives that are not read where they are damaged."""

import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from dcd_core.errors import ContractError


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` which becomes `path` on success and is removed on error.

    It keeps the suffix, by which writers choose the format. ContractError where the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = "".join(path.suffixes[-2:])
    temporary = path.with_name(f".{path.name[:40]}.{uuid4().hex}{suffix}")
    try:
        with room_for(path):
            yield temporary
            sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Turn what writers raise at a full disk, each another error, into one that names the path."""
    try:
        yield
    except Exception as error:
        if shutil.disk_usage(path.parent).free >= 1 << 16:
            raise
        got, expected = f"no space left on the disk ({error})", "room; what was there is kept"
        raise ContractError(str(path), got, expected, "freeing space, or another disk") from None


def sync(path: Path) -> None:
    """Have a file, or the list of files in a folder, written to the disk: power may fail."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote; nothing is executed. PyTorch itself does not read checksums."""
    import torch

    with zipfile.ZipFile(path) as archive:
        if member := archive.testzip():
            raise zipfile.BadZipFile(f"wrong checksum of {member}")
    return torch.load(path, map_location="cpu", weights_only=True)
