"""Overlap: how much volume two masks share, in the whole and along the true border."""

from __future__ import annotations

import math
from typing import SupportsFloat

import numpy as np
from scipy import ndimage

from dcd_lab.metrics.masks import (
    ROUNDING_MM,
    Mask,
    Spacing,
    Triple,
    as_distance,
    as_mask,
    as_masks,
    as_spacing,
    box_of,
    count,
    grown,
    voxel_ml,
)


def dice(pred: np.ndarray, true: np.ndarray) -> float:
    """Dice overlap 2|P n T| / (|P| + |T|) of two masks (i, j, k), between 0 and 1.

    Both empty: 1. One empty: 0.

    Raises:
        ContractError: masks are not binary 3D arrays of one shape.

    Source: Dice, Ecology, 1945.
    """
    return dice_of(*as_masks(pred, true))


def volume_ml(mask: np.ndarray, spacing_mm: Spacing) -> float:
    """Volume in ml of a mask (i, j, k).

    Raises:
        ContractError: the mask is not a binary 3D array, or spacing is not 3 positive numbers.
    """
    return count(as_mask(mask, "mask")) * voxel_ml(as_spacing(spacing_mm))


def boundary_dice(
    pred: np.ndarray, true: np.ndarray, spacing_mm: Spacing, *, band_mm: SupportsFloat
) -> float:
    """Dice of two masks (i, j, k) inside a band around the true border, where sharpness shows.

    The band holds the voxels on both sides of the border whose centre lies within `band_mm` of the
    centre of a voxel of the other side; beyond the volume everything is background. A band of one
    voxel size is one voxel on either side. The bulk of a large lesion, which every method gets
    right, is left out, and so are false positives far away. NaN where the band holds no voxel: the
    truth is empty, or the band is thinner than a voxel.

    Raises:
        ContractError: masks are not binary 3D arrays of one shape, spacing is not 3 positive
            numbers, or the band is negative.

    Source: Kohli et al., International Journal of Computer Vision, 2009 (trimaps). Boundary IoU
        (Cheng et al., CVPR, 2021) differs: there each mask has a band of its own, inside it.
    """
    p, t = as_masks(pred, true)
    return boundary_dice_of(p, t, as_spacing(spacing_mm), as_distance(band_mm))


def dice_of(pred: Mask, true: Mask) -> float:
    """`dice` of masks that have been checked."""
    both, total = count(pred & true), count(pred) + count(true)
    return 2 * both / total if total else 1.0


def boundary_dice_of(pred: Mask, true: Mask, spacing: Triple, band_mm: float) -> float:
    """`boundary_dice` of masks that have been checked."""
    if not true.any():
        return math.nan
    box = grown(box_of(true), np.ceil(band_mm / spacing).astype(int) + 1)
    # A frame of background, so that the faces of the volume are a border of what touches them.
    p, t = (np.pad(mask[box], 1) for mask in (pred, true))
    inside, outside = (ndimage.distance_transform_edt(x, sampling=spacing) for x in (t, ~t))
    band = inside + outside <= band_mm + ROUNDING_MM
    return dice_of(p & band, t & band) if band.any() else math.nan
