"""Infarcts follow arteries: wedges, showers of emboli, lacunes and watersheds.

Each is a signed level in millimetres (positive inside), so that the soft occupancy of a voxel, its
label and the annotator's wobble all come from the same number.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from dcd_lab.phantom.anatomy import Anatomy
from dcd_lab.phantom.fields import Array, Grid, smooth

FAR_MM = -60.0

# Centres of arterial branch territories, MNI millimetres on one side; the other is its mirror.
# Drawn from textbook descriptions of the cortical branches and perforators, not from an atlas file.
BRANCHES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "mca": (
        (38, 40, -8), (46, 30, 22), (50, 8, 32), (54, -10, 40), (54, -28, 42), (46, -46, 46),
        (48, -62, 30), (52, -62, 6), (60, -42, 4), (62, -20, -8), (52, 4, -22), (42, 16, -32),
        (40, 4, 4),
    ),
    "aca": (
        (8, 36, -18), (12, 60, 4), (10, 46, 28), (12, 26, 46), (12, 2, 58), (12, -24, 60),
        (12, -52, 56), (7, 16, 26),
    ),
    "pca": (
        (34, -20, -28), (34, -46, -18), (12, -82, 4), (14, -70, 28), (28, -88, 4),
        (10, -10, 8), (17, -22, 6),
    ),
    "perforator": ((26, 0, 8), (16, 10, 6), (22, -16, 0)),
    "fossa": ((20, -52, -22), (20, -62, -42), (30, -46, -36), (5, -26, -34), (6, -22, -12)),
}  # fmt: skip
_ORIGIN = np.array([-96.0, -132.0, -78.0])
_STEP = 3.0


class Territories(NamedTuple):
    """`branch` (index of the nearest branch), `main` (index of its artery), `border_mm`."""

    branch: Array
    main: Array
    border_mm: Array


@lru_cache(maxsize=1)
def territories() -> Territories:
    """Arterial territories on a 3 mm lattice: the nearest branch centre wins."""
    x, y, z = np.meshgrid(*(o + _STEP * np.arange(66) for o in _ORIGIN), indexing="ij")
    centres = [(c, m) for m, part in enumerate(BRANCHES.values()) for c in part]
    nearest = np.full((len(BRANCHES), *x.shape), np.inf)
    branch = np.zeros(x.shape)
    best = np.full(x.shape, np.inf)
    for index, ((a, b, c), main) in enumerate(centres):
        gap = np.sqrt((np.abs(x) - a) ** 2 + (y - b) ** 2 + (z - c) ** 2)
        # Perforators end where the cortical branches begin; the posterior fossa is walled off.
        gap = gap + (2.0 if list(BRANCHES)[main] == "perforator" else 0.0)
        closer = gap < best
        branch, best = np.where(closer, index, branch), np.minimum(best, gap)
        nearest[main] = np.minimum(nearest[main], gap)
    two = np.sort(nearest[:3], axis=0)[:2]
    main = np.array([m for _, m in centres])[branch.astype(int)]
    side = np.where(x < 0, 0, 100)
    return Territories(branch + side, main.astype(float) + side, two[1] - two[0])


class Infarcts(NamedTuple):
    """Levels in mm (positive inside) of the fresh and of the old infarcts."""

    fresh_mm: Array
    old_mm: Array


def _lookup(part: Array, anatomy: Anatomy, wobble: Array) -> Array:
    index = np.stack(
        [
            np.rint((anatomy.mni[axis] + wobble - _ORIGIN[axis]) / _STEP).astype(int)
            for axis in range(3)
        ]
    )
    index = np.clip(index, 0, np.array(part.shape)[:, None, None, None] - 1)
    return part[tuple(index)]


def _level_of_volume(score: Array, tissue: Array, volume_ml: float, voxel_ml: float) -> Array:
    """Turn a cost in mm into a level that is positive on the cheapest `volume_ml` of tissue."""
    flat = np.flatnonzero(tissue.ravel() > 0.3)
    cost = score.ravel()[flat]
    order = np.argsort(cost, kind="stable")
    filled = np.cumsum(tissue.ravel()[flat][order]) * voxel_ml
    last = min(int(np.searchsorted(filled, volume_ml)), len(order) - 1)
    return cost[order[last]] - score


def _territorial(
    rng: np.random.Generator, grid: Grid, anatomy: Anatomy, allowed: Array, volume_ml: float
) -> Array:
    """One wedge: grows from a point near the surface through its branch, then its artery."""
    maps = territories()
    wobble = 4.0 * smooth(rng, grid, 14.0)
    branch = _lookup(maps.branch, anatomy, wobble)
    main = _lookup(maps.main, anatomy, wobble)
    start = _pick(rng, allowed)
    away = np.sqrt(
        sum((p - axis[i]) ** 2 for p, axis, i in zip(grid.points, grid.axes, start, strict=True))
    )
    score = away + 7.0 * smooth(rng, grid, 12.0) + 3.0 * smooth(rng, grid, 5.0)
    score = score + np.where(branch == branch[start], 0.0, rng.uniform(6.0, 14.0))
    score = score + np.where(main == main[start], 0.0, 45.0)
    score = score + np.where((anatomy.mni[0] < 0) == (anatomy.mni[0][start] < 0), 0.0, 60.0)
    score = score - rng.uniform(0.0, 6.0) * anatomy.cortex + 10.0 * anatomy.csf
    tissue = (1.0 - anatomy.csf) * anatomy.brain
    return _level_of_volume(score, tissue, volume_ml, grid.spacing_mm**3 / 1000.0)


def _pick(rng: np.random.Generator, allowed: Array) -> tuple[int, int, int]:
    flat = np.flatnonzero(allowed.ravel())
    chosen = flat[int(rng.integers(len(flat)))] if len(flat) else allowed.size // 2
    i, j, k = np.unravel_index(chosen, allowed.shape)
    return int(i), int(j), int(k)


def _dot(
    level: Array, rng: np.random.Generator, grid: Grid, centre: tuple[int, int, int],
    radius_mm: float, wobble: Array, stretch: Array,
) -> None:  # fmt: skip
    """Paint one embolic dot into `level` in place, within a window around it."""
    reach = int(np.ceil((2.2 * radius_mm + 3.0) / grid.spacing_mm))
    box = tuple(
        slice(max(0, c - reach), min(n, c + reach + 1))
        for c, n in zip(centre, grid.shape, strict=True)
    )
    offsets = [
        (p - (axis[i] + rng.uniform(-0.5, 0.5) * grid.spacing_mm)) / s
        for p, axis, i, s in zip(grid.crop(box).points, grid.axes, centre, stretch, strict=True)
    ]
    away = np.sqrt(sum(o**2 for o in offsets))
    np.maximum(level[box], radius_mm * (1.0 + 0.3 * wobble[box]) - away, out=level[box])


def _scatter(
    rng: np.random.Generator, grid: Grid, level: Array, allowed: Array, count: int, median_mm: float
) -> Array:
    wobble = smooth(rng, grid, 4.0)
    for _ in range(count):
        radius = float(np.clip(median_mm * np.exp(0.45 * rng.standard_normal()), 1.3, 9.0))
        stretch = np.exp(0.25 * rng.standard_normal(3))
        _dot(level, rng, grid, _pick(rng, allowed), radius, wobble, stretch)
    return level


def _shore(anatomy: Anatomy) -> Array:
    """Voxels of cortex or of the white matter just below it, inside the skull strip."""
    tissue = (anatomy.csf < 0.35) & anatomy.brain & (anatomy.edge_mm > 3.0)
    return tissue & (anatomy.depth_mm < 24.0)


def infarcts(rng: np.random.Generator, grid: Grid, anatomy: Anatomy) -> Infarcts:
    """Fresh infarcts of one patient (territorial, embolic, lacunar, watershed) and old ones.

    Source: patterns and volumes after Hernandez Petzsche et al., Scientific Data, 2022.
    """
    maps = territories()
    main = _lookup(maps.main, anatomy, np.zeros(1))
    shore = _shore(anatomy)
    level = np.full(grid.shape, FAR_MM)
    pattern = rng.choice(4, p=(0.5, 0.27, 0.13, 0.10))
    # Carotid territory mostly; one side mostly.
    artery = int(rng.choice(5, p=(0.60, 0.08, 0.16, 0.06, 0.10)))
    side = int(rng.integers(2)) * 100
    here = main == artery + side
    if not (here & shore).any():
        here = main == side
    volume = float(np.clip(13.0 * np.exp(1.25 * rng.standard_normal()), 0.3, 180.0))
    dots, where = int(rng.integers(1, 8)), here & shore
    if pattern == 0:
        level = np.maximum(level, _territorial(rng, grid, anatomy, where, volume))
    elif pattern == 1:
        dots = int(np.clip(np.exp(rng.normal(2.4, 0.6)), 3, 30))
        level = np.maximum(level, _territorial(rng, grid, anatomy, where, min(volume, 6.0) / 2))
    elif pattern == 2:
        deep = (main % 100 == 3) & (main // 100 == side // 100) & (anatomy.csf < 0.3)
        level = _scatter(rng, grid, level, deep & anatomy.brain, 1, 5.5)
        dots = int(rng.integers(0, 3))
    else:
        border = _lookup(maps.border_mm, anatomy, np.zeros(1)) < 6.0
        where = border & shore & (main // 100 == side // 100)
        dots = int(rng.integers(6, 20))
    level = _scatter(rng, grid, level, where, dots, 2.9)
    old = np.full(grid.shape, FAR_MM)
    if rng.random() < 0.3:
        size = float(np.clip(3.0 * np.exp(rng.standard_normal()), 0.3, 30.0))
        old = _territorial(rng, grid, anatomy, shore, size)
    return Infarcts(level, old)
