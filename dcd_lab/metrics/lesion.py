"""Lesions: one connected component of the truth at a time, so that small ones are seen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import SupportsFloat, TypeAlias

import numpy as np
from scipy import ndimage

from dcd_core.errors import several
from dcd_core.types import ContractError
from dcd_lab.metrics import masks
from dcd_lab.metrics.masks import Mask, Numbers, Spacing, Triple, checked
from dcd_lab.metrics.region import dice

EDGES_ML = (1.0, 10.0)
"""Volumes that part small lesions from medium ones and medium ones from large ones."""

Row: TypeAlias = dict[str, int | float]


def lesions(
    pred: np.ndarray,
    true: np.ndarray,
    spacing_mm: Spacing,
    *,
    below_ml: SupportsFloat = math.inf,
    margin_mm: SupportsFloat = 5.0,
) -> list[Row]:
    """One row per true lesion smaller than `below_ml`: lesion (its number), volume_ml, dice.

    A lesion is a 26-connected component of `true`. It is compared with the predicted voxels of its
    own neighbourhood: those within `margin_mm` of it and nearer to it than to any other true
    lesion. So a prediction that spills over a large neighbour counts against the neighbour, one
    that covers the whole neighbourhood scores low, and it does not matter how the prediction is
    connected. False positives far from every lesion are not seen. An empty truth has no rows.
    Raises ContractError for other arrays or spacings, or a negative margin.
    """
    p, t, spacing = checked(spacing_mm, pred=pred, true=true)
    margin, below = masks.as_distance(margin_mm), masks.as_limit("below_ml", below_ml)
    if not t.any():
        return []
    # Twice the margin: another lesion nearer to a voxel of the neighbourhood is no further away.
    reach = np.ceil(2 * margin / spacing).astype(int)
    around = masks.grown(masks.box_of(t), reach)
    p, t = p[around], t[around]
    numbers, _ = ndimage.label(t, masks.CONNECT_26)
    volumes_ml = np.bincount(numbers.ravel()) * (np.prod(spacing) / 1000)
    rows: list[Row] = []
    for number, box in enumerate(ndimage.find_objects(numbers), start=1):
        if volumes_ml[number] >= below:
            continue
        window = masks.grown(box, reach)
        overlap = _overlap(p[window], numbers[window], number, spacing, margin)
        rows.append({"lesion": number, "volume_ml": float(volumes_ml[number]), "dice": overlap})
    return rows


def _overlap(pred: Mask, numbers: Numbers, number: int, spacing: Triple, margin_mm: float) -> float:
    """Dice of one numbered lesion with what is predicted in its own neighbourhood."""
    if not pred.any():
        return 0.0
    distance, nearest = ndimage.distance_transform_edt(
        numbers == 0, sampling=spacing, return_indices=True
    )
    own = (numbers[tuple(nearest)] == number) & (distance <= margin_mm + masks.ROUNDING_MM)
    return dice(pred & own, numbers == number)


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
    with, and for errors.
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

    With the edges 1 and 10 ml the keys are below_1ml, 1_to_10ml and above_10ml; 0.5 and 1.5 ml are
    written 05 and 1.5. A lesion of exactly 1 ml belongs to the larger class. Lesions count as in
    `small_lesion_dice`. Raises ContractError also for edges that are not positive or do not rise.
    """
    edges = [masks.as_number("edges_ml", x) for x in several("edges_ml", edges_ml, "numbers")]
    if not edges or edges[0] <= 0 or any(a >= b for a, b in itertools.pairwise(edges)):
        raise ContractError("edges_ml", edges, "positive numbers that rise", "(1.0, 10.0)")
    return dice_by_class(lesions(pred, true, spacing_mm, margin_mm=margin_mm), edges)


def dice_by_class(rows: Sequence[Row], edges_ml: Sequence[float]) -> dict[str, float]:
    """Mean Dice of rows of `lesions` by class of volume."""
    text = [masks.number_name(edge) for edge in edges_ml]
    between = [f"{low}_to_{high}ml" for low, high in itertools.pairwise(text)]
    members: dict[str, list[Row]] = {
        name: [] for name in (f"below_{text[0]}ml", *between, f"above_{text[-1]}ml")
    }
    for row in rows:
        # Ten voxels of 0.1 ml are a hair less than 1 ml: rounding must not choose the class.
        rank = np.searchsorted(edges_ml, row["volume_ml"] * (1 + 1e-9))
        list(members.values())[rank].append(row)
    return {name: mean_dice(group) for name, group in members.items()}


def mean_dice(rows: Sequence[Row]) -> float:
    """Mean Dice of rows of `lesions`, NaN when there is none."""
    return float(np.mean([row["dice"] for row in rows])) if rows else math.nan
