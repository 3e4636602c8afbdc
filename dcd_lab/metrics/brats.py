"""The BraTS 2024 glioma challenge: every region, as a whole and lesion by lesion.

An annotator outlines one enhancing rim, and the voxel grid makes three pieces of it. The challenge
joins such pieces again: those of one tissue that lie close, and those that touch the same lesion of
another tissue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

from dcd_lab.metrics import masks
from dcd_lab.metrics.masks import Box, Mask, Numbers, Spacing, Triple, checked
from dcd_lab.metrics.region import dice, hd95_by_area, surfaces, volume_ml
from dcd_lab.tasks import BRATS

PENALTY_MM = 337.0
"""HD95 of a lesion missed or made up: the diagonal of the challenge's 182 x 218 x 182 mm grid."""

TOLERANCES_MM: Mapping[str, float] = {"nsd_05mm": 0.5, "nsd_1mm": 1.0}
LESION_SCORES = ("lesion_dice", "lesion_hd95_mm", "lesion_nsd_05mm", "lesion_nsd_1mm")
PERFECT, MISSED = (1.0, 0.0, 1.0, 1.0), (0.0, PENALTY_MM, 0.0, 0.0)

# The official code means 5 for SNFH too but compares with "SFNH"; the ranking used 3.
_STEPS = {"WT": 3, "TC": 3, "NETC": 5, "SNFH": 3, "ET": 3, "RC": 5}
_SMALL_MM3 = {"WT": 20.0, "TC": 20.0, "NETC": 20.0, "SNFH": 20.0, "ET": 10.0, "RC": 20.0}
_BESIDE = {
    "NETC": ("ET", "RC"),
    "SNFH": ("ET", "RC", "NETC"),
    "ET": ("NETC", "RC"),
    "RC": ("ET", "NETC"),
}


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
    lesions of at most 20 mm3 (ET: 10) do not count, nor does what met them. A lesion that touches
    two lesions of another tissue goes with the one that comes first in the array.

    Empty: a region, or its lesions that count, absent from both volumes is perfect (1, 0 mm, 1);
    absent from one of them it is the worst (0, 337 mm, 0). Sensitivity is 1 or 0 likewise.

    The official code differs, and is wrong, outside its lesion scores: Legacy_Dice, Legacy_HD95 and
    Legacy NSD leave small predicted lesions out, and Legacy_HD95, Sensitivity and Specificity look
    at lesion numbers instead of masks. In its lesion scores it counts voxels, not mm3, where
    predicted lesions are dropped (the same on the challenge's 1 mm grid), and its NSD is lower by
    5e-9. Raises ContractError for labels that are not integer arrays of one shape with values 0 to
    4, or for another spacing.

    Source: de Verdier et al., arXiv 2405.18368, 2024; metrics_GLI.py of
        github.com/rachitsaluja/BraTS-2024-Metrics at f1131e34.
    """
    *labels, spacing = checked(spacing_mm, labels=BRATS.labels, pred=pred, true=true)
    # What lies outside is background, and lesions grow by no more than this.
    box = masks.grown(masks.box_of((labels[0] > 0) | (labels[1] > 0)), (max(_STEPS.values()),) * 3)
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


def _whole(pred: Mask, true: Mask, spacing: Triple, voxels: int) -> dict[str, float]:
    distances = surfaces(pred, true, spacing)
    both, p, t = (int(np.count_nonzero(mask)) for mask in (pred & true, pred, true))
    neither, absent = voxels - (p + t - both), voxels - t
    return {
        "dice": dice(pred, true),
        "hd95_mm": distances.hd95(PENALTY_MM),
        **{name: distances.nsd(mm) for name, mm in TOLERANCES_MM.items()},
        "sensitivity": both / t if t else float(p == 0),
        "specificity": neither / absent if absent else float(p == voxels),
        "volume_true_ml": volume_ml(true, spacing),
        "volume_pred_ml": volume_ml(pred, spacing),
    }


def _by_lesion(
    pred: Numbers, true: Numbers, spacing: Triple, region: str
) -> dict[str, int | float]:
    boxes, most_voxels = ndimage.find_objects(pred), _most_voxels(region, spacing)
    met: set[int] = set()
    matches: list[tuple[float, ...]] = []
    missed = 0
    for number, box in enumerate(ndimage.find_objects(true), start=1):
        partners = _near(true, number, box, pred, _STEPS[region])
        met.update(partners)
        if np.count_nonzero(true[box] == number) <= most_voxels:
            continue
        if partners:
            around = _hull([box, *(boxes[each - 1] for each in partners)])
            chosen = np.isin(np.arange(len(boxes) + 1), partners)
            matches.append(_matched(chosen[pred[around]], true[around] == number, spacing))
        else:
            missed += 1
    false = len(boxes) - len(met)
    counted = matches + [MISSED] * (missed + false)
    means = np.mean(counted, axis=0).tolist() if counted else PERFECT
    scores = dict(zip(LESION_SCORES, means, strict=True))
    return {**scores, "tp": len(matches), "fp": false, "fn": missed}


def _near(numbers: Numbers, number: int, box: Box, others: Numbers, steps: int) -> list[int]:
    """The other lesions that reach into a lesion grown by so many steps; `box` holds the lesion."""
    window = masks.grown(box, (steps,) * 3)
    near = np.unique(others[window][dilated(numbers[window] == number, steps)])
    return near[near > 0].tolist()


def _hull(boxes: Sequence[Box]) -> Box:
    return tuple(
        slice(min(side.start for side in sides), max(side.stop for side in sides))
        for sides in zip(*boxes, strict=True)
    )


def _matched(pred: Mask, true: Mask, spacing: Triple) -> tuple[float, ...]:
    """The scores of a true lesion and the predicted lesions it met, in the order of their names."""
    distances = surfaces(pred, true, spacing)
    nsds = [
        np.mean([np.mean(each <= mm + masks.ROUNDING_MM) for each in distances])
        for mm in TOLERANCES_MM.values()
    ]
    return dice(pred, true), hd95_by_area(pred, true, spacing), *map(float, nsds)


def _lesions(label: np.ndarray, spacing: Triple, *, prune: bool) -> dict[str, Numbers]:
    """Numbered lesions of every region; `prune` drops the small ones."""
    lesions = {r: gathered(np.isin(label, v), _STEPS[r]) for r, v in BRATS.regions.items()}
    if prune:
        lesions = {r: without_small(each, _most_voxels(r, spacing)) for r, each in lesions.items()}
    # All tissues are joined by what was there before any was.
    together = {
        tissue: joined(lesions[tissue], [lesions[other] for other in others])
        for tissue, others in _BESIDE.items()
    }
    return {**lesions, **together}


def _most_voxels(region: str, spacing: Triple) -> float:
    """The number of voxels up to which a lesion is small."""
    # Headers keep single precision: twenty voxels of 1.0000001 mm are 20 mm3.
    return _SMALL_MM3[region] / float(np.prod(spacing)) * (1 + 1e-6)


def gathered(mask: Mask, steps: int) -> Numbers:
    """Number the lesions of a mask; pieces that meet when grown `steps` times are one lesion."""
    return np.where(mask, ndimage.label(dilated(mask, steps), masks.CONNECT_26)[0], 0)


def dilated(mask: Mask, steps: int) -> Mask:
    """A mask grown so many times by its 18 neighbours; beyond the volume nothing grows."""
    for _ in range(steps):
        # Sharing a face or an edge is lying in one plane: three squares of 3 x 3, side by side.
        i, j = _spread(mask, 0), _spread(mask, 1)
        mask = _spread(i, 1) | _spread(i, 2) | _spread(j, 2)
    return mask


def _spread(mask: Mask, axis: int) -> Mask:
    """A mask and what lies beside it along one axis."""
    out = mask.copy()
    source, target = np.moveaxis(mask, axis, 0), np.moveaxis(out, axis, 0)
    target[1:] |= source[:-1]
    target[:-1] |= source[1:]
    return out


def without_small(numbers: Numbers, most_voxels: float) -> Numbers:
    """Lesions of more than so many voxels, numbered anew in the same order."""
    keep = np.bincount(numbers.ravel()) > most_voxels
    keep[0] = False
    return (np.cumsum(keep) * keep).astype(numbers.dtype)[numbers]


def joined(numbers: Numbers, others: Sequence[Numbers]) -> Numbers:
    """Give the lesions that touch the same lesion of another tissue one number.

    `others` take their turns, each with the lesions that came out of the turn before. A lesion that
    touches several lesions of one tissue goes with the first of them.
    """
    boxes = ndimage.find_objects(numbers)
    group = list(range(len(boxes) + 1))
    for other in others if len(boxes) > 1 else []:
        first: dict[int, int] = {}
        for number, box in enumerate(boxes, start=1):
            for met in _near(numbers, number, box, other, 1):
                first[group[number]] = min(met, first.get(group[number], met))
        fresh = max(group)
        group = [fresh + first[g] if g in first else g for g in group]
    return np.unique(group, return_inverse=True)[1].astype(numbers.dtype)[numbers]
