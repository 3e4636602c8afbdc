"""What the distillation loss costs, beside everything else one might train with.

    python benchmarks/loss.py                             some five minutes on two quiet cores
    python benchmarks/loss.py --quick                     small features, seconds: does it run?
    python benchmarks/loss.py --device cuda --out h200    on a GPU, results kept apart

Contenders, each forward and backward in float32, published bands, three levels:

    plain MSE     mean squared difference of the features: what a feature loss costs at the least
    orthonormal   `detail_distance(...)`, the default
    released      `detail_distance(..., convention="released")`
    ptwt          `ptwt.wavedec3` of the difference, squared detail coefficients, mode "zero"
    dense         the released loss with dense K x K x K filters, two branches, masks and transposed
                  convolution, in the faster of two layouts (channels as batch, or as groups)

Method. Features are noise. The student's gradient is dropped before every call, so that making it
is part of every contender's time. All contenders take turns in one process, in an order drawn anew
every round; a time is the median over its rounds, its spread the quartiles, a ratio one of medians.
Memory is the peak of a fresh process per contender beyond features that exist, after one call on
tiny features. Without `--device` the CPU is measured, and a GPU too where there is one. Memory,
training step and growth are measured on the first device.

On a GPU grids, volumes and patches are those of the CPU and larger ones. The default runs once with
host synchronisation forbidden, and takes part again in TF32; the two cheapest contenders also
replayed from a CUDA graph, the device's work without the price of launching it. Memory is the peak
of PyTorch's allocator.

Written, each table with a JSON file (commit, versions, threads, processor, all samples):

    results/<out>/loss-times      every contender on every grid: median and quartiles in ms
    results/<out>/loss-cost       the same to read: medians, one row per grid
    results/<out>/loss-ratios     and their ratios
    results/<out>/loss-graphs     on a GPU: what is called, and the same replayed from a graph
    results/<out>/loss-memory     peak extra memory over the bytes of the student's features
    results/<out>/loss-step       a whole training step and its parts
    results/<out>/loss-sizes      time against voxels     figures/<out>/loss-growth.svg
    results/<out>/loss-levels     time against levels
    results/<out>/loss-roofline   bytes and operations, counted as dispatched, and their rates
    results/<out>/loss-choices    the loss with one of its inner choices changed
    results/<out>/loss-machine    what ran where, and its rates of copies and matrix products
    results/<out>/loss-targets    what was asked for on two CPU threads, what was measured

<out> is `benchmarks`, or `smoke` with --quick. Nothing else should run meanwhile: threads that wait
for each other on a busy machine take many times as long.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import memory
import numpy as np
import pandas as pd
import tables
import torch
from contenders import SLOW, Grid, Loss, contenders, features, training_pass
from measure import (
    Call,
    clock,
    convolving,
    copying,
    interleaved,
    multiplying,
    replaying,
    spread,
    work,
)
from peers import DenseDCD, Layout
from tables import Timed
from torch import Tensor, nn

from dcd_core.dcd import DCD, detail_distance
from dcd_core.infer import in_bfloat16
from dcd_core.models import resenc
from dcd_core.progress import progress
from dcd_core.train import Distiller, Recipe
from dcd_core.types import ContractError, Precision
from dcd_core.wavelet.fast import filters, gradient, matrices
from dcd_lab import plots, records

LAYOUTS: tuple[Layout, ...] = ("batch", "grouped")


class Patch(NamedTuple):
    """What a training step sees: samples, edge in voxels, and what convolutions compute in."""

    batch: int
    edge: int
    precision: Precision = "32-true"

    @property
    def name(self) -> str:
        """Batch, edge and precision in words."""
        return f"{self.batch}×{self.edge}³, {self.precision}"


class Plan(NamedTuple):
    """How much is measured."""

    grids: tuple[Grid, ...]
    often: int  # rounds of the fast contenders
    seldom: int  # rounds of the slow ones
    remembered: int  # of the grids, the first so many have their memory measured
    sizes: tuple[int, ...]  # edges in voxels, for growth
    depths: tuple[int, ...]  # levels, for growth
    deep: int  # edge in voxels of the features on which levels are compared
    patches: tuple[Patch, ...]  # of the training step
    widths: tuple[int, ...]  # teacher channels; the student has a quarter
    steps: int  # rounds of the training step
    copied: int  # numbers in a copy too large for any cache
    square: int  # edge of the square matrices multiplied


FULL = Plan(
    grids=(
        Grid((1, 32, 48, 48, 48)),
        Grid((1, 16, 64, 64, 64)),
        Grid((1, 64, 32, 32, 32)),
        Grid((1, 256, 16, 16, 16)),
        Grid((1, 32, 48, 48, 48), "haar"),
    ),
    often=40,
    seldom=5,
    remembered=4,
    sizes=(16, 24, 32, 48, 64, 80, 96),
    depths=(1, 2, 3, 4),
    deep=64,
    patches=(Patch(1, 48),),
    widths=(32, 64, 128, 256),
    steps=9,
    copied=2**26,
    square=2048,
)
ON_GPU = FULL._replace(
    grids=(Grid((2, 32, 128, 128, 128)), *FULL.grids),
    remembered=5,
    sizes=(*FULL.sizes, 128, 160, 192),
    deep=128,
    patches=(*FULL.patches, Patch(2, 128), Patch(2, 128, "bf16-mixed")),
    copied=2**28,
    square=8192,
)
PLANS = {"cpu": FULL, "cuda": ON_GPU}
QUICK = Plan(
    grids=(Grid((1, 2, 16, 16, 16)), Grid((1, 2, 16, 16, 16), "haar")),
    often=3,
    seldom=1,
    remembered=1,
    sizes=(8, 16),
    depths=(1, 2),
    deep=16,
    patches=(Patch(1, 16),),
    widths=(32, 64),
    steps=1,
    copied=2**18,
    square=64,
)


# --- times ----------------------------------------------------------------------------------------


def timed(grid: Grid, plan: Plan, device: torch.device) -> Timed:
    """Every contender on one grid, warmed up, compared and then timed by turns."""
    student, teacher = features(grid.shape, device)
    layout = faster_layout(grid, student, teacher, device)
    losses = contenders(grid.wavelet, layout)
    calls: dict[str, Call] = {
        name: training_pass(loss, student, teacher) for name, loss in losses.items()
    }
    if device.type == "cuda":
        fast = losses["orthonormal"]
        refuse_synchronisation(calls["orthonormal"])
        calls["orthonormal, TF32"] = training_pass(fast, student, teacher, tf32=True)
        for name in ("plain MSE", "orthonormal", "orthonormal, TF32"):
            calls[name + tables.GRAPH] = replaying(calls[name])
    calls["copy"] = copying(grid.values, device)
    for name, call in calls.items():
        for _ in range(1 if name in SLOW else 3):
            call()
    errors = difference(losses["released"], losses["dense"], student, teacher)
    rounds = {name: plan.seldom if name in SLOW else plan.often for name in calls}
    alone = {name: work(calls[name]) for name in losses}
    counted = {name: alone[name.split(",")[0]] for name in calls if name != "copy"}
    return Timed(grid, interleaved(calls, rounds, device), counted, layout, *errors)


def faster_layout(grid: Grid, student: Tensor, teacher: Tensor, device: torch.device) -> Layout:
    """The layout of the dense loss that takes less time on these features, after one warm-up."""
    found = {}
    for layout in LAYOUTS:
        call = training_pass(contenders(grid.wavelet, layout)["dense"], student, teacher)
        call()
        found[layout] = clock(call, device)
    return min(found, key=lambda layout: found[layout])


def difference(one: Loss, other: Loss, student: Tensor, teacher: Tensor) -> tuple[float, float]:
    """Relative difference of two losses, and of their gradients in the largest entry."""
    values = [loss(student, teacher) for loss in (one, other)]
    gradients = [torch.autograd.grad(value, student)[0] for value in values]
    error = (gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max()
    return abs(values[0].item() / values[1].item() - 1), error.item()


def refuse_synchronisation(call: Call) -> None:
    """Run a call in which waiting for the GPU is an error, once its matrices are there."""
    call()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode")  # that it is a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")


# --- a whole training step ------------------------------------------------------------------------


def training_step(
    patch: Patch, widths: Sequence[int], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Milliseconds of a student's step, of the teacher's encoder, and of a step with each loss."""
    torch.manual_seed(0)
    teacher = resenc(3, 2, channels=widths).to(device)
    student = resenc(3, 2, channels=[width // 4 for width in widths]).to(device)
    recipe = Recipe()
    shape = (patch.batch, 1, *(patch.edge,) * 3)
    image = torch.randn(patch.batch, 3, *shape[2:], device=device)
    target = (torch.rand(shape, device=device) < 0.1).long()
    mixed = in_bfloat16(device, patch.precision)
    precision = partial(torch.autocast, device.type, torch.bfloat16, enabled=mixed)

    def step(method: nn.Module | None) -> Call:
        distiller = Distiller(student, teacher, method).to(device).train()
        optimizer = recipe.build_optimizer(distiller.trainable())

        def call() -> None:
            with precision():
                losses = distiller(image, target, distil=method is not None)
            total = losses.segmentation
            if losses.distillation is not None:
                total = total + 0.05 * losses.distillation
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            nn.utils.clip_grad_norm_(distiller.trainable(), recipe.clip)
            optimizer.step()

        return call

    @torch.no_grad()
    def encode() -> None:
        with precision():
            teacher.encode(image)

    channels = (student.channels, teacher.channels)
    calls: dict[str, Call] = {
        "student alone": step(None),
        "teacher encoder": encode,
        "step with DCD": step(DCD(*channels)),
        "step with the dense loss": step(DenseDCD(*channels)),
    }
    for call in calls.values():
        call()
    often = dict.fromkeys(calls, rounds)
    often["step with the dense loss"] = max(1, rounds // 3)
    return interleaved(calls, often, device)


# --- growth ---------------------------------------------------------------------------------------


def growth(plan: Plan, device: torch.device) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Time against voxels at three levels, and against levels: eight channels, both conventions."""
    sizes = [((n, 3), {"voxels": n**3, "edge": n}) for n in plan.sizes]
    depths = [((plan.deep, levels), {"levels": levels}) for levels in plan.depths]
    return _grown(sizes, plan, device), _grown(depths, plan, device)


def _grown(
    cases: list[tuple[tuple[int, int], dict[str, int]]], plan: Plan, device: torch.device
) -> pd.DataFrame:
    calls: dict[str, Call] = {}
    rows = {}
    for (n, levels), labels in cases:
        student, teacher = features((1, 8, n, n, n), device)
        losses: dict[str, Loss] = {
            "orthonormal": partial(detail_distance, levels=levels),
            "released": partial(detail_distance, levels=levels, convention="released"),
        }
        for name, loss in losses.items():
            key = f"{name} {n} {levels}"
            calls[key] = training_pass(loss, student, teacher)
            rows[key] = {**labels, "loss": name}
    for call in [*calls.values()] * 2:
        call()
    samples = interleaved(calls, dict.fromkeys(calls, max(1, plan.often // 2)), device)
    return pd.DataFrame([{**row, **spread(samples[key])} for key, row in rows.items()])


# --- choices inside the loss ----------------------------------------------------------------------

BLOCKS = {"cpu": (1, 4, 16), "cuda": (16, 64, 1024)}
"""MiB of differences in work at a time, on a CPU for each thread: other than shipped."""


def changes(device: torch.device) -> dict[str, dict[str, Any]]:
    """What was tried instead, by what it is called: names of `fast.gradient` with other values."""
    each = " for each thread" if device.type == "cpu" else ""
    blocks = {
        f"blocks of at most {mib} MiB{each}": {"BLOCK_BYTES": {device.type: mib << 20}}
        for mib in BLOCKS[device.type]
    }
    return {
        **blocks,
        "products of matrices, all levels at once": {"energy": matrices.energy},
        "the definition, differentiated by autograd": {"energy": gradient.by_autograd},
    }


def choices(plan: Plan, device: torch.device) -> pd.DataFrame:
    """Milliseconds of the orthonormal loss on the first two grids, as it is and changed."""
    calls: dict[str, Call] = {}
    rows = {}
    for grid in plan.grids[:2]:
        loss = partial(detail_distance, wavelet=grid.wavelet)
        call = training_pass(loss, *features(grid.shape, device))
        variants: dict[str, Call] = {"as shipped": call}
        for name, change in changes(device).items():
            variants[name] = partial(_changed, call, change)
        for name, variant in variants.items():
            key = f"{grid.name}, {grid.wavelet}, {name}"
            calls[key], rows[key] = variant, (name, f"{grid.name}, {grid.wavelet}")
    for call in [*calls.values()] * 2:
        call()
    samples = interleaved(calls, dict.fromkeys(calls, max(1, plan.often // 2)), device)
    table: dict[str, dict[str, str]] = {}
    for key, (name, grid_name) in rows.items():
        shown = tables.shown(float(np.median(samples[key])))
        table.setdefault(name, {})[f"{grid_name} (ms)"] = shown
    return pd.DataFrame([{"choice": name, **times} for name, times in table.items()])


def _changed(call: Call, change: Mapping[str, Any]) -> None:
    with mock.patch.multiple(gradient, **change):
        call()


# --- the machine ----------------------------------------------------------------------------------


def machine(plan: Plan, device: torch.device) -> pd.DataFrame:
    """What ran where, and rates that bound every loss: a large copy and matrix products.

    The thin product is that of one axis of the first grid: with all voxels at once, as one product
    for each channel, and by the library of convolutions.
    """
    _, c, n, _, _ = plan.grids[0].shape
    m, each = plan.square, n * n
    thin = 2 * n * n * c * each
    work = {
        f"copy of {4 * plan.copied // 2**20} MiB, read and write counted (GB/s)": (
            copying(plan.copied, device),
            8 * plan.copied,
        ),
        f"product of {m} × {m} matrices (GFLOP/s)": (multiplying(m, m, m, device), 2 * m**3),
        f"product of {n} × {n} by {n} × {c * each} (GFLOP/s)": (
            multiplying(n, n, c * each, device),
            thin,
        ),
        f"the same as {c} products, {n} × {n} by {n} × {each} (GFLOP/s)": (
            multiplying(n, n, each, device, count=c),
            thin,
        ),
        "the same as a convolution of one voxel (GFLOP/s)": (
            convolving(n, n, c * each, device),
            thin,
        ),
    }
    calls = {name: call for name, (call, _) in work.items()}
    for call in calls.values():
        call()
    samples = interleaved(calls, dict.fromkeys(calls, max(1, plan.often // 4)), device)
    rates = {name: done / (1e6 * np.median(samples[name])) for name, (_, done) in work.items()}
    facts = records.facts()
    stated = {
        "processor": facts["cpu"],
        "threads": torch.get_num_threads(),
        "GPU": facts["gpu"] or "none",
        "PyTorch": facts["versions"]["torch"],
        "filters": "compiled" if filters.serves(torch.empty(0, device=device)) else "matrices",
        "date": facts["date"],
        "commit": f"{str(facts['commit'] or 'unknown')[:7]}{'+' if facts['dirty'] else ''}",
    }
    shown = {**stated, **{name: tables.shown(rate) for name, rate in rates.items()}}
    return pd.DataFrame({"machine": shown.keys(), "value": map(str, shown.values())})


# --- the command ----------------------------------------------------------------------------------


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line, read."""
    parser = argparse.ArgumentParser(
        prog="loss.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small features, a few rounds")
    parser.add_argument("--out", metavar="NAME", help="folder below results/ and figures/")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="CPU threads (2)")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cpu, and cuda where there is one"
    )
    return parser.parse_args(argv)


def devices(asked: str | None) -> list[torch.device]:
    """The devices to measure; ContractError for a GPU that is not there."""
    available = torch.cuda.is_available()
    if asked == "cuda" and not available:
        raise ContractError("--device", "cuda", "a GPU that PyTorch sees", "--device cpu")
    names = [asked] if asked else ["cpu", "cuda"] if available else ["cpu"]
    return [torch.device(name) for name in names]


def title(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 measured and written, 2 a wrong request."""
    options = arguments(argv)
    try:
        if options.threads < 1:
            raise ContractError("--threads", options.threads, "at least 1", "--threads 2")
        found = devices(options.device)
    except ContractError as error:
        print(f"loss.py: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    out = options.out or ("smoke" if options.quick else "benchmarks")
    run(dict.fromkeys(PLANS, QUICK) if options.quick else PLANS, found, out)
    return 0


def run(plans: Mapping[str, Plan], found: list[torch.device], out: str) -> None:
    """Measure, then write everything at once: an interrupted run changes nothing."""
    measured = {title(device): times(plans[device.type], device) for device in found}
    first, device = measured[title(found[0])], found[0]
    plan = plans[device.type]
    # Now, since the page compares them with these times, and speeds change while a process runs.
    rates, changed = machine(plan, device), choices(plan, device)
    used = []
    for one in first[: plan.remembered]:
        names = contenders(one.grid.wavelet, one.layout)
        needs = {name: memory.extra_bytes(one.grid, name, one.layout, device) for name in names}
        used.append((one.grid, needs))
        progress("memory", len(used), plan.remembered)
    step_ms = {}
    for patch in plan.patches:
        step_ms[patch.name] = training_step(patch, plan.widths, plan.steps, device)
        progress("training step", len(step_ms), len(plan.patches), patch.name)
    step = tables.steps(step_ms)
    sizes, levels = growth(plan, device)
    samples = {
        name: {f"{one.grid.name} {one.grid.wavelet}": one.samples for one in ones}
        for name, ones in measured.items()
    }
    layouts = {f"{one.grid.name} {one.grid.wavelet}": one.layout for one in first}
    keep = partial(_keep, out=out, device=device)
    keep(
        "times",
        [row for name, ones in measured.items() for row in tables.times(ones, name)],
        samples_ms=samples,
        dense_layout=layouts,
    )
    keep("cost", [row for name, ones in measured.items() for row in tables.cost(ones, name)])
    keep("ratios", [row for name, ones in measured.items() for row in tables.ratios(ones, name)])
    if device.type == "cuda":
        keep("graphs", tables.graphs(first))
    keep("memory", tables.memory(used))
    keep("step", step, samples_ms=step_ms)
    drawn = [keep("sizes", sizes), keep("levels", levels)]
    keep("roofline", tables.roofline(first))
    keep("choices", changed)
    keep("machine", rates)
    if device.type == "cpu":
        keep("targets", tables.targets(first, used, step, sizes))
    figure = plots.growth(sizes, levels)
    path = records.save_figure(
        figure, out, "loss", "growth", tables=drawn, vector=True, function="plots.growth"
    )
    print(path)


def times(plan: Plan, device: torch.device) -> list[Timed]:
    """All grids, one after another."""
    found = []
    for grid in plan.grids:
        found.append(timed(grid, plan, device))
        progress(f"times, {title(device)}", len(found), len(plan.grids), grid.name)
    return found


def _keep(
    name: str, table: pd.DataFrame | list[Any], *, out: str, device: torch.device, **extra: Any
) -> Path:
    code = sorted(Path(__file__).parent.glob("*.py"))
    path = records.save(
        table,
        out,
        "loss",
        name,
        device=title(device),
        threads=torch.get_num_threads(),
        benchmark=records.fingerprint(*[file.read_text("utf-8") for file in code]),
        **extra,
    )
    print(f"{path}\n{pd.DataFrame(table).to_string(index=False)}\n")
    return path


if __name__ == "__main__":
    sys.exit(main())
