"""Oracles: textbook formulas, scipy, hand examples, and simulation with known truth."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from dcd_core.types import ContractError
from dcd_lab import stats


def draw(seed, replicates, k, n, sds, mean=0.0) -> np.ndarray:
    """Differences (replicates, k, n) of the crossed model with standard deviations S, C, E."""
    rng = np.random.default_rng(seed)
    shapes = ((replicates, k, 1), (replicates, 1, n), (replicates, k, n))
    return mean + sum(sd * rng.standard_normal(s) for sd, s in zip(sds, shapes, strict=True))


def table_of(d: np.ndarray, *, metric="dice", seed=0) -> pd.DataFrame:
    """A table whose paired difference of `dcd` and `none` is d (k, n)."""
    base = np.random.default_rng(seed).uniform(0.3, 0.6, d.shape)
    rows = [
        {"method": name, "seed": s, "case": f"case{c:02d}", metric: values[s, c]}
        for name, values in (("none", base), ("dcd", base + d))
        for s in range(d.shape[0])
        for c in range(d.shape[1])
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=seed)


@pytest.mark.parametrize(
    ("sds", "k", "n"),
    [
        ((0.03, 0.05, 0.03), 3, 32),
        ((0.05, 0.02, 0.02), 5, 32),  # seeds alone
        ((0.0, 0.05, 0.03), 3, 32),  # no effect of seeds
        ((0.01, 0.08, 0.03), 3, 8),  # few cases
    ],
)
def test_the_crossed_interval_covers(sds, k, n):
    crossed = stats.interval(draw(1, 4000, k, n, sds, mean=0.02))
    assert 0.92 <= np.mean((crossed.low <= 0.02) & (crossed.high >= 0.02)) <= 0.98


def test_one_seed_says_so():
    d = draw(6, 1, 1, 20, (0.05, 0.05, 0.02))[0]
    shown = stats.compare(table_of(d), "dice", "dcd", "none")
    expected = scipy_stats.ttest_1samp(d[0], 0).confidence_interval(0.95)
    assert shown.seed_is_random is False
    assert math.isnan(shown.sd_seed)
    assert (shown.low, shown.high) == pytest.approx((expected.low, expected.high))
    assert shown.p == pytest.approx(scipy_stats.ttest_1samp(d[0], 0).pvalue)
    assert (shown.n_seeds, shown.n_cases, shown.df) == (1, 20, 19)
    assert np.isfinite(shown.detectable)


def test_a_hand_example():
    # Row means 2, 4, 6; column means 3, 5; grand mean 4; residuals all zero: MS_seed = 8,
    # MS_case = 6, MS_error = 0, Var = 14 / 6, df = 14^2 / (8^2 / 2 + 6^2 / 1).
    shown = stats.interval(np.array([[1.0, 3.0], [3.0, 5.0], [5.0, 7.0]]))
    df = 14**2 / (64 / 2 + 36)
    half = scipy_stats.t.ppf(0.975, df) * math.sqrt(14 / 6)
    assert float(shown.difference) == 4
    assert float(shown.df) == pytest.approx(df)
    assert (float(shown.low), float(shown.high)) == pytest.approx((4 - half, 4 + half))
    assert float(shown.sd_seed) == pytest.approx(2)
    assert float(shown.sd_case) == pytest.approx(math.sqrt(2))
    assert float(shown.sd_residual) == 0


def test_detectable_in_closed_form():
    # Cases alone is the one-sample t test; this n gives the textbook (1.96 + 0.84) standard errors.
    assert stats.detectable(0, 1, 0, 1, 100_000) == pytest.approx(2.8016 / math.sqrt(1e5), rel=1e-3)
    # Seeds alone is the one-sample t test over three seeds.
    shift = stats.detectable(0.03, 0, 0, 3, 32) / (0.03 / math.sqrt(3))
    assert scipy_stats.nct.sf(scipy_stats.t.ppf(0.975, 2), 2, shift) == pytest.approx(0.8)
    # Counting the seeds as the only units (k - 1 degrees of freedom) asks for 10.4 points here;
    # the cases add some freedom.
    assert 0.07 < stats.detectable(0.03, 0.05, 0, 3, 32) < 0.104
    assert stats.detectable(0.03, 0.05, 0.02, 1, 32) == math.inf


def test_compare_pairs_by_seed_and_case():
    d = draw(10, 1, 3, 12, (0.02, 0.05, 0.03), mean=0.1)[0]
    shown = stats.compare(table_of(d), "dice", "dcd", "none")
    assert shown.difference == pytest.approx(d.mean())
    assert shown.wilcoxon_p == pytest.approx(scipy_stats.wilcoxon(d.mean(axis=0)).pvalue)
    assert (shown.n_seeds, shown.n_cases) == (3, 12)
    assert (shown.dropped_seeds, shown.dropped_cases) == (0, 0)
    assert shown.seed_is_random is True
    assert shown.low < shown.bootstrap_low < shown.difference < shown.bootstrap_high < shown.high


def test_the_bootstrap_resamples_both_factors():
    # With many seeds and cases the two-way bootstrap and the crossed interval agree.
    d = draw(11, 1, 40, 60, (0.05, 0.05, 0.01))[0]
    shown = stats.compare(table_of(d), "dice", "dcd", "none")
    ratio = (shown.bootstrap_high - shown.bootstrap_low) / (shown.high - shown.low)
    assert ratio == pytest.approx(1, abs=0.08)
    assert stats.compare(table_of(d), "dice", "dcd", "none") == shown


def test_holes_drop_whole_cases_and_lonely_seeds():
    d = draw(12, 1, 3, 10, (0.02, 0.05, 0.03))[0]
    table = table_of(d)
    hole = (table.method == "none") & (table.seed == 1) & (table.case == "case04")
    gone = (table.method == "dcd") & (table.seed == 2) & (table.case == "case07")
    table.loc[hole, "dice"] = np.nan
    table = table[~gone]
    extra = table[(table.method == "dcd") & (table.seed == 0)].assign(seed=9)
    shown = stats.compare(pd.concat([table, extra]), "dice", "dcd", "none")
    assert (shown.n_cases, shown.dropped_cases) == (8, 2)
    assert (shown.n_seeds, shown.dropped_seeds) == (3, 1)
    assert shown.difference == pytest.approx(np.delete(d, [4, 7], axis=1).mean())


def test_no_difference_at_all():
    shown = stats.compare(table_of(np.zeros((3, 5))), "dice", "dcd", "none")
    assert (shown.difference, shown.low, shown.high) == (0, 0, 0)
    assert (shown.p, shown.wilcoxon_p, shown.detectable) == (1, 1, 0)
    constant = stats.interval(np.full((2, 4), 0.25))
    assert (float(constant.low), float(constant.high), float(constant.p)) == (0.25, 0.25, 0)


def test_summarise():
    table = pd.DataFrame(
        {
            "method": ["none", "none", "dcd", "dcd"],
            "seed": [0, 1, 0, 1],
            "present": [True, True, False, True],
            "dice": [0.2, 0.4, 0.5, np.nan],
            "hd95_mm": [10.0, 14.0, 6.0, 8.0],
        }
    )
    summary = stats.summarise(table, "method")
    assert list(summary.columns) == ["method", "metric", "mean", "sd", "n"]
    assert list(summary["metric"]) == ["dice", "dice", "hd95_mm", "hd95_mm"]
    assert list(summary["method"]) == ["none", "dcd", "none", "dcd"]
    np.testing.assert_allclose(summary["mean"], [0.3, 0.5, 12, 7])
    np.testing.assert_allclose(summary["sd"], [math.sqrt(0.02), np.nan, math.sqrt(8), math.sqrt(2)])
    assert list(summary["n"]) == [2, 1, 2, 2]
    assert len(stats.summarise(table, ["method", "seed"], metrics=["dice"])) == 4


def test_holm():
    # By hand: .01*4, max(.04, .02*3), max(.06, .03*2), max(.06, .04*1).
    np.testing.assert_allclose(stats.holm([0.02, 0.01, 0.04, 0.03]), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(stats.holm([0.5, 0.9]), [1, 1])
    np.testing.assert_allclose(stats.holm([0.04, np.nan, 0.01]), [0.04, np.nan, 0.02])
    assert stats.holm([]).shape == (0,)


TABLE = table_of(np.zeros((2, 4)))
LONE = TABLE[(TABLE.method == "dcd") == (TABLE.seed == 0)]
REFUSED = [
    (stats.compare, (TABLE, "dice", "DCD", "none"), "'dcd', 'none'"),
    (stats.compare, (TABLE, "dice", "dcd", "dcd"), "another"),
    (stats.compare, (TABLE, "hd95_mm", "dcd", "none"), "hd95_mm"),
    (stats.compare, (pd.concat([TABLE, TABLE]), "dice", "dcd", "none"), "one region"),
    (stats.compare, (TABLE[TABLE.case == "case00"], "dice", "dcd", "none"), "2 cases"),
    (stats.compare, (LONE, "dice", "dcd", "none"), "common seed"),
    (stats.summarise, (TABLE[["method", "seed"]], "method"), "metric"),
    (stats.summarise, (TABLE, "centre"), "centre"),
    (stats.spread, (TABLE, "nsd_1mm"), "nsd_1mm"),
    (stats.holm, ([1.2],), "between 0 and 1"),
    (stats.detectable, (-1, 1, 1, 3, 32), "sds >= 0"),
    (stats.detectable, (math.nan, 1, 1, 3, 32), "sds >= 0"),
    (stats.interval, (np.full((2, 3), np.nan),), "finite"),
]


@pytest.mark.parametrize(("function", "arguments", "words"), REFUSED)
def test_errors_say_what_exists(function, arguments, words):
    with pytest.raises(ContractError, match=words):
        function(*arguments)


def test_the_spread_of_two_methods_is_their_paired_t_test():
    d = draw(3, 1, 6, 5, (0.03, 0.05, 0.02), mean=0.02)[0]
    table = table_of(d)
    shown = stats.spread(table, "dice")
    runs = table.groupby(["method", "seed"]).dice.mean().unstack("method")
    t = scipy_stats.ttest_rel(runs.dcd, runs.none).statistic
    assert shown.n_methods == 2
    assert (shown.methods / shown.chance) ** 2 == pytest.approx(t**2)
    assert shown.seeds == pytest.approx(runs.mean(axis=1).std())
