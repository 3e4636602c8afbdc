"""A stroke patient in the CT scanner: Hounsfield units in which an infarct is a few units darker.

Anatomy and infarcts are those of the MR phantom. Water that enters dying tissue lowers its
attenuation a little, less than noise and no more than what old white matter disease does. The skull
is scanned, and then taken off, as pipelines do; its streaks and dark bands stay in the brain.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from dcd_lab.phantom import tomography
from dcd_lab.phantom.anatomy import Anatomy, head, head_to_mni, subject
from dcd_lab.phantom.artefacts import cubic_matrix, slice_matrix
from dcd_lab.phantom.confounders import blob, gliosis, pallidum
from dcd_lab.phantom.fields import (
    Array,
    Grid,
    Rng,
    components,
    smooth,
    soft,
    uncrop,
    without_specks,
)
from dcd_lab.phantom.infarct import infarcts

TURN_DEG, SIZE = 4.0, 0.95
HU_PER_PERCENT = 1.8
"""Hounsfield units that tissue loses for each percent of water it takes up.
Source: Dzialowski, Weber, Doerfler, Forsting, von Kummer, Journal of Neuroimaging, 2004."""
BONE_HU = 60.0
"""From here on a voxel at the rim of the brain counts as bone."""
# Percent of water taken up: in the first hours, later on the first day, in the following days.
_UPTAKE = ((4.0, 7.0), (6.0, 11.0), (9.0, 14.0))
_HU = {"white": 29.0, "cortex": 38.0, "deep": 38.0, "csf": 6.0}
_BONE_DENSITY = 0.62  # of the skull, where 1 is compact bone


def paint(seed: int, grid: Grid) -> tuple[Array, Array]:
    """Image (1, ...) float64 in Hounsfield units, 0 outside of the brain, and label (...)."""
    rng = np.random.default_rng((seed, 2))
    box, inner, mni = head(seed, grid, turn_deg=TURN_DEG, size=SIZE)
    anatomy = subject(rng, inner, mni, atrophy=float(rng.beta(2.5, 2.0)))
    fresh_mm, old_mm = infarcts(rng, inner, anatomy)
    tissue = uncrop(_tissue(rng, inner, anatomy, fresh_mm, old_mm), grid.shape, box)
    brain = uncrop(anatomy.brain, grid.shape, box)
    water, bone = _head(rng, seed, grid, tissue, uncrop(anatomy.edge_mm > 0, grid.shape, box))
    image = np.rint(_scan(rng, grid, water, bone) * 16) / 16
    brain = _without_bone(image, brain)
    image = np.where(image == 0, 1 / 16, image) * brain  # only what is not brain is zero
    drawn = fresh_mm + 0.5 * smooth(rng, inner, 4.0) > 0.0
    label = uncrop(drawn & (anatomy.csf < 0.55), grid.shape, box) & brain
    return image[None], without_specks(label, 2)


def _without_bone(image: Array, brain: Array) -> Array:
    """The brain mask less the rim that bone has brightened; chalk within the brain stays."""
    parts, sizes = components(brain & (image < BONE_HU))
    kept: Array = ndimage.binary_fill_holes(parts == sizes.argmax())
    return kept


def _tissue(rng: Rng, grid: Grid, anatomy: Anatomy, fresh_mm: Array, old_mm: Array) -> Array:
    """Hounsfield units of the brain: healthy tissue, what age leaves in it, and the infarcts."""
    solid = 1.0 - anatomy.csf
    hu = sum(getattr(anatomy, name) * (x + rng.normal(0.0, 1.2)) for name, x in _HU.items())
    hu = hu + solid * (0.8 * smooth(rng, grid, 9.0) + 0.6 * smooth(rng, grid, 4.0))
    hu = hu - 8.0 * gliosis(rng, grid, anatomy, (1.5, 2.5)) + 4.0 * pallidum(rng, grid, anatomy)
    plexus = blob(anatomy.mni, (22, -38, 8), (4.0, 6.0, 7.0)) - 0.55
    chalk = soft(plexus + 0.2 * smooth(rng, grid, 5.0), 0.4) * anatomy.ventricle
    hu = hu + rng.uniform(0.0, 90.0) * chalk
    old = soft(old_mm, 3.0) * solid
    hu = hu + old * (11.0 - hu)
    damage = rng.uniform(0.6, 1.0) + 0.05 * np.clip(fresh_mm - 1.0, 0.0, 4.0)
    damage = damage + 0.2 * smooth(rng, grid, 18.0) + 0.1 * smooth(rng, grid, 6.0)
    uptake = rng.uniform(*_UPTAKE[int(rng.choice(3, p=(0.15, 0.4, 0.45)))])
    swollen = soft(fresh_mm, 3.0) * solid * (1.0 - old) * np.clip(damage, 0.2, 1.2)
    return hu - HU_PER_PERCENT * uptake * swollen


def _head(rng: Rng, seed: int, grid: Grid, tissue: Array, within: Array) -> tuple[Array, Array]:
    """Densities of water and of bone in the whole head, relative to the pure material."""
    away = ndimage.distance_transform_edt(~within, sampling=grid.spacing_mm)
    thick = 6.0 + 1.4 * smooth(rng, grid, 30.0) + rng.normal(0.0, 0.7)
    skull = soft(away - 2.5, grid.spacing_mm) * soft(2.5 + thick - away, grid.spacing_mm)
    scalp = 2.5 + thick + 5.0 + 1.5 * smooth(rng, grid, 40.0)
    flesh = soft(scalp - away, grid.spacing_mm) * ~within
    mni = head_to_mni(seed, grid, turn_deg=TURN_DEG, size=SIZE)
    petrous = blob(mni, (42, -24, -34), (20.0, 9.0, 7.0)) * ~within
    bone = np.maximum(_BONE_DENSITY * skull, 0.9 * soft(petrous - 0.45, 0.3))
    water = np.where(within, 1.0 + tissue / 1000.0, 1.02 * flesh)
    return water * (1.0 - np.minimum(bone / 0.9, 1.0)), bone


def _scan(rng: Rng, grid: Grid, water: Array, bone: Array) -> Array:
    """Hounsfield units on the grid, from slices as thick as they are acquired."""
    count, spacing = grid.shape[2], grid.spacing_mm
    step = max(spacing, float(rng.uniform(3.0, 5.0)))
    start = float(rng.uniform(-0.5, 0.5)) * step
    down = slice_matrix(count, spacing, step, start)
    up = cubic_matrix(count, spacing, step, start, len(down))
    photons = float(np.exp(rng.uniform(*np.log((2e6, 8e6))))) * spacing / 2.0
    thick = tomography.scan(
        rng,
        water @ down.T,
        bone @ down.T,
        voxel_mm=spacing,
        photons=photons,
        sharpness=float(rng.uniform(0.6, 0.85)),
    )
    return np.asarray(thick @ up.T)
