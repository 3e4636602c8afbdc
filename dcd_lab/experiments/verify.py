"""Verification of the record: what can be checked without training everything again.

Files are held to their hashes, synthetic cases are painted again, recorded networks are scored
again on them, and the first steps of recorded runs are trained again from their seeds. Each check
has a tolerance, with its reason; a record that was changed fails, with the name of what differs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from dcd_core.models import load
from dcd_core.progress import progress
from dcd_core.train import diverged, training_device
from dcd_core.types import ContractError
from dcd_lab.data import Cohort
from dcd_lab.experiments import evaluation, record
from dcd_lab.experiments.description import case_file, case_hashes, recorded_job
from dcd_lab.experiments.job import Job
from dcd_lab.experiments.running import first_steps, run
from dcd_lab.pool import each, threads

SCORED_CASES = 4
"""Test cases on which each recorded network is scored again."""
REPLAYED_STEPS = 60
"""Steps that are trained again; the study distils from its thirtieth step on."""
SCORE_TOLERANCE = 0.002
"""Of mean Dice. Another processor rounds otherwise, which moves single voxels at the threshold."""
CASE_TOLERANCE = 0.02
"""Of the Dice of a case, for the same reason: some lesions have few voxels."""
METRIC_TOLERANCE = 0.05
"""Of the means of the other metrics, relative above one: a single voxel can be a new lesion."""
HISTORY_TOLERANCE = 0.01
"""Of a loss, relative. Rounding grows from step to step. The first three recorded seeds of one arm
differ by 8 to 11 per cent in these steps."""


class Check(NamedTuple):
    """A line of the table: what was checked and how, its deviation and what is tolerated."""

    what: str
    how: Literal["read", "recomputed", "replayed"]
    amount: str
    deviation: float
    tolerance: float
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the deviation is small enough; one that is not a number is not."""
        return bool(self.deviation <= self.tolerance)


def verify(*, workers: int = 1) -> list[Check]:
    """All checks of the record; the cases of its cohorts are made where they are absent.

    Every network is scored on `SCORED_CASES` cases, each on others, so that together they cover the
    test split. Of every arm whose networks are kept, the run of the lowest seed is trained again
    for some steps.
    """
    checks = [_check_files(record.entries())]
    jobs: list[Job] = []
    for entry in record.entries():
        if "job" in record.read(entry):
            try:
                jobs.append(recorded_job(entry, workers=workers))
            except ContractError as error:
                checks.append(Check(f"description of {entry.name}", "read", "1", 1, 0, str(error)))
    cohorts = {job.cohort.identity: job.cohort for job in jobs}
    work: list[partial[Check]] = [partial(_check_cases, c) for c in cohorts.values()]
    kept = [job for job in jobs if job.kept]
    scored = [j for j in kept if j.tested and not diverged(record.home() / j.folder.name)]
    work += [partial(_check_scores, job, _share(job, turn)) for turn, job in enumerate(scored)]
    by_seed = sorted(kept, key=lambda job: -job.recipe.seed)
    lowest = {(job.cohort.identity, job.arm): job for job in by_seed}
    work += [partial(_check_history, job) for job in lowest.values()]
    for done, check in enumerate(each(_call, work, workers=workers), start=1):
        progress("checks of the record", done, len(work), check.what)
        checks.append(check)
    return checks


def _check_files(entries: Sequence[Path]) -> Check:
    wrong = []
    for entry in entries:
        try:
            record.check_files(entry)
        except ContractError as error:
            wrong.append(str(error))
    what, amount = "files of the recorded runs", f"{len(entries)} runs"
    return Check(what, "read", amount, len(wrong), 0, "; ".join(wrong[:3]))


def _check_cases(cohort: Cohort) -> Check:
    what, file = f"cases of {cohort.task}", case_file(cohort)
    if not file.is_file():
        return Check(what, "recomputed", "0 cases", math.nan, 0, f"no file {file.name}")
    both = pd.read_csv(file).merge(case_hashes(cohort), on=["split", "case"], how="outer")
    wrong = both[both.sha256_x != both.sha256_y].case.tolist()
    amount = f"{len(both)} cases"
    return Check(what, "recomputed", amount, len(wrong), 0, ", ".join(wrong[:3]))


def _check_scores(job: Job, cases: tuple[str, ...]) -> Check:
    entry = record.home() / job.folder.name
    kept = pd.read_csv(entry / job.table("scores").name)
    kept = kept[kept.case.isin(cases)].reset_index(drop=True)
    student = load(entry / "student.safetensors").to(training_device())
    threshold = json.loads((entry / job.threshold_file.name).read_text("utf-8"))["threshold"]
    some = replace(job.cohort, test=cases)
    made = evaluation.evaluate(student, threshold, some, job.recipe).scores
    rows = ["case", "region"]
    deviation, note = math.nan, "other cases than the record has"
    if made[rows].to_numpy().tolist() == kept[rows].to_numpy().tolist():
        deviation, note = _apart(made, kept)
    what, amount = f"scores of {entry.name}", f"{len(cases)} cases"
    return Check(what, "recomputed", amount, deviation, SCORE_TOLERANCE, note)


def _apart(made: pd.DataFrame, kept: pd.DataFrame) -> tuple[float, str]:
    """How far scores are from the recorded ones, in units of mean Dice, and in what.

    Every deviation is divided by its own tolerance, and the largest counts. So a changed case or
    another metric is found even where the mean of Dice hardly moves.
    """
    numbers = kept.select_dtypes("number").columns
    means, expected = made[numbers].mean(), kept[numbers].mean()
    others = (means - expected).abs() / expected.abs().clip(lower=1)
    cases = (made.dice - kept.dice).abs()
    found = {
        f"dice of {kept.case.iloc[int(cases.argmax())]}": cases.max() / CASE_TOLERANCE,
        str(others.idxmax()): others.max() / METRIC_TOLERANCE,
        "dice": others.dice / SCORE_TOLERANCE,
    }
    if (means.isna() != expected.isna()).any():
        return math.nan, "other missing values"
    worst = max(found, key=lambda name: found[name])
    deviation = found[worst] * SCORE_TOLERANCE
    return deviation, worst if deviation > SCORE_TOLERANCE else ""


def _check_history(job: Job) -> Check:
    entry = record.home() / job.folder.name
    kept = pd.read_csv(entry / "history.csv")
    kept = kept[kept.step <= max(REPLAYED_STEPS, kept.step.min())]  # a long run logs less often
    steps = int(kept.step.max())
    losses = [name for name in kept if name.startswith(("segmentation", "distillation"))]
    if job.teacher is not None:
        run(job.teacher)
    if job.start is not None:
        run(job)  # its folder then has the network that it started from
    with threads(1):  # as it was trained
        made = first_steps(job, steps).reindex(columns=losses).to_numpy()
    expected = kept[losses].to_numpy()
    deviation, note = math.nan, "another loss is missing"
    if made.shape == expected.shape and (np.isnan(made) == np.isnan(expected)).all():
        deviation, note = float(np.nanmax(np.abs(made / expected - 1))), ""
    what = f"history of {entry.name}"
    return Check(what, "replayed", f"{steps} steps", deviation, HISTORY_TOLERANCE, note)


def _share(job: Job, turn: int) -> tuple[str, ...]:
    """The cases on which the network of this turn is scored: the next ones of the test split."""
    test = job.cohort.test
    chosen = {(turn * SCORED_CASES + i) % len(test) for i in range(SCORED_CASES)}
    return tuple(test[i] for i in sorted(chosen))


def _call(work: partial[Check]) -> Check:
    try:
        return work()
    except (ContractError, ValueError, KeyError) as error:  # a table of another shape, for example
        return Check(
            getattr(work.args[0], "label", "cases"), "read", "1", 1, 0, str(error).splitlines()[0]
        )


def table(checks: Sequence[Check]) -> pd.DataFrame:
    """The checks by kind, and those that failed one by one: the last table of `make reproduce`."""
    frame = pd.DataFrame([(*c, c.passed) for c in checks], columns=[*Check._fields, "passed"])
    frame["kind"] = frame.what.str.partition(" of ")[0]
    rows = []
    for (kind, how), some in frame.groupby(["kind", "how"], sort=False):
        worst = some.iloc[int(some.deviation.fillna(math.inf).argmax())]
        amount = worst.amount if len(some) == 1 else f"{len(some)} runs, {worst.amount} each"
        verdict = "passed" if some.passed.all() else "FAILED"
        rows.append((kind, how, amount, worst.deviation, worst.tolerance, verdict, ""))
    for check in (check for check in checks if not check.passed):
        rows.append((check.what, *check[1:5], "FAILED", check.note))
    columns = ["what", "how", "amount", "deviation", "tolerance", "verdict", "note"]
    return pd.DataFrame(rows, columns=columns)
