"""Studies: one cohort, one teacher, and the arms that are compared at paired seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

import pandas as pd

from dcd_core.models import build, parameters
from dcd_core.train import Recipe
from dcd_core.types import ContractError
from dcd_lab.data import Cohort, cohort
from dcd_lab.experiments.job import PENALTY, Job, Start
from dcd_lab.tasks import BRATS, CT_STROKE, ISLES, TASKS, ULTRASOUND, VESSELS

PREFIXES = {
    ISLES.name: "stroke_",
    BRATS.name: "glioma_",
    CT_STROKE.name: "ct_",
    ULTRASOUND.name: "ultrasound_",
    VESSELS.name: "vessels_",
}
"""How a page's parameters begin that count for one task alone."""
_RECIPE = {entry.name for entry in fields(Recipe)}
NARROW = 64
"""Widest stage, in channels, up to which channels_last is the faster memory format on CPUs."""


@dataclass(frozen=True)
class Study:
    """What all arms of a comparison share: cohort, recipe, architecture and teacher.

    `name` labels the runs; channels per encoder stage, finest first; `network` holds further
    arguments of the `architecture`, of teacher and students alike; `kd_peak` is the relative weight
    of distilled students; `teacher_training` holds the fields of the recipe in which the teacher's
    differs, and `teacher_floor` the Dice on the val cases below which it may not teach.
    """

    name: str
    cohort: Cohort
    recipe: Recipe
    teacher_channels: tuple[int, ...]
    student_channels: tuple[int, ...]
    architecture: str = "dynunet"
    network: Mapping[str, Any] = field(default_factory=dict)
    kd_peak: float = Recipe.kd_peak
    teacher_training: Mapping[str, Any] = field(default_factory=dict)
    teacher_seed: int = 100
    teacher_floor: float = 0.3

    @classmethod
    def of(cls, task: str, /, *, ready: bool = True, **page: Any) -> Study:
        """The study that a page's parameters describe: its cases, its recipe and its networks.

        Parameters that begin with one of `PREFIXES` count for that task alone. Names
        that are no parameters of a study are not read: a page passes all it has, `**globals()`.
        Where the cases need not be `ready`, they are described and not made.
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
        options: dict[str, Any] = {"seed": seed, "spacing_mm": spacing_mm, "workers": workers}
        cases = cohort(source, task, **sizes, **options, ready=ready)
        teacher, student = _pick(page, "teacher_channels", "student_channels").values()
        rest = _pick(page, "architecture", "network", "teacher_training", "teacher_floor")
        rest["kd_peak"] = page.get("kd_peak", Recipe.kd_peak)
        return cls(task, cases, recipe, tuple(teacher), tuple(student), **rest)

    def teacher(self, seed: int | None = None) -> Job:
        """The job that trains the teacher; another `seed` gives another teacher."""
        seed = self.teacher_seed if seed is None else seed
        job = self._job("teacher", self.teacher_channels, seed, self.recipe.steps)
        return replace(job, recipe=replace(job.recipe, **self.teacher_training))

    def ladder(self, steps: Iterable[int], seeds: Iterable[int]) -> list[Job]:
        """The undistilled student and the teacher at several numbers of steps, untested.

        Their Dice on the val cases says whether either has finished learning.
        """
        counts, seeds, teacher = list(steps), list(seeds), self.teacher()
        jobs = [self.student("undistilled", seed, steps=n) for n in counts for seed in seeds]
        jobs += [replace(teacher, recipe=replace(teacher.recipe, steps=n)) for n in counts]
        return [replace(job, tested=False, kept=False) for job in jobs]

    def arms(self, arms: Mapping[str, Mapping[str, Any]], seeds: Iterable[int]) -> list[Job]:
        """The students of all arms at all seeds; an arm's options are those of `student`."""
        seeds = list(seeds)
        return [self.student(arm, s, **options) for arm, options in arms.items() for s in seeds]

    def student(
        self,
        arm: str,
        seed: int,
        *,
        method: str = "none",
        steps: int | None = None,
        channels: Sequence[int] = (),
        label_every: int = 1,
        start: Mapping[str, Any] = MappingProxyType({}),
        **options: Any,
    ) -> Job:
        """One student: `arm` names it in tables, `method` and its `options` distil it.

        Options that are fields of `Recipe` (kd_peak, kd_start, ...) go to the recipe. `steps` and
        `channels` other than the study's serve controls: of equal compute, of another width. Only
        every `label_every`-th training case has a label; on the others, which the teacher knew,
        the student is distilled alone. `start`, the arguments of `pruned`, trains on what is left
        of the teacher. Raises ContractError for other options where there is no method.
        """
        width = tuple(channels) or self.student_channels
        job = self._job(arm, width, seed, steps or self.recipe.steps)
        job = replace(job, cohort=self.cohort.few_labels(label_every))
        if start:
            job = replace(job, model={}, start=self.pruned(**start))
        changes: dict[str, Any] = {} if method == "none" else {"kd_peak": self.kd_peak}
        changes |= {name: value for name, value in options.items() if name in _RECIPE}
        rest = {name: value for name, value in options.items() if name not in _RECIPE}
        job = replace(job, recipe=replace(job.recipe, **changes))
        if method != "none":
            return replace(job, method=method, options=rest, teacher=self.teacher())
        if rest:
            raise ContractError(
                f"options of {arm}", ", ".join(rest), "none without a method", "method='dcd'"
            )
        return job

    def pruned(self, *, divisor: int, lasso: Mapping[str, Any] | None = None) -> Start:
        """The teacher cut to the student's number of parameters.

        Channels are left in multiples of `divisor`. `lasso`: `steps` and `strength` with which the
        teacher is trained on before, under a penalty that makes unneeded channels small.
        """
        task = TASKS[self.cohort.task]
        given = {"in_channels": len(task.channels), "classes": len(task.labels), **self.network}
        student = build(self.architecture, channels=self.student_channels, **given)
        job = self.teacher() if lasso is None else self.sparse_teacher(**lasso)
        return Start(job, parameters(student), divisor)

    def sparse_teacher(self, *, steps: int, strength: float) -> Job:
        """The teacher, trained on for some steps under the group lasso."""
        teacher = self.teacher()
        alone: dict[str, Any] = {
            "kd_balance": "fixed",
            "kd_peak": 1.0,
            "kd_start": 0.0,
            "kd_ramp": 0.0,
        }
        job = self._job("sparse teacher", self.teacher_channels, self.teacher_seed, steps)
        options = {"every": -(-steps // 4), "strength": strength}
        recipe = replace(teacher.recipe, steps=steps, **alone)
        job = replace(job, recipe=recipe, method=PENALTY, options=options)
        return replace(job, model={}, start=Start(teacher), tested=False, kept=False)

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
        [job.history.assign(method=job.arm, seed=job.recipe.seed) for job in jobs],
        ignore_index=True,
    )
