"""Lesions: one connected component of the truth at a time, so that small ones are seen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import SupportsFloat

import numpy as np
from scipy import ndimage

from dcd_core.types import ContractError
from dcd_lab.metrics.masks import (
    ROUNDING_MM,
    Mask,
    Numbers,
    Spacing,
    Triple,
    as_distance,
    as_masks,
    as_spacing,
    grown,
    numbered,
    voxel_ml,
)
from dcd_lab.metrics.overlap import dice_of

EDGES_ML = (1.0, 10.0)
"""Volumes that part small lesions from medium ones and medium ones from large ones."""


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
    p, t = as_masks(pred, true)
    return lesions_of(p, t, as_spacing(spacing_mm), float(below_ml), as_distance(margin_mm))


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
    return mean_dice(lesions(pred, true, spacing_mm, below_ml=below_ml, margin_mm=margin_mm))


def dice_by_volume(
    pred: np.ndarray,
    true: np.ndarray,
    spacing_mm: Spacing,
    *,
    edges_ml: Sequence[SupportsFloat] = EDGES_ML,
    margin_mm: SupportsFloat = 5.0,
) -> dict[str, float]:
    """Mean Dice over the true lesions of every class of volume, NaN for a class without lesions.

    With the edges 1 and 10 ml the keys are below_1ml, 1_to_10ml and above_10ml (a decimal point is
    left out: below_05ml is 0.5 ml); a lesion of exactly 1 ml belongs to the larger class. Every
    lesion weighs the same and a missed one counts 0; see `lesions` for what each is compared with.

    Raises:
        ContractError: as in `lesions`, or the edges are not positive and rising.
    """
    edges = [float(edge) for edge in edges_ml]
    if not edges or edges[0] <= 0 or any(a >= b for a, b in itertools.pairwise(edges)):
        raise ContractError("edges_ml", edges, "positive numbers that rise", "(1.0, 10.0)")
    rows = lesions(pred, true, spacing_mm, margin_mm=margin_mm)
    return dice_of_classes(rows, edges)


def lesions_of(
    pred: Mask, true: Mask, spacing: Triple, below_ml: float, margin_mm: float
) -> list[dict[str, int | float]]:
    """`lesions` of masks that have been checked."""
    numbers, _ = numbered(true)
    volumes_ml = np.bincount(numbers.ravel()) * voxel_ml(spacing)
    # Twice the margin: a rival lesion nearer to a voxel of the neighbourhood lies no further away.
    reach = np.ceil(2 * margin_mm / spacing).astype(int)
    rows: list[dict[str, int | float]] = []
    for number, box in enumerate(ndimage.find_objects(numbers), start=1):
        if volumes_ml[number] < below_ml:
            window = grown(box, reach)
            inside = _neighbourhood(numbers[window], number, spacing, margin_mm)
            overlap = dice_of(pred[window] & inside, numbers[window] == number)
            rows.append({"lesion": number, "volume_ml": float(volumes_ml[number]), "dice": overlap})
    return rows


def mean_dice(rows: Sequence[dict[str, int | float]]) -> float:
    """Mean Dice of rows of `lesions`, NaN when there is none."""
    return float(np.mean([row["dice"] for row in rows])) if rows else math.nan


def dice_of_classes(
    rows: Sequence[dict[str, int | float]], edges_ml: Sequence[float]
) -> dict[str, float]:
    """`dice_by_volume` of rows of `lesions`."""
    text = [f"{edge:g}".replace(".", "") for edge in edges_ml]
    between = [f"{low}_to_{high}ml" for low, high in itertools.pairwise(text)]
    names = [f"below_{text[0]}ml", *between, f"above_{text[-1]}ml"]
    members: dict[str, list[dict[str, int | float]]] = {name: [] for name in names}
    for row in rows:
        # Ten voxels of 0.1 ml are a hair less than 1 ml: rounding must not choose the class.
        rank = np.searchsorted(edges_ml, row["volume_ml"] * (1 + 1e-9))
        members[names[rank]].append(row)
    return {name: mean_dice(found) for name, found in members.items()}


def _neighbourhood(numbers: Numbers, number: int, spacing: Triple, margin_mm: float) -> Mask:
    distance, nearest = ndimage.distance_transform_edt(
        numbers == 0, sampling=spacing, return_indices=True
    )
    return (numbers[tuple(nearest)] == number) & (distance <= margin_mm + ROUNDING_MM)
