"""Draw the volume of the explorer page: `python book/_ext/explorer_volume.py`.

One phantom FLAIR at 3 mm, 64 x 64 x 64 voxels of 8 bits, axial slices laid out 8 x 8 in one PNG. It
is written into a script, since a browser does not let a page opened from a folder read image files.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np

SEED, SIDE = 3, 64
TARGET = Path(__file__).resolve().parents[1] / "_assets" / "explorer-volume.js"


def volume() -> np.ndarray:
    """Return (slice, row, column) uint8: axial slices from below, front at the top."""
    from dcd_lab import phantom

    flair = phantom.glioma(SEED, spacing_mm=3.0).image[3]
    top = np.percentile(flair[flair > 0], 99.7)
    image = (255 * np.clip(flair / top, 0, 1)).round().astype(np.uint8)
    return _fitted(image).transpose(2, 1, 0)[:, ::-1]


def _fitted(image: np.ndarray) -> np.ndarray:
    """Crop or pad every axis to SIDE around the middle of what is not zero."""
    for axis in range(3):
        filled = np.flatnonzero(image.any(axis=tuple({0, 1, 2} - {axis})))
        first = (filled[0] + filled[-1] + 1) // 2 - SIDE // 2
        image = np.pad(image, [(SIDE, SIDE) if a == axis else (0, 0) for a in range(3)])
        image = np.take(image, np.arange(first, first + SIDE) + SIDE, axis=axis)
    return image


def main() -> None:
    from PIL import Image

    per_row = 8
    rows = volume().reshape(per_row, per_row, SIDE, SIDE).transpose(0, 2, 1, 3)
    png = io.BytesIO()
    Image.fromarray(rows.reshape(per_row * SIDE, per_row * SIDE)).save(png, "PNG", optimize=True)
    address = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
    head = "// Written by book/_ext/explorer_volume.py: a phantom, not a patient.\n"
    TARGET.write_text(f'{head}window.dcdVolume = {{ side: {SIDE}, png: "{address}" }};\n', "utf-8")


if __name__ == "__main__":
    main()
