"""Draw the still picture of the toy: `python book/_ext/boundary_still.py`.

The boundary of `live/boundary.js` once more, by SciPy; the tests hold the toy to it. The picture is
for readers without JavaScript: of each change, which part the published loss sees.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import erf

from dcd_core.dcd import PUBLISHED, detail_distance
from dcd_core.storage import atomic
from dcd_core.wavelet import BANDS
from dcd_lab.plots import page

SIDE, EDGE = 32, 0.7
SHAPES = {"ball": (9.0, 0.0), "shell": (10.0, 7.0)}
SHOWN = {
    "moved by half a voxel": {"move": 0.5},
    "blurred by one voxel": {"blur": 1.0},
    "thinner by half a voxel": {"thin": 0.5},
    "noise": {"noise": 0.1},
    "brighter everywhere": {"brighten": 0.1},
    "slow shading": {"shade": 0.1},
}


def ball(r: np.ndarray, radius: float, width: float) -> np.ndarray:
    """Return a ball convolved with a Gaussian, at distance r > 0 from its middle (closed form)."""
    root = np.sqrt(2) * width
    wave = np.exp(-(((r - radius) / root) ** 2)) - np.exp(-(((r + radius) / root) ** 2))
    ends = erf((radius - r) / root) + erf((radius + r) / root)
    return ends / 2 - width / (r * np.sqrt(2 * np.pi)) * wave


def volume(
    shape: str,
    *,
    move: float = 0,
    blur: float = 0,
    thin: float = 0,
    noise: float = 0,
    brighten: float = 0,
    shade: float = 0,
) -> np.ndarray:
    """Return the boundary as a student shows it, (d, h, w); unchanged, it is the teacher's."""
    outer, inner = SHAPES[shape]
    place = np.arange(SIDE) - (SIDE - 1) / 2
    i, j, k = np.meshgrid(place - move, place, place, indexing="ij")
    r, width = np.maximum(np.sqrt(i**2 + j**2 + k**2), 1e-6), np.hypot(EDGE, blur)
    found = ball(r, outer - (thin / 2 if inner else thin), width)
    if inner:
        found -= ball(r, inner + thin / 2, width)
    wave = np.cos(2 * np.pi * np.arange(SIDE) / SIDE)[None, :, None]
    grain = np.random.default_rng(0).normal(size=found.shape)
    return found + brighten + shade * wave + noise * grain


def parts(shape: str, **changes: float) -> dict[str, float]:
    """Return the shares of a change that the published bands, the coarse band and ddd hold."""
    pair = [torch.from_numpy(v)[None, None] for v in (volume(shape, **changes), volume(shape))]

    def part(bands: tuple[str, ...], **options: Any) -> float:
        return float(detail_distance(*pair, bands=bands, level_weighting="energy", **options))

    whole, seen, diagonal = part(BANDS[1:], coarse_weight=1.0), part(PUBLISHED), part(BANDS[7:])
    return {
        "seen": seen / whole,
        "coarse, free": (whole - seen - diagonal) / whole,
        "ddd, free": diagonal / whole,
    }


def still() -> page.Page:
    """Return the picture: a bar for each change of the ball."""
    figure = page.blank(2.4, None, "Share of the squared change, db4 with three levels.")
    (axes,) = page.panels(figure, 1, 1)
    start = np.zeros(len(SHOWN))
    shares = [parts("ball", **changes) for changes in SHOWN.values()]
    for name, color in zip(shares[0], (page.VERMILLION, page.SKY, "#B8C4CC"), strict=True):
        widths = np.array([share[name] for share in shares])
        axes.barh(list(SHOWN), widths, left=start, color=color, label=name, height=0.7)
        start += widths
    axes.invert_yaxis()
    axes.set(xlim=(0, 1))
    page.legend(figure, axes.get_legend_handles_labels()[0], columns=3, loc="outside upper left")
    return figure


def main() -> None:
    """Write the picture into the book."""
    target = Path(__file__).resolve().parents[1] / "_assets" / "boundary.png"
    with atomic(target) as temporary:
        temporary.write_bytes(page.styled(still)()._repr_png_())


if __name__ == "__main__":
    main()
