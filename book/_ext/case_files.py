"""Read and write what the page on cases shows: one script for each case, with its volumes as text.

A volume is a NIfTI file of 8-bit numbers: a channel in 256 greys, or all masks of a case, each of
which is one bit.
"""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import nibabel as nib

from dcd_core.storage import atomic

FOLDER = Path(__file__).resolve().parents[1] / "_assets" / "cases"
RANKS = ("worst", "median", "best")
WORDS = {"teacher": "teacher", "undistilled": "undistilled student", "DCD": "DCD student"}
MASKS = ("truth", *WORDS)  # the bits of the volume of masks, the lowest first


def packed(image: Any) -> str:
    """Return an image of nibabel as a compressed NIfTI file, in text."""
    image.header["cal_max"] = 255
    return base64.b64encode(gzip.compress(image.to_bytes(), 9, mtime=0)).decode()


def unpacked(text: str) -> Any:
    """Return the image that `packed` wrote."""
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


def script(rank: str) -> Path:
    """Return the script of a case."""
    return FOLDER / f"{rank}.js"


def read(rank: str) -> dict[str, Any]:
    """Return what the script of a case assigns."""
    return dict(json.loads(script(rank).read_text("utf-8").split(" = ", 1)[1].rstrip(";\n")))


def write(rank: str, case: dict[str, Any], by: str) -> None:
    """Write the script of a case, which says what made it."""
    text = json.dumps(case, separators=(",", ":"))
    head = f"// Written by {by}: a phantom, not a patient.\n"
    with atomic(script(rank)) as temporary:
        temporary.write_text(f"{head}(window.dcdCases ??= {{}}).{rank} = {text};\n", "utf-8")


def small(case: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the lesions that the first endpoint looks at, the largest first."""
    return [lesion for lesion in case["lesions"] if lesion["volume_ml"] < case["small_ml"]]
