"""The primary endpoints of the study: what was to be compared, and what the scores say about it.

`notebooks/params/endpoints.yml` states endpoints, contrasts, the positive control and the smallest
effect of interest. It was written before any contrast was computed. One rule turns an interval into
a verdict:

- *supported*: the interval of the difference lies above 0;
- *not supported*: it lies below 0, or below the smallest effect of interest where the positive
  control shows that this endpoint can see a difference;
- *undecided*: otherwise, and always with one training seed.

Contrasts that are read together share one error rate of 5 %: each interval has the level at which
Holm's procedure tests its contrast, so it excludes 0 exactly where Holm rejects. Scores are tables
as `stats` takes them, of values from 0 to 1. Differences are in points, hundredths of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from dcd_core.types import ContractError
from dcd_lab import stats
from dcd_lab.records import load, root

SUPPORTED, REFUTED, UNDECIDED, NOT_RUN = "supported", "not supported", "undecided", "not run yet"
OPEN = "open without clinical data"
ALPHA = 0.05
SOURCE = "notebooks/params/endpoints.yml"
SCORES = ("06-isles", "scores")


COLUMNS = ["method", "baseline", "endpoint", "difference_points", "low_points", "high_points"]
COLUMNS += ["level", "p", "p_holm", "n_seeds", "n_cases", "seed_is_random", "detectable_points"]
COLUMNS += ["planned_points", "control", "verdict"]


class Plan(NamedTuple):
    """What was stated beforehand; `endpoints` and `baselines` map columns and arms to words.

    `control` is a pair (method, baseline) of which the method must come out below the baseline.
    `smallest_points` is the smallest effect of interest, `seeds` the number that is planned.
    """

    endpoints: Mapping[str, str]
    method: str
    baselines: Mapping[str, str]
    control: tuple[str, str]
    smallest_points: float
    seeds: int

    def contrasts(self) -> list[tuple[str, str, str]]:
        """Every primary contrast as (method, baseline, endpoint)."""
        return [(self.method, arm, name) for arm in self.baselines for name in self.endpoints]


def plan() -> Plan:
    """Read the plan of this project; ContractError for a key that is missing or of another type."""
    given = yaml.safe_load((root() / SOURCE).read_text("utf-8"))
    kinds: dict[str, Any] = {
        "endpoints": dict,
        "method": str,
        "baselines": dict,
        "control": dict,
        "smallest_points": (int, float),
        "seeds": int,
    }
    for key, kind in kinds.items():
        if not isinstance(given.get(key), kind):
            raise ContractError(f"{SOURCE}, {key}", given.get(key), kind, "git checkout " + SOURCE)
    control = given.pop("control")
    return Plan(**given, control=(control.get("method"), control.get("baseline")))


def scores(profile: str = "study") -> pd.DataFrame | None:
    """The test scores that the primary endpoints are read from; None while the page has none."""
    return stored(profile, *SCORES)


def stored(profile: str, notebook: str, name: str) -> pd.DataFrame | None:
    """A table of results, or None where no page has written it yet."""
    there = (root() / "results" / profile / f"{notebook}-{name}.csv").is_file()
    return load(profile, notebook, name) if there else None


def verdict(low: float, high: float, *, smallest: float = 0.0, control: bool = False) -> str:
    """What an interval says about the claim that the true difference is above 0.

    `smallest` is the smallest effect of interest in the same unit. It counts only with `control`:
    where a difference that must be there was not seen, a small interval shows nothing.
    """
    if low > 0:
        return SUPPORTED
    if high < 0 or (control and high < smallest):
        return REFUTED
    return UNDECIDED


def every(verdicts: Sequence[str]) -> str:
    """The verdict of a claim that holds only if each of its parts does; parts are verdicts."""
    for found in (REFUTED, OPEN, NOT_RUN, UNDECIDED):
        if found in verdicts:
            return found
    if not verdicts or set(verdicts) != {SUPPORTED}:
        known = [SUPPORTED, REFUTED, UNDECIDED, NOT_RUN, OPEN]
        raise ContractError("verdicts", list(verdicts), f"some of {known}", "a query for each part")
    return SUPPORTED


def primary(table: pd.DataFrame | None, stated: Plan) -> pd.DataFrame:
    """The table of the primary contrasts, one row each, in the columns of `contrasts`."""
    return contrasts(table, stated.contrasts(), stated)


def control(table: pd.DataFrame | None, stated: Plan) -> pd.DataFrame:
    """The positive control, baseline minus method on every primary endpoint: each is to be above 0.

    Every row stands for its own endpoint and has an interval of 95 %.
    """
    method, baseline = stated.control
    asked = [(baseline, method, endpoint) for endpoint in stated.endpoints]
    return pd.concat([contrasts(table, [each], stated) for each in asked], ignore_index=True)


def contrasts(
    table: pd.DataFrame | None, asked: Sequence[tuple[str, str, str]], stated: Plan
) -> pd.DataFrame:
    """Contrasts (method, baseline, endpoint) that are read together, one row each, as asked.

    Columns: those of COLUMNS, with differences, intervals and detectable differences in points.
    `detectable_points` is the smallest true difference found with 80 % power at the row's level,
    `planned_points` the same with the planned seeds, `control` whether the positive control was
    seen on this endpoint. Where the table lacks an arm, or the endpoint on two cases, a contrast
    has the verdict "not run yet" and NaN. It counts as p = 1 in Holm's procedure, so running it
    later takes no support away.
    Raises ContractError as `stats.compare` does.
    """
    found = [_compared(table, *each) for each in asked]
    p = [1.0 if each is None else each.p for each in found]
    rows = []
    for each, level, p_holm in zip(asked, holm_levels(p), stats.holm(p), strict=True):
        row: dict[str, Any] = dict(zip(COLUMNS, each, strict=False)) | {"verdict": NOT_RUN}
        at_level = _compared(table, *each, level=float(level))
        if at_level is not None:
            row |= _points(at_level, float(level), stated.seeds) | {"p_holm": p_holm}
            row["control"] = _seen(table, each[2], stated)
            row["verdict"] = _decided(at_level, row["control"], stated)
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def holm_levels(p: Sequence[float], alpha: float = ALPHA) -> list[float]:
    """The confidence level at which Holm's procedure tests each hypothesis, in the order given.

    The smallest of m values of p is tested at alpha / m, the next at alpha / (m - 1), and so on.
    The first that is not rejected ends this: all that follow keep its level.
    Source: Holm, Scandinavian Journal of Statistics, 1979.
    """
    levels, rejected = [0.0] * len(p), 0
    for index in np.argsort(p, kind="stable"):
        size = alpha / (len(p) - rejected)
        levels[index] = 1 - size
        rejected += bool(p[index] < size)
    return levels


def _compared(
    table: pd.DataFrame | None, method: str, baseline: str, endpoint: str, level: float = 1 - ALPHA
) -> stats.Comparison | None:
    if table is None or not {method, baseline} <= set(table["method"]):
        return None
    stats.require(table, endpoint)
    known = table[table.method.isin([method, baseline])].groupby("case")[endpoint]
    if known.apply(lambda values: values.notna().all()).sum() < 2:
        return None  # a grid too coarse for this endpoint, for example
    return stats.compare(table, endpoint, method, baseline, level=level, resamples=1)


def _seen(table: pd.DataFrame | None, endpoint: str, stated: Plan) -> bool:
    """Whether the positive control lies below its baseline on this endpoint."""
    found = _compared(table, *stated.control, endpoint)
    return found is not None and found.seed_is_random and found.high < 0


def _points(found: stats.Comparison, level: float, planned: int) -> dict[str, Any]:
    """The cells of a row that a comparison fills, in points."""
    seed, case, rest = np.nan_to_num([found.sd_seed, found.sd_case, found.sd_residual])
    able = {
        name: stats.detectable(seed, case, rest, k, found.n_cases, alpha=1 - level)
        for name, k in {"detectable": found.n_seeds, "planned": planned}.items()
    }
    values = {"difference": found.difference, "low": found.low, "high": found.high, **able}
    points = {f"{name}_points": 100 * value for name, value in values.items()}
    kept = {name: getattr(found, name) for name in ("p", "n_seeds", "n_cases", "seed_is_random")}
    return {"level": level, **kept, **points}


def _decided(found: stats.Comparison, seen: bool, stated: Plan) -> str:
    if not found.seed_is_random:
        return UNDECIDED
    return verdict(found.low, found.high, smallest=stated.smallest_points / 100, control=seen)
