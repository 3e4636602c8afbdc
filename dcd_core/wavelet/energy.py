"""Energy of the selected bands over several levels, with its gradient, in both conventions.

With x_0 = x and x_l the coarse band of x_(l-1), the energy of a block of volumes is

    sum_l  n_0 / n_(l-1)  ||bands of level l||^2,

n_l being the voxels of a volume at level l: a mean over voxels at every level, in units of the
first. Each function returns the energy and half its gradient; the gradient of the deeper levels
rides along when a level goes back from its bands, so it costs nothing on the finer grids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from torch import Tensor

from dcd_core.wavelet.bandpass import Axis, bandpass, squared_norm
from dcd_core.wavelet.transform import analysis, discrete, taps

Convention: TypeAlias = Literal["orthonormal", "released"]


class Selection(NamedTuple):
    """Which bands are measured, and how: the hashable description of an energy."""

    names: tuple[str, str, str]
    levels: int
    bands: tuple[str, ...]
    coarse_weight: float
    convention: Convention


def usable_levels(size: Sequence[int], selection: Selection) -> int:
    """How many of the wanted levels a grid (D, H, W) allows.

    The orthonormal convention goes on while one axis is as long as its filter; the released one
    always goes on.
    """
    if selection.convention == "released":
        return selection.levels
    used = 0
    while used < selection.levels and any(map(_fits, size, selection.names)):
        size = [
            (n + 1) // 2 if _fits(n, name) else n
            for n, name in zip(size, selection.names, strict=True)
        ]
        used += 1
    return used


def voxels(size: Sequence[int], selection: Selection) -> int:
    """Voxels of a volume (D, H, W) over which the first level is averaged."""
    if selection.convention == "released":
        size = [n - n % 2 for n in size]  # an odd axis comes back one short
    return math.prod(size)


def energy(x: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
    """Energy of a block of volumes (c, d, h, w), a scalar, and half its gradient, like `x`.

    `selection.levels` must be usable. `x` is used up: its memory may hold the gradient.
    """
    if selection.convention == "released":
        return _released(x, selection, selection.levels)
    return _orthonormal(x, selection, selection.levels)


# --- convention "orthonormal": periodized coefficients --------------------------------------------


def _orthonormal(x: Tensor, selection: Selection, levels: int) -> tuple[Tensor, Tensor]:
    axes = [
        Axis(_periodized, _periodized, n, name, "ad" if _fits(n, name) else "a")
        for n, name in zip(x.shape[1:], selection.names, strict=True)
    ]
    deeper = x.new_zeros(())

    def at_coarse(coarse: Tensor) -> Tensor:
        nonlocal deeper
        if levels == 1:
            deeper = selection.coarse_weight * squared_norm(coarse)
            return selection.coarse_weight * coarse
        ratio = x.numel() / coarse.numel()
        value, gradient = _orthonormal(coarse, selection, levels - 1)
        deeper = ratio * value
        return gradient.mul_(ratio)

    here, gradient = bandpass(
        x,
        axes,
        selection.bands,
        orthonormal=all(map(_is_orthonormal, x.shape[1:], selection.names)),
        at_coarse=at_coarse if levels > 1 or selection.coarse_weight else None,
    )
    return here + deeper, gradient


def _fits(n: int, name: str) -> bool:
    """Whether an axis is long enough for one more level: the filter must not wrap onto itself."""
    return n >= taps(name)


@lru_cache(maxsize=512)
def _periodized(n: int, name: str, letters: str) -> np.ndarray:
    """Analysis of one axis (m, n), its transpose the synthesis.

    An axis too short for its filter passes through untouched, without a high half, so that thick
    slices keep their in-plane detail.
    """
    if not _fits(n, name):
        return np.eye(n) if "a" in letters else np.empty((0, n))
    low, high = np.split(analysis(n, name, "periodization"), 2)
    return np.concatenate([{"a": low, "d": high}[letter] for letter in letters])


@lru_cache(maxsize=512)
def _is_orthonormal(n: int, name: str) -> bool:
    """Whether the transform of this axis keeps energy: measured, as odd sizes and dmey do not."""
    whole = _periodized(n, name, "ad")
    return whole.shape == (n, n) and np.allclose(whole.T @ whole, np.eye(n), rtol=0, atol=1e-10)


# --- convention "released": masked reconstructions, as commit 7cf0ca6 computes them ---------------


def _released(x: Tensor, selection: Selection, levels: int) -> tuple[Tensor, Tensor]:
    named = list(zip(x.shape[1:], selection.names, strict=True))
    there = [Axis(_correlation, _expansion, n, name) for n, name in named]
    back = [Axis(_expansion, _correlation, n, name) for n, name in named]  # the adjoint
    coarse: list[Tensor] = []
    _, masked = bandpass(x, there, selection.bands, at_coarse=coarse.append if levels > 1 else None)
    here = squared_norm(masked)
    if levels == 1:
        return here, bandpass(masked, back, selection.bands)[1]
    ratio = voxels(x.shape[1:], selection) / voxels(coarse[0].shape[1:], selection)
    value, gradient = _released(coarse[0], selection, levels - 1)
    _, gradient = bandpass(masked, back, selection.bands, at_coarse=lambda _: gradient.mul_(ratio))
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
