"""Calibration: the weight at which both losses have equal gradients, measured once per method.

Every method is measured on the same batches and on the same student, which was trained for a few
steps without a teacher.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from dcd_core import train
from dcd_core.train.balance import equal_weight
from dcd_core.train.distiller import Distiller
from dcd_core.train.loop import training_device
from dcd_core.types import ContractError
from dcd_lab.cache import run_dir
from dcd_lab.experiments.job import Job, build_method, check_teacher, patches_of
from dcd_lab.records.places import write_json


@dataclass(frozen=True)
class Calibration:
    """The measurement of one method.

    `job`: a job of the method; `warmed`: the job of the student on which it is measured;
    `batches`: how many are measured.
    """

    job: Job
    warmed: Job
    batches: int = 50

    @property
    def folder(self) -> Path:
        """Where it is kept, named by all that decides the weight."""
        job, recipe = self.job, self.job.recipe
        assert job.teacher is not None
        networks = (self.warmed.identity, job.teacher.identity, recipe.deep_weights)
        method = (job.method, dict(job.options), recipe.kd_prepare)
        batches = (job.cohort.identity, self.batches, recipe.seed, recipe.patch, recipe.batch)
        key = (train.VERSION, *networks, *method, *batches, recipe.foreground)
        return run_dir(f"weight-of-{job.label}", *key)

    @property
    def done(self) -> bool:
        """Whether the weight is known."""
        return (self.folder / "weight.json").is_file()

    @property
    def weight(self) -> float:
        """The weight; raises ContractError when it was not measured."""
        if not self.done:
            raise ContractError(
                f"weight of {self.job.label}", "not measured", "a measured one", "measure(...)"
            )
        return float(json.loads((self.folder / "weight.json").read_text("utf-8"))["weight"])


def measure(calibration: Calibration) -> float:
    """Measure a weight, or read it back; the teacher's job and the warmed one must be done."""
    if calibration.done:
        return calibration.weight
    job = calibration.job
    assert job.teacher is not None
    device = training_device()
    teacher = check_teacher(job.teacher, floor=job.teacher_floor).student.to(device)
    student = calibration.warmed.result().student.to(device).requires_grad_(True)
    patches = patches_of(job)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.recipe.seed)
        method = build_method(job, student, teacher, patches)
        distiller = Distiller(student, teacher, method, deep_weights=job.recipe.deep_weights)
        weight = equal_weight(distiller, patches, batches=calibration.batches)
    write_json(calibration.folder / "weight.json", {"weight": weight})
    return weight
