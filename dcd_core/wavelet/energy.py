"""The loss of one stage as book/method.md defines it: a sum over levels and over bands.

Let x_0 be the difference of two feature maps, W_b x the band b of x, and x_l = W_aaa x_(l-1). With
L levels, the set of bands B and the weight gamma of the last coarse band, the loss is

    1/L sum_(l=1..L) 1/|x_(l-1)| ( sum_(b in B) ||W_b x_(l-1)||^2 + gamma [l = L] ||x_l||^2 ),

where |x| counts elements: the convention "orthonormal" with the published level weighting,
"resolution". The level weighting "energy" has 1/|x_0| in place of 1/L and of every 1/|x_(l-1)|.
The convention "released" compares reconstructions. With S_b the synthesis of band b it is

    1/L sum_(l=1..L) mean( (sum_(b in B) S_b W_b x_(l-1))^2 ).

This serves any wavelet and size and can be differentiated any number of times; `fast` is faster.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dcd_core.types import Volume
from dcd_core.wavelet.transform import (
    BANDS,
    analysis,
    apply_separable,
    discrete,
    from_bands,
    matrix,
    taps,
    to_bands,
)

Convention: TypeAlias = Literal["orthonormal", "released"]
LevelWeighting: TypeAlias = Literal["resolution", "energy"]


class Selection(NamedTuple):
    """What is compared: a wavelet per axis (D, H, W), levels, bands, convention and weighting."""

    names: tuple[str, str, str]
    levels: int
    bands: tuple[str, ...]
    coarse_weight: float
    convention: Convention
    level_weighting: LevelWeighting = "resolution"


def energy(x: Volume, selection: Selection) -> Float[Tensor, ""]:
    """The loss of differences `x` (b, c, d, h, w), a scalar; all levels must be usable."""
    chosen = [[band in selection.bands] for band in BANDS]
    total, selected = x.new_zeros(()), torch.tensor(chosen, device=x.device)[..., None, None]
    averaged, count = selection.level_weighting == "resolution", 1
    for level in range(1, selection.levels + 1):
        if averaged or level == 1:
            count = len(x) * x.shape[1] * voxels(x.shape[2:], selection)
        axes = [*zip(x.shape[2:], selection.names, strict=True)]
        split = [matrix(_analysis, *axis, selection.convention, like=x) for axis in axes]
        bands = to_bands(apply_separable(x, split))
        compared, x = bands * selected, bands[:, :, 0]
        if selection.convention == "released":
            join = [matrix(_synthesis, *axis, like=x) for axis in axes]
            compared = apply_separable(from_bands(compared), join)
        total = total + compared.square().sum() / count
        if level == selection.levels and selection.coarse_weight:
            total = total + selection.coarse_weight * x.square().sum() / count
    return total / selection.levels if averaged else total


@lru_cache(maxsize=512)
def grids(
    size: tuple[int, ...], names: tuple[str, ...], levels: int
) -> tuple[tuple[int, ...], ...]:
    """The grids (D, H, W) of x_0, x_1, ... while `levels` are usable: while an axis is split."""
    result = [size]
    while len(result) <= levels and any(map(fits, result[-1], names)):
        axes = zip(result[-1], names, strict=True)
        result.append(tuple((n + 1) // 2 if fits(n, name) else n for n, name in axes))
    return tuple(result)


def fits(n: int, name: str) -> bool:
    """Whether an axis of n samples is split once more: a filter must not wrap onto itself."""
    return n >= taps(name)


def usable_levels(size: Sequence[int], selection: Selection) -> int:
    """How many of the levels a grid (D, H, W) allows; in the released convention all."""
    if selection.convention == "released":
        return selection.levels
    return len(grids(tuple(size), selection.names, selection.levels)) - 1


def voxels(size: Sequence[int], selection: Selection) -> int:
    """Voxels of a volume (D, H, W) over which its level is averaged."""
    released = selection.convention == "released"  # whose synthesis cuts odd axes by a sample
    return math.prod(n - n % 2 if released else n for n in size)


def units(size: Sequence[int], selection: Selection) -> int:
    """What the loss of one channel (D, H, W) is divided by: L |x_0|, or |x_0| by energy."""
    averaged = selection.level_weighting == "resolution"
    return voxels(size, selection) * (selection.levels if averaged else 1)


def ratio(fine: Sequence[int], coarse: Sequence[int], selection: Selection) -> float:
    """The weight of a level that splits the grid `coarse`, in units of that which splits `fine`."""
    return math.prod(fine) / math.prod(coarse) if selection.level_weighting == "resolution" else 1.0


def _analysis(n: int, name: str, convention: Convention) -> np.ndarray:
    """What splits an axis of n samples: rows of the low half, then as many of the high half."""
    if convention == "released":
        return np.concatenate([_strided(row, n) for row in released_filters(name)[:2]])
    if fits(n, name):
        return analysis(n, name, "periodization")
    return np.concatenate([np.eye(n), np.zeros((n, n))])  # the axis passes through


def _synthesis(n: int, name: str) -> np.ndarray:
    """The released synthesis of an axis that had n samples."""
    rows = np.concatenate([_strided(row, n) for row in released_filters(name)[2:]])
    return rows[:, : n - n % 2].T


def released_filters(name: str) -> np.ndarray:
    """Filters of analysis (low, high) and synthesis (low, high), rounded as in commit 7cf0ca6."""
    return np.asarray(discrete(name).filter_bank, np.float32).astype(float)


def _strided(factors: np.ndarray, n: int) -> np.ndarray:
    """Correlation of n samples with K factors, stride 2, K - 1 zeros on both sides, as a matrix."""
    k = len(factors)
    rows = np.zeros(((n + k - 2) // 2 + 1, n + 2 * k))
    for i, row in enumerate(rows):
        row[2 * i : 2 * i + k] = factors
    return rows[:, k - 1 : k - 1 + n]
