"""What every distillation method costs, in memory and in time, beside plain feature MSE.

    python benchmarks/methods.py            some ten minutes on two quiet cores
    python benchmarks/methods.py --quick    small features, seconds: does it run?
    python benchmarks/methods.py --threads 1

Contenders are all of `methods.METHODS`, as they are by default, forward and backward in float32 on
what a teacher of 32 to 320 channels in six stages and a student of a quarter of them might say of
one patch with five classes: noise. What a method must learn of a teacher first (`prepare`) it
learns from a random one and a batch of noise, before anything is measured.

Method. Gradients are dropped before every call, so that making them is part of every contender. The
peak is the resident memory of a fresh process per contender on a patch of 128^3 beyond features,
logits and target that exist; the student's gradients count, as do those of adapters. A process
that asks for more than 9 GiB in all is refused it; such a method has no peak, and its error is kept
in the JSON file. Times are taken on a patch of 64^3: all contenders take turns in one process, in
an order drawn anew every round; a time is the median over the rounds, its spread the quartiles, a
ratio one of medians.

Written, with a JSON file (commit, versions, threads, processor, all samples):
results/<out>/methods-cost; <out> is `benchmarks`, or `smoke` with --quick. A peak does not depend
on what else runs; for the times nothing else should.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import memory
import numpy as np
import torch
from measure import interleaved, spread
from torch import Tensor, nn

from dcd_core import methods
from dcd_core.models import resenc, shrink
from dcd_core.progress import progress
from dcd_core.types import Output
from dcd_lab import records

CPU = torch.device("cpu")
CLASSES = 5
LIMIT = 9 << 30
"""Bytes that a process may ask for to measure a method."""


class Plan(NamedTuple):
    """How much is measured."""

    channels: tuple[int, ...]  # of the teacher; the student has a quarter
    remembered: int  # edge of the patch whose memory is measured, in voxels
    timed: int  # edge of the patch that is timed
    rounds: int
    measured: tuple[str, ...]  # the methods whose memory is measured


FULL = Plan((32, 64, 128, 256, 320, 320), 128, 64, 9, tuple(methods.METHODS))
QUICK = Plan((32, 64, 64), 32, 32, 2, ("feature-mse", "freekd"))


class Patch(NamedTuple):
    """What both networks say of one patch, and what is true."""

    student: Output
    teacher: Output
    target: Tensor


def noise(plan: Plan, edge: int) -> Patch:
    """A patch of noise, the student's features and logits waiting for a gradient."""
    draw = torch.Generator().manual_seed(0)

    def output(channels: Sequence[int], *, trained: bool) -> Output:
        sizes = [(CLASSES, edge), *((c, edge >> i) for i, c in enumerate(channels))]
        logits, *stages = (
            torch.randn(1, c, n, n, n, generator=draw).requires_grad_(trained) for c, n in sizes
        )
        return Output(logits, tuple(stages))

    return Patch(
        output(shrink(plan.channels, 4), trained=True),
        output(plan.channels, trained=False),
        torch.randint(CLASSES, (1, 1, edge, edge, edge), generator=draw),
    )


def prepared(name: str, plan: Plan) -> nn.Module:
    """The method, which has learnt from one batch of noise what it must learn of a teacher."""
    torch.manual_seed(0)
    method = methods.build(name, shrink(plan.channels, 4), plan.channels)
    if isinstance(method, methods.Method):
        blocks = [1] * len(plan.channels)
        teacher = resenc(1, CLASSES, channels=plan.channels, blocks=blocks)
        edge = plan.timed
        target = torch.randint(CLASSES, (1, 1, edge, edge, edge))
        method.prepare(teacher, [(torch.randn(1, 1, edge, edge, edge), target)])
    return method


def training_pass(method: nn.Module, patch: Patch) -> Callable[[], None]:
    """Forward and backward, the old gradients dropped first."""
    leaves = [patch.student.logits, *patch.student.stages, *method.parameters()]

    def call() -> None:
        for leaf in leaves:
            leaf.grad = None
        method(*patch).backward()

    return call


# --- memory ---------------------------------------------------------------------------------------


def peaks(plan: Plan, threads: int) -> tuple[dict[str, float], dict[str, str]]:
    """Bytes needed by the methods that could be measured, and why not by the others."""
    found, failed = {}, {}
    for number, name in enumerate(plan.measured, start=1):
        asked = json.dumps([name, plan, threads])
        done = memory.alone(__file__, "--child", asked)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:]
            failed[name] = last[0] if last else f"ended with {done.returncode}"
        else:
            found[name] = float(done.stdout)
        progress("memory", number, len(plan.measured), name)
    return found, failed


def child(asked: str) -> int:
    """Bytes that one method needs at its peak beyond a patch that exists."""
    name, fields, threads = json.loads(asked)
    plan = Plan(*fields)
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    torch.set_num_threads(threads)
    method = prepared(name, plan)
    # Libraries load and thread pools start on the first call; they are not memory of this patch.
    training_pass(method, noise(plan, plan.timed))()
    call = training_pass(method, noise(plan, plan.remembered))
    return memory.peak(call, CPU)


# --- times and the table --------------------------------------------------------------------------


def times(plan: Plan) -> dict[str, list[float]]:
    """Milliseconds of all methods, by turns."""
    patch = noise(plan, plan.timed)
    calls = {name: training_pass(prepared(name, plan), patch) for name in methods.METHODS}
    for call in calls.values():
        call()
    return interleaved(calls, dict.fromkeys(calls, plan.rounds), CPU)


def run(plan: Plan, threads: int, out: str) -> Path:
    """Measure all methods and write the table."""
    torch.set_num_threads(threads)
    samples = times(plan)
    needed, failed = peaks(plan, threads) if memory.CLEAR.exists() else ({}, {})
    features = sum(s.nbytes for s in noise(plan, plan.remembered).student.stages)
    least = float(np.median(samples["feature-mse"]))

    def digits(value: float) -> float:
        return float(f"{value:.3g}")

    rows = [
        {
            "method": name,
            "peak_mib": "failed" if name in failed else digits(needed.get(name, np.nan) / 2**20),
            "over_features": digits(needed.get(name, np.nan) / features),
            **spread(samples[name]),
            "over_mse": digits(float(np.median(samples[name])) / least),
            "threads": threads,
        }
        for name in methods.METHODS
    ]
    path = records.save(
        rows,
        out,
        "methods",
        "cost",
        plan=plan._asdict(),
        student_mib=features / 2**20,
        samples_ms=samples,
        failed=failed,
    )
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}")
    print(f"{path}\n{records.load(out, 'methods', 'cost').to_string(index=False)}")
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 measured and written, 2 a wrong request."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="small features, for a test")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="CPU threads (2)")
    parser.add_argument("--out", help="folder under results/; default benchmarks, quick: smoke")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        print(child(options.child))
        return 0
    if options.threads < 1:
        print(f"--threads: got {options.threads}; expected at least 1", file=sys.stderr)
        return 2
    plan, place = (QUICK, "smoke") if options.quick else (FULL, "benchmarks")
    run(plan, options.threads, options.out or place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
