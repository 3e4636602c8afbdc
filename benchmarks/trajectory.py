"""How the student's features come near to the teacher's during training, with DCD and without.

    python benchmarks/trajectory.py            some twenty minutes on one core, which may be split
    python benchmarks/trajectory.py --quick    tiny networks, seconds: does it run?

The undistilled student of the stroke study and the one that DCD distils, of the first seed, are
trained as `study.py run` trains them. Their averaged weights are kept at a few steps, under
`runs/`, and measured: the share of the teacher's energy that the best projection explains, chosen
on patches of the val cases, in the coarse band, the published detail and `ddd`; the mean over
aligned stages.

Written, with a JSON file: results/<out>/training-trajectory; <out> is `benchmarks`, or `smoke`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Literal

import pandas as pd
import torch
from steps import arguments, first_jobs
from torch import Tensor

from dcd_core import models
from dcd_core.dcd import DCD
from dcd_core.models import Segmenter
from dcd_core.progress import progress
from dcd_core.train.loop import Run
from dcd_core.types import Output
from dcd_lab import data, flow, records
from dcd_lab.cache import run_dir
from dcd_lab.experiments import Job, check_teacher, run_all
from dcd_lab.experiments.running import prepared

SHARES = (0, 1 / 30, 1 / 15, 2 / 15, 4 / 15, 0.4, 0.6, 0.8, 1)
"""Of the training, at which weights are kept."""


def snapshots(job: Job) -> dict[int, Path]:
    """Files of the averaged weights, by step; what an earlier call trained is not trained again."""
    folder = run_dir(f"{job.label}-snapshots", job.identity)
    steps = [round(share * job.recipe.steps) for share in SHARES]
    files = {step: folder / f"step-{step}.safetensors" for step in steps}
    if all(file.is_file() for file in files.values()):
        return files
    distiller, patches = prepared(job)
    training = Run(distiller, job.recipe, folder)
    training.restore()
    state = training.start(patches)
    while True:
        if state.step in files:
            student = training.ema.model
            assert isinstance(student, Segmenter)
            models.save(student, files[state.step], half=True)
        if state.step == job.recipe.steps:
            break
        training.advance(patches)
        progress(folder.name, state.step, job.recipe.steps)
        if state.step % job.recipe.checkpoint_every == 0:
            training.save()
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    return files


def dealt(job: Job, split: Literal["val", "test"], count: int) -> list[Tensor]:
    """Patches centred on lesions, not augmented, as on page 09."""
    cases = [case for case in job.cohort.cases(split) if (case.label > 0).any()]
    plain = data.Augment(flips=False, gain=0.0, shift=0.0, noise=0.0)
    deal = data.Patches(
        cases, patch=job.recipe.patch, batch=1, seed=0, foreground=1.0, augment=plain
    )
    return [deal[step][0] for step in range(count)]


def rows(jobs: Sequence[Job], count: int) -> Iterator[tuple[str, int, str, float]]:
    """Network, step, part and share explained, on `count` patches of test, four times it of val."""
    distilled = jobs[-1]
    assert distilled.teacher is not None
    teacher = check_teacher(distilled.teacher, floor=distilled.teacher_floor).student
    val, test = dealt(distilled, "val", 4 * count), dealt(distilled, "test", count)
    with torch.no_grad():
        shown = Output(test[0], teacher.encode(test[0]))
    for job in jobs:
        for step, file in snapshots(job).items():
            student = models.load(file)
            loss = DCD(student.channels, teacher.channels)
            with torch.no_grad():
                used = [stage.levels for stage in loss.per_stage(student(test[0]), shown)]
            deep = [max(levels, 1) for levels in used]
            fitted, now = (
                flow.stage_moments(student, teacher, images, levels=deep) for images in (val, test)
            )
            stages = [
                {
                    part: float(flow.explained(flow.by_part(b)[part], flow.best_projection(m, c)))
                    for part, m in flow.by_part(a).items()
                }
                for a, b, c, levels in zip(fitted, now, student.channels, used, strict=True)
                if levels
            ]
            for part in stages[0]:
                yield job.arm, step, part, fmean(stage[part] for stage in stages)


def run(profile: str, count: int, out: str) -> Path:
    """Train, measure, then write the table."""
    torch.set_num_threads(1)
    jobs = first_jobs(profile)
    run_all([job.teacher for job in jobs if job.teacher is not None])
    table = pd.DataFrame(rows(jobs, count), columns=["network", "step", "part", "explained"])
    chosen = {"profile": profile, "patches": count, "seed": jobs[0].recipe.seed}
    path = records.save(table, out, "training", "trajectory", params=chosen)
    print(f"{path}\n{table.to_string(index=False)}")
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    options = arguments(__doc__, argv)
    if options.quick:
        run("smoke", 2, options.out or "smoke")
    else:
        run("study", 8, options.out or "benchmarks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
