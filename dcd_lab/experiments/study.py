"""Studies: one cohort, one teacher, and the arms that are compared at paired seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pandas as pd

from dcd_core.train import Recipe
from dcd_core.types import BRATS, ISLES, ContractError
from dcd_lab.data import Cohort, cohort
from dcd_lab.experiments.job import Job

PREFIXES = {ISLES.name: "stroke_", BRATS.name: "glioma_"}
"""How a page's parameters begin that count for one task alone."""
_RECIPE = {entry.name for entry in fields(Recipe)}
NARROW = 64
"""Widest stage, in channels, up to which channels_last is the faster memory format on CPUs."""


@dataclass(frozen=True)
class Study:
    """What all arms of a comparison share: cohort, recipe, architecture and teacher.

    `name` labels the runs; channels per encoder stage, finest first; `network` holds further
    arguments of the `architecture`, of teacher and students alike; `teacher_floor` is the Dice on
    the val cases below which the teacher may not teach. Teacher and students train for equally
    many steps.
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

    @classmethod
    def of(cls, task: str, /, **page: Any) -> Study:
        """The study that a page's parameters describe: its cases, its recipe and its networks.

        Parameters that begin with "stroke_" or "glioma_" count for that task alone. Names
        that are no parameters of a study are not read: a page passes all it has, `**globals()`.
        Raises ContractError for an unknown task, for a parameter that is missing, and as
        `data.cohort` and `Recipe` do.
        """
        if task not in PREFIXES:
            raise ContractError("task", repr(task), f"one of {list(PREFIXES)}", "'isles2022'")
        own = (PREFIXES[task] + name for name in ("split", "spacing_mm", "steps", "patch"))
        split, spacing_mm, steps, patch = _pick(page, *own).values()
        source, seed, workers, training = _pick(
            page, "data_source", "cohort_seed", "workers", "training"
        ).values()
        same = _pick(page, "batch", "learning_rate", "ema")
        recipe = Recipe(steps=steps, patch=tuple(patch), **same, **training)
        sizes = dict(zip(("train", "val", "test"), split, strict=True))
        cases = cohort(source, task, **sizes, seed=seed, spacing_mm=spacing_mm, workers=workers)
        teacher, student = _pick(page, "teacher_channels", "student_channels").values()
        networks = _pick(page, "architecture", "network", "teacher_floor")
        return cls(task, cases, recipe, tuple(teacher), tuple(student), **networks)

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


def _pick(page: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """These parameters of a page."""
    for name in names:
        if name not in page:
            raise ContractError("parameters of a study", f"no {name!r}", "one", f"{name}=...")
    return {name: page[name] for name in names}


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
