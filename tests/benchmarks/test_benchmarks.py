"""The benchmark times the functions it says it times; its tables follow from its samples."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import pywt
import torch
from golden import RELEASED, assert_stored

from dcd_core.dcd import DCD, PUBLISHED, detail_distance
from dcd_core.types import Output
from dcd_core.wavelet import BANDS, compiled
from dcd_lab import records

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = PROJECT / "benchmarks" / "loss.py"
sys.path.insert(0, str(SCRIPT.parent))

import contenders  # noqa: E402
import loss as command  # noqa: E402
import measure  # noqa: E402
import memory  # noqa: E402
import peers  # noqa: E402
import tables  # noqa: E402

CPU = torch.device("cpu")
layouts = pytest.mark.parametrize("layout", command.LAYOUTS)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=draw)


# --- the peers are what they are called ---------------------------------------------------------


@layouts
@pytest.mark.parametrize("path", RELEASED, ids=lambda path: path.stem)
def test_the_dense_peer_is_the_released_loss(path: Path, layout: peers.Layout) -> None:
    distance = partial(peers.dense_distance, layout=layout)
    assert_stored(path, distance, dtype=torch.float64, tolerance=1e-6)


@layouts
@pytest.mark.parametrize("wavelet", ["haar", "db4"])
@pytest.mark.parametrize("bands", [PUBLISHED, BANDS, ("aaa", "ddd")], ids=len)
def test_the_dense_peer_is_the_released_convention(wavelet, bands, layout) -> None:
    student, teacher = noise(2, 3, 12, 9, 8).requires_grad_(), noise(2, 3, 12, 9, 8, seed=1)
    teacher.requires_grad_()
    options = {"wavelet": wavelet, "levels": 2, "bands": bands}
    expected = detail_distance(student, teacher.detach(), convention="released", **options)
    (gradient,) = torch.autograd.grad(expected, student)
    found = peers.dense_distance(student, teacher, layout=layout, **options)
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-10)
    assert torch.allclose(student.grad, gradient, rtol=1e-10, atol=1e-14)
    assert teacher.grad is None  # its branch has no graph


def test_the_dense_method_is_the_released_method() -> None:
    method = peers.DenseDCD((2, 4), (3, 4)).double()
    same = DCD.released((2, 4), (3, 4)).double()
    same.adapters.load_state_dict(method.adapters.state_dict())
    student, teacher = (
        Output(torch.empty(0), (noise(1, c, 12, 12, 12, seed=s), noise(1, 4, 8, 8, 8, seed=s + 1)))
        for c, s in ((2, 0), (3, 2))
    )
    assert method(student, teacher).item() == pytest.approx(same(student, teacher).item())
    assert not any(weight.requires_grad for weight in method.parameters())


@pytest.mark.parametrize("mode", ["zero", "periodic"])
def test_the_ptwt_peer_sums_the_coefficients_of_pywavelets(mode) -> None:
    student, teacher = noise(2, 3, 12, 13, 16), noise(2, 3, 12, 13, 16, seed=1)
    difference, levels = (student - teacher).numpy(), 2
    _, *details = pywt.wavedecn(difference, "db2", mode=mode, level=levels, axes=(2, 3, 4))
    sizes = [details[-1]["ddd"].size, difference.size]
    energies = [sum((level[band] ** 2).sum() for band in PUBLISHED) for level in details]
    expected = sum(energy / size for energy, size in zip(energies, sizes, strict=True)) / levels
    found = peers.ptwt_distance(student, teacher, wavelet="db2", levels=levels, mode=mode)
    assert found.item() == pytest.approx(expected, rel=1e-10)


def test_the_ptwt_peer_is_the_orthonormal_convention_where_no_border_is_crossed() -> None:
    student, teacher = noise(1, 2, 8, 16, 24).requires_grad_(), noise(1, 2, 8, 16, 24, seed=1)
    values, gradients = [], []
    for distance in (peers.ptwt_distance, detail_distance):
        values.append(distance(student, teacher, wavelet="haar", levels=3))
        gradients.append(torch.autograd.grad(values[-1], student)[0])
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-10)
    assert torch.allclose(*gradients, rtol=1e-10, atol=1e-14)


def test_plain_mse_is_all_bands_of_one_level() -> None:
    student, teacher = noise(1, 2, 8, 8, 8), noise(1, 2, 8, 8, 8, seed=1)
    expected = detail_distance(student, teacher, wavelet="haar", levels=1, bands=BANDS)
    assert peers.plain_mse(student, teacher).item() == pytest.approx(expected.item())


def test_every_contender_starts_without_a_gradient_and_makes_one() -> None:
    student, teacher = contenders.features((1, 2, 16, 16, 16), CPU)
    gradients = {}
    for name, loss in contenders.contenders("db4", "batch").items():
        call = contenders.training_pass(loss, student, teacher)
        call()
        once = student.grad.clone()
        call()
        assert torch.equal(student.grad, once), f"{name} adds to the old gradient"
        gradients[name] = once
    assert torch.allclose(gradients["dense"], gradients["released"], atol=1e-8)
    assert teacher.grad is None
    again, _ = contenders.features((1, 2, 16, 16, 16), CPU)
    assert torch.equal(student.detach(), again.detach())


# --- clocks and meters --------------------------------------------------------------------------


def test_contenders_take_turns() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in ("a", "b", "slow")}
    rounds = {"a": 12, "b": 12, "slow": 3}
    samples = measure.interleaved(calls, rounds, CPU)
    assert Counter(order) == rounds == {name: len(found) for name, found in samples.items()}
    # In every round a and b once; the slow one in every fourth, never twice in between.
    fast = [name for name in order if name != "slow"]
    turns = list(zip(fast[::2], fast[1::2], strict=True))
    assert all(set(turn) == {"a", "b"} for turn in turns)
    assert len(set(turns)) == 2, "always the same order"
    places = [order[:i].count("a") for i, name in enumerate(order) if name == "slow"]
    assert all(3 <= later - sooner <= 5 for sooner, later in itertools.pairwise(places))
    order.clear()
    measure.interleaved(calls, rounds, CPU)
    assert [name for name in order if name != "slow"] == fast


def test_spread_is_median_and_quartiles() -> None:
    assert measure.spread([1.234567])["time_ms"] == 1.235
    assert measure.spread([5.0, 1.0, 2.0, 100.0, 4.0]) == {
        "time_ms": 4.0,
        "low_ms": 2.0,
        "high_ms": 5.0,
    }


def test_copies_and_products_are_done() -> None:
    target = measure.copying(10, CPU)()
    assert target.shape == (10,)
    assert measure.multiplying(2, 3, 4, CPU)().shape == (2, 4)
    assert measure.multiplying(2, 3, 4, CPU, count=5)().shape == (5, 2, 4)
    assert measure.convolving(2, 3, 4, CPU)().shape == (1, 2, 1, 4)


def test_work_counts_products_and_what_operators_read_and_write() -> None:
    a, b = torch.ones(2, 3), torch.ones(3, 5)
    out, total = torch.empty(2, 5), torch.zeros(2, 5)
    assert measure.work(lambda: a @ b) == (4 * (6 + 15 + 10), 60)
    assert measure.work(lambda: torch.mm(a, b, out=out)) == (4 * (6 + 15 + 10), 60)
    assert measure.work(lambda: total.add_(out)) == (4 * 30, 0)
    assert measure.work(lambda: a.view(3, 2).T[:1].detach()) == (0, 0)
    assert measure.work(lambda: torch.empty(100)) == (0, 0)


def test_work_of_the_losses_is_what_their_formulas_say() -> None:
    student, teacher = contenders.features((1, 2, 16, 16, 16), CPU)
    losses = contenders.contenders("db4", "batch")
    found = {
        name: measure.work(contenders.training_pass(losses[name], student, teacher))
        for name in ("plain MSE", "orthonormal", "dense")
    }
    values = student.numel()
    # Both are read, a scalar written; both are read again, the gradient written.
    assert found["plain MSE"].bytes / (4 * values) == pytest.approx(5, abs=0.01)
    assert found["plain MSE"].operations == 0
    # Additions and multiplications per value, of eight taps each: along D, which all need; then of
    # half of the values, of aaa and ddd, along H, and of a quarter along W. As many go back, and
    # the second level has an eighth of the values.
    filtered = 2 * 8 * 2 * (1 + 1 / 2 + 1 / 4) * (1 + 1 / 8)
    # Multiplied by matrices, on an edge of n, those of all levels together have n columns.
    contracted = 2 * 16 * 2 * (1 + 1 / 2 + 1 / 4)
    served = compiled.serves(student)
    assert found["orthonormal"].operations / values == (filtered if served else contracted)
    assert found["dense"].operations / values > 5 * 2 * 8**3


needs_record = pytest.mark.skipif(not memory.CLEAR.exists(), reason="peaks are read on Linux only")


@needs_record
def test_the_peak_counts_what_is_held_at_once() -> None:
    size = 2**24  # 64 MiB, which the C library always returns to the system

    def both() -> list[torch.Tensor]:
        return [torch.ones(size), torch.ones(size)]

    def one_by_one() -> None:
        torch.ones(size)
        torch.ones(size)

    one_by_one()  # loads what the first call loads
    assert memory.peak(both, CPU) / (4 * size) == pytest.approx(2, abs=0.03)
    assert memory.peak(one_by_one, CPU) / (4 * size) == pytest.approx(1, abs=0.03)
    assert memory.peak(lambda: None, CPU) / (4 * size) == pytest.approx(0, abs=0.03)


@needs_record
def test_plain_mse_needs_its_gradient() -> None:
    """Its squares are gone before the gradient comes, so the peak is one set of features."""
    grid = contenders.Grid((1, 16, 48, 48, 48))
    found = memory.extra_bytes(grid, "plain MSE", "batch", CPU)
    assert found / (4 * grid.values) == pytest.approx(1, abs=0.25)


def test_a_child_that_fails_says_why() -> None:
    if not memory.CLEAR.exists():
        pytest.skip("peaks are read on Linux only")
    with pytest.raises(RuntimeError, match="nobody"):
        memory.extra_bytes(contenders.Grid((1, 1, 8, 8, 8)), "nobody", "batch", CPU)


# --- tables from samples ------------------------------------------------------------------------


def timed(shape=(1, 32, 48, 48, 48), wavelet="db4", error=0.0) -> tables.Timed:
    samples = {
        "plain MSE": [3.0, 4.0, 5.0],
        "orthonormal": [9.0, 8.0, 7.0],
        "released": [16.0],
        "ptwt": [80.0],
        "dense": [480.0],
        "copy": [2.0],
    }
    grid = contenders.Grid(shape, wavelet)
    work = {name: measure.Work(28 * grid.values, 10**6) for name in samples if name != "copy"}
    return tables.Timed(grid, samples, work, "batch", error, error)


def steps(with_dcd: float = 10.4) -> pd.DataFrame:
    parts = {"student alone": [6.0], "teacher encoder": [4.0], "step with DCD": [with_dcd]}
    return tables.steps({"1×48³": parts})


def sizes(power: float = 1.0) -> pd.DataFrame:
    rows = [
        {"voxels": n**3, "loss": loss, "time_ms": max(n**3.0, 512.0) ** power}
        for loss in ("orthonormal", "released")
        for n in (2, 4, 8, 16, 32, 64)
    ]
    return pd.DataFrame(rows)


def test_ratios_are_ratios_of_medians() -> None:
    (ratios,) = tables.ratios([timed()], "CPU, 2 threads")
    on_cpus = [name for name in tables.RATIOS if "graphs" not in name]
    assert [ratios[name] for name in on_cpus] == ["60", "10", "2", "30"]
    assert set(ratios) == {"features", "basis", "device", *on_cpus}
    there = timed()
    there.samples.update({"plain MSE, graph": [1.0], "orthonormal, graph": [3.0]})
    (ratios,) = tables.ratios([there], "a GPU")
    assert ratios["orthonormal / MSE, graphs"] == "3"
    (times,) = tables.cost([there], "a GPU")
    assert not any("graph" in name for name in times)
    (times,) = tables.graphs([there])
    assert (times["orthonormal (ms)"], times["orthonormal, graph (ms)"]) == ("8", "3")
    assert len(times) == 6
    (times,) = tables.cost([timed()], "CPU, 2 threads")
    assert ratios["features"] == times["features"] == "1×32×48³"
    assert times["orthonormal (ms)"] == "8"
    assert not any("copy" in name for name in times)
    assert len(tables.times([timed()], "x")) == 6


def test_the_roofline_is_arithmetic() -> None:
    table = tables.roofline([timed((1, 1, 8, 8, 8))]).set_index("loss")
    values = 8**3
    mse = table.loc["plain MSE"]
    assert float(mse["needs (MiB)"]) == pytest.approx(3 * 4 * values / 2**20, rel=0.01)
    assert float(mse["moves (MiB)"]) == pytest.approx(7 * 4 * values / 2**20, rel=0.01)
    assert float(mse["GFLOP/s"]) == pytest.approx(1e6 / 4e-3 / 1e9, rel=0.01)
    # Seven numbers against two, in twice the time of the copy.
    assert float(mse["moves / copy"]) == pytest.approx(7 / 2 * 2 / 4, rel=0.01)
    assert float(mse["needs / copy"]) == pytest.approx(3 / 2 * 2 / 4, rel=0.01)
    assert float(table.loc["orthonormal", "needs / copy"]) == pytest.approx(3 / 8, rel=0.01)


def test_steps_are_compared_with_what_must_run_anyway() -> None:
    assert list(steps()["over_least"]) == pytest.approx([0.6, 0.4, 1.04])
    larger = {"student alone": [60.0], "teacher encoder": [40.0], "step with DCD": [101.0]}
    both = tables.steps({"small": larger | {"step with DCD": [150.0]}, "large": larger})
    assert list(both["over_least"]) == pytest.approx([0.6, 0.4, 1.5, 0.6, 0.4, 1.01])
    assert list(both["patch"]) == ["small"] * 3 + ["large"] * 3


@pytest.mark.parametrize("power", [1.0, 1.5])
def test_the_exponent_is_the_slope_of_the_larger_sizes(power: float) -> None:
    assert tables.exponent(sizes(power), "released") == pytest.approx(power)


def test_targets_are_met_or_not() -> None:
    def met(one: tables.Timed, multiple: float, with_dcd: float, power: float) -> list[str]:
        used = [(one.grid, {"orthonormal": multiple * 4 * one.grid.values})]
        return list(tables.targets([one], used, steps(with_dcd), sizes(power))["met"])

    # dense, ptwt, released, MSE; error; memory; step; two exponents. ptwt is 10 of 30 times slower.
    assert met(timed(), 2.0, 11.0, 1.1) == ["yes", "no", *["yes"] * 7]
    assert met(timed(error=1e-3), 2.1, 11.1, 1.2) == ["yes", "no", "yes", "yes", *["no"] * 5]
    unknown = met(timed(), float("nan"), 11.0, 1.0)
    assert unknown[5] == "no", "what was not measured was not met"


def test_every_limit_is_asked_of_a_grid_that_is_measured() -> None:
    measured = {(grid.name, grid.wavelet) for grid in command.FULL.grids}
    for limits in (tables.AT_LEAST, tables.AT_MOST):
        assert set(limits) <= measured
        assert {name for asked in limits.values() for name in asked} <= set(tables.RATIOS)
    assert command.FULL.remembered <= len(command.FULL.grids)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.5, "1234"), (99.97, "100"), (2.5, "2.5"), (0.012345, "0.0123"), (float("nan"), "")],
)
def test_numbers_are_shown_with_three_digits(value: float, text: str) -> None:
    assert tables.shown(value) == text


# --- the command --------------------------------------------------------------------------------

TABLES = [
    "choices",
    "cost",
    "levels",
    "machine",
    "memory",
    "ratios",
    "roofline",
    "sizes",
    "step",
    "targets",
    "times",
]


def test_a_quick_run_writes_every_table_and_the_figure(workspace: Path) -> None:
    asked = [sys.executable, "-W", "error", str(SCRIPT), "--quick", "--threads", "1"]
    done = subprocess.run(
        [*asked, "--device", "cpu"], cwd=PROJECT, capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    written = {path.relative_to(workspace).as_posix() for path in workspace.rglob("*.*")}
    expected = {f"results/smoke/loss-{name}.{kind}" for name in TABLES for kind in ("csv", "json")}
    assert written == expected | {"figures/smoke/loss-growth.svg"}

    found = {name: records.load("smoke", "loss", name) for name in TABLES}
    for name in TABLES:
        table = workspace / "results" / "smoke" / f"loss-{name}.csv"
        sidecar = json.loads(table.with_suffix(".json").read_text("utf-8"))
        assert sidecar["sha256"] == hashlib.sha256(table.read_bytes()).hexdigest()
        assert (sidecar["device"], sidecar["threads"]) == ("CPU, 1 thread", 1)
        assert sidecar["facts"]["cpu"]
        assert sidecar["facts"]["versions"]["torch"]
        assert str(table) in done.stdout

    times, plan = found["times"], command.QUICK
    names = [*contenders.contenders("db4", "batch"), "copy"]
    assert list(times["loss"]) == names * len(plan.grids)
    assert (times["low_ms"] <= times["time_ms"]).all()
    assert (times["time_ms"] <= times["high_ms"]).all()
    slow = times["loss"].isin(contenders.SLOW)
    assert set(times["rounds"][slow]) == {plan.seldom}
    assert set(times["rounds"][~slow]) == {plan.often}
    sidecar = json.loads((workspace / "results/smoke/loss-times.json").read_text("utf-8"))
    samples = sidecar["samples_ms"]["CPU, 1 thread"]["1×2×16³ db4"]
    middle = times["time_ms"][times["loss"] == "orthonormal"].iloc[0]
    assert np.median(samples["orthonormal"]) == pytest.approx(middle, rel=1e-3)

    assert list(found["cost"]["basis"]) == list(found["ratios"]["basis"]) == ["db4", "haar"]
    assert set(contenders.contenders("db4", "batch")) < set(found["memory"].columns)
    assert set(found["sizes"]["voxels"]) == {n**3 for n in plan.sizes}
    assert set(found["levels"]["levels"]) == set(plan.depths)
    assert len(found["step"]) == 4
    assert list(found["choices"]["choice"]) == ["as shipped", *command.changes(CPU)]
    (same,) = [
        row for row in found["targets"].to_dict("records") if "difference" in row["quantity"]
    ]
    assert same["met"] == "yes"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--threads", "0"], "at least 1"), (["--device", "cuda"], "--device cpu")],
)
def test_a_wrong_request_is_refused(arguments, words, capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(arguments) == 2
    assert words in capsys.readouterr().err


def test_the_description_names_what_is_written_and_who_takes_part() -> None:
    text = command.__doc__ or ""
    assert [name for name in TABLES if f"loss-{name} " not in text] == []
    assert [name for name in contenders.contenders("db4", "batch") if name not in text] == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_nothing_waits_and_tf32_takes_part() -> None:
    found = command.timed(command.QUICK.grids[0], command.QUICK, torch.device("cuda"))
    assert {"orthonormal, TF32", "orthonormal, graph"} < set(found.samples)
    assert max(found.loss_error, found.gradient_error) < 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_large_stages_need_two_sets_of_features_at_most() -> None:
    """As the gradient of plain MSE does there. Small ones are worked on whole, and need three."""
    for shape, most in [((2, 32, 96, 96, 96), 2.0), ((1, 32, 48, 48, 48), 3.2)]:
        grid, cuda = contenders.Grid(shape), torch.device("cuda")
        assert memory.extra_bytes(grid, "orthonormal", "batch", cuda) <= most * 4 * grid.values
