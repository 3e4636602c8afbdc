"""What is computed once and kept under `runs/`, in folders named by all that decides them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from dcd_lab.records.identity import fingerprint
from dcd_lab.records.places import plain, root


def run_dir(label: str, *key: object) -> Path:
    """Return the folder `runs/<label>-<fingerprint of key>`; it is not created here."""
    return root() / "runs" / f"{plain(label)}-{fingerprint(*key)}"


def make_once(folder: Path, make: Callable[[Path], None]) -> bool:
    """Let `make` fill a scratch folder, which then becomes `folder`: whole, or not at all.

    Nothing happens where `folder` exists. Where another process makes the same one meanwhile, the
    first to finish is kept. Returns whether `folder` was made by this call.
    """
    if folder.is_dir():
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".partial-", dir=folder.parent) as scratch:
        whole = Path(scratch, "whole")
        whole.mkdir()
        make(whole)
        try:
            os.replace(whole, folder)
        except OSError:
            if not folder.is_dir():
                raise
            return False
    return True
