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
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dcd_core.wavelet.banks import LETTERS, periodized
from dcd_core.wavelet.contraction import AXES, ORDER, Filter
from dcd_core.wavelet.levels import Selection, grids
from dcd_core.wavelet.transform import BANDS, constant, taps

HEAVIEST = 8.0**4
"""Largest weight for b = 1 in float32. What deeper levels add to the gradient's norm is taken off
the energy again; with this weight that costs four of seven digits at worst."""

SLAB = 16
"""Samples along D, at least, of the slabs that Haar's volumes are cut into."""


class Leaf(NamedTuple):
    """Of a channel's coefficients, in a row: w - b, and w - b w^2, their share of the energy."""

    change: Tensor
    energy: Tensor


class Plan(NamedTuple):
    """The `base` b and the way to all coefficients that weigh something else, if there are any.

    `filters` are those of D, W and H. What leaves one is cut into the halves that are needed, low
    or high, and each meets a matrix of its own along the next axis: volumes of a stack.
    """

    base: int
    filters: tuple[Filter, ...]
    leaf: Leaf | None


@lru_cache(maxsize=256)
def is_diagonal(size: tuple[int, ...], selection: Selection) -> bool:
    """Whether all axes are orthonormal at every level, so that `energy` may be used."""
    used = grids(size, selection.names, selection.levels)[:-1]
    banks = (
        periodized(*named) for grid in used for named in zip(grid, selection.names, strict=True)
    )
    return all(bank.orthonormal for bank in banks)


def energy(x: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
    """Energy of a block of volumes (c, d, h, w), a scalar, and half its gradient in place of `x`.

    `selection.levels` must be usable, and the grid `is_diagonal`.
    """
    slabs = x.view(-1, _slab(x.shape[1], selection), *x.shape[2:])
    base, filters, leaf = _plan(tuple(slabs.shape[1:]), selection, x.dtype, x.device)
    if leaf is None:  # all coefficients weigh b
        return squared_norm(x).mul_(base), x.mul_(base)
    value = _weigh(slabs, len(slabs), filters, leaf, base)
    if base:  # rounding may leave less than nothing of a difference
        value = (value + squared_norm(x)).clamp_min_(0)
    return value, x


def _weigh(
    x: Tensor, channels: int, filters: Sequence[Filter], leaf: Leaf, base: int = 0
) -> Tensor:
    """Replace x by b x + T' (w - b) T x, and return the sum of (w - b w^2) (T x)^2."""
    if not filters:
        rows = x.view(channels, -1)
        # Not a product with a vector: some libraries add up a row in one float32 sum, which drifts.
        value = rows.square().mul_(leaf.energy).sum()
        rows.mul_(leaf.change)
        return value
    here, *later = filters
    y = here.analyse(x, channels)
    value = _weigh(y, channels, later, leaf)
    here.synthesise(y, x, channels, add=bool(base))
    return value


def squared_norm(x: Tensor) -> Tensor:
    """Squared norm of volumes, a scalar: of slices first, as one float32 sum would drift."""
    return torch.linalg.vector_norm(x.flatten(0, 1).flatten(1), dim=1).square().sum()


@lru_cache(maxsize=256)
def _slab(depth: int, selection: Selection) -> int:
    """The depth of slabs that are volumes of their own: no filter of Haar's leaves its block."""
    block = 2**selection.levels
    slabs = range(block, depth, block) if taps(selection.names[0]) == 2 else ()
    return next((n for n in slabs if n >= SLAB and depth % n == 0), depth)


# --- the plan -------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _plan(
    size: tuple[int, int, int], selection: Selection, dtype: torch.dtype, device: torch.device
) -> Plan:
    towers = [
        _tower(n, name, selection.levels) for n, name in zip(size, selection.names, strict=True)
    ]
    weights = _weights(size, selection)

    plans = [
        _way(towers, weights, base, dtype, device)
        for base in (0, 1)
        if base == 0 or dtype == torch.float64 or weights.max() <= HEAVIEST
    ]
    return min(plans, key=lambda plan: _operations(plan.filters, math.prod(size)))


def _way(
    towers: Sequence[tuple[np.ndarray, np.ndarray]],
    weights: np.ndarray,
    base: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Plan:
    """The plan that leads to the coefficients that weigh something else, and to few others."""
    # Of every volume of the stack, the levels along each axis: once contracted, of all its rows.
    volumes = [{axis: np.unique(level) for axis, (_, level) in enumerate(towers)}]
    filters = []
    for axis in AXES:
        matrix, level = towers[axis]
        halves = [np.flatnonzero(half) for half in (level > 1, level == 1) if half.any()]
        needed = [
            [rows for rows in halves if (_at(weights, volume | {axis: level[rows]}) != base).any()]
            for volume in volumes
        ]
        # The volumes of a stack are equally large: where one needs both halves, all take both.
        count = max(map(len, needed))
        if count == 0:
            return Plan(base, (), None)
        taken = [some if len(some) == count else halves[:count] for some in needed]
        stacked = matrix[np.stack([*map(np.concatenate, taken)])]
        filters.append(Filter.of(stacked, axis, dtype, device))
        if axis == AXES[-1]:  # after the last product the halves need not be told apart
            taken = [[np.concatenate(some)] for some in taken]
        volumes = [
            volume | {axis: level[rows]}
            for volume, some in zip(volumes, taken, strict=True)
            for rows in some
        ]
    w = np.stack([_at(weights, volume).transpose(ORDER) for volume in volumes]).ravel()
    leaf = Leaf(constant(w - base, dtype, device), constant(w - base * w**2, dtype, device))
    return Plan(base, tuple(filters), leaf)


def _at(weights: np.ndarray, levels: Mapping[int, np.ndarray]) -> np.ndarray:
    """The weights (d, h, w) of the coefficients whose rows have these levels along each axis."""
    return weights[np.ix_(*(levels[axis] for axis in range(3)))]


def _operations(filters: Sequence[Filter], values: int) -> int:
    """Multiplications on the way to the leaf, for a channel of as many values."""
    total = 0
    for _, coefficients, samples in (filter_.shape for filter_ in filters):
        total += coefficients * values
        values = values // samples * coefficients
    return total


def _tower(n: int, name: str, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """All levels of one axis: rows (m, n), deepest first, and the level at which each is high.

    The coarse rows, first of all, are high at no level: theirs is `levels` + 1.
    """
    low, high = np.eye(n), []
    for level in range(1, levels + 1):
        bank = periodized(len(low), name)
        if bank.letters != LETTERS:
            break
        low, detail = np.split(bank.matrix(LETTERS) @ low, 2)
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
