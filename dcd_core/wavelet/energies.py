"""Energy of the selected bands over several levels, with its gradient, in both conventions.

With x_0 = x and x_l the coarse band of x_(l-1), the energy of a block of volumes is

    sum_l  n_0 / n_(l-1)  ||bands of level l||^2,

n_l being the voxels of a volume at level l: a mean over voxels at every level, in units of the
first. Each function returns the energy and half its gradient. Where all axes are orthonormal at all
levels, that is one round trip (`diagonal`). Elsewhere one level is called by the other: the
gradient of the deeper ones rides along when a level goes back from its bands.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from dcd_core.wavelet import diagonal
from dcd_core.wavelet.bandpass import Axis, bandpass
from dcd_core.wavelet.diagonal import squared_norm
from dcd_core.wavelet.levels import Selection, fits, periodized, voxels
from dcd_core.wavelet.transform import discrete, taps


def energy(x: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
    """Energy of a block of volumes (c, d, h, w), a scalar, and half its gradient, like `x`.

    `selection.levels` must be usable. `x` is used up: its memory may hold the gradient.
    """
    if selection.convention == "released":
        return _released(x, selection, selection.levels)
    if diagonal.is_diagonal(x.shape[1:], selection):
        return diagonal.energy(x, selection)
    return _periodized(x, selection, selection.levels)


# --- convention "orthonormal" on axes that are not: biorthogonal, or odd --------------------------


def _periodized(x: Tensor, selection: Selection, levels: int) -> tuple[Tensor, Tensor]:
    axes = [
        Axis(periodized, periodized, n, name, "ad" if fits(n, name) else "a")
        for n, name in zip(x.shape[1:], selection.names, strict=True)
    ]
    here, deeper = x.new_zeros(()), x.new_zeros(())

    def at_bands(kept: Tensor) -> None:
        nonlocal here
        here = squared_norm(kept)

    def at_coarse(coarse: Tensor) -> Tensor:
        nonlocal deeper
        if levels == 1:
            deeper = selection.coarse_weight * squared_norm(coarse)
            return selection.coarse_weight * coarse
        ratio = x.numel() / coarse.numel()
        value, gradient = _periodized(coarse, selection, levels - 1)
        deeper = ratio * value
        return gradient.mul_(ratio)

    awaited = at_coarse if levels > 1 or selection.coarse_weight else None
    gradient = bandpass(x, axes, selection.bands, at_coarse=awaited, at_bands=at_bands)
    return here + deeper, gradient


# --- convention "released": masked reconstructions, as commit 7cf0ca6 computes them ---------------


def _released(x: Tensor, selection: Selection, levels: int) -> tuple[Tensor, Tensor]:
    named = list(zip(x.shape[1:], selection.names, strict=True))
    there = [Axis(_correlation, _expansion, n, name) for n, name in named]
    back = [Axis(_expansion, _correlation, n, name) for n, name in named]  # the adjoint
    coarse: list[Tensor] = []
    masked = bandpass(x, there, selection.bands, at_coarse=coarse.append if levels > 1 else None)
    here = squared_norm(masked)
    if levels == 1:
        return here, bandpass(masked, back, selection.bands)
    ratio = voxels(x.shape[1:], selection) / voxels(coarse[0].shape[1:], selection)
    value, gradient = _released(coarse[0], selection, levels - 1)
    gradient = bandpass(masked, back, selection.bands, at_coarse=lambda _: gradient.mul_(ratio))
    return here + ratio * value, gradient


def _correlation(n: int, name: str, letters: str) -> np.ndarray:
    """Analysis of one axis (m, n): stride 2, zero padding K - 1, float32 taps, not flipped."""
    rows = (n + taps(name) - 2) // 2 + 1
    return _strided(discrete(name).filter_bank[:2], letters, rows, n)


def _expansion(n: int, name: str, letters: str) -> np.ndarray:
    """Synthesis of one axis, transposed (m, n), cropped; odd n come back one short."""
    rows = (n + taps(name) - 2) // 2 + 1
    columns = min(2 * rows - taps(name), n)
    return _strided(discrete(name).filter_bank[2:], letters, rows, columns)


def _strided(pair: Sequence[Sequence[float]], letters: str, rows: int, n: int) -> np.ndarray:
    """Row r of each half holds its filter from column 2 r - (K - 1) on, as far as that is in n."""
    whole = np.zeros((len(letters), rows, n))
    for half, letter in zip(whole, letters, strict=True):
        filters = np.asarray(pair["ad".index(letter)], dtype=np.float32)
        for row in range(rows):
            first = 2 * row - (len(filters) - 1)
            inside = slice(max(first, 0), min(first + len(filters), n))
            half[row, inside] = filters[inside.start - first : inside.stop - first]
    return whole.reshape(-1, n)
