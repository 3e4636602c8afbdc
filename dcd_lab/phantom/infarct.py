"""Infarcts follow arteries: wedges, showers of emboli, lacunes and watersheds.

Each is a signed level in millimetres (positive inside). The soft occupancy of a voxel, its label
and the annotator's wobble are all computed from this one number.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from dcd_lab.phantom.anatomy import FAR_MM, Anatomy
from dcd_lab.phantom.fields import Array, Grid, Rng, length, smooth

# Centres of arterial branch territories, MNI millimetres on one side; the other is its mirror.
# Drawn from textbook descriptions of the cortical branches and perforators, not from an atlas file.
BRANCHES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "mca": ((38, 40, -8), (46, 30, 22), (50, 8, 32), (54, -10, 40), (54, -28, 42), (46, -46, 46),
            (48, -62, 30), (52, -62, 6), (60, -42, 4), (62, -20, -8), (52, 4, -22), (42, 16, -32),
            (40, 4, 4)),
    "aca": ((8, 36, -18), (12, 60, 4), (10, 46, 28), (12, 26, 46), (12, 2, 58), (12, -24, 60),
            (12, -52, 56), (7, 16, 26)),
    "pca": ((34, -20, -28), (34, -46, -18), (12, -82, 4), (14, -70, 28), (28, -88, 4),
            (10, -10, 8), (17, -22, 6)),
    "perforator": ((26, 0, 8), (16, 10, 6), (22, -16, 0)),
    "fossa": ((20, -52, -22), (20, -62, -42), (30, -46, -36), (5, -26, -34), (6, -22, -12)),
}  # fmt: skip
_PERFORATOR = 3  # index of the artery
_RIGHT = 100
_ORIGIN = np.array([-96.0, -132.0, -78.0])
_STEP = 3.0


@lru_cache(maxsize=1)
def territories() -> tuple[Array, Array, Array]:
    """On a 3 mm lattice: the nearest branch, the artery it is of, and how near a watershed is (mm).

    `_RIGHT` is added to the numbers of branches and arteries of the right hemisphere.
    """
    axes = (o + _STEP * np.arange(66) for o in _ORIGIN)
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    centres = [centre for part in BRANCHES.values() for centre in part]
    arteries = np.repeat(range(len(BRANCHES)), [len(part) for part in BRANCHES.values()])
    gaps = np.stack([length((np.abs(x) - a, y - b, z - c)) for a, b, c in centres])
    # Perforators end where the cortical branches begin.
    gaps[arteries == _PERFORATOR] += 2.0
    branch, side = gaps.argmin(axis=0), np.where(x < 0, 0, _RIGHT)
    two = np.sort([gaps[arteries == cortical].min(axis=0) for cortical in range(3)], axis=0)
    return branch + side, arteries[branch] + side, two[1] - two[0]


def _lookup(part: Array, anatomy: Anatomy, wobble: Array | float = 0.0) -> Array:
    """Values of a territory map at every voxel."""
    position = zip(anatomy.mni, _ORIGIN, part.shape, strict=True)
    index = [
        np.rint((mni + wobble - o) / _STEP).astype(int).clip(0, n - 1) for mni, o, n in position
    ]
    return part[tuple(index)]


def _level_of_volume(score: Array, tissue: Array, volume_ml: float, voxel_ml: float) -> Array:
    """Turn a cost in mm into a level that is positive on the cheapest `volume_ml` of tissue."""
    flat = np.flatnonzero(tissue.ravel() > 0.3)
    cost = score.ravel()[flat]
    order = np.argsort(cost, kind="stable")
    filled = np.cumsum(tissue.ravel()[flat][order]) * voxel_ml
    last = min(int(np.searchsorted(filled, volume_ml)), len(order) - 1)
    return cost[order[last]] - score


def _territorial(rng: Rng, grid: Grid, anatomy: Anatomy, allowed: Array, volume_ml: float) -> Array:
    """One wedge: grows from a point near the surface through its branch, then its artery."""
    wobble = 4.0 * smooth(rng, grid, 14.0)
    branch, artery = (_lookup(part, anatomy, wobble) for part in territories()[:2])
    start, left = _pick(rng, allowed), anatomy.mni[0] < 0
    away = length(grid.offsets([axis[i] for axis, i in zip(grid.axes, start, strict=True)]))
    score = away + 7.0 * smooth(rng, grid, 12.0) + 3.0 * smooth(rng, grid, 5.0)
    score = score + np.where(branch == branch[start], 0.0, rng.uniform(6.0, 14.0))
    score = score + np.where(artery == artery[start], 0.0, 45.0)
    score = score + np.where(left == left[start], 0.0, 60.0)
    score = score - rng.uniform(0.0, 6.0) * anatomy.cortex + 10.0 * anatomy.csf
    tissue = (1.0 - anatomy.csf) * anatomy.brain
    return _level_of_volume(score, tissue, volume_ml, grid.spacing_mm**3 / 1000.0)


def _pick(rng: Rng, allowed: Array) -> tuple[int, int, int]:
    """One of the allowed voxels, the middle of the grid if there is none."""
    flat = np.flatnonzero(allowed.ravel())
    chosen = flat[int(rng.integers(len(flat)))] if len(flat) else allowed.size // 2
    i, j, k = np.unravel_index(chosen, allowed.shape)
    return int(i), int(j), int(k)


def _scatter(
    rng: Rng, grid: Grid, level: Array, allowed: Array, count: int, median_mm: float
) -> None:
    """Paint embolic dots into `level` in place, each within a window around it."""
    wobble = smooth(rng, grid, 4.0)
    for _ in range(count):
        radius = float(np.clip(median_mm * np.exp(0.45 * rng.standard_normal()), 1.3, 9.0))
        stretch = np.exp(0.25 * rng.standard_normal(3))
        voxel = _pick(rng, allowed)
        reach = int(np.ceil((2.2 * radius + 3.0) / grid.spacing_mm))
        box = tuple(slice(max(0, i - reach), i + reach + 1) for i in voxel)
        jitter = rng.uniform(-0.5, 0.5, 3) * grid.spacing_mm
        centre = [axis[i] + j for axis, i, j in zip(grid.axes, voxel, jitter, strict=True)]
        offsets = grid.crop(box).offsets(centre)
        away = length(o / s for o, s in zip(offsets, stretch, strict=True))
        np.maximum(level[box], radius * (1.0 + 0.3 * wobble[box]) - away, out=level[box])


def infarcts(rng: Rng, grid: Grid, anatomy: Anatomy) -> tuple[Array, Array]:
    """Levels in mm (positive inside) of the fresh and of the old infarcts of one patient.

    Fresh ones are territorial, embolic, lacunar or at a watershed.
    Source: patterns and volumes after Hernandez Petzsche et al., Scientific Data, 2022.
    """
    number, border_mm = (_lookup(part, anatomy) for part in territories()[1:])
    # Cortex or the white matter just below it, inside the skull strip.
    shore = (anatomy.csf < 0.35) & anatomy.brain & (anatomy.edge_mm > 3.0)
    shore = shore & (anatomy.depth_mm < 24.0)
    pattern = rng.choice(4, p=(0.5, 0.27, 0.13, 0.10))
    # Carotid territory mostly; one side mostly.
    artery = int(rng.choice(5, p=(0.60, 0.08, 0.16, 0.06, 0.10)))
    one_side = number // _RIGHT == int(rng.integers(2))
    allowed = one_side & (number % _RIGHT == artery) & shore
    if not allowed.any():
        allowed = one_side & (number % _RIGHT == 0) & shore
    volume_ml = float(np.clip(13.0 * np.exp(1.25 * rng.standard_normal()), 0.3, 180.0))
    dots = int(rng.integers(1, 8))
    fresh, old = np.full(grid.shape, FAR_MM), np.full(grid.shape, FAR_MM)
    if pattern == 0:
        fresh = _territorial(rng, grid, anatomy, allowed, volume_ml)
    elif pattern == 1:
        dots = int(np.clip(np.exp(rng.normal(2.4, 0.6)), 3, 30))
        fresh = _territorial(rng, grid, anatomy, allowed, min(volume_ml, 6.0) / 2)
    elif pattern == 2:
        deep = one_side & (number % _RIGHT == _PERFORATOR) & (anatomy.csf < 0.3) & anatomy.brain
        _scatter(rng, grid, fresh, deep, 1, 5.5)
        dots = int(rng.integers(0, 3))
    else:
        allowed = one_side & shore & (border_mm < 6.0)
        dots = int(rng.integers(6, 20))
    _scatter(rng, grid, fresh, allowed, dots, 2.9)
    if rng.random() < 0.3:
        size_ml = float(np.clip(3.0 * np.exp(rng.standard_normal()), 0.3, 30.0))
        old = _territorial(rng, grid, anatomy, shore, size_ml)
    return fresh, old
