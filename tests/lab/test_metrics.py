"""Oracles: MONAI where definitions agree, scipy's distance transform, closed forms, properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from dcd_core.types import ContractError
from dcd_lab import metrics
from dcd_lab.metrics import masks
from dcd_lab.tasks import BRATS, ISLES, TASKS

MM = (1.0, 1.0, 1.0)
ANISOTROPIC = (0.9, 1.0, 5.0)


def blob(seed: int, shape=(20, 24, 16), share: float = 0.15) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2)
    return noise > np.quantile(noise, 1 - share)


def cube(corner, size, shape=(24, 24, 24)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(c, c + size) for c in corner)] = True
    return mask


@pytest.mark.filterwarnings("ignore:.*get_mask_edges:FutureWarning")
@pytest.mark.parametrize("spacing_mm", [MM, (2.0, 2.0, 2.0), ANISOTROPIC])
def test_monai_agrees(spacing_mm):
    import monai.metrics as monai
    import torch

    pred, true = blob(0), blob(100, share=0.1)
    p, t = (torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (pred, true))
    options = {"include_background": True, "spacing": spacing_mm}
    theirs_hd = monai.compute_hausdorff_distance(p, t, percentile=95, **options)
    # 2 mm lies on the grid of distances, where MONAI's single precision may fall on either side.
    theirs_nsd = monai.compute_surface_dice(p, t, class_thresholds=[2.2], **options)
    ours_nsd = metrics.nsd(pred, true, spacing_mm, tolerance_mm=2.2)
    assert metrics.dice(pred, true) == pytest.approx(float(monai.compute_dice(p, t)), rel=1e-6)
    assert metrics.hd95(pred, true, spacing_mm) == pytest.approx(float(theirs_hd), rel=1e-5)
    assert ours_nsd == pytest.approx(float(theirs_nsd), rel=1e-6)


@pytest.mark.parametrize("spacing_mm", [MM, ANISOTROPIC])
def test_surfaces_equal_the_distance_transform(spacing_mm):
    pred, true = blob(1), blob(2)
    borders = [mask & ~ndimage.binary_erosion(mask) for mask in (pred, true)]
    maps = [ndimage.distance_transform_edt(~border, sampling=spacing_mm) for border in borders]
    there, back = metrics.surfaces(pred, true, spacing_mm)
    np.testing.assert_allclose(there, maps[1][borders[0]], atol=1e-9)
    np.testing.assert_allclose(back, maps[0][borders[1]], atol=1e-9)


@pytest.mark.parametrize("shape", [(20, 24, 16), (1, 7, 5), (2, 1, 3)])
def test_a_border_is_what_erosion_takes_away(shape):
    mask = blob(3, shape, share=0.6)
    np.testing.assert_array_equal(masks.border(mask), mask & ~ndimage.binary_erosion(mask))


@pytest.mark.parametrize("axis", [0, 2])
def test_shifted_cube_in_closed_form(axis):
    step, size = 3, 10
    true = cube((5, 5, 5), size)
    pred = np.roll(true, step, axis)
    shift_mm = step * ANISOTROPIC[axis]
    assert metrics.dice(pred, true) == pytest.approx((size - step) / size)
    # The face that moved holds 100 of the 488 border voxels, so more than 5 % are off by the shift
    # unless a side face is nearer; nothing is further away than the shift.
    assert metrics.surfaces(pred, true, ANISOTROPIC)[0].max() == pytest.approx(shift_mm)
    assert metrics.hd95(pred, true, ANISOTROPIC) == pytest.approx(shift_mm)
    assert metrics.nsd(pred, true, ANISOTROPIC, tolerance_mm=shift_mm) == 1


def test_empty_masks():
    empty, full = np.zeros((3, 4, 12), bool), cube((0, 0, 0), 2, (3, 4, 12))
    assert (metrics.dice(empty, empty), metrics.hd95(empty, empty, MM)) == (1, 0)
    assert metrics.nsd(empty, empty, MM, tolerance_mm=1) == 1
    for pair in ((empty, full), (full, empty)):
        assert metrics.dice(*pair) == 0
        assert metrics.nsd(*pair, MM, tolerance_mm=99) == 0
        assert metrics.hd95(*pair, MM) == pytest.approx(13)  # 3, 4, 12: diagonal 13
        assert metrics.hd95(*pair, (2, 2, 2)) == pytest.approx(26)
        assert metrics.hd95(*pair, MM, empty_mm=337.0) == 337
    there, back = metrics.surfaces(empty, full, MM)
    assert there.size == 0
    assert np.isinf(back).all()
    assert len(back) == 8


def test_small_lesions_count_one_by_one():
    large, small = cube((0, 0, 0), 12, (40, 24, 24)), cube((30, 18, 18), 2, (40, 24, 24))
    true = large | small
    assert metrics.small_lesion_dice(true, true, MM) == 1
    assert metrics.small_lesion_dice(large, true, MM) == 0
    assert metrics.dice(large, true) > 0.99
    rows = metrics.lesions(true, true, MM)
    assert [row["volume_ml"] for row in rows] == pytest.approx([1.728, 0.008])
    (row,) = metrics.lesions(true, true, MM, below_ml=1)
    assert row == {"lesion": 2, "volume_ml": pytest.approx(0.008), "dice": 1}
    assert metrics.lesions(true, np.zeros_like(true), MM, margin_mm=0) == []
    assert [row["dice"] for row in metrics.lesions(large, true, MM)] == [1, 0]
    diagonal = np.zeros((6, 6, 6), bool)
    diagonal[1, 1, 1] = diagonal[2, 2, 2] = True
    assert len(metrics.lesions(diagonal, diagonal, MM)) == 1
    assert math.isnan(metrics.small_lesion_dice(large, large, MM))
    assert math.isnan(metrics.small_lesion_dice(true, np.zeros_like(true), MM))


def test_a_flood_neither_flatters_nor_destroys_a_small_lesion():
    true = cube((11, 11, 11), 3)
    flood = np.ones_like(true)
    # 27 true voxels in a neighbourhood of every voxel within 2 mm, whatever the blob's size.
    reach = ndimage.distance_transform_edt(~true) <= 2
    expected = 2 * 27 / (27 + reach.sum())
    got = metrics.small_lesion_dice(flood, true, MM, margin_mm=2)
    assert got == pytest.approx(expected)
    far = true | cube((0, 0, 0), 4)
    assert metrics.small_lesion_dice(far, true, MM, margin_mm=2) == 1


def test_spill_of_a_large_neighbour_is_charged_to_the_neighbour():
    large, small = cube((0, 6, 6), 11), cube((16, 11, 11), 2)
    spill = large | cube((2, 7, 7), 11)  # reaches i = 12, nearer to the large lesion
    rows = metrics.lesions(spill | small, large | small, MM, margin_mm=6)
    assert rows[1]["dice"] == 1
    assert rows[0]["dice"] < 1


def test_neighbourhood_follows_millimetres():
    true, pred = cube((11, 11, 11), 1), cube((11, 11, 11), 1)
    pred[11, 11, 13] = True
    assert metrics.small_lesion_dice(pred, true, MM, margin_mm=3) == pytest.approx(2 / 3)
    assert metrics.small_lesion_dice(pred, true, (1, 1, 2), margin_mm=3) == 1


def test_dice_by_volume_has_a_class_for_every_lesion():
    # 0.008, 1 (exactly), 1.331 and 10.648 ml on a 1 mm grid; the second is missed.
    cubes = [((40, 4, 0), 2), ((40, 4, 20), 10), ((26, 4, 4), 11), ((0, 0, 0), 22)]
    masks = [cube(corner, size, (60, 40, 40)) for corner, size in cubes]
    pred, true = masks[0] | masks[2] | masks[3], np.logical_or.reduce(masks)
    classes = metrics.dice_by_volume(pred, true, MM)
    assert classes == {"below_1ml": 1, "1_to_10ml": 0.5, "above_10ml": 1}
    fine = metrics.dice_by_volume(pred, true, MM, edges_ml=(0.005, 0.5, 20))
    assert list(fine) == ["below_0005ml", "0005_to_05ml", "05_to_20ml", "above_20ml"]
    assert list(fine.values()) == pytest.approx([math.nan, 1, 2 / 3, math.nan], nan_ok=True)
    # 1.5 and 15 never share a name.
    names = list(metrics.dice_by_volume(pred, true, MM, edges_ml=(1.5, 15)))
    assert names == ["below_1.5ml", "1.5_to_15ml", "above_15ml"]
    # The classes are those of `lesions`, and the first is what `small_lesion_dice` sees.
    assert classes["below_1ml"] == metrics.small_lesion_dice(pred, true, MM)
    # 1000 voxels of 0.001 ml are 1 ml, however the product is rounded.
    ten = metrics.dice_by_volume(pred, true, (0.1, 0.1, 100.0), margin_mm=1)
    assert ten["1_to_10ml"] == 0.5


def test_boundary_dice_in_closed_form():
    # A band of one voxel on either side of a cube of 10 that grew by one voxel along one axis.
    true, pred = cube((6, 6, 6), 10), cube((6, 6, 6), 10)
    pred[16, 6:16, 6:16] = True
    inner = 10**3 - 8**3
    expected = 2 * inner / (2 * inner + 100)
    assert metrics.boundary_dice(pred, true, MM, band_mm=1) == pytest.approx(expected)
    assert metrics.boundary_dice(true, true, MM, band_mm=1) == 1
    # Far from the border nothing counts: a hole in the middle, a blob in a corner.
    pred = true ^ cube((10, 10, 10), 2) ^ cube((0, 0, 0), 3)
    assert metrics.boundary_dice(pred, true, MM, band_mm=2) == 1


def test_the_band_is_in_millimetres_and_nan_where_there_is_none():
    true = cube((6, 6, 6), 10)
    pred = np.roll(true, 1, 2)
    values = [metrics.boundary_dice(pred, true, (3, 3, k), band_mm=2.7) for k in (0.9, 2.7, 2.8)]
    # Slices of 0.9 mm: three on either side of both ends, of 2.7 mm one; the sides, 3 mm wide, are
    # no band. One slice is missed at one end and one made up at the other.
    assert values[0] == pytest.approx(2 * 5 / (6 + 6))
    assert values[1] == pytest.approx(2 * 1 / (2 + 2))
    assert math.isnan(values[2])
    assert math.isnan(metrics.boundary_dice(pred, np.zeros_like(true), MM, band_mm=2))


def test_the_band_is_that_of_a_distance_transform_of_everything():
    pred, true = blob(0), blob(50)
    t = np.pad(true, 12)
    away = ndimage.distance_transform_edt(t, sampling=ANISOTROPIC)
    away += ndimage.distance_transform_edt(~t, sampling=ANISOTROPIC)
    band = (away <= 5.0 + 1e-6)[12:-12, 12:-12, 12:-12]
    expected = metrics.dice(pred & band, true & band)
    assert metrics.boundary_dice(pred, true, ANISOTROPIC, band_mm=5) == pytest.approx(expected)


def test_a_face_of_the_volume_is_a_border():
    true = np.ones((5, 5, 5), bool)
    assert len(metrics.surfaces(true, true, MM)[0]) == 5**3 - 3**3
    pred = true.copy()
    pred[0] = False
    outer = 5**3 - 3**3
    expected = 2 * (outer - 25) / (2 * outer - 25)
    assert metrics.boundary_dice(pred, true, MM, band_mm=1) == pytest.approx(expected)


@pytest.fixture(scope="module")
def label() -> np.ndarray:
    """Cubes of 4 x 4 x 4 voxels of every tissue."""
    coarse = np.random.default_rng(0).integers(0, 5, (5, 5, 5))
    return ndimage.zoom(coarse, 4, order=0).astype(np.uint8)


def test_score_is_the_single_functions_region_by_region(label):
    pred, true = np.roll(label, 1, 0), label
    rows = metrics.score(pred, true, BRATS, ANISOTROPIC, tolerances_mm=(0.5, 1))
    assert [row.pop("region") for row in rows] == ["WT", "TC", "NETC", "SNFH", "ET", "RC"]
    for row, values in zip(rows, BRATS.regions.values(), strict=True):
        p, t = np.isin(pred, values), np.isin(true, values)
        classes = metrics.dice_by_volume(p, t, ANISOTROPIC)
        expected = {
            "present": True,
            "dice": metrics.dice(p, t),
            "hd95_mm": metrics.hd95(p, t, ANISOTROPIC),
            "nsd_05mm": metrics.nsd(p, t, ANISOTROPIC, tolerance_mm=0.5),
            "nsd_1mm": metrics.nsd(p, t, ANISOTROPIC, tolerance_mm=1),
            "small_lesion_dice": metrics.small_lesion_dice(p, t, ANISOTROPIC),
            "volume_true_ml": metrics.volume_ml(t, ANISOTROPIC),
            "volume_pred_ml": metrics.volume_ml(p, ANISOTROPIC),
            "boundary_2mm_dice": metrics.boundary_dice(p, t, ANISOTROPIC, band_mm=2),
            **{f"lesion_dice_{name}": value for name, value in classes.items()},
        }
        assert list(row) == list(expected)
        assert {type(value) for value in row.values()} == {bool, float}  # a table takes them all
        assert row == pytest.approx(expected, nan_ok=True)


def test_every_tolerance_and_band_has_a_name_of_its_own(label):
    (row, *_) = metrics.score(label, label, BRATS, MM, tolerances_mm=(1.5, 15, 0.5, 5), band_mm=2.5)
    names = [name for name in row if name.startswith(("nsd", "boundary"))]
    assert names == ["nsd_1.5mm", "nsd_15mm", "nsd_05mm", "nsd_5mm", "boundary_2.5mm_dice"]


def test_score_of_an_absent_lesion():
    true = np.zeros((4, 5, 6), np.uint8)
    (row,) = metrics.score(true, true, ISLES, MM)
    assert (row["present"], row["dice"], row["hd95_mm"], row["nsd_1mm"]) == (False, 1, 0, 1)
    pred = true.copy()
    pred[0, 0, 0] = 1
    for options, worst in (({"empty_mm": 99.0}, 99), ({}, math.hypot(4, 5, 6))):
        (row,) = metrics.score(pred, true, ISLES, MM, **options)
        assert (row["dice"], row["hd95_mm"]) == (0, pytest.approx(worst))


MASK = np.zeros((4, 5, 6), np.uint8)
BROKEN = {
    "shapes differ": lambda: metrics.dice(MASK, MASK[1:]),
    "not 3D": lambda: metrics.dice(MASK[None], MASK[None]),
    "probabilities": lambda: metrics.dice(MASK.astype(np.float32), MASK),
    "labels, not a mask": lambda: metrics.hd95(MASK + 2, MASK, MM),
    "negative": lambda: metrics.hd95(MASK.astype(np.int8) - 1, MASK, MM),
    "two spacings": lambda: metrics.hd95(MASK, MASK, (1.0, 1.0)),
    "no spacing": lambda: metrics.surfaces(MASK, MASK, (1.0, 1.0, 0.0)),
    "NaN spacing": lambda: metrics.volume_ml(MASK, (1.0, math.nan, 1.0)),
    "negative tolerance": lambda: metrics.nsd(MASK, MASK, MM, tolerance_mm=-1),
    "negative band": lambda: metrics.boundary_dice(MASK, MASK, MM, band_mm=-1),
    "no edge": lambda: metrics.dice_by_volume(MASK, MASK, MM, edges_ml=()),
    "falling edges": lambda: metrics.dice_by_volume(MASK, MASK, MM, edges_ml=(10, 1)),
    "NaN margin": lambda: metrics.lesions(MASK, MASK, MM, margin_mm=math.nan),
    "label of another task": lambda: metrics.score(MASK + 2, MASK, ISLES, MM),
    "score of two grids": lambda: metrics.score(MASK, MASK[1:], ISLES, MM),
    "a fifth label": lambda: metrics.brats2024(MASK + 5, MASK, MM),
    "challenge without spacing": lambda: metrics.brats2024(MASK, MASK, (1, 1)),
    "labels for masks": lambda: metrics.isles2022(MASK + 2, MASK, MM),
}


@pytest.mark.parametrize("name", BROKEN)
def test_errors_say_what_to_do(name):
    with pytest.raises(ContractError, match="Try:"):
        BROKEN[name]()


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_every_region_is_made_of_foreground_labels(task):
    used = {value for values in task.regions.values() for value in values}
    assert used == set(range(1, len(task.labels)))
    assert task.labels[0] == "background"
