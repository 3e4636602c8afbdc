"""Surfaces: how far apart the borders of two masks lie, in millimetres, border voxel by voxel."""

from __future__ import annotations

import math
from typing import SupportsFloat, TypeAlias

import numpy as np
from jaxtyping import Float
from scipy import ndimage
from scipy.spatial import cKDTree

from dcd_lab.metrics.masks import (
    ROUNDING_MM,
    Mask,
    Spacing,
    Triple,
    as_distance,
    as_masks,
    as_spacing,
    box_of,
)

Distances: TypeAlias = Float[np.ndarray, " _"]


def surfaces(
    pred: np.ndarray, true: np.ndarray, spacing_mm: Spacing
) -> tuple[np.ndarray, np.ndarray]:
    """Distances in mm from every border voxel of each mask to the other border, both ways.

    Returns `(pred_to_true, true_to_pred)`, two 1D arrays with one entry per border voxel of the
    mask they start from. An empty mask has no border: the array that starts from it is empty, and
    the one that leads to it is infinite.

    Raises:
        ContractError: masks are not binary 3D arrays of one shape, or spacing is not 3 positive
            numbers.
    """
    return surfaces_of(*as_masks(pred, true), as_spacing(spacing_mm))


def hd95(
    pred: np.ndarray, true: np.ndarray, spacing_mm: Spacing, *, empty_mm: float | None = None
) -> float:
    """95 % Hausdorff distance in mm: the larger of the two directed 95th percentiles.

    Percentiles interpolate linearly. MONAI agrees. MedPy instead takes one percentile of both
    directions pooled, which is never larger; DeepMind's surface-distance (used for lesions in
    `brats2024`) weights surface elements by area. Both empty: 0. One empty: `empty_mm`, by default
    the diagonal of the volume.

    Raises:
        ContractError: as in `surfaces`.

    Source: Huttenlocher et al., IEEE TPAMI, 1993; Maier-Hein et al., Nature Methods, 2024.
    """
    p, t = as_masks(pred, true)
    spacing = as_spacing(spacing_mm)
    return hd95_of(*surfaces_of(p, t, spacing), worst_mm(empty_mm, p.shape, spacing))


def nsd(
    pred: np.ndarray, true: np.ndarray, spacing_mm: Spacing, *, tolerance_mm: SupportsFloat
) -> float:
    """Normalised surface Dice: the share of both borders within `tolerance_mm` of the other one.

    Border voxels count once each, as in MONAI and MedPy; DeepMind's surface-distance weights them
    by area. On a 2 mm grid every tolerance below 2 mm asks for identical borders. Both empty: 1.
    One empty: 0.

    Raises:
        ContractError: as in `surfaces`, or the tolerance is negative.

    Source: Nikolov et al., Journal of Medical Internet Research, 2021.
    """
    return nsd_of(*surfaces(pred, true, spacing_mm), as_distance(tolerance_mm))


def surfaces_of(pred: Mask, true: Mask, spacing: Triple) -> tuple[Distances, Distances]:
    """`surfaces` of masks that have been checked."""
    box = box_of(pred | true)
    return between(border(pred[box]), border(true[box]), spacing)


def border(mask: Mask) -> Mask:
    """Foreground voxels with a background voxel among their six face neighbours."""
    return mask & ~ndimage.binary_erosion(mask)


def between(one: Mask, other: Mask, spacing: Triple) -> tuple[Distances, Distances]:
    """Distances in mm from every marked voxel of each array to the nearest one of the other."""
    # By k-d tree: the same number as a distance transform, but its cost follows the surfaces, so
    # one stray voxel in a far corner does not blow it up.
    points = [np.argwhere(marked) * spacing for marked in (one, other)]
    shared = [other[one], one[other]]
    return (
        _nearest(points[0], points[1], shared[0]),
        _nearest(points[1], points[0], shared[1]),
    )


def _nearest(
    start: Float[np.ndarray, "n 3"], goal: Float[np.ndarray, "m 3"], shared: np.ndarray
) -> Distances:
    if not len(goal) or not len(start):
        return np.full(len(start), math.inf)
    found = np.zeros(len(start))
    # Where two borders coincide, which is most of a good prediction, there is nothing to look up.
    apart = ~shared
    if apart.any():
        # Grid points are spread evenly: a balanced tree costs more to build than it saves.
        tree = cKDTree(goal, leafsize=32, balanced_tree=False, compact_nodes=False)
        found[apart] = tree.query(start[apart])[0]
    return found


def hd95_of(pred_to_true: Distances, true_to_pred: Distances, worst: float) -> float:
    """`hd95` from distances both ways; `worst` where one of the masks is empty."""
    if not len(pred_to_true) and not len(true_to_pred):
        return 0.0
    if not len(pred_to_true) or not len(true_to_pred):
        return worst
    return float(max(np.percentile(pred_to_true, 95), np.percentile(true_to_pred, 95)))


def nsd_of(pred_to_true: Distances, true_to_pred: Distances, tolerance_mm: float) -> float:
    """`nsd` from distances both ways."""
    both = np.concatenate([pred_to_true, true_to_pred])
    return float(np.mean(both <= tolerance_mm + ROUNDING_MM)) if len(both) else 1.0


def worst_mm(empty_mm: float | None, shape: tuple[int, ...], spacing: Triple) -> float:
    """The distance to an empty mask: what was asked for, or the diagonal of the volume."""
    return float(np.linalg.norm(np.array(shape) * spacing)) if empty_mm is None else float(empty_mm)
