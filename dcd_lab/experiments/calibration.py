"""Calibration: the weight at which both losses have equal gradients, measured once per method."""

from __future__ import annotations

import json
import math
from statistics import median

import torch

from dcd_core.train import Distiller, training_device
from dcd_core.train.balance import encoder_parameters, gradient_ratio
from dcd_core.types import Batches, ContractError
from dcd_lab.cache import run_dir
from dcd_lab.experiments import record
from dcd_lab.experiments.job import Job
from dcd_lab.experiments.running import check_teacher, distiller_of, patches_of
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
    teacher = check_teacher(job.teacher, floor=job.teacher_floor).student
    student = warmed.result().student.to(training_device()).requires_grad_(True)
    patches = patches_of(job.cohort.cases("train"), job.recipe)
    arguments = teacher, patches, job.recipe, job.method, job.options
    distiller = distiller_of(lambda: student, *arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.recipe.seed)
        return equal_weight(distiller, patches, batches=batches)


def equal_weight(distiller: Distiller, patches: Batches, *, batches: int = 50) -> float:
    """The median over `batches` of the weight at which both gradients are equally large.

    The student is taken as it is and not trained. Raises ContractError for a method without a
    gradient on all of them.
    """
    device = next(distiller.student.parameters()).device
    distiller.train()
    encoder = encoder_parameters(distiller.student, patches[0][0])
    ratios = []
    for step in range(batches):
        image, target = (part.to(device) for part in patches[step])
        segmentation, distillation = distiller(image, target, distil=True)
        ratios.append(gradient_ratio(segmentation, distillation, encoder))
    known = [ratio for ratio in ratios if ratio is not None]
    if not known or not all(map(math.isfinite, known)):
        got = "one that is not finite" if known else f"zero on all of {batches} batches"
        expected = "a loss that reaches the student's encoder"
        attempt = "another method, other stages, or a larger patch"
        raise ContractError("gradient of the distillation", got, expected, attempt)
    return median(known)
