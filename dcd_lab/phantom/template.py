"""The MNI152 average brain: tissue probabilities, and the geometry a subject is made from."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from scipy import ndimage

from dcd_core.types import ContractError
from dcd_lab.phantom.fields import Array, sample

# Voxels of nilearn's 1 mm maps that hold the brain; MNI millimetres of the first of them.
_CROP = (slice(20, 177), slice(21, 214), slice(0, 161))
FINE_ORIGIN_MM = np.array([-98.0 + 20, -134.0 + 21, -72.0])
COARSE_MM = 2.0
COARSE_ORIGIN_MM = FINE_ORIGIN_MM + 0.5 * (COARSE_MM - 1.0)


class Template(NamedTuple):
    """The average brain in MNI space, float32: tissue on voxels of 1 mm, the rest of 2 mm."""

    white: Array  # probability
    csf: Array
    edge_mm: Array  # depth below the brain mask
    depth_mm: Array  # depth below the hemisphere's hull
    fold_from: Array  # (3, ...) index of the hull point above each voxel
    ventricle_pull: Array  # (3, ...) unit field that points into the ventricles
    ventricle: Array  # the fluid in them
    deep: Array  # membership of the deep grey matter


def _load_map(name: str) -> Array:
    spec = find_spec("nilearn")
    if spec is None or not spec.submodule_search_locations:
        raise ContractError("MNI152 maps", "no nilearn", "nilearn installed", "pip install nilearn")
    folder = Path(next(iter(spec.submodule_search_locations)), "datasets", "data")
    path = folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
    stored = np.asarray(nibabel.Nifti1Image.from_filename(path).dataobj)
    return stored[_CROP].astype(np.float32) / 255.0


def _halved(volume: Array) -> Array:
    i, j, k = (size // 2 * 2 for size in volume.shape)
    blocks = volume[:i, :j, :k].reshape(i // 2, 2, j // 2, 2, k // 2, 2)
    return blocks.mean(axis=(1, 3, 5))


def tentorium_mm(x: Array, y: Array, z: Array) -> Array:
    """Height above the roof of the posterior fossa (a plane sloping down from the midline)."""
    return z + 3.0 + 0.45 * np.abs(x) + 0.18 * np.clip(-y - 45.0, 0.0, None)


def _hemisphere_hull(mask: Array, right: Array) -> tuple[Array, Array]:
    """Depth below each hemisphere's smooth hull (mm), and the hull point above every voxel."""
    depth = np.zeros(mask.shape)
    above = np.zeros((3, *mask.shape))
    for side in (~right, right):
        # Padding keeps the closing from sticking to the edge of the box.
        half = np.pad(mask & side, 6)
        half = ndimage.distance_transform_edt(~half) <= 4
        half = (ndimage.distance_transform_edt(half) > 4)[6:-6, 6:-6, 6:-6]
        inside, nearest = ndimage.distance_transform_edt(half, return_indices=True)
        depth = np.where(half, inside * COARSE_MM, depth)
        for axis in range(3):
            smoothed = ndimage.gaussian_filter(nearest[axis].astype(float), 1.5)
            above[axis] = np.where(side, smoothed, above[axis])
    return depth, above


@lru_cache(maxsize=1)
def average() -> Template:
    """The MNI152 2009a average with its derived geometry, computed once per process.

    Source: Fonov et al., NeuroImage, 2011 (maps as shipped with nilearn).
    """
    t1, grey, white = (_load_map(name) for name in ("t1", "gm", "wm"))
    mask = ndimage.binary_fill_holes(t1 > 0.05)
    csf = np.where(mask, np.clip(1.0 - grey - white, 0.0, 1.0), 0.0).astype(np.float32)
    mask, coarse_csf = _halved(mask.astype(np.float32)) > 0.5, _halved(csf)
    axes = (o + COARSE_MM * np.arange(n) for o, n in zip(COARSE_ORIGIN_MM, mask.shape, strict=True))
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    depth, above = _hemisphere_hull(mask, x >= 0)
    inside, outside = (ndimage.distance_transform_edt(part) for part in (mask, ~mask))
    edge = (inside - outside) * COARSE_MM
    lateral = (np.abs(x) < 42) & (y > -60) & (y < 42) & (z > -22) & (z < 36)
    ventricle = np.where(lateral & (edge > 18), coarse_csf, 0.0) * (tentorium_mm(x, y, z) > -8)
    # The cisterns behind the midbrain are fluid too, but they do not swell with the ventricles.
    ventricle = ventricle * ((np.abs(x) > 13) | (y > -24) | (z > 14))
    pull = np.stack(np.gradient(ndimage.gaussian_filter(ventricle, 2.0)))
    pull /= np.quantile(np.linalg.norm(pull, axis=0), 0.999)
    core = (np.abs(x) < 36) & (y > -34) & (y < 26) & (z > -14) & (z < 24) & (np.abs(x) > 2)
    core = core & (np.abs(x) + 0.35 * np.abs(y + 2) < 37)
    deep = ndimage.gaussian_filter(core.astype(float), 1.2)
    parts = (edge, depth, above, pull, coarse_csf * (ventricle > 0), deep)
    return Template(white, csf, *(part.astype(np.float32) for part in parts))


def coarse_index(mni: Array) -> Array:
    """Index (3, ...) into the 2 mm arrays at MNI millimetres (3, ...)."""
    return (mni - COARSE_ORIGIN_MM.reshape(3, *[1] * (mni.ndim - 1))) / COARSE_MM


def fine_index(mni: Array) -> Array:
    """Index (3, ...) into the 1 mm arrays at MNI millimetres (3, ...)."""
    return mni - FINE_ORIGIN_MM.reshape(3, *[1] * (mni.ndim - 1))


def white_and_csf(mni: Array) -> tuple[Array, Array]:
    """Probabilities of white matter and fluid in the average brain at MNI millimetres (3, ...)."""
    index = fine_index(mni)
    return sample(average().white, index), sample(average().csf, index)


def surface_depth(mni: Array) -> Array:
    """Millimetres below the average brain's surface at MNI millimetres (3, ...)."""
    return sample(average().edge_mm, coarse_index(mni))
