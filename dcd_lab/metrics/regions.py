"""Regions: every score of one case, region by region, from two label volumes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import SupportsFloat

import numpy as np

from dcd_core.types import Task
from dcd_lab.metrics.lesion import EDGES_ML, dice_of_classes, lesions_of, mean_dice
from dcd_lab.metrics.masks import Spacing, as_distance, as_labels, as_spacing, count, voxel_ml
from dcd_lab.metrics.overlap import boundary_dice_of, dice_of
from dcd_lab.metrics.surface import hd95_of, nsd_of, surfaces_of, worst_mm


def score(
    pred: np.ndarray,
    true: np.ndarray,
    task: Task,
    spacing_mm: Spacing,
    *,
    tolerances_mm: Sequence[SupportsFloat] = (1.0, 2.0),
    below_ml: SupportsFloat = 1.0,
    band_mm: SupportsFloat = 2.0,
    empty_mm: float | None = None,
) -> list[dict[str, object]]:
    """Every score of one case: a row per region of the task, from two label volumes (i, j, k).

    Keys: region, present (the truth has it), dice, hd95_mm, one nsd_<t>mm per tolerance (a decimal
    point is left out: nsd_05mm is 0.5 mm), small_lesion_dice, volume_true_ml, volume_pred_ml, then
    boundary_<t>mm_dice for a band of `band_mm` (see `boundary_dice`) and lesion_dice_<class> for
    lesions below 1 ml, of 1 to 10 ml and above (see `dice_by_volume`). Where `present` is false,
    Dice only says whether the prediction stayed empty: average over present regions, or say that
    absent ones are included.

    Raises:
        ContractError: volumes are not integer 3D arrays of one shape with the task's labels, or
            spacing is not 3 positive numbers.
    """
    p, t = as_labels(pred, true, task)
    spacing, band = as_spacing(spacing_mm), as_distance(band_mm)
    worst = worst_mm(empty_mm, p.shape, spacing)
    rows: list[dict[str, object]] = []
    for region, values in task.regions.items():
        pair = np.isin(p, values), np.isin(t, values)
        distances = surfaces_of(*pair, spacing)
        found = lesions_of(*pair, spacing, math.inf, margin_mm=5.0)
        small = [row for row in found if row["volume_ml"] < float(below_ml)]
        classes = dice_of_classes(found, EDGES_ML)
        rows.append(
            {
                "region": region,
                "present": bool(pair[1].any()),
                "dice": dice_of(*pair),
                "hd95_mm": hd95_of(*distances, worst),
                **{f"nsd_{_mm(x)}": nsd_of(*distances, as_distance(x)) for x in tolerances_mm},
                "small_lesion_dice": mean_dice(small),
                "volume_true_ml": count(pair[1]) * voxel_ml(spacing),
                "volume_pred_ml": count(pair[0]) * voxel_ml(spacing),
                f"boundary_{_mm(band)}_dice": boundary_dice_of(*pair, spacing, band),
                **{f"lesion_dice_{name}": value for name, value in classes.items()},
            }
        )
    return rows


def _mm(distance_mm: SupportsFloat) -> str:
    return f"{float(distance_mm):g}mm".replace(".", "")
