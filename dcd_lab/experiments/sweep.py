"""Sweep: every method at every seed on one task, with weights that are all chosen in one way.

A weight from a paper belongs to another reduction, size and network, so that copied weights make
some methods silent. The relative weight of a method is the gradient norm of its weighted loss in
units of the gradient norm of the segmentation loss. For each method, the weight is measured at
which this is one; that weight is multiplied by each of a few relative weights, the same for all
methods, and a student is trained with each product. The Dice on the val cases chooses among them,
on a seed that is not compared. Only the students of the chosen weight are tested.

The published weight is trained on that seed as well where it is far from all other weights. It is
reported and cannot be chosen, so that every method chooses among equally many.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from dcd_core.methods import METHODS, adapter_option, build
from dcd_core.progress import progress
from dcd_core.train import diverged
from dcd_core.types import ContractError
from dcd_lab.experiments.calibration import measure
from dcd_lab.experiments.job import Job
from dcd_lab.experiments.running import run, run_all, run_each, run_or_diverge
from dcd_lab.experiments.study import Study
from dcd_lab.pool import each

UNDISTILLED = "undistilled"
"""Name of the student without a teacher."""
FAR = 3
"""A published weight is trained when every other weight differs by more than this factor."""
QUARTERS = (0.25, 0.5, 0.75, 1.0)
"""Ends of the quarters of a training."""


@dataclass(frozen=True)
class Sweep:
    """Methods, seeds and a budget on one study.

    `arms`: by name, a method out of `methods.METHODS` under "method" and its options (see `arms`);
    `steps` of every student; `relative_weights` to choose from; `val_seed`, of the students that
    choose, must not be among `seeds`; `warm_steps`: training of the student on which weights are
    measured, over `batches`.
    """

    study: Study
    arms: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    steps: int
    relative_weights: tuple[float, ...] = (0.03, 0.1, 0.3)
    val_seed: int = 1000
    warm_steps: int = 100
    batches: int = 50

    def __post_init__(self) -> None:
        if self.val_seed in self.seeds:
            raise ContractError(
                "val_seed", self.val_seed, f"none of the seeds {self.seeds}", "1000"
            )
        if UNDISTILLED in self.arms:
            raise ContractError("arms", UNDISTILLED, "names of distilled students", "another name")

    @classmethod
    def of(cls, study: Study, /, **page: Any) -> Sweep:
        """The sweep that the parameters of page 07 describe; what else is in `page` is not read.

        The page and `notebooks/sweep.py` make theirs here, so that both mean the same runs. Raises
        ContractError as `arms` does.
        """
        return cls(
            study,
            arms(page["methods"], frozen=page["frozen"]),
            tuple(page["seeds"]),
            steps=page["student_steps"],
            relative_weights=tuple(page["relative_weights"]),
            val_seed=page["val_seed"],
            warm_steps=page["warm_steps"],
            batches=page["calibration_batches"],
        )

    @property
    def warmed(self) -> Job:
        """The job of the student on which weights are measured."""
        job = self.study.student("warmed", self.val_seed, steps=self.warm_steps)
        return replace(job, tested=False)

    def unit_weight(self, arm: str) -> float:
        """The weight at which an arm's relative weight is one; `prepare` comes first."""
        return measure(self._candidate(arm, 1.0), self.warmed, batches=self.batches)

    def candidates(self, arm: str) -> dict[float, Job]:
        """The jobs among which an arm chooses, by relative weight; `prepare` comes first."""
        weight = self.unit_weight(arm)
        return {share: self._candidate(arm, share * weight) for share in self.relative_weights}

    def published_weight(self, arm: str) -> float:
        """The weight of an arm's method in its paper or code, for our reduction; NaN if unknown."""
        job, study = self._candidate(arm, 1.0), self.study
        channels = study.student_channels, study.teacher_channels
        return build(job.method, *channels, **job.options).weight

    def published_job(self, arm: str) -> Job | None:
        """The job of an arm's published weight; `prepare` comes first.

        None where the published weight is unknown, or within a factor of `FAR` of a candidate's.
        """
        weight = self.published_weight(arm)
        tried = [job.recipe.kd_peak for job in self.candidates(arm).values()]
        # An unknown weight, NaN, is far from none.
        far = all(max(weight / other, other / weight) > FAR for other in tried)
        return self._candidate(arm, weight) if far else None

    def weight(self, arm: str) -> float:
        """The weight of the candidate with the best Dice on the val cases; all must be done."""
        return max(self.candidates(arm).values(), key=lambda job: job.val_dice).recipe.kd_peak

    def student(self, arm: str, seed: int) -> Job:
        """The job of one compared student; the candidates of its arm must be done."""
        if arm == UNDISTILLED:
            return self.study.student(arm, seed, steps=self.steps)
        return self._job(arm, seed, self.weight(arm))

    def prepare(self, *, workers: int = 1) -> None:
        """Train the teacher and the student on which weights are measured."""
        run_all([self.study.teacher(), self.warmed], workers=workers)

    def choose(self, arms: Iterable[str], *, workers: int = 1) -> None:
        """Measure the weights of arms and train their candidates; `prepare` comes first.

        The published weights that are far from them are trained as well; one under which training
        diverges is no error.
        """
        arms = list(arms)
        for count, _ in enumerate(each(self.unit_weight, arms, workers=workers), start=1):
            progress("weights", count, len(arms))
        candidates = [job for arm in arms for job in self.candidates(arm).values()]
        run_each(candidates, run, workers=workers, what="candidates")
        published = [job for job in map(self.published_job, arms) if job is not None]
        waiting = [job for job in published if not diverged(job.folder)]
        run_each(waiting, run_or_diverge, workers=workers, what="published weights")

    def run(self, *, workers: int = 1) -> list[Job]:
        """Everything there is to do; the jobs that are compared, undistilled first."""
        if self.arms:
            self.prepare(workers=workers)
            self.choose(self.arms, workers=workers)
        compared = [self.student(arm, s) for arm in (UNDISTILLED, *self.arms) for s in self.seeds]
        return run_all(compared, workers=workers)

    def choices(self) -> pd.DataFrame:
        """The candidates: method, relative_weight, weight, val_dice and whether it was chosen."""
        rows = []
        for arm in self.arms:
            best = self.weight(arm)
            for share, job in self.candidates(arm).items():
                weight = job.recipe.kd_peak
                rows.append((arm, share, weight, job.val_dice, weight == best))
        columns = ["method", "relative_weight", "weight", "val_dice", "chosen"]
        return pd.DataFrame(rows, columns=columns)

    def published(self) -> pd.DataFrame:
        """The published weights, a row per arm: method, weight, whether it was tried, val_dice.

        `val_dice` is NaN where the weight was not tried (see `published_job`) and where training
        diverged under it.
        """
        rows = []
        for arm in self.arms:
            job = self.published_job(arm)
            dice = math.nan if job is None or diverged(job.folder) else job.val_dice
            rows.append((arm, self.published_weight(arm), job is not None, dice))
        return pd.DataFrame(rows, columns=["method", "weight", "tried", "val_dice"])

    def by_quarter(self) -> pd.DataFrame:
        """The relative weight of each arm by quarters of its training, the median over seeds.

        One row per arm; the columns are `QUARTERS`. It changes in training, because weights are
        fixed and gradients are not.
        """
        rows = {}
        for arm in self.arms:
            jobs = [self.student(arm, seed) for seed in self.seeds]
            history = pd.concat([job.history for job in jobs])
            quarter = pd.cut(history.step / self.steps, [0.0, *QUARTERS], labels=QUARTERS)
            rows[arm] = history.relative_weight.groupby(quarter, observed=False).median()
        return pd.DataFrame(rows).T

    def _candidate(self, arm: str, weight: float) -> Job:
        """A job on `val_seed`; it reads nothing of the test split."""
        return replace(self._job(arm, self.val_seed, weight), tested=False)

    def _job(self, arm: str, seed: int, weight: float) -> Job:
        if arm not in self.arms:
            raise ContractError("arm", repr(arm), f"one of {list(self.arms)}", "its exact name")
        options = {"kd_balance": "fixed", "kd_peak": weight, **self.arms[arm]}
        return self.study.student(arm, seed, steps=self.steps, **options)


def arms(methods: Iterable[str], *, frozen: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """Arms for a sweep: `methods` (empty: all) as they are, `frozen` ones with fixed adapters.

    Raises ContractError for a method in `frozen` that has no adapters.
    """
    made: dict[str, dict[str, Any]] = {name: {"method": name} for name in methods or METHODS}
    for name in frozen:
        option = adapter_option(name)
        if option is None:
            raise ContractError("frozen", repr(name), "a method with adapters", "leave it out")
        made[f"{name} frozen"] = {"method": name, option: "frozen"}
    return made
