"""What is computed once and kept under `runs/`, in folders named by all that decides them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from dcd_core.storage import locked, room_for, sync
from dcd_core.types import ContractError
from dcd_lab.records.identity import fingerprint
from dcd_lab.records.places import plain, root

Policy = Literal["use", "only", "ignore"]


def record_policy() -> Policy:
    """What the environment variable DCD_RECORD says about recorded runs; "use" when it is not set.

    "use" trains what the record lacks, "only" refuses to train, "ignore" trains everything anew.
    """
    match os.environ.get("DCD_RECORD", "use"):
        case "use" | "only" | "ignore" as policy:
            return policy
        case other:
            raise ContractError("DCD_RECORD", repr(other), "use, only or ignore", "unset it")


def runs() -> Path:
    """The folder of all that is computed once; one of its own for runs made without the record."""
    folder = root() / "runs"
    return folder / "recomputed" if record_policy() == "ignore" else folder


def run_dir(label: str, *key: object) -> Path:
    """Return the folder `runs/<label>-<fingerprint of key>`; it is not created here."""
    return runs() / f"{plain(label)}-{fingerprint(*key)}"


def make_once(folder: Path, make: Callable[[Path], None]) -> bool:
    """Let `make` fill a scratch folder, which then becomes `folder`: whole, or not at all.

    Nothing happens where `folder` exists. Where another process makes the same one meanwhile, the
    first to finish is kept. Returns whether `folder` was made by this call.
    """
    if folder.is_dir():
        return False
    with scratch(folder.parent, f".partial-{folder.name[:40]}.") as partial:
        whole = partial / "whole"
        whole.mkdir()
        with room_for(folder):
            make(whole)
            for path in (*whole.rglob("*"), whole):
                sync(path)
        try:
            os.replace(whole, folder)
        except OSError:
            if not folder.is_dir():
                raise
            return False
    sync(folder.parent)
    return True


@contextmanager
def scratch(parent: Path, prefix: str) -> Iterator[Path]:
    """Yield a new folder in `parent` that goes at the end; those of killed processes go at once.

    A lock, which ends with its process, tells which are in use.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{escape(prefix)}*"):
        with locked(left, wait=False) as free:
            if free:
                shutil.rmtree(left, ignore_errors=True)
    with (
        TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True) as name,
        locked(Path(name)),
    ):
        yield Path(name)
