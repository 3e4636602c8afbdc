"""The BraTS 2024 glioma challenge: every region, as a whole and lesion by lesion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from dcd_core.types import BRATS
from dcd_lab.metrics.grouping import dilated, gathered, joined, without_small
from dcd_lab.metrics.masks import (
    ROUNDING_MM,
    Box,
    Mask,
    Numbers,
    Spacing,
    Triple,
    as_labels,
    as_spacing,
    box_of,
    count,
    grown,
    voxel_ml,
)
from dcd_lab.metrics.overlap import dice_of
from dcd_lab.metrics.surface import Distances, between, border, hd95_of, nsd_of, surfaces_of
from dcd_lab.metrics.surfel import hd95_by_area

PENALTY_MM = 337.0
"""HD95 of a lesion missed or made up: the diagonal of the challenge's 182 x 218 x 182 mm grid."""

TOLERANCES_MM: Mapping[str, float] = {"nsd_05mm": 0.5, "nsd_1mm": 1.0}

# The official code means 5 for SNFH too but compares with "SFNH"; the ranking used 3.
_STEPS = {"WT": 3, "TC": 3, "NETC": 5, "SNFH": 3, "ET": 3, "RC": 5}
_SMALL_MM3 = {"WT": 20.0, "TC": 20.0, "NETC": 20.0, "SNFH": 20.0, "ET": 10.0, "RC": 20.0}
_BESIDE = {
    "NETC": ("ET", "RC"),
    "SNFH": ("ET", "RC", "NETC"),
    "ET": ("NETC", "RC"),
    "RC": ("ET", "NETC"),
}


class Match(NamedTuple):
    """A true lesion beside the predicted lesions it met, all of them taken together."""

    dice: float
    hd95_mm: float
    nsd_05mm: float
    nsd_1mm: float


_MISSED = Match(0.0, PENALTY_MM, 0.0, 0.0)


def brats2024(
    pred: np.ndarray, true: np.ndarray, spacing_mm: Spacing
) -> list[dict[str, str | int | float]]:
    """The scores of the BraTS 2024 glioma challenge from two label volumes (i, j, k).

    A row per region (WT, TC, NETC, SNFH, ET, RC; the cavity RC is part of neither WT nor TC):

    - dice, hd95_mm, nsd_05mm, nsd_1mm: the whole region, by this module's `dice`, `hd95`, `nsd`;
    - sensitivity and specificity of its voxels, volume_true_ml, volume_pred_ml;
    - lesion_dice, lesion_hd95_mm, lesion_nsd_05mm, lesion_nsd_1mm: means over lesions, by which the
      challenge ranked (Dice, HD95);
    - tp, fn: true lesions found and missed; fp: predicted lesions that met none.

    Lesions. Pieces that meet when grown by 3 voxels (NETC, RC: 5) are one lesion, and so are pieces
    that touch the same lesion of another tissue (not in WT and TC). Predicted lesions of at most
    20 mm3 (ET: 10) are dropped. Each true lesion is compared with all predicted lesions, whole,
    that reach into it grown: Dice; HD95 between surface elements weighted by area; NSD as the mean
    of the two shares of border voxels. Missed lesions and false ones count 0, 337 mm and 0; true
    lesions of at most 20 mm3 (ET: 10) do not count, nor does what met them.

    Empty: a region, or its lesions that count, absent from both volumes is perfect (1, 0 mm, 1);
    absent from one of them it is the worst (0, 337 mm, 0). Sensitivity follows suit: 1 or 0.

    The official code differs, and is wrong, outside its lesion scores: Legacy_Dice, Legacy_HD95 and
    Legacy NSD are computed after small predicted lesions are gone, and Legacy_HD95, Sensitivity and
    Specificity on lesion numbers instead of masks, so that a perfect second lesion counts as an
    error. Here they are what their names say. In its lesion scores it counts voxels where predicted
    lesions are dropped, here it is mm3 as for true ones, which is the same on the challenge's 1 mm
    grid; and its NSD is lower by 5e-9, a constant against division by zero.

    A lesion that touches two lesions of another tissue goes with the one whose voxels, grown, come
    first in the array, there and here: turning the volumes may change such a grouping.

    Raises:
        ContractError: volumes are not integer 3D arrays of one shape with labels 0 to 4, or spacing
            is not 3 positive numbers.

    Source: de Verdier et al., arXiv 2405.18368, 2024; metrics_GLI.py of
        github.com/rachitsaluja/BraTS-2024-Metrics at f1131e34.
    """
    labels, spacing = as_labels(pred, true, BRATS), as_spacing(spacing_mm)
    # What lies outside is background, and lesions grow by no more than this.
    box = grown(box_of((labels[0] > 0) | (labels[1] > 0)), (max(_STEPS.values()),) * 3)
    p, t = (label[box] for label in labels)
    p_lesions = _lesions(p, spacing, prune=True)
    t_lesions = _lesions(t, spacing, prune=False)
    return [
        {
            "region": region,
            **_whole(np.isin(p, values), np.isin(t, values), spacing, labels[0].size),
            **_by_lesion(p_lesions[region], t_lesions[region], spacing, region),
        }
        for region, values in BRATS.regions.items()
    ]


def _lesions(label: np.ndarray, spacing: Triple, *, prune: bool) -> dict[str, Numbers]:
    found: dict[str, Numbers] = {}
    for region, values in BRATS.regions.items():
        numbers = gathered(np.isin(label, values), _STEPS[region])
        found[region] = without_small(numbers, _most_voxels(region, spacing)) if prune else numbers
    # All tissues are joined by what was there before any was.
    together = {
        tissue: joined(found[tissue], [found[other] for other in others])
        for tissue, others in _BESIDE.items()
    }
    return {**found, **together}


def _most_voxels(region: str, spacing: Triple) -> float:
    """The number of voxels up to which a lesion is small."""
    # Headers keep single precision: twenty voxels of 1.0000001 mm are 20 mm3.
    return _SMALL_MM3[region] / (1000 * voxel_ml(spacing)) * (1 + 1e-6)


def _whole(pred: Mask, true: Mask, spacing: Triple, voxels: int) -> dict[str, float]:
    distances = surfaces_of(pred, true, spacing)
    both, p, t = (count(mask) for mask in (pred & true, pred, true))
    neither, absent = voxels - (p + t - both), voxels - t
    return {
        "dice": dice_of(pred, true),
        "hd95_mm": hd95_of(*distances, PENALTY_MM),
        **{name: nsd_of(*distances, mm) for name, mm in TOLERANCES_MM.items()},
        "sensitivity": both / t if t else float(p == 0),
        "specificity": neither / absent if absent else float(p == voxels),
        "volume_true_ml": t * voxel_ml(spacing),
        "volume_pred_ml": p * voxel_ml(spacing),
    }


def _by_lesion(
    pred: Numbers, true: Numbers, spacing: Triple, region: str
) -> dict[str, int | float]:
    boxes, most_voxels = ndimage.find_objects(pred), _most_voxels(region, spacing)
    met: set[int] = set()
    found: list[Match] = []
    missed = 0
    for number, box in enumerate(ndimage.find_objects(true), start=1):
        window = grown(box, (_STEPS[region],) * 3)
        lesion = true[window] == number
        near = np.unique(pred[window][dilated(lesion, _STEPS[region])])
        partners = [int(each) for each in near if each]
        met.update(partners)
        if count(lesion) <= most_voxels:
            continue
        if not partners:
            missed += 1
            continue
        around = _hull([box, *(boxes[each - 1] for each in partners)])
        chosen = np.zeros(len(boxes) + 1, dtype=bool)
        chosen[partners] = True
        found.append(_matched(chosen[pred[around]], true[around] == number, spacing))
    false = len(boxes) - len(met)
    everything = found + [_MISSED] * (missed + false)
    perfect = Match(1.0, 0.0, 1.0, 1.0)
    mean = Match(*np.mean(everything, axis=0).tolist()) if everything else perfect
    scores = {f"lesion_{name}": value for name, value in mean._asdict().items()}
    return {**scores, "tp": len(found), "fp": false, "fn": missed}


def _hull(boxes: list[Box]) -> Box:
    i, j, k = (
        slice(min(side.start for side in sides), max(side.stop for side in sides))
        for sides in zip(*boxes, strict=True)
    )
    return i, j, k


def _matched(pred: Mask, true: Mask, spacing: Triple) -> Match:
    ways = between(border(pred), border(true), spacing)
    return Match(
        dice_of(pred, true),
        hd95_by_area(pred, true, spacing),
        *(_mean_share(ways, mm) for mm in TOLERANCES_MM.values()),
    )


def _mean_share(ways: tuple[Distances, Distances], tolerance_mm: float) -> float:
    return float(np.mean([np.mean(mm <= tolerance_mm + ROUNDING_MM) for mm in ways]))
