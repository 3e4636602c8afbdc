"""The energy in the basis in which it is a weighted sum of squares: all levels in one round trip.

Let T be the whole transform of one axis, down to its last level. Along D, H and W together,
T (x) T (x) T is the fully separable ("standard") wavelet basis. If T is orthonormal, the coarse
space of every level and each of its bands are spanned by vectors of that basis, so an energy of
any bands over any number of levels is  sum_i w_i y_i^2  of the coefficients y = (T (x) T (x) T) x.
The level that a coefficient belongs to is the first at which one of its axes is high.

    energy = <y, w y>,    half its gradient = T' w y = b x + T' (w - b) y.

With b = 1 the coefficients that weigh 1 need not be known: of the published bands that is three
quarters of the volume, and the products that lead there are spared.

Source: Beylkin, Coifman and Rokhlin, Communications on Pure and Applied Mathematics 44(2), 1991,
for the two bases; that the loss of Fan et al. (MICCAI 2026) is diagonal in one of them is ours.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from dcd_core.wavelet.contraction import Filter
from dcd_core.wavelet.levels import Selection, fits, grids, is_orthonormal, periodized
from dcd_core.wavelet.transform import BANDS

HEAVIEST = 8.0**4
"""Largest weight for b = 1 in float32. What deeper levels add to the gradient's norm is taken off
the energy again; with this weight that costs four of seven digits at worst."""


class Leaf(NamedTuple):
    """Of some coefficients (d, h, w, 1): w - b, and w - b w^2, their share of the energy."""

    change: Tensor
    energy: Tensor


class Branch(NamedTuple):
    """The filter of the last axis and, for each half that is needed, its rows and what follows."""

    filter: Filter
    halves: tuple[tuple[int, Branch | Leaf], ...]


Tree: TypeAlias = Branch | Leaf


class Plan(NamedTuple):
    """The `base` b and the way to all coefficients that weigh something else, if there are any."""

    base: int
    tree: Tree | None


def is_diagonal(size: tuple[int, ...], selection: Selection) -> bool:
    """Whether all axes are orthonormal at every level, so that this file applies."""
    used = grids(size, selection.names, selection.levels)[:-1]
    return all(all(map(is_orthonormal, grid, selection.names)) for grid in used)


def energy(x: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
    """Energy of a block of volumes (c, d, h, w), a scalar, and half its gradient in place of `x`.

    `selection.levels` must be usable, and the grid `is_diagonal`.
    """
    base, tree = _plan(tuple(x.shape[1:]), selection, x.dtype, x.device)
    if tree is None:  # all coefficients weigh b
        return squared_norm(x).mul_(base), x.mul_(base)
    value = _weigh(x, tree, base)
    if base:  # rounding may leave less than nothing of a difference
        value = (value + squared_norm(x)).clamp_min_(0)
    return value, x


def _weigh(x: Tensor, tree: Tree, base: int = 0) -> Tensor:
    """Replace x by b x + T' (w - b) T x, and return the sum of (w - b w^2) (T x)^2."""
    if isinstance(tree, Leaf):
        value = x.square().mul_(tree.energy).sum()
        x.mul_(tree.change)
        return value
    y = tree.filter.analyse(x)
    parts = y.split([rows for rows, _ in tree.halves])
    values = [_weigh(part, inner) for part, (_, inner) in zip(parts, tree.halves, strict=True)]
    tree.filter.synthesise(y, x, add=bool(base))
    return torch.stack(values).sum()


def squared_norm(x: Tensor) -> Tensor:
    """Squared norm of a tensor, a scalar: of its rows first, as one float32 sum would drift."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1).square().sum()


# --- the plan -------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _plan(
    size: tuple[int, int, int], selection: Selection, dtype: torch.dtype, device: torch.device
) -> Plan:
    towers = [
        _tower(n, name, selection.levels) for n, name in zip(size, selection.names, strict=True)
    ]
    weights = _weights(size, selection)

    def tree(base: int, used: np.ndarray, chosen: tuple[np.ndarray, ...] = ()) -> Branch:
        """The way to the `used` coefficients; `chosen`: levels of the rows of the last axes."""
        matrix, level = towers[used.ndim - 1]
        halves = [np.flatnonzero(half) for half in (level > 1, level == 1)]
        halves = [rows for rows in halves if used[..., rows].any()]
        rows = np.concatenate(halves)
        inner: list[tuple[int, Tree]] = []
        if used.ndim > 1:
            for half in halves:
                left = np.logical_or.reduce(used[..., half], axis=-1)
                inner.append((len(half), tree(base, left, (level[half], *chosen))))
        else:  # after the last product the halves need not be told apart
            w = weights[np.ix_(level[rows], *chosen)][..., None]
            change, share = (_tensor(x, dtype, device) for x in (w - base, w - base * w**2))
            inner.append((len(rows), Leaf(change, share)))
        return Branch(Filter.of(matrix[rows], dtype, device), tuple(inner))

    plans = []
    for base in (0, 1) if dtype == torch.float64 or weights.max() <= HEAVIEST else (0,):
        used = (weights != base)[np.ix_(*(level for _, level in towers))]
        plans.append(Plan(base, tree(base, used) if used.any() else None))
    return min(plans, key=lambda plan: _operations(plan.tree, math.prod(size)))


def _operations(tree: Tree | None, values: int) -> int:
    """Multiplications on the way to the leaves, for a block of as many values."""
    if not isinstance(tree, Branch):
        return 0
    columns = values // tree.filter.shape[1]
    deeper = (_operations(inner, rows * columns) for rows, inner in tree.halves)
    return tree.filter.shape[0] * values + sum(deeper)


def _tower(n: int, name: str, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """All levels of one axis: rows (m, n), deepest first, and the level at which each is high.

    The coarse rows, first of all, are high at no level: theirs is `levels` + 1.
    """
    low, high = np.eye(n), []
    for level in range(1, levels + 1):
        if not fits(len(low), name):
            break
        halves = periodized(len(low), name, "ad") @ low
        low, detail = np.split(halves, 2)
        high.append((detail, np.full(len(detail), level)))
    rows = [(low, np.full(len(low), levels + 1)), *reversed(high)]
    return np.concatenate([r for r, _ in rows]), np.concatenate([level for _, level in rows])


def _weights(size: tuple[int, int, int], selection: Selection) -> np.ndarray:
    """The weight of a coefficient by the levels of its rows, in units of the first level's.

    A table (levels along D, along H, along W), each from 1 to `selection.levels` + 1.
    """
    deepest = selection.levels + 1
    levels = np.indices((deepest + 1,) * 3)
    first = levels.min(axis=0)
    band = np.tensordot([4, 2, 1], levels == first, axes=1)
    selected = np.isin(BANDS, selection.bands)
    weights = np.zeros(first.shape)
    for level, grid in enumerate(grids(size, selection.names, selection.levels)[:-1], start=1):
        per_voxel = math.prod(size) / math.prod(grid)
        here = first == level
        weights[here] += per_voxel * selected[band[here]]
        weights[first > level] += per_voxel * selected[0]
    weights[first == deepest] += per_voxel * selection.coarse_weight
    return weights


def _tensor(values: np.ndarray, dtype: torch.dtype, device: torch.device) -> Tensor:
    # A tensor born under inference_mode could never take part in a later backward pass.
    with torch.inference_mode(False):
        return torch.from_numpy(np.ascontiguousarray(values)).to(device, dtype)
