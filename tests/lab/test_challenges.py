"""The challenges' own numbers, the rules said again slowly, and what no grid may change."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from dcd_lab import metrics
from dcd_lab.metrics.region import hd95_by_area
from dcd_lab.tasks import BRATS, ISLES

PROJECT = Path(__file__).resolve().parents[2]
GOLDEN = PROJECT / "tests" / "golden" / "metrics"
sys.path.insert(0, str(PROJECT / "benchmarks"))

import restated  # noqa: E402

MM = (1.0, 1.0, 1.0)
THICK = (0.9, 1.1, 4.0)
REGIONS = ["WT", "TC", "NETC", "SNFH", "ET", "RC"]
LESION_WISE = {
    "LesionWise_Score_Dice": "lesion_dice",
    "LesionWise_Score_HD95": "lesion_hd95_mm",
    "LesionWise_Score_NSD @ 0.5": "lesion_nsd_05mm",
    "LesionWise_Score_NSD @ 1.0": "lesion_nsd_1mm",
    "Num_TP": "tp",
    "Num_FP": "fp",
    "Num_FN": "fn",
}
BRATS_CASES = np.load(GOLDEN / "brats2024_cases.npz")
BRATS_EXPECTED = pd.read_csv(GOLDEN / "brats2024_expected.csv").set_index(["case", "Labels"])
ISLES_CASES = np.load(GOLDEN / "isles2022_cases.npz")
ISLES_EXPECTED = pd.read_csv(GOLDEN / "isles2022_expected.csv").set_index("case")


def brats(pred, true, spacing_mm=MM) -> dict[str, dict[str, object]]:
    return {row["region"]: row for row in metrics.brats2024(pred, true, spacing_mm)}


def golden(case: str) -> dict[str, dict[str, object]]:
    return brats(BRATS_CASES[f"{case}_pred"], BRATS_CASES[f"{case}_ref"])


def counts(row: dict[str, object]) -> tuple[object, ...]:
    return row["tp"], row["fp"], row["fn"]


def box(label: np.ndarray, value: int, corner, size) -> np.ndarray:
    label[tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))] = value
    return label


def empty(*shape: int) -> np.ndarray:
    return np.zeros(shape or (30, 30, 30), np.uint8)


def scene(seed: int, shape=(48, 40, 28), share: float = 0.02) -> np.ndarray:
    """Clumps of four tissues side by side, of all sizes from one voxel."""
    draw = np.random.default_rng(seed)
    rough = [ndimage.gaussian_filter(draw.standard_normal(shape), s) for s in (0.8, 1.6)]
    where = rough[1] / rough[1].std() + 0.4 * rough[0] / rough[0].std()
    tissue = ndimage.gaussian_filter(draw.standard_normal(shape), 2)
    label = np.searchsorted(np.quantile(tissue, [0.25, 0.5, 0.75]), tissue) + 1
    return np.where(where > np.quantile(where, 1 - share), label, 0).astype(np.uint8)


def pair(seed: int, **options) -> tuple[np.ndarray, np.ndarray]:
    """A prediction and a truth: it moved, lost some voxels, and at one end it is made up."""
    true, other = scene(seed, **options), scene(seed + 1000, **options)
    gone = np.random.default_rng(seed).random(true.shape) < 0.1
    pred = np.where(gone, 0, np.roll(true, seed % 2, axis=seed % 3))
    end = true.shape[0] // 3
    pred[:end] = other[:end]
    true[: end // 2] = 0
    return pred.astype(np.uint8), true


@pytest.mark.parametrize("case", BRATS_EXPECTED.index.unique("case"))
def test_official_brats_lesion_scores(case):
    rows = golden(case)
    assert list(rows) == REGIONS
    for region, row in rows.items():
        expected = BRATS_EXPECTED.loc[(case, region)]
        official = {ours: expected[theirs] for theirs, ours in LESION_WISE.items()}
        assert {name: row[name] for name in official} == pytest.approx(official, abs=1e-6)
        assert row["volume_true_ml"] * 1000 == pytest.approx(expected["GT_Complete_Volume"])


@pytest.mark.parametrize("case", ISLES_EXPECTED.index)
def test_official_isles_scores(case):
    pred, true = (ISLES_CASES[f"{case}_{part}"].astype(np.uint8) for part in ("pred", "gt"))
    expected = ISLES_EXPECTED.loc[case]
    assert metrics.isles2022(pred, true, (2.0, 2.0, 2.0)) == pytest.approx(
        {
            "dice": expected["dice"],
            "avd_ml": expected["avd_ml"],
            "lesion_count_diff": expected["alcd"],
            "lesion_f1": expected["f1"],
        },
        abs=1e-6,
    )


def test_where_the_official_columns_are_wrong_ours_are_right():
    """Two voxels too many, a second lesion: the official code calls both an error of everything."""
    assert BRATS_EXPECTED.loc[("perfect", "SNFH"), "Sensitivity"] < 1
    assert golden("perfect")["SNFH"]["sensitivity"] == 1

    pred, true = (np.isin(BRATS_CASES[f"fp_et_2vox_{x}"], (1, 2, 3)) for x in ("pred", "ref"))
    assert np.count_nonzero(pred & ~true) == 2
    row, official = golden("fp_et_2vox")["WT"], BRATS_EXPECTED.loc[("fp_et_2vox", "WT")]
    assert official["Legacy_HD95"] == pytest.approx(5.657, abs=1e-3)
    assert row["hd95_mm"] == metrics.hd95(pred, true, MM) == 0
    assert official["Sensitivity"] == 0
    assert row["sensitivity"] == 1
    # The two voxels are gone before the official Dice is taken; ours sees them.
    assert official["Legacy_Dice"] == 1
    assert row["dice"] == metrics.dice(pred, true) < 1
    assert row["specificity"] == 1 - 2 / np.count_nonzero(~true)


def test_a_region_as_a_whole_is_scored_by_the_plain_functions():
    pred, true = pair(3)
    plain = metrics.score(pred, true, BRATS, THICK, tolerances_mm=(0.5, 1))
    names = ["dice", "hd95_mm", "nsd_05mm", "nsd_1mm", "volume_true_ml", "volume_pred_ml"]
    for row, expected in zip(metrics.brats2024(pred, true, THICK), plain, strict=True):
        assert {name: row[name] for name in names} == {name: expected[name] for name in names}
        p, t = (np.isin(label, BRATS.regions[row["region"]]) for label in (pred, true))
        assert row["sensitivity"] == pytest.approx((p & t).sum() / t.sum())
        assert row["specificity"] == pytest.approx((~p & ~t).sum() / (~t).sum())


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10**6),
    st.floats(0.003, 0.1),
    st.tuples(*[st.integers(8, 32)] * 3),
    st.sampled_from([MM, THICK, (2.0, 2.0, 2.0)]),
)
@example(0, 0.005, (48, 40, 28), MM)
@example(5, 0.03, (48, 40, 28), THICK)
def test_any_scene_follows_the_rules_said_again_slowly(seed, share, shape, spacing_mm):
    pred, true = pair(seed, shape=shape, share=share)
    for ours, theirs in zip(
        metrics.brats2024(pred, true, spacing_mm),
        restated.brats2024(pred, true, spacing_mm),
        strict=True,
    ):
        assert {name: ours[name] for name in theirs} == pytest.approx(theirs, abs=1e-6)
    p, t = pred > 0, true > 0
    expected = restated.isles2022(p, t, spacing_mm)
    assert metrics.isles2022(p, t, spacing_mm) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("region", "value", "length", "spacing_mm", "counted"),
    [
        ("ET", 3, 10, MM, False),
        ("ET", 3, 11, MM, True),
        ("WT", 2, 20, (1.0000001, 1, 1), False),  # as headers have it
        ("WT", 2, 21, MM, True),
        ("WT", 2, 3, (2, 2, 1.6), False),  # 19 mm3
        ("WT", 2, 3, (2, 2, 2), True),  # 24 mm3
    ],
)
def test_small_lesions_do_not_count(region, value, length, spacing_mm, counted):
    label = box(empty(40, 10, 10), value, (3, 3, 3), (length, 1, 1))
    for pred, true, kind in ((label, label * 0, "fp"), (label * 0, label, "fn")):
        row = brats(pred, true, spacing_mm)[region]
        assert row[kind] == counted
        assert (row["lesion_dice"], row["lesion_hd95_mm"]) == (1 - counted, 337 * counted)


def test_absent_and_missed_regions():
    nothing, ball = empty(), box(empty(), 3, (8, 8, 8), (5, 5, 5))
    for pred, true, expected in (
        (nothing, nothing, (0, 0, 0)),
        (ball, nothing, (0, 1, 0)),
        (nothing, ball, (0, 0, 1)),
    ):
        perfect = pred is true
        for region in ("WT", "TC", "ET"):
            row = brats(pred, true)[region]
            assert counts(row) == expected
            for prefix in ("", "lesion_"):
                assert row[f"{prefix}dice"] == row[f"{prefix}nsd_1mm"] == perfect
                assert row[f"{prefix}hd95_mm"] == 337 * (not perfect)
            assert row["sensitivity"] == perfect
        assert brats(pred, true)["RC"]["lesion_dice"] == 1
    score = metrics.isles2022(nothing, nothing, MM)
    assert list(score.values()) == [1, 0, 0, 1]
    for masks in ((ball > 0, nothing), (nothing, ball > 0)):
        assert list(metrics.isles2022(*masks, (2, 2, 2)).values()) == [0, pytest.approx(1), 1, 0]


def test_the_challenge_of_a_task_is_its_own():
    pred, true = pair(1)
    assert metrics.challenge(pred, true, BRATS, MM) == metrics.brats2024(pred, true, MM)
    [row] = metrics.challenge(pred > 0, true > 0, ISLES, MM)
    assert row == {"region": "lesion", **metrics.isles2022(pred > 0, true > 0, MM)}


def test_percentiles_are_by_area_in_square_millimetres():
    # A plate of 40 x 40 voxels; a small one across it has 3 % of the area, or, where the voxels
    # are four times as long along its side, 11 %.
    true = np.zeros((40, 40, 30), bool)
    true[:, :, 2] = True
    pred = true.copy()
    pred[20, 10:18, 20:26] = True
    assert hd95_by_area(pred, true, np.array([1.0, 1, 1])) == 0
    assert hd95_by_area(pred, true, np.array([1.0, 1, 4])) > 60
    assert hd95_by_area(pred, true, np.array([4.0, 1, 1])) == 0
    assert hd95_by_area(np.roll(true, 1, 2), true, np.array([1.0, 1, 3])) == 3
    assert hd95_by_area(np.zeros_like(true), true, np.ones(3)) == np.inf


def test_nineteen_of_twenty_equal_elements_are_95_percent():
    for size in (0.1, 1 / 3, 0.7):
        pred = np.zeros((5, 6, 44), bool)
        pred[2, 2, 1:41:2] = True
        true = pred.copy()
        true[2, 2, 39] = False
        assert hd95_by_area(pred, true, np.array([size, 1.0, 1.0])) == 0
