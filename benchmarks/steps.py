"""What a training step with DCD costs beside one without, at the recipe of the study.

    python benchmarks/steps.py            some ten minutes on one core
    python benchmarks/steps.py --quick    tiny networks, seconds: does it run?

The undistilled student of the stroke study and the one that DCD distils, of the first seed, take
turns in one process with one thread: the first steps of a run as `train.fit` does them, batches
included. The distillation is on from the first step. A step takes as long whatever the teacher's
weights are, so they are random. Times are processor seconds, since the machine may do other work:
median and quartiles of a step over the rounds.

Written, with a JSON file: results/<out>/training-step; <out> is `benchmarks`, or `smoke`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from measure import spread

from dcd_core import models
from dcd_core.progress import progress
from dcd_core.train import Distiller
from dcd_lab import records
from dcd_lab.data import Patches
from dcd_lab.experiments import Job
from dcd_lab.experiments.running import distiller_of, patches_of, replayed
from dcd_lab.tasks import TASKS

# The runs of a profile are those of this checkout's notebooks.
sys.path.append(str(Path(__file__).resolve().parents[1] / "notebooks"))
from runner.runs import make_cohorts, runs_of

ARMS = ("undistilled", "DCD")


def first_jobs(profile: str) -> list[Job]:
    """The runs of the first seed without and with DCD, whose cases are made."""
    firsts = {job.arm: job for job in reversed(runs_of(profile, {}, ["06"])) if job.tested}
    jobs = [firsts[arm] for arm in ARMS]
    make_cohorts(jobs, workers=1)
    return jobs


def measured(jobs: Sequence[Job], steps: int, rounds: int) -> dict[str, list[float]]:
    """Processor milliseconds of a step of every job, one value a round."""
    patches = patches_of(jobs[0].cohort.cases("train"), jobs[0].recipe)
    times: dict[str, list[float]] = {job.arm: [] for job in jobs}
    for turn in range(rounds + 1):
        for job in jobs:
            distiller, recipe = _untrained(job, patches), replace(job.recipe, kd_start=0.0)
            started = time.process_time()
            replayed(distiller, patches, recipe, steps)
            if turn:  # the first round reads the cases and warms up
                times[job.arm].append(1e3 * (time.process_time() - started) / steps)
        progress("training", turn, rounds)
    return times


def _untrained(job: Job, patches: Patches) -> Distiller:
    task, teacher = TASKS[job.cohort.task], None
    size: dict[str, Any] = {"in_channels": len(task.channels), "classes": len(task.labels)}
    student = partial(models.build, **size, **job.model)
    if job.teacher is not None:
        teacher = models.build(**size, **job.teacher.model)
    return distiller_of(student, teacher, patches, job.recipe, job.method, job.options)


def run(profile: str, steps: int, rounds: int, out: str) -> Path:
    """Measure, then write the table."""
    torch.set_num_threads(1)
    samples = measured(first_jobs(profile), steps, rounds)
    plain = float(np.median(samples[ARMS[0]]))
    table = pd.DataFrame(
        {"arm": arm, **spread(times), "over_undistilled": round(float(np.median(times)) / plain, 3)}
        for arm, times in samples.items()
    )
    chosen = {"profile": profile, "steps": steps, "rounds": rounds}
    path = records.save(table, out, "training", "step", params=chosen, samples_ms=samples)
    print(f"{path}\n{table.to_string(index=False)}")
    return path


def arguments(text: str | None, argv: Sequence[str] | None) -> argparse.Namespace:
    """What the command line of a benchmark of training says; `text` is the module's own."""
    parser = argparse.ArgumentParser(description=(text or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny networks, for a test")
    parser.add_argument("--out", help="folder under results/; default benchmarks, quick: smoke")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    options = arguments(__doc__, argv)
    if options.quick:
        run("smoke", 2, 2, options.out or "smoke")
    else:
        run("study", 60, 9, options.out or "benchmarks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
