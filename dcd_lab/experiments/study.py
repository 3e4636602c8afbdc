"""Studies: one cohort, one teacher, and the arms that are compared at paired seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pandas as pd

from dcd_core.train.recipe import Recipe
from dcd_core.types import ContractError
from dcd_lab.data import Cohort
from dcd_lab.experiments.job import Job

_RECIPE = {entry.name for entry in fields(Recipe)}
NARROW = 64
"""Widest stage, in channels, up to which channels_last is the faster memory format on CPUs."""


@dataclass(frozen=True)
class Study:
    """What all arms of a comparison share: cohort, recipe, architecture and teacher.

    `name` labels the runs; channels per encoder stage, finest first; `network` holds further
    arguments of the `architecture`, of teacher and students alike; `teacher_floor` is the tune Dice
    below which the teacher may not teach. Teacher and students train for equally many steps.
    """

    name: str
    cohort: Cohort
    recipe: Recipe
    teacher_channels: tuple[int, ...]
    student_channels: tuple[int, ...]
    architecture: str = "dynunet"
    network: Mapping[str, Any] = field(default_factory=dict)
    teacher_seed: int = 100
    teacher_floor: float = 0.3

    def teacher(self, seed: int | None = None) -> Job:
        """The job that trains the teacher; another `seed` gives another teacher."""
        seed = self.teacher_seed if seed is None else seed
        return self._job("teacher", self.teacher_channels, seed, self.recipe.steps)

    def student(
        self, arm: str, seed: int, *, method: str = "none", steps: int | None = None, **options: Any
    ) -> Job:
        """One student: `arm` names it in tables, `method` and its `options` distil it.

        Options that are fields of `Recipe` (kd_peak, kd_start, ...) go to the recipe. `steps` other
        than the recipe's serve the compute-matched control. Raises ContractError for other options
        where there is no method.
        """
        job = self._job(arm, self.student_channels, seed, steps or self.recipe.steps)
        changes = {name: value for name, value in options.items() if name in _RECIPE}
        rest = {name: value for name, value in options.items() if name not in _RECIPE}
        job = replace(job, recipe=replace(job.recipe, **changes))
        if method != "none":
            return replace(job, method=method, options=rest, teacher=self.teacher())
        if rest:
            raise ContractError(
                f"options of {arm}", ", ".join(rest), "none without a method", "method='dcd'"
            )
        return job

    def _job(self, arm: str, channels: tuple[int, ...], seed: int, steps: int) -> Job:
        recipe = replace(self.recipe, seed=seed, steps=steps, channels_last=max(channels) <= NARROW)
        return Job(
            label=f"{self.name}-{arm}-s{seed}".replace(" ", "-"),
            cohort=self.cohort,
            model={
                "architecture": self.architecture,
                "channels": list(channels),
                **self.network,
            },
            recipe=recipe,
            teacher_floor=self.teacher_floor,
            arm=arm,
        )


def scores(jobs: Iterable[Job]) -> pd.DataFrame:
    """Test scores of finished jobs in one table: method, seed, case, region and the metrics."""
    return pd.concat([job.read("scores") for job in jobs], ignore_index=True)


def lesions(jobs: Iterable[Job]) -> pd.DataFrame:
    """Every true lesion of the test cases: method, seed, case, lesion, volume_ml, dice."""
    return pd.concat([job.read("lesions") for job in jobs], ignore_index=True)


def histories(jobs: Iterable[Job]) -> pd.DataFrame:
    """Training histories of finished jobs in one long table: method, seed, step and the losses."""
    return pd.concat(
        [job.result().history.assign(method=job.arm, seed=job.recipe.seed) for job in jobs],
        ignore_index=True,
    )
