"""Calibration: the weight at which both losses have equal gradients, measured once per method."""

from __future__ import annotations

import json

import torch

from dcd_core.train import Distiller, equal_weight, training_device
from dcd_lab.cache import run_dir
from dcd_lab.experiments import record
from dcd_lab.experiments.job import Job
from dcd_lab.experiments.running import build_method, check_teacher, patches_of
from dcd_lab.records.places import write_json
from dcd_lab.records.seals import check, seal


def measure(job: Job, warmed: Job, *, batches: int = 50) -> float:
    """The weight at which the two gradients of a job have equal norms, the median over `batches`.

    `warmed`: the job of the student on which it is measured, one that was trained for a few steps
    without a teacher. The weight is kept under `runs/`. Raises ContractError when it must be
    measured and `warmed` or the teacher's job is not done.
    """
    folder = run_dir(f"weight-of-{job.label}", job.identity, warmed.identity, batches)
    file = folder / "weight.json"
    if not (file.is_file() or record.restore(folder)):
        write_json(file, {"weight": _measured(job, warmed, batches)})
        seal(folder, file.name)
    check(folder)
    return float(json.loads(file.read_text("utf-8"))["weight"])


def _measured(job: Job, warmed: Job, batches: int) -> float:
    assert job.teacher is not None
    device = training_device()
    teacher = check_teacher(job.teacher, floor=job.teacher_floor).student.to(device)
    student = warmed.result().student.to(device).requires_grad_(True)
    patches = patches_of(job)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.recipe.seed)
        method = build_method(job, student, teacher, patches)
        distiller = Distiller(student, teacher, method, deep_weights=job.recipe.deep_weights)
        return equal_weight(distiller, patches, batches=batches)
