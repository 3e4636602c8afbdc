"""Scores of one region as a whole: how much volume two masks share, and how far they lie apart."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple, SupportsFloat, TypeAlias

import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage
from scipy.spatial import cKDTree

from dcd_lab.metrics import masks
from dcd_lab.metrics.masks import ROUNDING_MM, Mask, Spacing, Triple, checked

Distances: TypeAlias = Float[np.ndarray, " _"]


class Surfaces(NamedTuple):
    """Distances in mm from every border voxel of each mask to the other border."""

    pred_to_true: Distances
    true_to_pred: Distances

    def hd95(self, worst_mm: float) -> float:
        """The larger directed 95th percentile; 0 if both are empty, `worst_mm` if one is."""
        if not all(map(len, self)):
            return worst_mm if any(map(len, self)) else 0.0
        return float(max(np.percentile(distances, 95) for distances in self))

    def nsd(self, tolerance_mm: float) -> float:
        """The share of all border voxels within the tolerance; 1 if both are empty."""
        both = np.concatenate(self)
        return float(np.mean(both <= tolerance_mm + ROUNDING_MM)) if len(both) else 1.0


def dice(pred: np.ndarray, true: np.ndarray) -> float:
    """Dice overlap 2|P n T| / (|P| + |T|) of two masks (i, j, k), between 0 and 1.

    Both empty: 1. One empty: 0. Raises ContractError for other arrays.

    Source: Dice, Ecology, 1945.
    """
    p, t, _ = checked(masks.UNIT_MM, pred=pred, true=true)
    total = np.count_nonzero(p) + np.count_nonzero(t)
    return float(2 * np.count_nonzero(p & t) / total) if total else 1.0


def volume_ml(mask: np.ndarray, spacing_mm: Spacing) -> float:
    """Volume in ml of a mask (i, j, k). Raises ContractError for another array or spacing."""
    m, spacing = checked(spacing_mm, mask=mask)
    return float(np.count_nonzero(m) * (np.prod(spacing) / 1000))


def boundary_dice(
    pred: np.ndarray, true: np.ndarray, spacing_mm: Spacing, *, band_mm: SupportsFloat
) -> float:
    """Dice of two masks (i, j, k) inside a band around the true border, where sharpness shows.

    The band holds the voxels on both sides of the border whose centre lies within `band_mm` of the
    centre of a voxel of the other side. The inside of a large lesion and false positives far away
    do not count. NaN where the band holds no voxel: the truth is empty, or the band is thinner than
    a voxel. Raises ContractError for other arrays or spacings, or a negative band.

    Source: Kohli et al., International Journal of Computer Vision, 2009 (trimaps). Boundary IoU
        (Cheng et al., CVPR, 2021) differs: there each mask has a band of its own, inside it.
    """
    p, t, spacing = checked(spacing_mm, pred=pred, true=true)
    reach = masks.as_distance(band_mm)
    if not t.any():
        return math.nan
    box = masks.grown(masks.box_of(t), np.ceil(reach / spacing).astype(int) + 1)
    # A frame of background, so that the faces of the volume are a border of what touches them.
    p, t = (np.pad(mask[box], 1) for mask in (p, t))
    inside, outside = (ndimage.distance_transform_edt(x, sampling=spacing) for x in (t, ~t))
    band = inside + outside <= reach + ROUNDING_MM
    return dice(p & band, t & band) if band.any() else math.nan


def surfaces(pred: np.ndarray, true: np.ndarray, spacing_mm: Spacing) -> Surfaces:
    """Distances in mm from every border voxel of each mask to the other border, both ways.

    Returns `(pred_to_true, true_to_pred)`, two 1D arrays with one entry per border voxel of the
    mask they start from. An empty mask has no border: the array that starts from it is empty, and
    the one that leads to it is infinite. Raises ContractError for other arrays or spacings.
    """
    p, t, spacing = checked(spacing_mm, pred=pred, true=true)
    box = masks.box_of(p | t)
    return _between(masks.border(p[box]), masks.border(t[box]), spacing)


def hd95(
    pred: np.ndarray, true: np.ndarray, spacing_mm: Spacing, *, empty_mm: float | None = None
) -> float:
    """95 % Hausdorff distance in mm: the larger of the two directed 95th percentiles.

    Percentiles interpolate linearly. MONAI agrees. MedPy instead takes one percentile of both
    directions pooled, which is never larger; DeepMind's surface-distance (used for lesions in
    `brats2024`) weights surface elements by area. Both empty: 0. One empty: `empty_mm`, by default
    the diagonal of the volume. Raises ContractError as `surfaces` does.

    Source: Huttenlocher et al., IEEE TPAMI, 1993; Maier-Hein et al., Nature Methods, 2024.
    """
    distances = surfaces(pred, true, spacing_mm)
    return distances.hd95(worst_of(true, spacing_mm, empty_mm))


def nsd(
    pred: np.ndarray, true: np.ndarray, spacing_mm: Spacing, *, tolerance_mm: SupportsFloat
) -> float:
    """Normalised surface Dice: the share of both borders within `tolerance_mm` of the other one.

    Border voxels count once each, as in MONAI and MedPy; DeepMind's surface-distance weights them
    by area. On a 2 mm grid every tolerance below 2 mm asks for identical borders. Both empty: 1.
    One empty: 0. Raises ContractError as `surfaces` does, or for a negative tolerance.

    Source: Nikolov et al., Journal of Medical Internet Research, 2021.
    """
    return surfaces(pred, true, spacing_mm).nsd(masks.as_distance(tolerance_mm))


def diagonal_mm(volume: np.ndarray, spacing_mm: Spacing) -> float:
    """The length in mm of the diagonal of a volume."""
    return float(np.linalg.norm(np.multiply(np.shape(volume), np.asarray(spacing_mm, float))))


def worst_of(volume: np.ndarray, spacing_mm: Spacing, empty_mm: float | None) -> float:
    """The distance in mm of a mask to an empty one: as given, else the diagonal of the volume."""
    if empty_mm is None:
        return diagonal_mm(volume, spacing_mm)
    return masks.as_limit("empty_mm", empty_mm)


def hd95_by_area(pred: Mask, true: Mask, spacing: Triple) -> float:
    """95 % Hausdorff distance in mm between surface elements weighted by area in mm2.

    An element lies in a cube of eight neighbouring voxel centres, some of which are foreground; its
    area is that of the triangles of marching cubes. Each directed percentile is the smallest
    distance that 95 % of the area do not exceed. One empty: infinity.

    Source: Nikolov et al., Journal of Medical Internet Research, 2021; MONAI's table of areas.
    """
    areas, kernel = _areas(tuple(spacing.tolist()))
    codes = [_codes(mask, kernel) for mask in (pred, true)]
    marked = [(code > 0) & (code < 255) for code in codes]
    between = _between(marked[0], marked[1], spacing)
    return max(
        _percentile(distances_mm, areas[code[on]])
        for distances_mm, code, on in zip(between, codes, marked, strict=True)
    )


def _between(one: Mask, other: Mask, spacing: Triple) -> Surfaces:
    """Distances in mm from every marked voxel of each array to the nearest one of the other."""
    a, b = (np.argwhere(marked) * spacing for marked in (one, other))
    return Surfaces(_nearest(a, b, other[one]), _nearest(b, a, one[other]))


def _nearest(
    start: Float[np.ndarray, "n 3"], goal: Float[np.ndarray, "m 3"], shared: np.ndarray
) -> Distances:
    distances = np.zeros(len(start)) if len(goal) else np.full(len(start), math.inf)
    # Where two borders coincide, which is most of a good prediction, the distance is 0.
    if len(goal) and not shared.all():
        # The cost of a tree follows the surfaces, that of a distance transform the volume. Grid
        # points are spread evenly: a balanced tree costs more to build than it saves.
        tree = cKDTree(goal, leafsize=32, balanced_tree=False, compact_nodes=False)
        distances[~shared] = tree.query(start[~shared])[0]
    return distances


@cache
def _areas(spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Area in mm2 by the code of a cube; the kernel says what each corner adds to the code."""
    from monai.metrics.utils import create_table_neighbour_code_to_surface_area

    areas, kernel = create_table_neighbour_code_to_surface_area(spacing)
    return areas.numpy().astype(np.float64), kernel.numpy()[0, 0].astype(np.uint8)


def _codes(mask: Mask, kernel: np.ndarray) -> UInt8[np.ndarray, "_ _ _"]:
    """Code of every cube of neighbouring voxels; beyond the volume all is background."""
    frame = np.pad(mask, 1).astype(np.uint8)
    codes = np.zeros([n + 1 for n in mask.shape], np.uint8)
    for corner, weight in np.ndenumerate(kernel):
        codes += weight * frame[tuple(map(slice, corner, np.add(corner, codes.shape)))]
    return codes


def _percentile(distances_mm: Distances, areas: Distances) -> float:
    if not len(distances_mm):
        return math.inf
    order = np.argsort(distances_mm)
    share = np.cumsum(areas[order])
    # Nineteen of twenty equal elements are 95 %; MONAI's areas have single precision.
    return float(distances_mm[order[np.searchsorted(share, (0.95 - 1e-6) * share[-1])]])
