"""Descriptions of jobs as plain data, from which the same job is made again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from dcd_core import train
from dcd_core.train import Recipe, diverged
from dcd_core.types import Case, ContractError
from dcd_lab.cache import runs
from dcd_lab.data import Cohort, cohort, read
from dcd_lab.experiments import record
from dcd_lab.experiments.job import Job, Start
from dcd_lab.records.places import write_text

_PLAIN = ("label", "model", "method", "options", "teacher_floor", "arm", "tested", "kept")


def describe(job: Job) -> dict[str, Any]:
    """A job as plain data; `made_again` is the inverse.

    Raises ContractError where the cohort of a job exists on one machine alone.
    """
    if not job.cohort.origin:
        got = "a cohort made by hand"
        raise ContractError(f"job to describe, {job.label}", got, "none", "data.cohort(...)")
    return {
        **{name: getattr(job, name) for name in _PLAIN},
        "cohort": dict(job.cohort.origin),
        "recipe": asdict(job.recipe),
        "teacher": None if job.teacher is None else describe(job.teacher),
        "start": None if job.start is None else _described(job.start),
    }


def _described(start: Start) -> dict[str, Any]:
    return {**vars(start), "job": describe(start.job)}


def made_again(plain: Mapping[str, Any], *, workers: int = 1) -> Job:
    """The job of a description; cases of its cohort that are absent are made by `workers`."""
    recipe = Recipe(**{**plain["recipe"], "patch": tuple(plain["recipe"]["patch"])})
    cases = _cases(json.dumps(plain["cohort"]), runs(), workers)
    teacher = None if plain["teacher"] is None else made_again(plain["teacher"], workers=workers)
    start = plain.get("start")  # which older entries of the record do not name
    if start is not None:
        start = Start(**{**start, "job": made_again(start["job"], workers=workers)})
    given = {"recipe": recipe, "cohort": cases, "teacher": teacher, "start": start}
    return Job(**{**plain, **given})


@lru_cache(maxsize=8)  # many runs share a cohort, and looking at all of its files takes a second
def _cases(origin: str, runs: Path, workers: int) -> Cohort:
    return cohort(**json.loads(origin), workers=workers)


def enter(job: Job) -> Path:
    """Add a finished or diverged job to the record; returns its entry.

    Raises ContractError for another job, and as `describe` does.
    """
    if not (job.done or diverged(job.folder)):
        raise ContractError(f"run to record, {job.label}", "not done", "a finished job", "run(job)")
    description = {"identity": job.identity, "job": describe(job)}
    file = case_file(job.cohort)
    if not file.is_file():
        write_text(file, case_hashes(job.cohort).to_csv(index=False, lineterminator="\n"))
    return record.enter(job.folder, description, seed=job.recipe.seed, weights=job.kept)


def recorded_job(entry: Path, *, workers: int = 1) -> Job:
    """The job of an entry of the record.

    Raises ContractError when it has another identity than its entry: its description was changed,
    or training or phantoms have changed since.
    """
    description = record.read(entry)
    job = made_again(description["job"], workers=workers)
    if job.folder.name != entry.name:
        attempt = f"{record.ATTEMPT}, or training of another version than {train.VERSION}"
        got = f"the description of {job.folder.name}"
        raise ContractError(f"record, {entry.name}", got, "its own", attempt)
    return job


def case_file(cohort: Cohort) -> Path:
    """The file of the record with a hash of every case of a cohort: split, case, sha256."""
    return record.home() / f"cases-{cohort.task}-{cohort.identity}.csv"


def case_hashes(cohort: Cohort) -> pd.DataFrame:
    """A hash of voxels and labels of every case of a cohort, as it lies on this machine."""
    splits: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")
    rows = [(s, scan.id, _voxels(read(scan))) for s in splits for scan in cohort.scans(s)]
    return pd.DataFrame(rows, columns=["split", "case", "sha256"])


def _voxels(case: Case) -> str:
    digest = hashlib.sha256()
    for array in (case.image, case.label):
        if array is not None:
            digest.update(f"{array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
