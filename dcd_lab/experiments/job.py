"""Jobs: training runs described as data, run once, kept by content, several at a time.

A job's folder is named by a fingerprint of all that decides its outcome: recipe, architecture,
method, cohort, teacher, and the source of the modules that train. Notebooks share runs through it,
an interrupted job resumes, and editing a plot retrains nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from dcd_core import methods, models
from dcd_core.models import Segmenter
from dcd_core.storage import atomic
from dcd_core.train import Distiller, Fit, Recipe, fit, read_fit, training_device
from dcd_core.types import TASKS, ContractError
from dcd_lab.cache import run_dir
from dcd_lab.compress import ReweightedGroupLasso
from dcd_lab.data import Cohort, Patches
from dcd_lab.experiments.evaluation import evaluate
from dcd_lab.experiments.pool import run_each
from dcd_lab.records import fingerprint, source_hash

TRAINING = (
    "dcd_core.types",
    "dcd_core.wavelet",
    "dcd_core.dcd",
    "dcd_core.models",
    "dcd_core.train",
    "dcd_lab.data",
    "dcd_lab.experiments.job",  # what is made of a job: seed, networks, method, batches
)
"""Modules whose source decides trained weights; those of the method are added (`sources`)."""
TESTING = ("dcd_core.infer", "dcd_lab.metrics", "dcd_lab.experiments.evaluation")
"""Modules whose source decides scores."""
PENALTY = "group-lasso"
"""The method of a job that trains with `compress.ReweightedGroupLasso`."""
# A new method retrains no student without one.
_METHODS = {"none": (), PENALTY: ("dcd_lab.compress",)}


@dataclass(frozen=True)
class Job:
    """One training run and its test.

    `model`: keyword arguments of `models.build` without the channel counts of the task; `method`:
    "none", a name out of `methods.METHODS`, or "group-lasso", a penalty that prepares for
    pruning and needs no teacher, with its `options`; `teacher`: the job that trains the teacher,
    whose tune Dice must reach `teacher_floor`; `start`: a file of `models.save` whose network is
    trained on, in the place of a `model` with weights drawn from the seed. `label` names the
    folder, `arm` the line in tables, and without `tested` nothing of the test split is read: these
    decide nothing.
    """

    label: str
    cohort: Cohort
    model: Mapping[str, Any]
    recipe: Recipe
    method: str = "none"
    options: Mapping[str, Any] = field(default_factory=dict)
    teacher: Job | None = None
    teacher_floor: float = 0.3
    start: str | Path | None = None
    arm: str = ""
    tested: bool = True

    @property
    def identity(self) -> str:
        """Fingerprint of everything that decides the trained weights."""
        return fingerprint(
            self.cohort.identity,
            dict(self.model),
            self.recipe,
            self.method,
            dict(self.options),
            None if self.teacher is None else self.teacher.identity,
            None if self.start is None else _content(Path(self.start)),
            source_hash(*sources(self.method)),
        )

    @property
    def folder(self) -> Path:
        """Where the run lives, `runs/<label>-<identity>`."""
        return run_dir(self.label, self.identity)

    @property
    def trained(self) -> bool:
        """Whether there is a student to read back."""
        return (self.folder / "fit.json").is_file()

    @property
    def done(self) -> bool:
        """Whether the run is trained and, if it is to be, tested."""
        return self.trained and (not self.tested or self.table("scores").is_file())

    def table(self, name: str) -> Path:
        """File of a test table: "scores" (row: case, region) or "lesions" (row: case, lesion).

        It is named by what tests and by the cases, as one run may be tested on several sets.
        """
        return self.folder / f"{name}-{fingerprint(source_hash(*TESTING), self.cohort.test)}.csv"

    def result(self) -> Fit:
        """The trained student and its history; raises ContractError when the job has not run."""
        return read_fit(self.folder)

    def read(self, name: str = "scores") -> pd.DataFrame:
        """A test table of a finished job with the columns method (the arm) and seed in front.

        Raises ContractError when the job has not run.
        """
        if not self.done or not self.tested:
            raise ContractError(
                f"{name} of {self.label}",
                "a job that has not run, or was not tested",
                "a finished job",
                "run_all([job])",
            )
        table = pd.read_csv(self.table(name))
        table.insert(0, "method", self.arm or self.label)
        table.insert(1, "seed", self.recipe.seed)
        return table


def sources(method: str) -> tuple[str, ...]:
    """Modules whose source decides what a job of `method` trains to."""
    return (*TRAINING, *_METHODS.get(method, ("dcd_core.methods",)))


def run(job: Job) -> Path:
    """Train and test one job, as far as it is not done; returns its folder.

    Raises ContractError when it must be trained and the teacher's job is not done, or failed its
    check.
    """
    if not job.done:
        result = job.result() if job.trained else _train(job)
        if job.tested:
            _test(job, result)
    return job.folder


def run_all(jobs: Iterable[Job], *, workers: int = 1) -> list[Job]:
    """Run jobs and the teachers they need, `workers` processes at a time; returns the jobs.

    Finished jobs are skipped; on an error the others are stopped and keep their checkpoints.
    """
    jobs = list(jobs)
    teachers = {job.teacher.identity: job.teacher for job in jobs if job.teacher is not None}
    for batch in (list(teachers.values()), jobs):
        run_each(batch, run, workers=workers, what="training runs")
    return jobs


def check_teacher(job: Job, *, floor: float = 0.3) -> Fit:
    """The teacher of a finished job; refuses one whose tune Dice is below `floor`.

    A student can only learn detail from a teacher that has some.
    """
    result = job.result()
    if not result.val_dice >= floor:
        raise ContractError(
            f"teacher {job.label}",
            f"Dice {result.val_dice:.3f} on the tune cases",
            f"at least {floor}",
            "more steps, a lower learning rate, or another seed for the teacher",
        )
    return result


def build_method(
    job: Job, student: Segmenter, teacher: Segmenter | None, patches: Patches
) -> nn.Module | None:
    """The job's method for these networks, with new adapters, and with what it learns beforehand.

    That is from the teacher alone, on the first `kd_prepare` of `patches`.
    """
    if job.method == PENALTY:
        example = torch.zeros(1, len(TASKS[job.cohort.task].channels), *job.recipe.patch)
        return ReweightedGroupLasso(student, example, **job.options)
    if teacher is None or job.method == "none":
        return None
    method = methods.build(job.method, student.channels, teacher.channels, **job.options)
    if isinstance(method, methods.Method):
        method.to(next(teacher.parameters()).device)
        method.prepare(teacher, (patches[step] for step in range(job.recipe.kd_prepare)))
    return method


def patches_of(job: Job) -> Patches:
    """The batches a job trains on."""
    recipe = job.recipe
    return Patches(
        job.cohort.cases("train"),
        patch=recipe.patch,
        batch=recipe.batch,
        seed=recipe.seed,
        foreground=recipe.foreground,
    )


def _content(path: Path) -> str:
    """What is in the file a job starts from: the same path may hold other weights later."""
    if not path.is_file():
        raise ContractError(
            "start of a job", f"nothing at {path}", "a file of models.save", "save it first"
        )
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _train(job: Job) -> Fit:
    if job.method not in ("none", PENALTY) and job.teacher is None:
        raise ContractError(
            f"teacher of {job.label}", "none", f"a job, for {job.method!r}", "method='none'"
        )
    cohort, task = job.cohort, TASKS[job.cohort.task]
    recipe = job.recipe
    teacher = None
    if job.teacher is not None:
        teacher = check_teacher(job.teacher, floor=job.teacher_floor).student
        teacher.to(training_device())  # which the method may learn from before `fit` moves the rest
    patches = patches_of(job)
    # Weights are drawn from the seed alone: equal seeds start every method from the same student.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        if job.start is not None:
            student = models.load(job.start)
        else:
            student = models.build(
                in_channels=len(task.channels), classes=len(task.labels), **job.model
            )
        method = build_method(job, student, teacher, patches)
    distiller = Distiller(student, teacher, method, deep_weights=recipe.deep_weights)
    return fit(distiller, patches, cohort.cases("tune"), recipe, run_dir=job.folder)


def _test(job: Job, result: Fit) -> None:
    student = result.student.to(training_device())  # a run that is read back is on the CPU
    found = evaluate(student, result.threshold, job.cohort, job.recipe)
    # The scores come last: their presence says that the job is done.
    _write_table(found.lesions, job.table("lesions"))
    _write_table(found.scores, job.table("scores"))


def _write_table(table: pd.DataFrame, path: Path) -> None:
    with atomic(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
