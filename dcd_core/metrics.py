"""Scores of one case: how well a predicted mask overlaps the true one, and how far apart they lie.

Dice measures shared volume and is lenient where lesions are large; the surface scores (HD95, NSD)
measure millimetres and are strict where boundaries matter; the lesion scores look at one connected
lesion at a time, because a stroke of 0.1 ml disappears inside the Dice of its 80 ml neighbour.

Conventions, once for the whole module:

- A mask is (i, j, k), boolean or integer with values 0 and 1; spacing is millimetres per axis.
- A surface is the set of *border voxels*: foreground voxels with a background voxel among their
  six face neighbours; beyond the volume everything is background. Distances run between voxel
  centres, unweighted: every border voxel counts once.
- Empty masks: both empty is a perfect answer (Dice 1, HD95 0 mm, NSD 1); one empty is the worst
  one (Dice 0, NSD 0, HD95 `empty_mm`, by default the diagonal of the volume). Scores over lesions
  are NaN when the truth has no such lesion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import SupportsFloat, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from scipy.spatial import cKDTree

from dcd_core.types import ContractError, Task

__all__ = [
    "dice",
    "hd95",
    "lesions",
    "nsd",
    "score",
    "small_lesion_dice",
    "surfaces",
    "volume_ml",
]

Mask: TypeAlias = Bool[np.ndarray, "i j k"]
Distances: TypeAlias = Float[np.ndarray, " _"]
Triple: TypeAlias = Float[np.ndarray, "3"]
# Public arguments are typed loosely on purpose: a wrong shape or spacing must reach the checks
# below, whose messages are written for people.
Spacing: TypeAlias = Sequence[SupportsFloat] | np.ndarray

_CONNECT_26 = np.ones((3, 3, 3), dtype=bool)
# 3 voxels of 0.9 mm are 2.7000000000000002 mm: rounding must not decide a tie with a tolerance.
_ROUNDING_MM = 1e-6


def dice(pred: np.ndarray, true: np.ndarray) -> float:
    """Dice overlap 2|P n T| / (|P| + |T|) of two masks (i, j, k), between 0 and 1.

    Both empty: 1. One empty: 0.

    Raises:
        ContractError: masks are not binary 3D arrays of one shape.

    Source: Dice, Ecology, 1945.
    """
    return _dice(*_masks(pred, true))


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
    return _surfaces(*_masks(pred, true), _spacing(spacing_mm))


def hd95(
    pred: np.ndarray, true: np.ndarray, spacing_mm: Spacing, *, empty_mm: float | None = None
) -> float:
    """95 % Hausdorff distance in mm: the larger of the two directed 95th percentiles.

    Percentiles interpolate linearly. MONAI agrees. MedPy instead takes one percentile of both
    directions pooled, which is never larger; DeepMind's surface-distance (used by the BraTS 2024
    code) weights surface elements by area. Both empty: 0. One empty: `empty_mm`, by default the
    diagonal of the volume.

    Raises:
        ContractError: as in `surfaces`.

    Source: Huttenlocher et al., IEEE TPAMI, 1993; Maier-Hein et al., Nature Methods, 2024.
    """
    p, t = _masks(pred, true)
    spacing = _spacing(spacing_mm)
    return _hd95(*_surfaces(p, t, spacing), _empty_mm(empty_mm, p.shape, spacing))


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
    return _nsd(*surfaces(pred, true, spacing_mm), _tolerance(tolerance_mm))


def volume_ml(mask: np.ndarray, spacing_mm: Spacing) -> float:
    """Volume in ml of a mask (i, j, k).

    Raises:
        ContractError: the mask is not a binary 3D array, or spacing is not 3 positive numbers.
    """
    return int(_mask(mask, "mask").sum()) * _voxel_ml(_spacing(spacing_mm))


def lesions(
    pred: np.ndarray,
    true: np.ndarray,
    spacing_mm: Spacing,
    *,
    below_ml: SupportsFloat = math.inf,
    margin_mm: SupportsFloat = 5.0,
) -> list[dict[str, int | float]]:
    """One row per true lesion smaller than `below_ml`: lesion (its number), volume_ml, dice.

    A lesion is a 26-connected component of `true`. It is compared with the predicted voxels of its
    own neighbourhood: those within `margin_mm` of it and nearer to it than to any other true
    lesion. So a prediction that spills over a large neighbour is charged to the neighbour, one
    that floods the whole neighbourhood scores low instead of counting as a hit, and how the
    prediction happens to be connected does not matter. False positives far from every lesion are
    not seen here.

    Raises:
        ContractError: as in `surfaces`, or the margin is negative.
    """
    p, t = _masks(pred, true)
    return _lesions(p, t, _spacing(spacing_mm), float(below_ml), _tolerance(margin_mm))


def small_lesion_dice(
    pred: np.ndarray,
    true: np.ndarray,
    spacing_mm: Spacing,
    *,
    below_ml: SupportsFloat = 1.0,
    margin_mm: SupportsFloat = 5.0,
) -> float:
    """Mean Dice over the true lesions smaller than `below_ml`, NaN when there is none.

    Every lesion weighs the same and a missed one counts 0; see `lesions` for what each is compared
    with.

    Raises:
        ContractError: as in `lesions`.
    """
    return _mean_dice(lesions(pred, true, spacing_mm, below_ml=below_ml, margin_mm=margin_mm))


def score(
    pred: np.ndarray,
    true: np.ndarray,
    task: Task,
    spacing_mm: Spacing,
    *,
    tolerances_mm: Sequence[SupportsFloat] = (1.0, 2.0),
    below_ml: SupportsFloat = 1.0,
    empty_mm: float | None = None,
) -> list[dict[str, object]]:
    """Every score of one case: a row per region of the task, from two label volumes (i, j, k).

    Keys: region, present (the truth has it), dice, hd95_mm, one nsd_<t>mm per tolerance (a decimal
    point is left out: nsd_05mm is 0.5 mm), small_lesion_dice, volume_true_ml, volume_pred_ml.
    Where `present` is false, Dice only says whether the prediction stayed empty: average over
    present regions, or say that absent ones are included.

    Raises:
        ContractError: volumes are not integer 3D arrays of one shape with the task's labels, or
            spacing is not 3 positive numbers.
    """
    p, t = _label(pred, "pred", task), _label(true, "true", task)
    _same_shape(p, t)
    spacing = _spacing(spacing_mm)
    worst = _empty_mm(empty_mm, p.shape, spacing)
    rows: list[dict[str, object]] = []
    for region, values in task.regions.items():
        pair = np.isin(p, values), np.isin(t, values)
        distances = _surfaces(*pair, spacing)
        small = _lesions(*pair, spacing, float(below_ml), margin_mm=5.0)
        rows.append(
            {
                "region": region,
                "present": bool(pair[1].any()),
                "dice": _dice(*pair),
                "hd95_mm": _hd95(*distances, worst),
                **{_nsd_key(x): _nsd(*distances, _tolerance(x)) for x in tolerances_mm},
                "small_lesion_dice": _mean_dice(small),
                "volume_true_ml": int(pair[1].sum()) * _voxel_ml(spacing),
                "volume_pred_ml": int(pair[0].sum()) * _voxel_ml(spacing),
            }
        )
    return rows


def _dice(pred: Mask, true: Mask) -> float:
    total = int(pred.sum()) + int(true.sum())
    return 2 * int((pred & true).sum()) / total if total else 1.0


def _surfaces(pred: Mask, true: Mask, spacing: Triple) -> tuple[Distances, Distances]:
    # Nearest border voxel by k-d tree: the same number as a distance transform of the border, but
    # its cost follows the surfaces, so one stray voxel in a far corner does not blow it up.
    box = _box(pred | true)
    points = [np.argwhere(_border(mask[box])) * spacing for mask in (pred, true)]
    return _nearest(points[0], points[1]), _nearest(points[1], points[0])


def _nearest(start: Float[np.ndarray, "n 3"], goal: Float[np.ndarray, "m 3"]) -> Distances:
    if not len(goal) or not len(start):
        return np.full(len(start), math.inf)
    # Grid points are spread evenly: a balanced tree costs more to build than it saves.
    tree = cKDTree(goal, leafsize=32, balanced_tree=False, compact_nodes=False)
    return tree.query(start)[0]


def _border(mask: Mask) -> Mask:
    return mask & ~ndimage.binary_erosion(mask)


def _box(mask: Mask) -> tuple[slice, slice, slice]:
    found = ndimage.find_objects(mask.astype(np.uint8))
    return found[0] if found else (slice(0), slice(0), slice(0))


def _hd95(pred_to_true: Distances, true_to_pred: Distances, worst_mm: float) -> float:
    if not len(pred_to_true) and not len(true_to_pred):
        return 0.0
    if not len(pred_to_true) or not len(true_to_pred):
        return worst_mm
    return float(max(np.percentile(pred_to_true, 95), np.percentile(true_to_pred, 95)))


def _nsd(pred_to_true: Distances, true_to_pred: Distances, tolerance_mm: float) -> float:
    both = np.concatenate([pred_to_true, true_to_pred])
    return float(np.mean(both <= tolerance_mm + _ROUNDING_MM)) if len(both) else 1.0


def _nsd_key(tolerance_mm: SupportsFloat) -> str:
    return f"nsd_{float(tolerance_mm):g}mm".replace(".", "")


def _lesions(
    pred: Mask, true: Mask, spacing: Triple, below_ml: float, margin_mm: float
) -> list[dict[str, int | float]]:
    numbers, _ = ndimage.label(true, _CONNECT_26)
    volumes_ml = np.bincount(numbers.ravel()) * _voxel_ml(spacing)
    # Twice the margin: a rival lesion nearer to a voxel of the neighbourhood lies no further away.
    reach = np.ceil(2 * margin_mm / spacing).astype(int)
    rows: list[dict[str, int | float]] = []
    for number, box in enumerate(ndimage.find_objects(numbers), start=1):
        if volumes_ml[number] < below_ml:
            window = tuple(
                slice(max(s.start - r, 0), s.stop + r) for s, r in zip(box, reach, strict=True)
            )
            inside = _neighbourhood(numbers[window], number, spacing, margin_mm)
            overlap = _dice(pred[window] & inside, numbers[window] == number)
            rows.append({"lesion": number, "volume_ml": float(volumes_ml[number]), "dice": overlap})
    return rows


def _neighbourhood(
    numbers: Int[np.ndarray, "i j k"],
    number: int,
    spacing: Triple,
    margin_mm: float,
) -> Mask:
    distance, nearest = ndimage.distance_transform_edt(
        numbers == 0, sampling=spacing, return_indices=True
    )
    return (numbers[tuple(nearest)] == number) & (distance <= margin_mm + _ROUNDING_MM)


def _mean_dice(rows: list[dict[str, int | float]]) -> float:
    return float(np.mean([row["dice"] for row in rows])) if rows else math.nan


def _voxel_ml(spacing: Triple) -> float:
    return float(np.prod(spacing)) / 1000


def _empty_mm(empty_mm: float | None, shape: tuple[int, ...], spacing: Triple) -> float:
    return float(np.linalg.norm(np.array(shape) * spacing)) if empty_mm is None else float(empty_mm)


def _volume(array: np.ndarray, name: str) -> np.ndarray:
    volume = np.asarray(array)
    if volume.ndim != 3:
        raise ContractError(
            f"shape of {name}", volume.shape, "three axes (i, j, k)", "index away batch and channel"
        )
    if volume.dtype != bool and not np.issubdtype(volume.dtype, np.integer):
        raise ContractError(
            f"dtype of {name}", volume.dtype, "bool or integer", "threshold or argmax it first"
        )
    return volume


def _mask(array: np.ndarray, name: str) -> Mask:
    volume = _volume(array, name)
    if volume.dtype != bool and volume.size and (volume.min() < 0 or volume.max() > 1):
        raise ContractError(
            f"values of {name}",
            f"{volume.min()} to {volume.max()}",
            "0 and 1",
            "numpy.isin(labels, region), or score() for whole label volumes",
        )
    return volume.astype(bool)


def _masks(pred: np.ndarray, true: np.ndarray) -> tuple[Mask, Mask]:
    p, t = _mask(pred, "pred"), _mask(true, "true")
    _same_shape(p, t)
    return p, t


def _label(array: np.ndarray, name: str, task: Task) -> np.ndarray:
    volume, last = _volume(array, name), len(task.labels) - 1
    if volume.size and (volume.min() < 0 or volume.max() > last):
        raise ContractError(
            f"labels of {name}",
            f"{volume.min()} to {volume.max()}",
            f"0 to {last} ({', '.join(task.labels)})",
            "check the task and the edition of the data set",
        )
    return volume


def _same_shape(pred: np.ndarray, true: np.ndarray) -> None:
    if pred.shape != true.shape:
        raise ContractError(
            "shape of pred", pred.shape, f"the shape of true, {true.shape}", "resample to one grid"
        )


def _spacing(spacing_mm: Spacing) -> Triple:
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (3,) or not np.all(np.isfinite(spacing) & (spacing > 0)):
        raise ContractError(
            "spacing_mm",
            spacing_mm,
            "three positive numbers, mm along (i, j, k)",
            "case.spacing_mm",
        )
    return spacing


def _tolerance(distance_mm: SupportsFloat) -> float:
    value = float(distance_mm)
    if not value >= 0:
        raise ContractError("distance in mm", value, "a number >= 0", "1.0 or the voxel size")
    return value
