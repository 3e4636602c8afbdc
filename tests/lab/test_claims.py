"""Claims: tables whose answer is known give their verdict, and nothing else does."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from dcd_core.methods import METHODS
from dcd_core.types import ContractError
from dcd_lab import claims, records, stats
from dcd_lab.claims import endpoints
from dcd_lab.claims.endpoints import NOT_RUN, OPEN, REFUTED, SUPPORTED, UNDECIDED

STATED = claims.plan()._replace(seeds=8)
POINTS = {"undistilled": 0.0, "equal compute": 0.0, "DCD": 0.0, "feature MSE": 0.0}


def scores(points: dict[str, float], *, seeds: int = 5, noise: float = 0.2) -> pd.DataFrame:
    """Scores of arms that lie `points` above 30, with `noise` points per run and per case."""
    rng = np.random.default_rng(0)
    cases = 30 + 10 * rng.standard_normal(16)
    rows = []
    for arm, shift in points.items():
        for seed in range(seeds):
            run = shift + cases + noise * (rng.standard_normal() + rng.standard_normal(16))
            columns = dict.fromkeys(STATED.endpoints, run / 100)
            rows.append(pd.DataFrame({"method": arm, "seed": seed, "case": range(16), **columns}))
    return pd.concat(rows, ignore_index=True)


def against_undistilled(table: pd.DataFrame) -> set[str]:
    rows = claims.primary(table, STATED)
    return set(rows.verdict[rows.baseline == "undistilled"])


@pytest.mark.parametrize(
    ("dcd", "half_width", "expected"),
    [
        (3.0, -5.0, SUPPORTED),
        (-3.0, -5.0, REFUTED),
        (0.0, -5.0, REFUTED),  # certainly below one point, and the study can see a difference
        (0.0, 0.0, UNDECIDED),  # the same interval, but the control was not seen
        (0.0, 5.0, UNDECIDED),  # a control on the wrong side is none
        (1.0, -5.0, SUPPORTED),  # above zero is above zero, however small
    ],
)
def test_a_known_difference_gets_its_verdict(dcd: float, half_width: float, expected: str) -> None:
    table = scores({**POINTS, "DCD": dcd, "half width": half_width})
    assert against_undistilled(table) == {expected}
    found = claims.control(table, STATED).verdict
    assert set(found == SUPPORTED) == {half_width < 0}


def test_noise_decides_nothing_and_neither_does_one_seed() -> None:
    arms = {**POINTS, "DCD": 1.0, "half width": -5.0}
    assert against_undistilled(scores(arms, noise=8)) == {UNDECIDED}
    assert against_undistilled(scores(arms)) == {SUPPORTED}
    assert against_undistilled(scores(arms, seeds=1)) == {UNDECIDED}


def test_an_interval_excludes_zero_where_holm_rejects(rng: np.random.Generator) -> None:
    for _ in range(200):
        p = rng.uniform(0, 0.04, size=rng.integers(1, 8)) ** rng.choice([1, 2])
        rejected = p < 1 - np.array(endpoints.holm_levels(p.tolist()))
        np.testing.assert_array_equal(rejected, stats.holm(p) < 0.05)


def test_the_table_is_that_of_compare_in_points() -> None:
    table = scores({**POINTS, "DCD": 2.0})
    row = claims.primary(table, STATED).iloc[0]
    shown = stats.compare(table, row.endpoint, row.method, row.baseline, level=row.level)
    assert row.difference_points == pytest.approx(100 * shown.difference)
    assert (row.low_points, row.high_points) == pytest.approx((100 * shown.low, 100 * shown.high))
    assert (row.n_seeds, row.n_cases) == (5, 16)
    assert row.planned_points < row.detectable_points
    spread = [shown.sd_seed, shown.sd_case, shown.sd_residual, 5, 16]
    alone = 100 * stats.detectable(*spread, alpha=1 - row.level)
    assert row.detectable_points == pytest.approx(alone)


def test_an_arm_that_is_run_later_takes_no_support_away() -> None:
    table = scores({**POINTS, "DCD": 0.7})
    whole = claims.primary(table, STATED)
    fewer = claims.primary(table[table.method != "equal compute"], STATED)
    absent = fewer.baseline == "equal compute"
    assert set(fewer.verdict[absent]) == {NOT_RUN}
    assert fewer.p_holm[absent].isna().all()
    whole, fewer = whole[~absent], fewer[~absent]
    np.testing.assert_array_equal(fewer.p, whole.p)
    assert (fewer.p_holm >= whole.p_holm).all()
    assert ((fewer.p_holm < 0.05) == (fewer.low_points > 0)).all()
    assert set(whole.verdict[fewer.verdict == SUPPORTED]) == {SUPPORTED}


def test_a_claim_holds_only_if_each_part_does() -> None:
    order = [SUPPORTED, UNDECIDED, NOT_RUN, OPEN, REFUTED]
    for weaker, strong in enumerate(order):
        assert endpoints.every(order[: weaker + 1]) == strong
    for wrong in ([], [SUPPORTED, "likely"]):
        with pytest.raises(ContractError, match="verdicts"):
            endpoints.every(wrong)


def test_findings_follow_from_the_tables() -> None:
    def said(table: pd.DataFrame | None) -> list[str]:
        found = claims.primary(table, STATED), claims.control(table, STATED)
        sentences = claims.findings(*found, STATED)
        assert len(sentences) <= 5
        assert not re.search(r"nan|[a-z]_[a-z]", " ".join(sentences))
        return sentences

    assert "Not decided yet" in said(None)[0]
    arms = {**POINTS, "DCD": 3.0, "equal compute": 5.0, "feature MSE": 3.0, "half width": -5.0}
    alone, longer, copied, control, basis = said(scores(arms))
    assert "**better**" in alone
    assert "**worse**" in longer
    assert "**not better by 1 point**" in copied
    assert "was seen" in control
    assert "16 test cases and 5 of 8 planned seeds" in basis
    del arms["feature MSE"]
    _, _, copied, control, _ = said(scores({**arms, "half width": 0.0}))
    assert copied.endswith("**not run yet**.")
    assert "was not seen" in control


# --- the list of claims --------------------------------------------------------------------------

GROUPS = ("control", "paper", "readers")


@pytest.fixture
def book(workspace: Path, project: Path) -> Path:
    """A project with the plan and the list of claims of this one, and without results."""
    for name in (endpoints.SOURCE, "book/claims.yml"):
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(project / name, workspace / name)
    return workspace


def test_without_results_nothing_is_decided_and_a_table_fills_its_rows(book: Path) -> None:
    rows = [claim for group in GROUPS for claim in claims.claims(group)]
    assert {claim.verdict for claim in rows} == {NOT_RUN, OPEN}
    assert not any(claim.measured for claim in rows)
    arms = {**POINTS, "DCD": 3.0, "half width": -5.0}
    table = scores(arms).assign(nsd_1mm=lambda x: x.dice)
    records.save(table, "demo", "06-isles", "scores")
    assert claims.claims("control")[0].verdict == NOT_RUN  # of another profile
    records.save(table, "study", "06-isles", "scores")
    assert claims.claims("control")[0].verdict == SUPPORTED
    found = {claim.id: claim for claim in claims.claims("readers")}
    assert found["Q1"].verdict == SUPPORTED
    assert found["Q1"].measured[0] == "of 9 contrasts 9 supported"
    assert len(found["Q5"].measured) == 3
    sizes = [{"method": name, "parameters": 9, "macs_M": 2.5} for name in ("undistilled", "DCD")]
    records.save(sizes, "study", "10-cost", "sizes")
    assert {c.id: c.verdict for c in claims.claims("paper")}["C3"] == SUPPORTED
    sizes[1]["parameters"] = 10
    records.save(sizes, "study", "10-cost", "sizes")
    assert {c.id: c.verdict for c in claims.claims("paper")}["C3"] == REFUTED


def test_what_is_computed_without_chance_is_held_to_its_bound(book: Path) -> None:
    gradients = pd.DataFrame({"seed": [0, 0, 1, 1], "patch": [0, 1, 0, 1]})
    gradients = gradients.assign(stage=0, kd_by_skips=1e-12, cosine=[0.1, 0.12, 0.11, 0.1])
    records.save(gradients, "study", "14-gradients", "gradients")
    found = {claim.id: claim for claim in claims.claims("readers")}
    assert (found["Q4a"].verdict, found["Q4a"].measured[0][-3:]) == (SUPPORTED, ": 0")
    assert found["Q4b"].verdict == SUPPORTED
    gradients.loc[3, "kd_by_skips"] = 0.5
    records.save(gradients.assign(cosine=-gradients.cosine), "study", "14-gradients", "gradients")
    found = {claim.id: claim for claim in claims.claims("readers")}
    assert (found["Q4a"].verdict, found["Q4b"].verdict) == (REFUTED, REFUTED)


CONTRASTS = {"kind": "contrasts", "of": "06-isles-scores", "pairs": [["DCD", "undistilled"]]}
CONTRASTS["endpoints"] = ["dice"]
BOUND = {"kind": "bound", "of": "06-isles-scores", "column": "dice", "words": "Dice", "above": 0}
REFUSED = [
    ({"kind": "verdict", "is": "supported"}, "kind of query"),
    ({"kind": "needs", "what": "luck"}, "needs"),
    ({**CONTRASTS, "verdict": "supported"}, "the key 'verdict'"),
    ({**CONTRASTS, "pairs": "DCD"}, "pairs"),
    ({**CONTRASTS, "pairs": [["DCD"]]}, "a method and a baseline"),
    ({**CONTRASTS, "endpoints": ["hd95_mm"]}, "endpoint"),
    ({**CONTRASTS, "endpoints": []}, "endpoints"),
    ({**CONTRASTS, "endpoints": ["nsd_1mm"]}, "nsd_1mm"),  # a column that this table lacks
    ({key: CONTRASTS[key] for key in ("kind", "of")}, "no \\['pairs'"),
    ({**CONTRASTS, "of": "scores"}, "NN-page-name"),
    ({**BOUND, "column": "case_name"}, "case_name"),
    ({**BOUND, "where": {"method": "nobody"}}, "0 rows"),
    ({**BOUND, "column": "method"}, "numbers"),
    ({**BOUND, "below": 1}, "one of them"),
    ({**BOUND, "above": "0"}, "above"),
]


@pytest.mark.parametrize(("query", "words"), REFUSED)
def test_a_query_that_does_not_fit_is_refused(book: Path, query: dict, words: str) -> None:
    records.save(scores({**POINTS, "DCD": 3.0}), "study", "06-isles", "scores")
    entry = {"id": "X", "statement": "s", "settled": "s", "page": "p"}
    file = book / "book" / "claims.yml"
    for good in (CONTRASTS, BOUND):
        file.write_text(yaml.safe_dump({"mine": [{**entry, "queries": [good]}]}), "utf-8")
        assert claims.claims("mine")[0].verdict == SUPPORTED
    file.write_text(yaml.safe_dump({"mine": [{**entry, "queries": [query]}]}), "utf-8")
    with pytest.raises(ContractError, match=words):
        claims.claims("mine")


def test_a_verdict_cannot_be_typed(book: Path) -> None:
    file = book / "book" / "claims.yml"
    listed = yaml.safe_load(file.read_text("utf-8"))
    listed["paper"][0]["verdict"] = SUPPORTED
    file.write_text(yaml.safe_dump(listed), "utf-8")
    with pytest.raises(ContractError, match="verdict"):
        claims.claims("paper")
    with pytest.raises(ContractError, match="'paper', 'readers'"):
        claims.claims("reader questions")


def test_the_plan_is_whole(book: Path) -> None:
    assert len(STATED.contrasts()) == 9
    file = book / endpoints.SOURCE
    file.write_text(re.sub(r"seeds: \d+", "seeds: many", file.read_text("utf-8")), "utf-8")
    with pytest.raises(ContractError, match="seeds"):
        claims.plan()


def test_every_claim_and_question_is_listed_and_names_arms_that_exist(project: Path) -> None:
    listed = yaml.safe_load((project / "book" / "claims.yml").read_text("utf-8"))
    ids = {re.sub(r"[a-z]$", "", entry["id"]) for group in listed.values() for entry in group}
    assert ids >= {f"C{n}" for n in range(1, 5)} | {f"Q{n}" for n in range(1, 11)}
    queries = [query for group in listed.values() for entry in group for query in entry["queries"]]
    arms = {arm for query in queries for pair in query.get("pairs", []) for arm in pair}
    arms |= {STATED.method, *STATED.baselines, *STATED.control}
    # An arm that nobody trains would be "not run yet" for ever, so its words must be somewhere.
    notebooks = project / "notebooks"
    sources = [*notebooks.glob("*.ipynb"), notebooks / "params" / "study.yml"]
    sources.append(project / "benchmarks" / "shipping.py")  # page 10 reads its tables
    text = " ".join([*METHODS, *(file.read_text("utf-8") for file in sources)])
    assert [arm for arm in sorted(arms) if not all(word in text for word in arm.split())] == []
