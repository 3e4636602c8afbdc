"""The loss by matrix products, all levels at once, where all axes are orthonormal.

Let T be the whole transform of one axis, down to its last level. The bands of every level are
spanned by vectors of the fully separable basis T x T x T, so the loss is a weighted sum of squares
of the coefficients y. Each belongs to the first level at which an axis is high. For any number b,

    value = <y, w y>,    half its gradient = T' w y = b x + T' (w - b) y.

With b = 1 only coefficients that do not weigh 1 are needed. For the published bands these lie in
two corners of the volume: in the bands `aaa` and `ddd` of the first level.

Source: Beylkin, Coifman, Rokhlin, Communications on Pure and Applied Mathematics 44(2), 1991, for
the two bases; that the loss of Fan et al. (MICCAI 2026) is diagonal in one of them is ours.
"""

from collections.abc import Sequence
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from dcd_core.wavelet.energy import Selection, fits, grids, ratio
from dcd_core.wavelet.transform import BANDS, analysis, taps

HEAVIEST = 8.0**4
"""Largest weight for b = 1 in float32, where a difference costs four of seven digits at worst."""


@lru_cache(maxsize=256)
def is_diagonal(size: tuple[int, ...], selection: Selection) -> bool:
    """Whether all axes are orthonormal at every level: measured, as odd sizes and dmey are not."""
    used = grids(size, selection.names, selection.levels)[:-1]
    axes = {axis for grid in used for axis in zip(grid, selection.names, strict=True)}
    rows = [analysis(n, name, "periodization") for n, name in axes if fits(n, name)]
    return selection.convention == "orthonormal" and all(
        np.allclose(one.T @ one, np.eye(one.shape[1]), rtol=0, atol=1e-10) for one in rows
    )


def energy(x: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
    """As `gradient.energy`, where the grid `is_diagonal`; the gradient takes the place of `x`."""
    volumes = x.view(-1, _depth(x.shape[1], selection), *x.shape[2:])
    base, (d, h, w), change, weights = _plan(tuple(volumes.shape), selection, x.dtype, x.device)
    # The product of W brings it to the front, and H becomes the last axis. So the coefficients lie
    # in the order (w, d, h), and no copy is transposed.
    volumes = volumes.view(len(d), d.shape[2], -1)
    y = torch.bmm(d, volumes)
    y = torch.bmm(w, y.view(len(w), -1, w.shape[2]).mT)
    y = torch.bmm(y.view(len(h), -1, h.shape[2]), h.mT)
    coefficients = y.view(-1, len(change))
    # Not a product with a vector: some libraries add up a row in one float32 sum, which drifts.
    value = coefficients.square().mul_(weights).sum()
    coefficients.mul_(change)
    y = torch.bmm(y, h)
    y = torch.bmm(y.view(len(w), w.shape[1], -1).mT, w)
    torch.baddbmm(volumes, d.mT, y.view(len(d), d.shape[1], -1), beta=base, out=volumes)
    if base:  # rounding may leave less than nothing of a difference
        slices = torch.linalg.vector_norm(x.flatten(0, 1).flatten(1), dim=1)
        value = (value + slices.square().sum()).clamp_min_(0)
    return value, x


def _depth(depth: int, selection: Selection) -> int:
    """Samples along D that Haar can transform by themselves, as no filter leaves its block."""
    block = 2**selection.levels
    pieces = range(block, depth, block) if taps(selection.names[0]) == 2 else ()
    return next((n for n in pieces if n >= 16 and depth % n == 0), depth)


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # what is kept may be used in a backward pass later
def _plan(
    shape: tuple[int, ...], selection: Selection, dtype: torch.dtype, device: torch.device
) -> tuple[int, list[Tensor], Tensor, Tensor]:
    """The plan for volumes (c, d, h, w) that needs the fewest coefficients.

    It has b, matrices of D, H and W that lead to the coefficients, w - b and w - b w^2 of these.
    """
    count, *size = shape
    named = zip(size, selection.names, strict=True)
    matrices, levels = zip(*(_axis(n, name, selection.levels) for n, name in named), strict=True)
    weights = _weights(levels, selection)
    corners = [np.ix_(*(level > 1 for level in levels)), np.ix_(*(level == 1 for level in levels))]
    base, blocks = 0, [np.ix_(*(level > 0 for level in levels))]
    for b in (0, 1) if dtype == torch.float64 or weights.max() <= HEAVIEST else (0,):
        needed = weights != b
        reached = [rows for rows in corners if needed[rows].any()] or corners[:1]
        for rows in reached:
            needed[rows] = False
        if not needed.any():
            base, blocks = b, reached
    stacks = [
        np.stack([matrix[rows[i].ravel()] for rows in blocks]) for i, matrix in enumerate(matrices)
    ]
    stacks[0] = stacks[0].reshape(1, -1, size[0])  # along D both corners are one product
    kept = partial(torch.as_tensor, dtype=dtype, device=device)
    axes = [kept(np.tile(stack, (count, 1, 1))) for stack in stacks]
    known = np.stack([weights[rows].transpose(2, 0, 1) for rows in blocks]).ravel()
    return base, axes, kept(known - base), kept(known - base * known**2)


def _axis(n: int, name: str, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, n) of an axis, coarse ones first; the level where each is high, L + 1 if nowhere."""
    rows, level = np.eye(n), np.full(n, levels + 1)
    for i in range(1, levels + 1):
        low = int((level > levels).sum())
        if fits(low, name):
            rows[:low] = analysis(low, name, "periodization") @ rows[:low]
            level[low // 2 : low] = i
    return rows, level


def _weights(levels: Sequence[np.ndarray], selection: Selection) -> np.ndarray:
    """The weight of every coefficient (d, h, w), from the levels of the rows of each axis."""
    size = tuple(map(len, levels))
    on_axes = np.meshgrid(*levels, indexing="ij")
    first = np.minimum.reduce(on_axes)
    band = np.tensordot([4, 2, 1], on_axes == first, axes=1)
    used = grids(size, selection.names, selection.levels)[:-1]
    ratios = [ratio(size, grid, selection) for grid in used]
    selected = np.isin(BANDS, selection.bands)
    table = np.outer([*ratios, 0], selected)  # of a level and a band
    table[-1] += ratios[-1] * selection.coarse_weight
    table += selected[0] * np.cumsum([0, *ratios])[:, None]  # the bands `aaa` of finer levels
    return table[first - 1, band]
