"""What every distillation method costs in memory and in time, beside plain feature MSE.

    python benchmarks/methods.py            some ten minutes on two quiet cores
    python benchmarks/methods.py --quick    small features, seconds: does it run?
    python benchmarks/methods.py --threads 1

All of `methods.METHODS` are measured with their default options, forward and backward in float32.
Features and logits are noise: a teacher of 32 to 320 channels in six stages, a student of a quarter
of them, one patch, five classes. What a method learns from a teacher first (`prepare`) it learns
from a random one and a batch of noise, before anything is measured.

Gradients are dropped before every call, so that making them is measured, too. The peak is the
resident memory of a fresh process per method on a patch of 128^3, beyond features, logits and
target that exist; gradients of the student and of adapters count. A process may ask for 9 GiB; a
method that needs more has no peak, and its error is kept in the JSON file. Times are taken on a
patch of 64^3: all methods take turns in one process, in an order drawn anew every round; a time is
the median over the rounds, its spread the quartiles, a ratio one of medians.

Written are results/<out>/methods-cost and a JSON file (commit, versions, threads, processor, all
samples); <out> is `benchmarks`, or `smoke` with --quick. Nothing else should run during the times.
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
from torch import Tensor

from dcd_core import methods
from dcd_core.models import resenc, shrink
from dcd_core.progress import progress
from dcd_core.types import Output
from dcd_lab import records

CPU = torch.device("cpu")
CLASSES = 5
LIMIT = 9 << 30
"""Bytes that a process may ask for to measure a method."""


class Scope(NamedTuple):
    """What is measured."""

    channels: tuple[int, ...]  # of the teacher; the student has a quarter
    remembered: int  # edge of the patch whose memory is measured, in voxels
    timed: int  # edge of the patch that is timed
    rounds: int
    measured: tuple[str, ...]  # the methods whose memory is measured


FULL = Scope((32, 64, 128, 256, 320, 320), 128, 64, 9, tuple(methods.METHODS))
QUICK = Scope((32, 64, 64), 32, 32, 2, ("feature-mse", "freekd"))


class Patch(NamedTuple):
    """The outputs of both networks for one patch, and its labels."""

    student: Output
    teacher: Output
    target: Tensor


def noise(scope: Scope, edge: int) -> Patch:
    """A patch of noise; the student's features and logits want a gradient."""
    draw = torch.Generator().manual_seed(0)

    def output(channels: Sequence[int], *, trained: bool) -> Output:
        sizes = [(CLASSES, edge), *((c, edge >> i) for i, c in enumerate(channels))]
        logits, *stages = (
            torch.randn(1, c, n, n, n, generator=draw).requires_grad_(trained) for c, n in sizes
        )
        return Output(logits, tuple(stages))

    return Patch(
        output(shrink(scope.channels, 4), trained=True),
        output(scope.channels, trained=False),
        torch.randint(CLASSES, (1, 1, edge, edge, edge), generator=draw),
    )


def prepared(name: str, scope: Scope) -> methods.Method:
    """The method, after it has learnt from a teacher, with one batch of noise, what it needs."""
    torch.manual_seed(0)
    method = methods.build(name, shrink(scope.channels, 4), scope.channels)
    teacher = resenc(1, CLASSES, channels=scope.channels, blocks=[1] * len(scope.channels))
    size = (1, 1, *[scope.timed] * 3)
    method.prepare(teacher, [(torch.randn(size), torch.randint(CLASSES, size))])
    return method


def training_pass(method: methods.Method, patch: Patch) -> Callable[[], None]:
    """Forward and backward, the old gradients dropped first."""
    leaves = [patch.student.logits, *patch.student.stages, *method.parameters()]

    def call() -> None:
        for leaf in leaves:
            leaf.grad = None
        method(*patch).backward()

    return call


# --- memory ---------------------------------------------------------------------------------------


def peaks(
    scope: Scope, threads: int, limit: int = LIMIT
) -> tuple[dict[str, float], dict[str, str]]:
    """Bytes needed by the methods that could be measured, and the errors of the others."""
    needed, failed = {}, {}
    for number, name in enumerate(scope.measured, start=1):
        asked = json.dumps([name, scope, threads, limit])
        done = memory.alone(__file__, "--child", asked)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:]
            failed[name] = last[0] if last else f"ended with {done.returncode}"
        else:
            needed[name] = float(done.stdout)
        progress("memory", number, len(scope.measured), name)
    return needed, failed


def child(asked: str) -> int:
    """Bytes that one method needs at its peak beyond a patch that exists."""
    name, fields, threads, limit = json.loads(asked)
    scope = Scope(*fields)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(threads)
    method = prepared(name, scope)
    # Libraries load and thread pools start on the first call; they are not memory of this patch.
    training_pass(method, noise(scope, scope.timed))()
    call = training_pass(method, noise(scope, scope.remembered))
    return memory.peak(call, CPU)


# --- times and the table --------------------------------------------------------------------------


def times(scope: Scope) -> dict[str, list[float]]:
    """Milliseconds of all methods, by turns."""
    patch = noise(scope, scope.timed)
    calls = {name: training_pass(prepared(name, scope), patch) for name in methods.METHODS}
    for call in calls.values():
        call()
    return interleaved(calls, dict.fromkeys(calls, scope.rounds), CPU)


def run(scope: Scope, threads: int, out: str) -> Path:
    """Measure all methods and write the table."""
    torch.set_num_threads(threads)
    samples = times(scope)
    needed, failed = peaks(scope, threads) if memory.CLEAR.exists() else ({}, {})
    features = sum(s.nbytes for s in noise(scope, scope.remembered).student.stages)
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
        scope=scope._asdict(),
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
    scope, folder = (QUICK, "smoke") if options.quick else (FULL, "benchmarks")
    run(scope, options.threads, options.out or folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
