"""The ISLES 2022 challenge: overlap, volume and counts of stroke lesions."""

from __future__ import annotations

import numpy as np

from dcd_core.types import ISLES
from dcd_lab.metrics.masks import Spacing, as_labels, as_spacing, box_of, count, numbered, voxel_ml
from dcd_lab.metrics.overlap import dice_of


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

    Raises:
        ContractError: volumes are not binary 3D arrays of one shape, or spacing is not 3 positive
            numbers.

    Source: Hernandez Petzsche et al., Scientific Data, 2022; the challenge's eval_utils.py
        (github.com/ezequieldlrosa/isles22).
    """
    labels, spacing = as_labels(pred, true, ISLES), as_spacing(spacing_mm)
    whole = [label > 0 for label in labels]
    box = box_of(whole[0] | whole[1])
    p, t = (mask[box] for mask in whole)
    (p_numbers, p_count), (t_numbers, t_count) = numbered(p), numbered(t)
    found = len(np.unique(t_numbers[p & t]))
    false = p_count - len(np.unique(p_numbers[p & t]))
    errors = (t_count - found + false) / 2
    volumes = [count(mask) * voxel_ml(spacing) for mask in (p, t)]
    return {
        "dice": dice_of(p, t),
        "avd_ml": abs(volumes[0] - volumes[1]),
        "lesion_count_diff": abs(p_count - t_count),
        "lesion_f1": found / (found + errors) if found + errors else 1.0,
    }
