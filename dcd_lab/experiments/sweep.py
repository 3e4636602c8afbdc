"""The matrix: every method at every seed on one task, each at a strength that was chosen alike.

Weights from papers belong to other reductions, sizes and networks; copied, they make some methods
silent. Here each method gets the weight at which it pulls as hard as the segmentation, times a
strength out of a short list that is the same for all. The tune split chooses the strength, on a
seed that is not compared; the test split is scored once, with what was chosen. The published weight
is tried on that seed too where it lies far from all others, but cannot be chosen: every method
chooses among equally many.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import pandas as pd

from dcd_core.methods import METHODS, adapter_option, build
from dcd_core.train import diverged
from dcd_core.train.recipe import Recipe
from dcd_core.types import BRATS, ISLES, ContractError
from dcd_lab.data import cohort
from dcd_lab.experiments.calibration import Calibration, measure
from dcd_lab.experiments.job import Job, run, run_all
from dcd_lab.experiments.pool import run_each
from dcd_lab.experiments.study import Study

PREFIXES = {ISLES.name: "stroke", BRATS.name: "glioma"}
"""How the parameters of a task begin."""
UNDISTILLED = "undistilled"
FAR = 3
"""Factor from every weight that is tried beyond which a published weight is tried as well."""


@dataclass(frozen=True)
class Matrix:
    """Methods, seeds and a budget on one study.

    `arms`: by name, a method out of `methods.METHODS` under "method" and its options; `steps` of
    every student; `strengths`: gradients of the segmentation that a method's may amount to;
    `tuning_seed` must not be among `seeds`; `warm_steps`: training of the student on which weights
    are measured, over `batches`.
    """

    study: Study
    arms: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    steps: int
    strengths: tuple[float, ...] = (0.03, 0.1, 0.3)
    tuning_seed: int = 1000
    warm_steps: int = 100
    batches: int = 50

    def __post_init__(self) -> None:
        if self.tuning_seed in self.seeds:
            raise ContractError(
                "tuning_seed", self.tuning_seed, f"none of the seeds {self.seeds}", "1000"
            )
        if UNDISTILLED in self.arms:
            raise ContractError("arms", UNDISTILLED, "names of distilled students", "another name")

    def undistilled(self, seed: int) -> Job:
        """The job of the student without a teacher."""
        return self.study.student(UNDISTILLED, seed, steps=self.steps)

    def calibration(self, arm: str) -> Calibration:
        """The measurement of an arm's weight."""
        warmed = self.study.student("warmed", self.tuning_seed, steps=self.warm_steps)
        return Calibration(
            self._job(arm, self.tuning_seed, 1.0), replace(warmed, tested=False), self.batches
        )

    def tuning(self, arm: str) -> dict[float, Job]:
        """The jobs that choose an arm's strength, by strength; its weight must be measured."""
        weight = self.calibration(arm).weight
        return {strength: self._untested(arm, strength * weight) for strength in self.strengths}

    def published_weight(self, arm: str) -> float:
        """The weight of an arm's method in its paper or code, for our reduction; NaN if unknown."""
        job, study = self._untested(arm, 1.0), self.study
        channels = study.student_channels, study.teacher_channels
        method = build(job.method, *channels, **job.options)
        return method.weight

    def published_job(self, arm: str) -> Job | None:
        """The job that tries an arm's published weight; the arm's weight must be measured.

        None where the published weight is unknown, or within a factor of `FAR` of one in `tuning`.
        """
        weight = self.published_weight(arm)
        tried = [job.recipe.kd_peak for job in self.tuning(arm).values()]
        # An unknown weight, NaN, is far from none.
        far = all(max(weight / other, other / weight) > FAR for other in tried)
        return self._untested(arm, weight) if far else None

    def strength(self, arm: str) -> float:
        """The strength with the best Dice on the tune cases; the tuning jobs must be done."""
        return _best(self._tuned(arm))

    def weight(self, arm: str) -> float:
        """The weight of an arm's loss in the comparison; the arm must be tuned."""
        return self.strength(arm) * self.calibration(arm).weight

    def student(self, arm: str, seed: int) -> Job:
        """The job of one compared student; the arm must be tuned."""
        return self._job(arm, seed, self.weight(arm))

    def students(self, arm: str) -> list[Job]:
        """The jobs of an arm's compared students, by seed; the arm must be tuned."""
        weight = self.weight(arm)
        return [self._job(arm, seed, weight) for seed in self.seeds]

    def prepare(self, *, workers: int = 1) -> None:
        """Train the teacher and the student on which weights are measured."""
        first = self.calibration(next(iter(self.arms)))
        run_all([self.study.teacher(), first.warmed], workers=workers)

    def tune(self, arms: Iterable[str], *, workers: int = 1) -> None:
        """Measure the weights of arms and choose their strengths; `prepare` comes first.

        The published weights that are to be tried are tried here; one under which training diverges
        stops nothing.
        """
        arms = list(arms)
        run_each(map(self.calibration, arms), measure, workers=workers, what="weights")
        jobs = [job for arm in arms for job in self.tuning(arm).values()]
        run_each(jobs, run, workers=workers, what="strengths")
        published = [job for job in map(self.published_job, arms) if job is not None]
        waiting = [job for job in published if not diverged(job.folder)]
        run_each(waiting, _run_or_diverge, workers=workers, what="published weights")

    def run(self, *, workers: int = 1) -> list[Job]:
        """Everything there is to do, and the jobs that are compared, undistilled first."""
        if self.arms:
            self.prepare(workers=workers)
            self.tune(self.arms, workers=workers)
        return run_all(self.jobs(), workers=workers)

    def jobs(self) -> list[Job]:
        """The jobs that are compared; all arms must be tuned."""
        compared = [job for arm in self.arms for job in self.students(arm)]
        return [*map(self.undistilled, self.seeds), *compared]

    def choices(self) -> pd.DataFrame:
        """What was tried and chosen: method, strength, weight, tune_dice, chosen."""
        rows = []
        for arm in self.arms:
            weight, tuned = self.calibration(arm).weight, self._tuned(arm)
            chosen = _best(tuned)
            for strength, dice in tuned.items():
                rows.append((arm, strength, strength * weight, dice, strength == chosen))
        columns = ["method", "strength", "weight", "tune_dice", "chosen"]
        return pd.DataFrame(rows, columns=columns)

    def published(self) -> pd.DataFrame:
        """What the published weights gave, a row per arm: method, weight, tried, tune_dice.

        `tune_dice` is NaN where the weight was not `tried` (see `published_job`) and where training
        diverged under it.
        """
        rows = []
        for arm in self.arms:
            job, dice = self.published_job(arm), math.nan
            if job is not None and not diverged(job.folder):
                dice = job.result().val_dice
            rows.append((arm, self.published_weight(arm), job is not None, dice))
        return pd.DataFrame(rows, columns=["method", "weight", "tried", "tune_dice"])

    def pulls(self) -> pd.DataFrame:
        """How hard each arm pulled while it was trained: its pull by quarters, median over seeds.

        One row per arm; columns 0.25, 0.5, 0.75 and 1, shares of the training.
        """
        quarters = (0.25, 0.5, 0.75, 1.0)
        rows = {}
        for arm in self.arms:
            found: dict[float, list[float]] = {quarter: [] for quarter in quarters}
            for job in self.students(arm):
                history = job.result().history
                for quarter in quarters:
                    until = quarter * self.steps
                    part = history.step.between(until - self.steps / 4, until, inclusive="right")
                    found[quarter] += history[part].relative_weight.tolist()
            rows[arm] = {quarter: median(values) for quarter, values in found.items()}
        return pd.DataFrame.from_dict(rows, orient="index")

    def _tuned(self, arm: str) -> dict[float, float]:
        """Dice on the tune cases, by strength."""
        return {strength: job.result().val_dice for strength, job in self.tuning(arm).items()}

    def _untested(self, arm: str, weight: float) -> Job:
        """A job on the tuning seed that reads nothing of the test split."""
        return replace(self._job(arm, self.tuning_seed, weight), tested=False)

    def _job(self, arm: str, seed: int, weight: float) -> Job:
        if arm not in self.arms:
            raise ContractError("arm", repr(arm), f"one of {list(self.arms)}", "its exact name")
        options = {"kd_balance": "fixed", "kd_peak": weight, **self.arms[arm]}
        return self.study.student(arm, seed, steps=self.steps, **options)


def _best(tuned: Mapping[float, float]) -> float:
    return max(tuned, key=tuned.__getitem__)


def _run_or_diverge(job: Job) -> None:
    """Run a job; that its weight makes training diverge is an answer, too."""
    try:
        run(job)
    except FloatingPointError:
        if not diverged(job.folder):  # of other origin
            raise


def arms(methods: Iterable[str], *, frozen: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """Arms for a matrix: `methods` as they are, those in `frozen` with adapters that never learn.

    Raises ContractError for a method in `frozen` that has no adapters.
    """
    found: dict[str, dict[str, Any]] = {name: {"method": name} for name in methods}
    for name in frozen:
        option = adapter_option(name)
        if option is None:
            raise ContractError("frozen", repr(name), "a method with adapters", "leave it out")
        found[f"{name} frozen"] = {"method": name, option: "frozen"}
    return found


def matrices(parameters: Mapping[str, Any]) -> dict[str, Matrix]:
    """The matrices that a profile asks for, by task; `parameters` are those of notebook 07.

    Notebook and cluster both get theirs here, so that they mean the same runs. Raises ContractError
    for an unknown task, and as `cohort` and `arms` do.
    """
    found, given = {}, parameters
    for task in given["tasks"]:
        if task not in PREFIXES:
            raise ContractError(
                "tasks", repr(task), f"names out of {list(PREFIXES)}", "'isles2022'"
            )
        split, patch, spacing, steps = (
            given[f"{PREFIXES[task]}_{name}"] for name in ("split", "patch", "spacing_mm", "steps")
        )
        cases = cohort(
            given["data_source"],
            task,
            **dict(zip(("train", "tune", "test"), split, strict=True)),
            seed=given["cohort_seed"],
            spacing_mm=spacing,
            workers=given["workers"],
        )
        same = {name: given[name] for name in ("batch", "learning_rate", "ema")}
        recipe = Recipe(steps=steps, patch=tuple(patch), **same, **given["training"])
        study = Study(
            task,
            cases,
            recipe,
            tuple(given["teacher_channels"]),
            tuple(given["student_channels"]),
            architecture=given["architecture"],
            network=given["network"],
            teacher_floor=given["teacher_floor"],
        )
        found[task] = Matrix(
            study,
            arms(given["methods"] or METHODS, frozen=given["frozen"]),
            tuple(given["seeds"]),
            steps=given["rival_steps"],
            strengths=tuple(given["strengths"]),
            tuning_seed=given["tuning_seed"],
            warm_steps=given["warm_steps"],
            batches=given["calibration_batches"],
        )
    return found
