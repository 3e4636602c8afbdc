"""Calibration: the weight at which one method pulls as hard as the segmentation, measured once.

Every method is measured on the same student, one that was trained a little and never met a teacher,
and on the same batches.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from dcd_core.storage import atomic
from dcd_core.train import Distiller, equal_weight, training_device
from dcd_core.types import ContractError
from dcd_lab.cache import run_dir
from dcd_lab.experiments.job import Job, build_method, check_teacher, patches_of, sources
from dcd_lab.records import fingerprint, source_hash


@dataclass(frozen=True)
class Calibration:
    """The measurement of one method.

    `job`: a job of the method, which says what it compares; `warmed`: the job of the student it is
    measured on; `batches`: how many.
    """

    job: Job
    warmed: Job
    batches: int = 50

    @property
    def label(self) -> str:
        """What progress calls it."""
        return f"weight-of-{self.job.label}"

    @property
    def folder(self) -> Path:
        """Where it is kept: recipe fields that decide nothing here do not name it."""
        job, recipe = self.job, self.job.recipe
        assert job.teacher is not None
        networks = (self.warmed.identity, job.teacher.identity, recipe.deep_weights)
        method = (job.method, dict(job.options), recipe.kd_prepare)
        batches = (job.cohort.identity, self.batches, recipe.seed, recipe.patch, recipe.batch)
        code = source_hash("dcd_lab.experiments.calibration", *sources(job.method))
        found = fingerprint(*networks, *method, *batches, recipe.foreground, code)
        return run_dir(self.label, found)

    @property
    def done(self) -> bool:
        """Whether the weight is known."""
        return self._file.is_file()

    @property
    def _file(self) -> Path:
        return self.folder / "weight.json"

    @property
    def weight(self) -> float:
        """The weight; raises ContractError when it was not measured."""
        if not self.done:
            raise ContractError(
                self.label, "a weight that was not measured", "a measured one", "measure(...)"
            )
        return float(json.loads(self._file.read_text("utf-8"))["weight"])


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
    with atomic(calibration._file) as temporary:
        temporary.write_text(json.dumps({"weight": weight}), "utf-8")
    return weight
