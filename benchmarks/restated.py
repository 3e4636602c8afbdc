"""The rules of the BraTS 2024 and ISLES 2022 metrics said once more, plainly and slowly.

One loop per lesion, every step on the whole volume, distance transforms for distances. It shares
nothing with `dcd_lab.metrics` but MONAI's table of areas. The tests compare the two, the benchmark
times them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from scipy import ndimage

TISSUES = {"WT": (1, 2, 3), "TC": (1, 3), "NETC": (1,), "SNFH": (2,), "ET": (3,), "RC": (4,)}
GROWTH = {"WT": 3, "TC": 3, "NETC": 5, "SNFH": 3, "ET": 3, "RC": 5}
SMALL_MM3 = {"WT": 20, "TC": 20, "NETC": 20, "SNFH": 20, "ET": 10, "RC": 20}
PARTNERS = {
    "NETC": ("ET", "RC"),
    "ET": ("NETC", "RC"),
    "RC": ("ET", "NETC"),
    "SNFH": ("ET", "RC", "NETC"),
}
NEAR = ndimage.generate_binary_structure(3, 2)
TOUCHING = ndimage.generate_binary_structure(3, 3)
WORST_MM = 337.0


def brats2024(pred: np.ndarray, true: np.ndarray, spacing_mm: Any) -> list[dict[str, Any]]:
    """The lesion-wise scores of every region."""
    spacing_mm = tuple(float(mm) for mm in spacing_mm)
    p_maps, t_maps = lesion_maps(pred, spacing_mm, True), lesion_maps(true, spacing_mm, False)
    return [
        {"region": tissue, **compared(p_maps[tissue], t_maps[tissue], spacing_mm, tissue)}
        for tissue in TISSUES
    ]


def lesion_maps(label: np.ndarray, spacing_mm: Any, prune: bool) -> dict[str, np.ndarray]:
    """Numbered lesions of every region: near pieces together, small ones dropped, joined."""
    maps = {}
    for tissue, values in TISSUES.items():
        mask = np.isin(label, values)
        big = ndimage.binary_dilation(mask, NEAR, iterations=GROWTH[tissue])
        lesions = ndimage.label(big, TOUCHING)[0] * mask
        for number in present(lesions) if prune else []:
            if mm3(lesions == number, spacing_mm) <= SMALL_MM3[tissue] * (1 + 1e-6):
                lesions[lesions == number] = 0
        maps[tissue] = lesions
    combined = {}
    for tissue, partners in PARTNERS.items():
        lesions = maps[tissue].copy()
        for partner in partners:
            pairs = [
                (one, other)
                for one in present(lesions)
                for other in present(maps[partner])
                if np.any(ndimage.binary_dilation(lesions == one, NEAR) & (maps[partner] == other))
            ]
            if len(pairs) > 1:
                before, top = lesions.copy(), int(lesions.max())
                for one in {one for one, _ in pairs}:
                    partner_of = min(other for each, other in pairs if each == one)
                    lesions[before == one] = top + partner_of
        combined[tissue] = lesions
    return {**maps, **combined}


def compared(pred: np.ndarray, true: np.ndarray, spacing_mm: Any, tissue: str) -> dict[str, Any]:
    """Every true lesion beside what reaches into its surroundings; then the means."""
    rows, matched, hits, missed = [], set(), 0, 0
    for number in present(true):
        lesion = true == number
        around = ndimage.binary_dilation(lesion, NEAR, iterations=GROWTH[tissue])
        partners = [each for each in present(pred) if np.any(around & (pred == each))]
        matched.update(partners)
        if mm3(lesion, spacing_mm) <= SMALL_MM3[tissue] * (1 + 1e-6):
            continue
        if partners:
            hits += 1
            union = np.isin(pred, partners)
            dice = 2 * np.sum(union & lesion) / (np.sum(union) + np.sum(lesion))
            mm = hausdorff(union, lesion, spacing_mm)
            rows.append((dice, mm, *surface_dice(union, lesion, spacing_mm)))
        else:
            missed += 1
            rows.append((0, WORST_MM, 0, 0))
    false = len(set(present(pred)) - matched)
    rows += [(0, WORST_MM, 0, 0)] * false
    means = np.mean(rows, axis=0) if rows else (1, 0, 1, 1)
    names = ("lesion_dice", "lesion_hd95_mm", "lesion_nsd_05mm", "lesion_nsd_1mm")
    scores = dict(zip(names, map(float, means), strict=True))
    return {**scores, "tp": hits, "fp": false, "fn": missed}


def hausdorff(one: np.ndarray, other: np.ndarray, spacing_mm: Any) -> float:
    """95th percentiles over surface elements between voxels, weighted by area; the larger."""
    kernel, table = encoding(spacing_mm)
    codes = [
        ndimage.correlate(np.pad(mask, 1).astype(np.uint8), kernel, mode="constant")
        for mask in (one, other)
    ]
    borders = [(code > 0) & (code < 255) for code in codes]
    percentiles = []
    for start, goal in ((0, 1), (1, 0)):
        away = ndimage.distance_transform_edt(~borders[goal], sampling=spacing_mm)
        elements = sorted(
            zip(away[borders[start]], table[codes[start][borders[start]]], strict=True)
        )
        total, so_far = sum(area for _, area in elements), 0.0
        for mm, area in elements:
            so_far += area
            if so_far >= (0.95 - 1e-6) * total:  # single precision in the table
                percentiles.append(mm)
                break
    return max(percentiles)


@cache
def encoding(spacing_mm: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """MONAI's numbers for the corners of a cube, and its areas for the 256 cubes."""
    from monai.metrics.utils import ENCODING_KERNEL, create_table_neighbour_code_to_surface_area

    table, _ = create_table_neighbour_code_to_surface_area(spacing_mm)
    return np.array(ENCODING_KERNEL[3]), np.asarray(table)


def surface_dice(one: np.ndarray, other: np.ndarray, spacing_mm: Any) -> list[float]:
    """At 0.5 and 1 mm: the mean of the shares of border voxels near the other border."""
    borders = [mask ^ ndimage.binary_erosion(mask) for mask in (one, other)]
    away = [ndimage.distance_transform_edt(~border, sampling=spacing_mm) for border in borders]
    both = [away[1][borders[0]], away[0][borders[1]]]
    return [
        float(np.mean([np.mean(mm <= tolerance + 1e-6) for mm in both])) for tolerance in (0.5, 1.0)
    ]


def isles2022(pred: np.ndarray, true: np.ndarray, spacing_mm: Any) -> dict[str, Any]:
    """Dice, volume, count and F1 by looking at every component of both masks."""
    p, n_pred = ndimage.label(pred, TOUCHING)
    t, n_true = ndimage.label(true, TOUCHING)
    hits = sum(bool(np.any(pred[t == number])) for number in range(1, n_true + 1))
    false = sum(not np.any(true[p == number]) for number in range(1, n_pred + 1))
    both, either = np.sum((pred > 0) & (true > 0)), np.sum(pred > 0) + np.sum(true > 0)
    wrong = n_true - hits + false
    return {
        "dice": 2 * both / either if either else 1.0,
        "avd_ml": abs(mm3(pred > 0, spacing_mm) - mm3(true > 0, spacing_mm)) / 1000,
        "lesion_count_diff": abs(n_pred - n_true),
        "lesion_f1": hits / (hits + wrong / 2) if hits + wrong else 1.0,
    }


def present(numbers: np.ndarray) -> list[int]:
    """The numbers of the lesions in a volume."""
    return [int(number) for number in np.unique(numbers) if number]


def mm3(mask: np.ndarray, spacing_mm: Any) -> float:
    """Volume of a mask."""
    return float(np.sum(mask) * np.prod(spacing_mm))
