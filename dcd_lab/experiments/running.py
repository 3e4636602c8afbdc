"""Running jobs: each is restored from the record or trained, then tested; several at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import pandas as pd
import torch

from dcd_core import methods, models
from dcd_core.method import Method
from dcd_core.models import Segmenter
from dcd_core.progress import progress
from dcd_core.storage import atomic, locked
from dcd_core.train import Distiller, Fit, Recipe, diverged, fit, read_fit, training_device
from dcd_core.train.loop import Run
from dcd_core.types import Case, ContractError
from dcd_lab.cache import record_policy
from dcd_lab.compress import ReweightedGroupLasso, prune
from dcd_lab.data import Patches
from dcd_lab.experiments import evaluation, record
from dcd_lab.experiments.job import PENALTY, START, Job, versions
from dcd_lab.pool import each
from dcd_lab.records.places import write_json
from dcd_lab.records.seals import check, seal
from dcd_lab.tasks import TASKS


def run(job: Job) -> Path:
    """Train and evaluate one job, as far as it is not done or recorded; returns its folder.

    Raises ContractError when it must be trained and the teacher's job is not done, or failed its
    check, and as `record.restore` does.
    """
    restored = not job.trained and record.restore(job.folder)
    if restored and diverged(job.folder):
        raise FloatingPointError(f"{job.label} diverged when it was recorded")
    job.folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(job.folder):  # another runner may be at it: its work is then taken
            _finish(job)
    finally:
        with suppress(OSError):  # it is removed where nothing came of it
            job.folder.rmdir()
    return job.folder


def _finish(job: Job) -> None:
    """Do what is still to be done of a job."""
    if not job.trained:
        fitted = _train(job)
        _keep_threshold(job, fitted.threshold, fitted.val_dice)
    elif not job.threshold_file.is_file():
        check(job.folder)
        student = read_fit(job.folder).student.to(training_device())
        _keep_threshold(job, *evaluation.choose(student, job.cohort, job.recipe))
    if not job.done:
        _test(job)


def run_or_diverge(job: Job) -> None:
    """Run a job; that its training diverges is a result as well."""
    try:
        run(job)
    except FloatingPointError:
        if not diverged(job.folder):  # of other origin
            raise


def run_all(jobs: Iterable[Job], *, workers: int = 1) -> list[Job]:
    """Run jobs and those they need, `workers` processes at a time; returns the jobs.

    Finished jobs are skipped; on an error the others are stopped and keep their checkpoints.
    """
    jobs = list(jobs)
    for _, wave in groupby(in_waves(jobs), key=lambda job: job.wave):
        run_each(wave, run, workers=workers, what="training runs")
    return jobs


def available(jobs: Iterable[Job]) -> list[Job]:
    """The jobs that `run_all` can give: where none may be trained, those done or recorded."""
    may_train = record_policy() != "only"
    return [job for job in jobs if may_train or job.done or record.has(job.folder)]


def in_waves(jobs: Iterable[Job]) -> list[Job]:
    """Jobs and all that they need, each after what it needs; those of a wave follow each other."""
    found, todo = list[Job](), list(jobs)
    while todo:
        found += todo
        todo = [need for job in todo for need in job.needs]
    return sorted(found, key=lambda job: job.wave)


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


def distiller_of(
    student: Callable[[], Segmenter],
    teacher: Segmenter | None,
    patches: Patches,
    recipe: Recipe,
    method: str = "none",
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Distiller:
    """A `student`, its teacher and its method with new adapters, ready to be trained.

    What the method learns from the teacher alone it learns now, on the first `kd_prepare` of
    `patches`. `method`: a name for `methods.build`, "none", or PENALTY.
    """
    # Weights are drawn from the seed alone: equal seeds start every method from the same student.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = student()
        loss: Method | None = None
        if method == PENALTY:
            loss = ReweightedGroupLasso(network, torch.zeros_like(patches[0][0][:1]), **options)
        elif teacher is not None and method != "none":
            teacher.to(training_device())  # the method learns before `fit` moves the rest
            loss = methods.build(method, network.channels, teacher.channels, **options)
            loss.to(training_device())
            loss.prepare(teacher, (patches.labelled(step) for step in range(recipe.kd_prepare)))
    return Distiller(network, teacher, loss, deep_weights=recipe.deep_weights)


def patches_of(cases: Sequence[Case], recipe: Recipe) -> Patches:
    """The batches that a recipe draws from training cases, those without a label as well."""
    return Patches(
        [case for case in cases if case.label is not None],
        patch=recipe.patch,
        batch=recipe.batch,
        seed=recipe.seed,
        foreground=recipe.foreground,
        unlabelled=[case for case in cases if case.label is None],
    )


def first_steps(job: Job, steps: int) -> pd.DataFrame:
    """The history of the first steps of a job, trained as `run` does; nothing is kept.

    Raises ContractError as `run` does.
    """
    distiller, patches = prepared(job)
    return replayed(distiller, patches, job.recipe, steps)


def replayed(distiller: Distiller, patches: Patches, recipe: Recipe, steps: int) -> pd.DataFrame:
    """The history of the first steps of a run, trained as `fit` does; nothing is kept."""
    with TemporaryDirectory() as folder:
        training = Run(distiller, recipe, Path(folder))
        training.start(patches)
        while training.state.step < steps:
            training.advance(patches)
    return pd.DataFrame(training.state.rows)


def _train(job: Job) -> Fit:
    distiller, patches = prepared(job)
    write_json(job.folder / "versions.json", versions())
    return fit(distiller, patches, job.cohort.cases("val"), job.recipe, run_dir=job.folder)


def prepared(job: Job) -> tuple[Distiller, Patches]:
    """What a job trains, and the batches it trains on. Raises ContractError as `run` does."""
    if job.method not in ("none", PENALTY) and job.teacher is None:
        raise ContractError(
            f"teacher of {job.label}", "none", f"a job, for {job.method!r}", "method='none'"
        )
    task, teacher = TASKS[job.cohort.task], None
    if job.teacher is not None:
        teacher = check_teacher(job.teacher, floor=job.teacher_floor).student
    _keep_start(job, len(task.channels))

    def student() -> Segmenter:
        if job.start is not None:
            return models.load(job.folder / START)
        return models.build(in_channels=len(task.channels), classes=len(task.labels), **job.model)

    cases = job.cohort.cases("train")
    if teacher is None:  # without distillation only labels teach
        cases = [case for case in cases if case.label is not None]
    patches = patches_of(cases, job.recipe)
    made = distiller_of(student, teacher, patches, job.recipe, job.method, job.options)
    return made, patches


def _keep_start(job: Job, channels: int) -> None:
    """Write the network that a job starts from into its folder, where it is not there yet.

    It stays there: which channels are the least important can depend on the rounding of a
    processor, and the record does not have the networks of all jobs that others start from.
    """
    start, file = job.start, job.folder / START
    if start is None or file.is_file():
        return
    network = start.job.result().student
    if start.parameters is not None:
        patch = torch.zeros(1, channels, *job.recipe.patch)
        network = prune(network, patch, parameters=start.parameters, divisor=start.divisor)
    models.save(network, file, half=True)


def _keep_threshold(job: Job, threshold: float, val_dice: float) -> None:
    write_json(job.threshold_file, {"threshold": threshold, "val_dice": val_dice})
    seal(job.folder, *(file.name for file in record.files_of(job.folder)))


def _test(job: Job) -> None:
    fitted = job.result()
    student = fitted.student.to(training_device())  # a run that is read back is on the CPU
    scored = evaluation.evaluate(student, fitted.threshold, job.cohort, job.recipe)
    # The scores come last: their presence says that the job is done.
    for name, table in (("lesions", scored.lesions), ("scores", scored.scores)):
        with atomic(job.table(name)) as temporary:
            table.to_csv(temporary, index=False, float_format="%.6g")
        seal(job.folder, job.table(name).name)
