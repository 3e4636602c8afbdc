"""A treated glioma: growth along white matter, its ring, its oedema, its cavity, its push.

The tumour density follows Fisher-Kolmogorov growth, du/dt = div(D grad u) + rho u (1 - u), on the
subject's own tissue. Everything a radiologist outlines is a level of that density.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dcd_lab.phantom.anatomy import FAR_MM, Anatomy
from dcd_lab.phantom.fields import Array, Grid, Rng, length, sample, smooth, soft, without_specks

STEP_MM = 3.0


class Growth(NamedTuple):
    """Depth in mm inside the front (negative outside) on a 3 mm lattice around `centre_mm`."""

    depth_mm: Array
    centre_mm: Array
    radius_mm: float


class Tumour(NamedTuple):
    """Shares (0-1) of tissue that each class replaces, the cavity's level in mm, and the label."""

    shares: dict[str, Array]
    cavity_mm: Array
    label: Array


def lattice(centre_mm: Array) -> Grid:
    """The growth lattice around a seed point, in head millimetres."""
    steps = np.arange(-54.0, 54.0 + 1e-6, STEP_MM)
    x, y, z = (c + steps for c in centre_mm)
    return Grid((x, y, z), STEP_MM)


def grow(white: Array, tissue: Array, *, target_ml: float, ratio: float, width_mm: float) -> Array:
    """Density u on the lattice once the volume with u > 0.5 reaches `target_ml`.

    Source: Fisher-Kolmogorov model as in Swanson et al., Cell Proliferation, 2000.
    """
    diffusivity = tissue * (1.0 / ratio + (1.0 - 1.0 / ratio) * white)
    conduct = []  # along each axis, the diffusivity between neighbours: zero where one has none
    for axis in range(3):
        along = np.moveaxis(diffusivity, axis, 0)
        conduct.append(2.0 * along[:-1] * along[1:] / (along[:-1] + along[1:] + 1e-9))
    density = np.zeros_like(tissue)
    density[tuple(slice(n // 2 - 1, n // 2 + 2) for n in density.shape)] = 0.6
    rate, step, voxel_ml = 1.0 / width_mm**2, 0.9 * STEP_MM**2 / 6.0, STEP_MM**3 / 1000.0
    for _ in range(220):
        spread = np.zeros_like(density)
        for axis, between in enumerate(conduct):
            flow = between * np.diff(np.moveaxis(density, axis, 0), axis=0)
            along = np.moveaxis(spread, axis, 0)
            along[:-1] += flow
            along[1:] -= flow
        grown = rate * density * (1.0 - density) * (tissue > 0.05)
        density = np.clip(density + step * (spread / STEP_MM**2 + grown), 0.0, 1.0)
        if np.count_nonzero(density > 0.5) * voxel_ml >= target_ml:
            break
    return density


def depth_inside(density: Array, width_mm: float) -> Array:
    """Logit of the density in mm: along a travelling front it is the distance to u = 1/2."""
    clipped = np.clip(density, 1e-5, 1.0 - 1e-5)
    return width_mm * np.log(clipped / (1.0 - clipped))


def push(grid: Grid, growth: Growth, edge_mm: Array, strength: float) -> Array:
    """Displacement (3, ...) that takes each voxel back to where its tissue was before the tumour.

    Tissue moves away from the centre: most at the tumour's rim, less further away, and not at all
    at the skull. Falx, midline and ventricles move with it.
    """
    offsets = grid.offsets(growth.centre_mm)
    away = length(offsets) + 1e-6
    radius = growth.radius_mm
    inside = np.minimum(away / radius, 1.0)
    decay = np.exp(-np.clip(away - radius, 0.0, None) / 34.0)
    stiff = np.clip(edge_mm / 12.0, 0.0, 1.0)
    size = strength * radius * inside * decay * stiff / away
    return np.stack([-size * o for o in offsets])


def tumour(rng: Rng, grid: Grid, anatomy: Anatomy, growth: Growth, moved: Array) -> Tumour:
    """Classes of one tumour on the full grid; `moved` (3, ...) the push, in head mm."""
    start = [axis[0] for axis in lattice(growth.centre_mm).axes]
    index = [(p + m - s) / STEP_MM for p, m, s in zip(grid.points, moved, start, strict=True)]
    last = len(growth.depth_mm) - 1
    inside = np.all([(i >= 0) & (i <= last) for i in index], axis=0)
    depth, nothing = np.full(grid.shape, FAR_MM), np.full(grid.shape, FAR_MM)
    depth[inside] = sample(growth.depth_mm, np.stack([i[inside] for i in index]))
    rough = smooth(rng, grid, 9.0)
    extent = rng.uniform(0.05, 0.45) * growth.radius_mm
    spread = depth + extent + 2.0 * rough - 4.0 * anatomy.cortex - 1.5 * anatomy.deep
    core, enhancing = _core(rng, grid, depth + 1.2 * rough, growth.radius_mm)
    cavity = _cavity(rng, grid, anatomy, growth) if rng.random() < 0.6 else nothing
    solid, hollow = 1.0 - anatomy.csf, soft(cavity, 2.0)
    core_share = soft(core, 2.5) * solid * (1.0 - hollow)
    ring = soft(enhancing, 2.0) * solid * (1.0 - hollow)
    oedema = soft(spread, 7.0) * solid * (1.0 - hollow) * (1.0 - np.maximum(core_share, ring))
    necrosis = np.clip(core_share - ring, 0.0, 1.0)
    shares = {"oedema": oedema, "necrosis": necrosis, "enhancing": ring, "cavity": hollow}
    label = _outline(rng, grid, anatomy, (spread + 0.8, core, enhancing, cavity))
    return Tumour(shares, cavity, label)


def _core(rng: Rng, grid: Grid, depth: Array, radius_mm: float) -> tuple[Array, Array]:
    """Levels of the tumour core and of its enhancing part: a ring, nodules, or none."""
    nothing = np.full(grid.shape, FAR_MM)
    core = depth - rng.uniform(0.10, 0.45) * radius_mm + 1.6 * smooth(rng, grid, 7.0)
    thick = 4.2 * np.exp(0.55 * smooth(rng, grid, 11.0)) - 1.2
    nodules = 6.0 * (smooth(rng, grid, 8.0) - 0.3)
    kind = rng.choice(4, p=(0.56, 0.18, 0.13, 0.13))
    enhancing = (np.minimum(core, thick - core), np.minimum(core, nodules), nothing, nothing)[kind]
    return (nothing if kind == 2 else core), enhancing


def _outline(rng: Rng, grid: Grid, anatomy: Anatomy, levels: tuple[Array, ...]) -> Array:
    """The annotator's labels: each level a little off, specks dropped."""
    spread, core, enhancing, cavity = levels
    jitter = 0.45 * smooth(rng, grid, 5.0)
    tissue = (anatomy.csf < 0.5) & anatomy.brain
    label = np.zeros(grid.shape, np.uint8)
    label[(spread + jitter > 0) & tissue] = 2
    label[(core + jitter > 0) & tissue] = 1
    label[(enhancing + jitter > 0) & tissue] = 3
    label[(cavity + jitter > 0) & anatomy.brain] = 4
    for value, smallest_ml in ((1, 0.05), (3, 0.05), (2, 0.3)):
        kept = without_specks(label == value, smallest_ml / (grid.spacing_mm**3 / 1000.0))
        # A speck goes to what surrounds it: oedema inside the tumour, else background.
        label[(label == value) & ~kept] = 0 if value == 2 else 2
    return label


def _outward(anatomy: Anatomy, at: tuple[int, int, int], spacing_mm: float) -> Array:
    """Unit vector in index space along which the surface is nearest."""
    reach, (i, j, k), edge = max(1, round(6.0 / spacing_mm)), at, anatomy.edge_mm
    lines = zip((edge[:, j, k], edge[i, :, k], edge[i, j, :]), at, strict=True)
    slope = [line[max(n - reach, 0)] - line[min(n + reach, len(line) - 1)] for line, n in lines]
    return np.array(slope) / (np.linalg.norm(slope) + 1e-6)


def _cavity(rng: Rng, grid: Grid, anatomy: Anatomy, growth: Growth) -> Array:
    """A resection cavity: an irregular blob at the tumour, opened to the nearest cortex.

    Source: cavity shapes after Perez-Garcia et al., IJCARS, 2021.
    """
    radius = growth.radius_mm * rng.uniform(0.45, 0.9)
    nearest = zip(grid.axes, growth.centre_mm, strict=True)
    i, j, k = (int(np.abs(axis - c).argmin()) for axis, c in nearest)
    signs = np.array([np.sign(axis[1] - axis[0]) for axis in grid.axes])
    outward = _outward(anatomy, (i, j, k), grid.spacing_mm) * signs
    move = np.clip(anatomy.edge_mm[i, j, k] - 0.8 * radius, 0.0, 14.0)
    start = growth.centre_mm + outward * move + rng.normal(0.0, 0.12, 3) * radius
    stretch = rng.uniform(0.8, 1.3, 3)
    offsets = [o * s for o, s in zip(grid.offsets(start), stretch, strict=True)]
    along = sum(o * d for o, d in zip(offsets, outward, strict=True))
    away = length(offsets)
    aside = np.sqrt(np.clip(away**2 - along**2, 0.0, None))
    wobble = 1.0 + 0.20 * smooth(rng, grid, 15.0) + 0.09 * smooth(rng, grid, 8.0)
    # The surgeon's corridor widens towards the craniotomy.
    corridor = np.where(along > 0, (0.5 * radius + 0.22 * along) * wobble - aside, FAR_MM)
    return np.maximum(radius * wobble - away, corridor)
