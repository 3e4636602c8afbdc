"""One brain per seed: the MNI152 average, given the folds, ventricles and asymmetry of one person.

The average knows where white matter, cortex and fissures lie. Averaging has removed the sulci; they
are drawn anew for every subject, as sheets that run inwards from the surface.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from dcd_lab.phantom import template
from dcd_lab.phantom.fields import Array, Grid, Rng, blur, components, length, sample, smooth, soft

FAR_MM = -60.0  # the level of a lesion that is not there


class Anatomy(NamedTuple):
    """One subject on one grid; `white`, `cortex`, `deep` and `csf` are fractions with sum 1."""

    white: Array
    cortex: Array
    deep: Array
    csf: Array
    ventricle: Array  # the part of the fluid that is ventricle
    mni: Array  # (3, ...) the template position of each voxel, in mm
    depth_mm: Array  # below the hull
    edge_mm: Array  # below the brain's surface
    brain: Array  # the (imperfect) skull strip


def head_to_mni(seed: int, grid: Grid, *, turn_deg: float, size: float) -> Array:
    """Template position of every voxel (3, ...): pose, size, asymmetry and smooth variation.

    The same seed gives the same head on every grid; `size` 1 is the average brain's.
    """
    rng = np.random.default_rng(seed)
    matrix = rotation(np.deg2rad(rng.normal(0.0, turn_deg, 3)))
    matrix = matrix * np.exp(rng.normal(0.0, (0.02, 0.025, 0.025))) / size
    # Rotate about a point near the brain's centre so that the head stays in the field of view.
    centre = np.array([0.0, -18.0, 8.0])
    mni = np.empty((3, *grid.shape))
    for axis in range(3):
        offset = centre[axis] - matrix[axis] @ centre
        mni[axis] = sum(matrix[axis, b] * point for b, point in enumerate(grid.points)) + offset
        mni[axis] += 2.4 * smooth(rng, grid, 45.0) + 0.9 * smooth(rng, grid, 18.0)
    return mni


def rotation(angles: Array) -> Array:
    """Rotation about x, then y, then z, by angles in radians."""
    turn = np.eye(3)
    for (a, b), angle in zip(((1, 2), (2, 0), (0, 1)), angles, strict=True):
        plane = np.eye(3)
        plane[a, a] = plane[b, b] = np.cos(angle)
        plane[b, a], plane[a, b] = np.sin(angle), -np.sin(angle)
        turn = plane @ turn
    return turn


def _spread(values: Array, near: Array, background: float = 0.0) -> Array:
    """Values of the voxels in the mask `near`, put on the whole grid."""
    full = np.full(near.shape, background)
    full[near] = values
    return full


def _sulcal_distance(rng: Rng, grid: Grid, near: Array, coarse: Array, wave_mm: float) -> Array:
    """Distance in mm to this subject's sulcal sheets: zero crossings of noise on the hull.

    Noise is read near the hull point above each voxel, so that a sheet winds its way inwards.
    """
    x, y, z = (np.arange(-half, half + 1e-6, 3.0) for half in (87.0, 120.0, 90.0))
    lattice = Grid((x, y, z), 3.0)
    narrow = blur(rng.standard_normal(lattice.shape), wave_mm / 5.6, lattice)
    band = narrow - blur(narrow, wave_mm / 5.6, lattice)
    band /= blur(length(np.gradient(band, 3.0)), 8.0, lattice)
    index = np.empty_like(coarse)
    for axis, above in enumerate(template.average().fold_from):
        above_mm = sample(above, coarse) * template.COARSE_MM + template.COARSE_ORIGIN_MM[axis]
        winding_mm = 4.5 * smooth(rng, grid, 15.0)[near]
        index[axis] = (above_mm + winding_mm - lattice.axes[axis][0]) / 3.0
    return _spread(np.abs(sample(band, index)), near, 40.0)


def _folia(mni: Array, wobble: Array) -> Array:
    """Distance in mm to the cerebellar fissures, which fan out around the fourth ventricle."""
    up, back = mni[2] + 33.0, -(mni[1] + 44.0)
    radius = np.hypot(up, back)
    phase = 17.0 * np.arctan2(up, back) + 0.05 * np.abs(mni[0]) + 0.9 * wobble
    return np.abs(np.sin(phase)) * radius / 17.0


class _Parts(NamedTuple):
    """What the template says at every voxel of one subject, and the subject's own folds."""

    white: Array
    csf: Array
    edge: Array
    depth: Array
    deep: Array
    ventricle: Array
    fossa: Array
    sheet: Array
    folia: Array


def _parts(rng: Rng, grid: Grid, near: Array, mni: Array) -> _Parts:
    base, coarse = template.average(), template.coarse_index(mni[:, near])
    white, csf = (_spread(part, near) for part in template.white_and_csf(mni[:, near]))
    edge = _spread(sample(base.edge_mm, coarse), near, -10.0)
    sampled = (sample(part, coarse) for part in (base.depth_mm, base.deep, base.ventricle))
    depth, deep, ventricle = (_spread(part, near) for part in sampled)
    fossa = soft(-template.tentorium_mm(*mni), 6.0)
    # Sulci of the medial wall are shallow: the hull there is the fissure between the hemispheres.
    reach = 9.0 + 7.0 * soft(np.abs(mni[0]) - 20.0, 16.0) + 4.5 * smooth(rng, grid, 20.0)
    sheet = _sulcal_distance(rng, grid, near, coarse, 32.0)
    sheet = np.hypot(sheet, np.clip(depth - reach, 0.0, None)) + 40.0 * (fossa + deep)
    folia = _folia(mni, smooth(rng, grid, 15.0))
    return _Parts(white, csf, edge, depth, deep, ventricle, fossa, sheet, folia)


def _fluid(rng: Rng, grid: Grid, parts: _Parts, atrophy: float) -> tuple[Array, Array]:
    """Fluid fraction, and the distance in mm to the wall of the nearest sulcus."""
    voxel = max(1.0, grid.spacing_mm)
    half_width = (0.8 + 0.8 * atrophy) * (1.0 + 0.45 * smooth(rng, grid, 14.0))
    wall = parts.sheet - half_width
    folium = 0.55 * soft(0.45 - parts.folia, voxel) * soft(13.0 - parts.edge, 6.0)
    rim = soft(1.6 + 1.2 * atrophy + 1.1 * smooth(rng, grid, 12.0) - parts.edge, voxel)
    level = parts.csf * (1.0 + 0.6 * atrophy) - 0.33 + 0.06 * smooth(rng, grid, 8.0)
    average = soft(level, 0.22) * (parts.edge > 2.5)
    fluid = np.maximum(np.maximum(average, rim), soft(-wall, voxel))
    return np.maximum(fluid, folium * parts.fossa), wall


def _white(rng: Rng, grid: Grid, parts: _Parts, wall: Array) -> Array:
    """White matter fraction: the average's core plus this subject's gyral crowns."""
    voxel = max(1.0, grid.spacing_mm)
    thick = 3.2 + 0.35 * smooth(rng, grid, 18.0)
    ragged = parts.white + 0.06 * smooth(rng, grid, 6.0)
    crown = np.minimum(np.minimum(wall, parts.edge - 1.5) - thick, 12.0 * (ragged - 0.2))
    gyral = soft(crown, voxel + 0.5) * (1.0 - parts.fossa) * (1.0 - parts.deep)
    # A sulcus of this subject carries its ribbon of cortex into the average's white matter.
    core = soft(ragged - 0.48, 0.3) * soft(wall - thick + 0.8, voxel + 1.0)
    core = np.where(parts.fossa > 0.5, soft(parts.white - 0.4, 0.5), core)
    nuclei = soft(parts.white - 0.5, 0.7)
    return parts.deep * nuclei + (1.0 - parts.deep) * np.maximum(core, gyral)


def _swollen(rng: Rng, mni: Array, near: Array, atrophy: float) -> Array:
    """Template positions after the ventricles have grown, each side on its own (mm)."""
    coarse = template.coarse_index(mni[:, near])
    both = 5.0 * atrophy + 0.8 * rng.normal()
    left, right = both + 0.7 * rng.normal(0.0, 1.0, 2)
    size = np.where(mni[0][near] < 0, left, right)
    swollen = mni.copy()
    for axis, part in enumerate(template.average().ventricle_pull):
        swollen[axis][near] += size * sample(part, coarse)
    return swollen


def subject(rng: Rng, grid: Grid, mni: Array, *, atrophy: float) -> Anatomy:
    """Tissue fractions of one individual; `atrophy` 0 (young) to 1 widens sulci and ventricles."""
    near = _near_brain(mni)
    mni = _swollen(rng, mni, near, atrophy)
    parts = _parts(rng, grid, near, mni)
    fluid, wall = _fluid(rng, grid, parts, atrophy)
    white = _white(rng, grid, parts, wall) * (1.0 - fluid)
    grey = 1.0 - white - fluid
    deep = grey * np.clip(parts.deep * 1.5 - 0.25, 0.0, 1.0)
    ventricle = fluid * soft(parts.ventricle - 0.2, 0.2)
    brain = _skull_strip(rng, grid, parts.edge, mni)
    return Anatomy(white, grey - deep, deep, fluid, ventricle, mni, parts.depth, parts.edge, brain)


def _skull_strip(rng: Rng, grid: Grid, edge: Array, mni: Array) -> Array:
    """The brain mask a tool would give: off by a millimetre or two, cut or left long in places."""
    level = edge - 1.6 - 0.5 * rng.normal() - 0.7 * smooth(rng, grid, 18.0)
    for index, count in zip(template.fine_index(mni), template.average().white.shape, strict=True):
        level[(index <= 0) | (index >= count - 1)] = -1.0  # outside of the template
    parts, sizes = components(level > 0)
    return parts == sizes.argmax()


def _near_brain(mni: Array) -> Array:
    """Mask of the voxels that may hold brain, from every other one; only these are looked up."""
    near = template.surface_depth(mni[:, ::2, ::2, ::2]) > -4.0
    i, j, k = mni.shape[1:]
    return near.repeat(2, 0).repeat(2, 1).repeat(2, 2)[:i, :j, :k]


def head(
    seed: int, grid: Grid, *, turn_deg: float, size: float
) -> tuple[tuple[slice, ...], Grid, Array]:
    """The box of voxels that may hold brain, the grid within it, and template positions there."""
    mni = head_to_mni(seed, grid, turn_deg=turn_deg, size=size)
    (box,) = ndimage.find_objects(_near_brain(mni).astype(np.uint8))
    return box, grid.crop(box), mni[(slice(None), *box)]
