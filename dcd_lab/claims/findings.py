"""Findings: the primary table in sentences, for the intro and the README.

Sentences are Markdown. They follow from the table alone, so a new result changes them.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from dcd_lab.claims.endpoints import NOT_RUN, REFUTED, SUPPORTED, Plan
from dcd_lab.records.text import interval


def findings(
    primary: pd.DataFrame, control: pd.DataFrame, stated: Plan, *, clinical: bool = False
) -> list[str]:
    """What came out, in at most five sentences; both tables as `endpoints` makes them."""
    ran = primary[primary.verdict != NOT_RUN]
    if ran.empty:
        first = (
            f"**Not decided yet**: none of the {len(primary)} primary contrasts has been run, so "
            "this edition does not say whether detail helps a compact student."
        )
        baselines, ends = (listed(list(x.values())) for x in (stated.baselines, stated.endpoints))
        second = f"The contrasts are {stated.method} minus {baselines}, each in {ends}."
        return [first, second, *_control(control, stated)]
    sentences = [
        _against(arm, primary[primary.baseline == arm], stated) for arm in stated.baselines
    ]
    return [*sentences, *_control(control, stated), _basis(ran, stated, clinical)]


def shown(table: pd.DataFrame, stated: Plan) -> pd.DataFrame:
    """The rows of `endpoints.contrasts` in words, as a page prints them; a dash: not run."""
    head = ["contrast", "endpoint", "difference", "p (Holm)", "detectable", "verdict"]
    rows = [
        (
            f"{row.method} − {row.baseline}",
            stated.endpoints[str(row.endpoint)],
            *(_cells(row) if row.verdict != NOT_RUN else ["–"] * 3),
            row.verdict,
        )
        for row in table.itertuples()
    ]
    return pd.DataFrame(rows, columns=head)


def _cells(row: Any) -> list[str]:
    p = f"{row.p_holm:.3f}" if row.p_holm >= 0.001 else "<\u00a00.001"
    return [measured(row), p, f"{row.detectable_points:.1f} points"]


def power(primary: pd.DataFrame, stated: Plan) -> str:
    """What size of true difference the study can find, from the spread that its runs show."""
    ran = primary[primary.verdict != NOT_RUN]
    if ran.empty:
        return "Power follows from how much the differences vary from seed to seed: not run yet."
    fewer = ran.n_seeds.min() < stated.seeds
    planned = f"With the {stated.seeds} seeds that are planned it is {_range(ran.planned_points)}. "
    return (
        f"With {_range(ran.n_seeds, 0)} seeds and {_range(ran.n_cases, 0)} cases a true difference "
        f"of {_range(ran.detectable_points)} points is found four times in five, depending on the "
        f"contrast. {planned if fewer else ''}"
        "Power says how likely the study was to find something. What it found, the interval says."
    )


def measured(row: Any) -> str:
    """The difference of a row in points with its interval: `+1.2 points [+0.3, +2.1]`.

    Spaces within the number and the brackets do not break. A row that lacks its runs says so.
    """
    if row.verdict == NOT_RUN:
        return NOT_RUN
    text = interval(row.difference_points, row.low_points, row.high_points, unit="\u00a0points")
    return text.replace(", ", ",\u00a0")


def listed(words: list[str]) -> str:
    """Words as a list in a sentence: `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _range(values: pd.Series, digits: int = 1) -> str:
    low, high = (f"{value:.{digits}f}" for value in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def _against(arm: str, rows: pd.DataFrame, stated: Plan) -> str:
    """One sentence on all endpoints of one baseline, grouped by what came out."""
    groups: dict[str, list[str]] = {}
    for row in rows.itertuples():
        said = f" ({measured(row)})" if row.verdict != NOT_RUN else ""
        groups.setdefault(_outcome(row, stated), []).append(
            stated.endpoints[str(row.endpoint)] + said
        )
    parts = [f"**{outcome}** in {listed(names)}" for outcome, names in groups.items()]
    if list(groups) == [NOT_RUN]:
        parts = [f"**{NOT_RUN}**"]
    return f"{stated.method} against {stated.baselines[arm]}: {'; '.join(parts)}."


def _outcome(row: Any, stated: Plan) -> str:
    if row.verdict == REFUTED:
        return "worse" if row.high_points < 0 else f"not better by {stated.smallest_points:g} point"
    return "better" if row.verdict == SUPPORTED else row.verdict


def _control(table: pd.DataFrame, stated: Plan) -> list[str]:
    """One sentence: was the difference found that must be there?"""
    name = f"The positive control ({stated.control[0]})"
    if table.verdict.eq(NOT_RUN).any():
        return [f"{name} has not been run yet."]
    if missed := [stated.endpoints[each] for each in table.endpoint[table.verdict != SUPPORTED]]:
        ends = "so an undecided contrast there does not mean that nothing differs"
        return [f"{name} was not seen in {listed(missed)}, {ends}."]
    return [f"{name} was seen: it lies {_range(table.difference_points)} points lower."]


def _basis(ran: pd.DataFrame, stated: Plan, clinical: bool) -> str:
    cases, seeds = (
        _range(ran.n_cases, 0),
        f"{_range(ran.n_seeds, 0)} of {stated.seeds} planned seeds",
    )
    if clinical:
        return f"These are {cases} clinical cases and {seeds}."
    return f"These are simulated strokes, {cases} test cases and {seeds}: nothing here is clinical."
