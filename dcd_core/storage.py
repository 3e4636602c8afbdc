"""Files that are never half written, and archives that are not read where they are damaged."""

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any
from uuid import uuid4

from dcd_core.errors import ContractError


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` which becomes `path` on success and is removed on error.

    It keeps the suffix, by which writers choose the format. What killed processes left goes: a lock
    tells which are in use. ContractError where the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = "".join(path.suffixes[-2:])
    temporary = path.with_name(f".{path.name[:40]}.{uuid4().hex}{suffix}")
    for left in path.parent.glob(f".{escape(path.name[:40])}.{'[0-9a-f]' * 32}{escape(suffix)}"):
        with locked(left, wait=False) as free:
            if free:
                left.unlink(missing_ok=True)
    try:
        with room_for(path):
            temporary.touch()
        with locked(temporary), room_for(path):
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


def digest(facts: Mapping[str, Any], content: Iterable[bytes]) -> str:
    """A hash of facts and of what belongs to them, 64 hexadecimal digits."""
    return hashlib.sha256(b"".join([json.dumps(facts).encode(), *content])).hexdigest()


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote; nothing is executed. PyTorch itself does not read checksums."""
    import torch

    with zipfile.ZipFile(path) as archive:
        if member := archive.testzip():
            raise zipfile.BadZipFile(f"wrong checksum of {member}")
    return torch.load(path, map_location="cpu", weights_only=True)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold back other processes that lock the same file or folder; the lock ends with its process.

    Yields whether it is held: without `wait` another process may have it, and Windows and some
    network disks have no such locks.
    """
    handle = None
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
    try:
        yield handle is not None and _lock(handle, wait=wait)
    finally:
        if handle is not None:
            os.close(handle)


def _lock(handle: int, *, wait: bool) -> bool:
    with suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return True
    return False
