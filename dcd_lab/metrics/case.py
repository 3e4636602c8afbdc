"""Scores of one case from two label volumes: ours for every region, and those of the challenges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import SupportsFloat

import numpy as np

from dcd_core.errors import several
from dcd_lab.metrics import masks
from dcd_lab.metrics.brats import brats2024
from dcd_lab.metrics.lesion import EDGES_ML, dice_by_class, lesions, mean_dice
from dcd_lab.metrics.masks import Spacing, checked
from dcd_lab.metrics.region import boundary_dice, dice, surfaces, volume_ml, worst_of
from dcd_lab.tasks import BRATS, PUBLIC, Task, checked_task


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

    Keys: region, present (the truth has it), dice, hd95_mm, one nsd_<t>mm per tolerance,
    small_lesion_dice, volume_true_ml, volume_pred_ml, then boundary_<t>mm_dice for a band of
    `band_mm` (see `boundary_dice`) and lesion_dice_<class> for lesions below 1 ml, of 1 to 10 ml
    and above (see `dice_by_volume`). A name has the number as it is, but 05 for 0.5: nsd_1mm,
    nsd_1.5mm, nsd_05mm. Where `present` is false, Dice only says whether the prediction stayed
    empty: average over present regions, or say that absent ones are included.
    Raises ContractError for volumes that are not integer arrays of one shape with the task's
    labels, or for another spacing.
    """
    labels_of_task = checked_task(task).labels
    *labels, spacing = checked(spacing_mm, labels=labels_of_task, pred=pred, true=true)
    worst_mm = worst_of(true, spacing, empty_mm)
    below = masks.as_limit("below_ml", below_ml)
    tolerances = several("tolerances_mm", tolerances_mm, "distances in mm")
    box = masks.grown(masks.box_of((labels[0] > 0) | (labels[1] > 0)), (1, 1, 1))
    rows: list[dict[str, object]] = []
    for region, values in task.regions.items():
        p, t = (np.isin(label[box], values) for label in labels)
        distances, components = surfaces(p, t, spacing), lesions(p, t, spacing)
        nsds = {masks.number_name(mm): distances.nsd(masks.as_distance(mm)) for mm in tolerances}
        small = [row for row in components if row["volume_ml"] < below]
        classes = dice_by_class(components, EDGES_ML)
        rows.append(
            {
                "region": region,
                "present": bool(t.any()),
                "dice": dice(p, t),
                "hd95_mm": distances.hd95(worst_mm),
                **{f"nsd_{mm}mm": value for mm, value in nsds.items()},
                "small_lesion_dice": mean_dice(small),
                "volume_true_ml": volume_ml(t, spacing),
                "volume_pred_ml": volume_ml(p, spacing),
                f"boundary_{masks.number_name(band_mm)}mm_dice": boundary_dice(
                    p, t, spacing, band_mm=band_mm
                ),
                **{f"lesion_dice_{name}": value for name, value in classes.items()},
            }
        )
    return rows


def isles2022(pred: np.ndarray, true: np.ndarray, spacing_mm: Spacing) -> dict[str, int | float]:
    """The four scores of the ISLES 2022 challenge from two masks (i, j, k) on the DWI grid.

    Keys:

    - dice;
    - avd_ml, the absolute difference of the volumes;
    - lesion_count_diff, the absolute difference of the numbers of lesions, which are 26-connected
      components of whatever size;
    - lesion_f1: a true lesion that shares a voxel with the prediction is found, one that shares
      none is missed, and a predicted lesion that shares none is false; F1 is found over found plus
      half of missed and false. One blob over all lesions scores 1, and so does a lesion in two.

    Both empty: 1, 0, 0, 1. One empty: Dice 0, F1 0, the other's volume and number of lesions.
    Raises ContractError for other arrays or spacings.

    Source: Hernandez Petzsche et al., Scientific Data, 2022; the challenge's eval_utils.py
        (github.com/ezequieldlrosa/isles22).
    """
    p, t, _ = checked(spacing_mm, pred=pred, true=true)
    box = masks.box_of(p | t)
    p, t = p[box], t[box]
    numbers, counts = zip(*map(masks.numbered, (p, t)), strict=True)
    false, missed = (
        count - len(np.unique(number[p & t])) for number, count in zip(numbers, counts, strict=True)
    )
    hits = counts[1] - missed
    weight = hits + (missed + false) / 2
    return {
        "dice": dice(p, t),
        "avd_ml": abs(volume_ml(p, spacing_mm) - volume_ml(t, spacing_mm)),
        "lesion_count_diff": abs(counts[0] - counts[1]),
        "lesion_f1": hits / weight if weight else 1.0,
    }


def challenge(
    pred: np.ndarray, true: np.ndarray, task: Task, spacing_mm: Spacing
) -> list[dict[str, str | int | float]]:
    """`brats2024` or `isles2022` of two label volumes (i, j, k): a row per region of the task.

    A task without a challenge has rows that name the region alone. Raises ContractError as the two
    do.
    """
    if checked_task(task).name not in PUBLIC:
        return [{"region": region} for region in task.regions]
    if task.name == BRATS.name:
        return brats2024(pred, true, spacing_mm)
    (region,) = task.regions
    return [{"region": region, **isles2022(pred, true, spacing_mm)}]
