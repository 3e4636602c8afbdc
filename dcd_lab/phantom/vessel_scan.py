"""Arteries in time-of-flight MR angiography: blood that flows in is bright, what stays is not.

Slices are thicker than their voxels are wide. Blood loses its signal with every pulse that it sees,
first in slow, thin branches and at walls. Veins, whose blood was saturated before it came, have the
shape of arteries and are not labelled; fat is as bright as they are.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from dcd_lab.phantom import signal
from dcd_lab.phantom.artefacts import coil_shading, slice_matrix
from dcd_lab.phantom.fields import Array, Grid, Rng, smooth, soft, without_specks
from dcd_lab.phantom.signal import Tissue
from dcd_lab.phantom.vessel_tree import Vessels, draw, grow

FIELD_MM = 80.0
THICKNESS = 2.5
"""Of slices, in units of the spacing within them."""
SEEN = 1.4
"""Blood is labelled as far as it is this many times as bright as muscle: what can be outlined."""
BLOOD, MUSCLE = Tissue(0.85, 1650.0, 150.0), Tissue(0.75, 1300.0, 40.0)
GRISTLE, FAT = Tissue(0.72, 1000.0, 50.0), Tissue(0.80, 380.0, 70.0)


def field(spacing_mm: float) -> Grid:
    """The cube of equal spacing on which vessels are drawn; blood enters the slab at k = 0."""
    axis = spacing_mm * np.arange(round(FIELD_MM / spacing_mm))
    across = axis - axis.mean()
    return Grid((across, across, axis), spacing_mm)


def paint(seed: int, grid: Grid) -> tuple[Array, Array]:
    """Image (1, i, j, slices) float64 in arbitrary units, and label (...) of the arteries."""
    rng = np.random.default_rng((seed, 4))
    arteries = _trees(rng, grid, int(rng.integers(2, 5)), upwards=True)
    veins = _trees(rng, grid, int(rng.integers(1, 4)), upwards=False)
    down = slice_matrix(
        len(grid.axes[2]), grid.spacing_mm, THICKNESS * grid.spacing_mm, grid.spacing_mm
    )
    image, seen = _scan(rng, grid, arteries, veins, down)
    drawn = seen @ down.T + 0.05 * (smooth(rng, grid, 5.0) @ down.T) > 0.4
    return image[None], without_specks(drawn, 3)


def _trees(rng: Rng, grid: Grid, count: int, *, upwards: bool) -> Vessels:
    """Several trees that enter through the first or the last slice; the blood of the nearest."""
    points = []
    for _ in range(count):
        radius = float(np.clip(1.4 * np.exp(0.35 * rng.standard_normal()), 0.8, 2.4))
        across = [float(rng.uniform(0.8 * axis[0], 0.8 * axis[-1])) for axis in grid.axes[:2]]
        bottom, top = grid.axes[2][[0, -1]]
        start = np.array([*across, bottom if upwards else top])
        heading = np.array([*rng.normal(0.0, 0.35, 2), 1.0 if upwards else -1.0])
        points += grow(rng, start, heading / np.linalg.norm(heading), radius, grid)
    return draw(points, grid)


def _scan(
    rng: Rng, grid: Grid, arteries: Vessels, veins: Vessels, down: Array
) -> tuple[Array, Array]:
    """The magnitude image of slices, in 1/16, with Rician noise; the share of arteries in sight."""
    tr_ms, flip_deg = float(rng.uniform(20.0, 30.0)), float(rng.uniform(18.0, 28.0))
    still = partial(signal.spoiled_gradient_echo, tr_ms=tr_ms, flip_deg=flip_deg)
    muscle = float(still(MUSCLE))
    gristle = soft(smooth(rng, grid, 16.0) + 0.4 * smooth(rng, grid, 7.0), 0.8)
    image = muscle + gristle * (still(GRISTLE) - muscle)
    fat = soft(smooth(rng, grid, 18.0) + 0.3 * smooth(rng, grid, 6.0) - 1.5, 0.5)
    image = image + fat * (still(FAT) - image)
    image = image * (1.0 + 0.05 * smooth(rng, grid, 6.0))
    inflow = partial(signal.inflowing, BLOOD, tr_ms=tr_ms, flip_deg=flip_deg)
    saturated = float(rng.uniform(0.15, 0.35))  # what a pulse below the slab leaves of veins
    for vessels, fresh in ((veins, saturated), (arteries, 1.0)):
        share = soft(vessels.level_mm, grid.spacing_mm)
        blood = fresh * inflow(pulses=1e3 * vessels.age_s / tr_ms)
        image = image + share * (blood - image)
    seen = share * (blood > SEEN * muscle)
    clean = (image * coil_shading(rng, grid, 0.15)) @ down.T
    sigma = muscle / float(rng.uniform(6.0, 12.0))
    noise = sigma * rng.standard_normal((2, *clean.shape))
    shown = np.hypot(clean + noise[0], noise[1]) * float(rng.uniform(150.0, 400.0)) / muscle
    return np.maximum(np.rint(shown * 16.0), 1.0) / 16.0, seen
