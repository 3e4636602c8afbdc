"""The claims of the paper and the questions of its readers, each with what the results say.

`book/claims.yml` lists them. A claim has queries on the tables of one profile; a query gives lines
of measurement and verdicts. Nobody types a number or a verdict: a table that no page has written
yet gives "not run yet", and a later build of the book fills the row. A query that does not fit its
table raises ContractError.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
import yaml

from dcd_core.errors import nearest
from dcd_core.types import ContractError
from dcd_lab import stats
from dcd_lab.claims import endpoints as primary_endpoints
from dcd_lab.claims.endpoints import (
    NOT_RUN,
    OPEN,
    REFUTED,
    SUPPORTED,
    UNDECIDED,
    Plan,
    every,
    stored,
)
from dcd_lab.claims.endpoints import verdict as verdict_of
from dcd_lab.claims.findings import measured
from dcd_lab.records import root
from dcd_lab.records.text import interval

SOURCE = "book/claims.yml"
LINES = 4  # of measurement that a claim shows before it counts instead
EXPLORATORY = {
    "nsd_1mm": "normalised surface Dice at 1 mm",
    "separation": "gain in detail beyond the gain in the coarse band",
}

COLUMNS = {"parameters": "parameters", "macs_M": "million multiplications on one patch"}


class Claim(NamedTuple):
    """One row: what is claimed, what settles it, the cells of a page, what was measured."""

    id: str
    statement: str
    settled: str
    page: str
    measured: list[str]
    verdict: str


class Answer(NamedTuple):
    """What one query gives: lines of measurement and the verdicts that they lead to."""

    lines: list[str]
    verdicts: list[str]


def claims(group: str, profile: str = "study") -> list[Claim]:
    """Return the claims of one group of `book/claims.yml`, answered from the results of a profile.

    Raises ContractError for an unknown group, a key that is missing, unknown or of another type,
    and for a query that does not fit its table.
    """
    listed = yaml.safe_load((root() / SOURCE).read_text("utf-8"))
    if group not in listed:
        raise ContractError(f"group of {SOURCE}", repr(group), list(listed), nearest(group, listed))
    return [_claim(entry, profile) for entry in listed[group]]


def _claim(entry: Mapping[str, Any], profile: str) -> Claim:
    keys = {"id": str, "statement": str, "settled": str, "page": str, "queries": list}
    _check(entry, keys, {}, f"claim {entry.get('id')}")
    asked = {"profile": profile, "stated": primary_endpoints.plan()}
    answers = [_answer(query, f"claim {entry['id']}", asked) for query in entry["queries"]]
    lines = [line for answer in answers for line in answer.lines]
    found = every([each for answer in answers for each in answer.verdicts])
    given = {key: entry[key] for key in ("id", "statement", "settled", "page")}
    return Claim(**given, measured=lines, verdict=found)


def _answer(query: Mapping[str, Any], name: str, asked: Mapping[str, Any]) -> Answer:
    kind = query.get("kind") if isinstance(query, Mapping) else None
    if kind not in KINDS:
        raise ContractError(f"{name}, kind of query", repr(kind), list(KINDS), SOURCE)
    ask, needed, optional = KINDS[kind]
    rest = {key: value for key, value in query.items() if key != "kind"}
    _check(rest, needed, optional, f"{name}, query {kind}")
    return ask(**rest, **asked)


def _check(
    given: Mapping[str, Any], needed: Mapping[str, Any], optional: Mapping[str, Any], name: str
) -> None:
    known = {**needed, **optional}
    for key, value in given.items():
        if key not in known:
            raise ContractError(name, f"the key {key!r}", list(known), nearest(str(key), known))
        if not isinstance(value, known[key]) or (known[key] is list and not value):
            raise ContractError(f"{name}, {key}", repr(value), known[key], f"correct {SOURCE}")
    if missing := [key for key in needed if key not in given]:
        raise ContractError(name, f"no {missing}", list(needed), f"add it in {SOURCE}")


# --- the kinds of query --------------------------------------------------------------------------


def _primary(baselines: list[str], endpoints: list[str], *, profile: str, stated: Plan) -> Answer:
    """Primary contrasts, in the intervals that they have among all primary ones."""
    _known(baselines, stated.baselines, "baseline")
    _known(endpoints, stated.endpoints, "endpoint")
    table = primary_endpoints.primary(primary_endpoints.scores(profile), stated)
    rows = table[table.baseline.isin(baselines) & table.endpoint.isin(endpoints)]
    return _rows(rows, stated)


def _control(endpoints: list[str], *, profile: str, stated: Plan) -> Answer:
    """The positive control: what must be seen, or the study sees nothing."""
    _known(endpoints, stated.endpoints, "endpoint")
    table = primary_endpoints.control(primary_endpoints.scores(profile), stated)
    return _rows(table[table.endpoint.isin(endpoints)], stated)


def _contrasts(
    of: str, pairs: list[Any], endpoints: list[str], *, profile: str, stated: Plan
) -> Answer:
    """Exploratory contrasts (method, baseline) of a table; Holm over those of the query."""
    _known(endpoints, {**stated.endpoints, **EXPLORATORY}, "endpoint")
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise ContractError("pairs", pairs, "lists of a method and a baseline", f"correct {SOURCE}")
    table = _table(of, profile)
    if table is not None and of in PREPARED:
        table = PREPARED[of](table)
    asked = [(method, baseline, endpoint) for method, baseline in pairs for endpoint in endpoints]
    return _rows(primary_endpoints.contrasts(table, asked, stated), stated)


def _mean(of: str, column: str, words: str, *, profile: str, stated: Plan) -> Answer:
    """The mean of a column over seeds and patches, with its interval: it is to be above 0."""
    table = _table(of, profile)
    if table is None:
        return Answer([], [NOT_RUN])
    stats.require(table, "seed", "patch", column)
    values = table.groupby(["seed", "patch"])[column].mean().unstack("patch").dropna(axis=1)
    found = stats.interval(values.to_numpy())
    low, high = float(found.low), float(found.high)
    line = f"{words}: {interval(float(found.difference), low, high, 3)}"
    return Answer([line], [verdict_of(low, high) if found.seed_is_random else UNDECIDED])


def _bound(
    of: str,
    column: str,
    words: str,
    above: float | None = None,
    below: float | None = None,
    where: Mapping[str, object] | None = None,
    *,
    profile: str,
    stated: Plan,
) -> Answer:
    """Values that are computed without chance: all are to be above, or below, a bound."""
    if (above is None) == (below is None):
        raise ContractError("bound", {"above": above, "below": below}, "one of them", SOURCE)
    table = _table(of, profile)
    if table is None:
        return Answer([], [NOT_RUN])
    stats.require(table, column, *(where or {}))
    for name, value in (where or {}).items():
        table = table[table[name] == value]
    if table.empty or not pd.api.types.is_numeric_dtype(table[column]):
        raise ContractError(f"{of}, {column}", f"{len(table)} rows", f"numbers at {where}", SOURCE)
    value = float(table[column].min() if below is None else table[column].max())
    holds = value < below if below is not None else value > (above or 0.0)
    shown = "0" if abs(value) < 1e-9 else f"{value:.3g}"  # a rounding error is no measurement
    return Answer([f"{words}: {shown}"], [SUPPORTED if holds else REFUTED])


def _same(of: str, methods: list[str], columns: list[str], *, profile: str, stated: Plan) -> Answer:
    """Columns in which methods must have one value."""
    table = _table(of, profile)
    if table is None or not set(methods) <= set(table["method"]):
        return Answer([], [NOT_RUN])
    _known(columns, COLUMNS, "column")
    stats.require(table, "method", *columns)
    rows = table.set_index("method").loc[methods, columns]
    lines = [f"{COLUMNS[name]}: {', '.join(f'{x:,g}' for x in rows[name])}" for name in columns]
    return Answer(lines, [SUPPORTED if rows.nunique().eq(1).all() else REFUTED])


def _needs(what: str, *, profile: str, stated: Plan) -> Answer:
    """What this edition cannot ask: clinical data, or a page that is not written yet."""
    known = {"clinical data": OPEN, "a page": NOT_RUN}
    _known([what], known, "needs")
    return Answer([], [known[what]])


Kind = tuple[Callable[..., Answer], dict[str, Any], dict[str, Any]]
NUMBER = (int, float)
KINDS: dict[str, Kind] = {  # the function, the keys it needs with their types, those it may have
    "primary": (_primary, {"baselines": list, "endpoints": list}, {}),
    "control": (_control, {"endpoints": list}, {}),
    "contrasts": (_contrasts, {"of": str, "pairs": list, "endpoints": list}, {}),
    "mean": (_mean, {"of": str, "column": str, "words": str}, {}),
    "bound": (
        _bound,
        {"of": str, "column": str, "words": str},
        {"above": NUMBER, "below": NUMBER, "where": dict},
    ),
    "same": (_same, {"of": str, "methods": list, "columns": list}, {}),
    "needs": (_needs, {"what": str}, {}),
}


# --- tables --------------------------------------------------------------------------------------


def _table(of: str, profile: str) -> pd.DataFrame | None:
    """The table `NN-page-name` of a profile, None where its page has not been run."""
    parts = re.fullmatch(r"(\d\d-[a-z]+)-([\w-]+)", of)
    if parts is None:
        raise ContractError("table", repr(of), "NN-page-name, as in 06-isles-scores", SOURCE)
    return stored(profile, parts[1], parts[2])


def _separation(table: pd.DataFrame) -> pd.DataFrame:
    """How much more of the teacher's detail a student explains than of its coarse part."""
    run = ["network", "seed", "patch"]
    parts = table.groupby([*run, "part"]).explained.mean().unstack("part").reset_index()
    parts["separation"] = parts["published detail"] - parts["coarse"]
    return parts.rename(columns={"network": "method", "patch": "case"})


def _deployed(table: pd.DataFrame) -> pd.DataFrame:
    """Scores of quantised networks, named by method, precision and runtime."""
    return table.assign(method=table["method"] + " " + table.precision + " " + table.runtime)


PREPARED = {"09-features-agreement": _separation, "10-cost-int8": _deployed}


def _rows(rows: pd.DataFrame, stated: Plan) -> Answer:
    """The measured lines of contrasts; where there are many, their count and the lowest one."""
    names = {**stated.endpoints, **EXPLORATORY}
    ran = rows[rows.verdict != NOT_RUN]
    shown = ran if len(ran) <= LINES else ran.nsmallest(1, "high_points")
    lines = [
        f"{row.method} − {row.baseline}, {names[str(row.endpoint)]}: {measured(row)}"
        for row in shown.itertuples()
    ]
    if len(shown) < len(ran):
        counts = ", ".join(f"{count} {name}" for name, count in ran.verdict.value_counts().items())
        lines = [f"of {len(rows)} contrasts {counts}", f"lowest: {lines[0]}"]
    return Answer(lines, list(rows.verdict))


def _known(names: Sequence[str], known: Mapping[str, Any], what: str) -> None:
    for name in names:
        if name not in known:
            raise ContractError(what, repr(name), list(known), nearest(str(name), known))
