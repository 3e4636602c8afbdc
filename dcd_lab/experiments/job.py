"""Jobs: training runs described as data, run once, kept by content, several at a time.

A fingerprint of all that decides the weights names a job's folder: recipe, architecture, method,
cohort, teacher, and the version number of training. Notebooks share runs through it, and an
interrupted job resumes. Threshold and scores are kept beside the weights, in files named by the
version number of the evaluation: when it changes, they are made again and nothing is trained.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from dcd_core import methods, models, train
from dcd_core.models import Segmenter
from dcd_core.progress import progress
from dcd_core.storage import atomic
from dcd_core.train import Distiller, Fit, Recipe, fit, read_fit, training_device
from dcd_core.types import TASKS, ContractError
from dcd_lab import records
from dcd_lab.cache import run_dir
from dcd_lab.compress import ReweightedGroupLasso
from dcd_lab.data import Cohort, Patches
from dcd_lab.experiments import evaluation
from dcd_lab.pool import each
from dcd_lab.records.identity import fingerprint
from dcd_lab.records.places import write_json

PENALTY = "group-lasso"
"""The method of a job that trains with `compress.ReweightedGroupLasso`."""


@dataclass(frozen=True)
class Job:
    """One training run and its test.

    `model`: keyword arguments of `models.build` without the channel counts of the task; `method`:
    "none", a name out of `methods.METHODS`, or "group-lasso", a penalty that prepares for
    pruning and needs no teacher, with its `options`; `teacher`: the job that trains the teacher,
    whose Dice on the val cases must reach `teacher_floor`; `start`: a file of `models.save` whose
    network is trained on, in the place of a `model` with weights drawn from the seed. `label` names
    the folder, `arm` the line in tables, and a job that is not `tested` reads nothing of the test
    split: these decide nothing.
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
            train.VERSION,
            self.cohort.identity,
            dict(self.model),
            self.recipe,
            self.method,
            dict(self.options),
            None if self.teacher is None else self.teacher.identity,
            None if self.start is None else _content(Path(self.start)),
        )

    @property
    def folder(self) -> Path:
        """Where the run is kept, `runs/<label>-<a fingerprint>`."""
        return run_dir(self.label, self.identity)

    @property
    def trained(self) -> bool:
        """Whether there is a student to read back."""
        return (self.folder / "fit.json").is_file()

    @property
    def done(self) -> bool:
        """Whether the run is trained and, as far as it is to be, evaluated."""
        scored = not self.tested or self.table("scores").is_file()
        return self.trained and self.threshold_file.is_file() and scored

    @property
    def threshold_file(self) -> Path:
        """File of the threshold that this version of the evaluation chose on the val cases."""
        return self.folder / f"threshold-{evaluation.VERSION}.json"

    def table(self, name: str) -> Path:
        """File of a test table: "scores" (row: case, region) or "lesions" (row: case, lesion).

        Named by the version of the evaluation and by the cases, as one run may be tested on several
        sets.
        """
        return self.folder / f"{name}-{evaluation.VERSION}-{fingerprint(self.cohort.test)}.csv"

    @property
    def val_dice(self) -> float:
        """Mean foreground Dice on the val cases, under the threshold that is best there."""
        return self._chosen()["val_dice"]

    def result(self) -> Fit:
        """The trained student, its history, and its threshold in this version of the evaluation.

        Raises ContractError when the job has not run.
        """
        fitted = read_fit(self.folder)
        _compare_versions(self.folder)
        chosen = self._chosen()
        return fitted._replace(threshold=chosen["threshold"], val_dice=chosen["val_dice"])

    def read(self, name: str = "scores") -> pd.DataFrame:
        """A test table of a finished job with the columns method (the arm) and seed in front.

        Raises ContractError when the job has not run.
        """
        if not self.done or not self.tested:
            raise self._not_run(name)
        _compare_versions(self.folder)
        table = pd.read_csv(self.table(name))
        table.insert(0, "method", self.arm or self.label)
        table.insert(1, "seed", self.recipe.seed)
        return table

    def _chosen(self) -> dict[str, float]:
        if not self.threshold_file.is_file():
            raise self._not_run("threshold")
        return dict(json.loads(self.threshold_file.read_text("utf-8")))

    def _not_run(self, wanted: str) -> ContractError:
        got = "a job that has not run, or was not tested"
        return ContractError(f"{wanted} of {self.label}", got, "a finished job", "run_all([job])")


def run(job: Job) -> Path:
    """Train and evaluate one job, as far as it is not done; returns its folder.

    Raises ContractError when it must be trained and the teacher's job is not done, or failed its
    check.
    """
    if not job.trained:
        fitted = _train(job)
        _keep_threshold(job, fitted.threshold, fitted.val_dice)
    elif not job.threshold_file.is_file():
        student = read_fit(job.folder).student.to(training_device())
        _keep_threshold(job, *evaluation.choose(student, job.cohort, job.recipe))
    if not job.done:
        _test(job)
    return job.folder


def run_all(jobs: Iterable[Job], *, workers: int = 1) -> list[Job]:
    """Run jobs and the teachers they need, `workers` processes at a time; returns the jobs.

    Finished jobs are skipped; on an error the others are stopped and keep their checkpoints.
    """
    jobs = list(jobs)
    teachers = [job.teacher for job in jobs if job.teacher is not None]
    for batch in (teachers, jobs):
        run_each(batch, run, workers=workers, what="training runs")
    return jobs


def run_each(jobs: Iterable[Job], run: Callable[[Job], object], *, workers: int, what: str) -> None:
    """Call `run` on every job that is not done, `workers` at a time.

    Jobs that share a folder take turns, because two workers in one folder would overwrite each
    other's checkpoints: tests of one run on several sets of cases, for example.
    """
    waiting = [job for job in jobs if not job.done]
    while waiting:
        turn = {job.folder: job for job in waiting}
        for count, _ in enumerate(each(run, turn.values(), workers=workers), start=1):
            progress(what, count, len(turn))
        waiting = [job for job in waiting if job != turn[job.folder] and not job.done]


def check_teacher(job: Job, *, floor: float = 0.3) -> Fit:
    """The teacher of a finished job; refuses one whose Dice on the val cases is below `floor`.

    A student can only learn detail from a teacher that has some.
    """
    result = job.result()
    if not result.val_dice >= floor:
        raise ContractError(
            f"teacher {job.label}",
            f"Dice {result.val_dice:.3f} on the val cases",
            f"at least {floor}",
            "more steps, a lower learning rate, or another seed for the teacher",
        )
    return result


def build_method(
    job: Job, student: Segmenter, teacher: Segmenter | None, patches: Patches
) -> nn.Module | None:
    """The job's method for these networks, with new adapters.

    What it learns from the teacher alone it learns now, on the first `kd_prepare` of `patches`.
    """
    if job.method == PENALTY:
        example = torch.zeros(1, len(TASKS[job.cohort.task].channels), *job.recipe.patch)
        return ReweightedGroupLasso(student, example, **job.options)
    if teacher is None or job.method == "none":
        return None
    method = methods.build(job.method, student.channels, teacher.channels, **job.options)
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
    """A hash of the file a job starts from: the same path may hold other weights later."""
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
    task, recipe = TASKS[job.cohort.task], job.recipe
    teacher = None
    if job.teacher is not None:
        teacher = check_teacher(job.teacher, floor=job.teacher_floor).student
        teacher.to(training_device())  # the method may learn from it before `fit` moves the rest
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
    write_json(job.folder / "versions.json", _versions())
    return fit(distiller, patches, job.cohort.cases("val"), recipe, run_dir=job.folder)


def _keep_threshold(job: Job, threshold: float, val_dice: float) -> None:
    write_json(job.threshold_file, {"threshold": threshold, "val_dice": val_dice})


def _test(job: Job) -> None:
    fitted = job.result()
    student = fitted.student.to(training_device())  # a run that is read back is on the CPU
    scored = evaluation.evaluate(student, fitted.threshold, job.cohort, job.recipe)
    # The scores come last: their presence says that the job is done.
    for name, table in (("lesions", scored.lesions), ("scores", scored.scores)):
        with atomic(job.table(name)) as temporary:
            table.to_csv(temporary, index=False, float_format="%.6g")


def _versions() -> dict[str, str]:
    """Of the packages that train and predict; the build of a version ("+cpu") is left out."""
    installed = records.versions()
    return {name: str(installed[name]).partition("+")[0] for name in ("torch", "monai")}


def _compare_versions(folder: Path) -> None:
    """Warn where a kept run was trained with other versions than are installed."""
    kept = json.loads((folder / "versions.json").read_text("utf-8"))
    for name, installed in _versions().items():
        if kept[name] != installed:
            warnings.warn(f"a kept run was trained with {name} {kept[name]}, not {installed}")
