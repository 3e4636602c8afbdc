"""Peers are what they are called; every benchmark runs on little data and writes its tables."""

import json
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import pywt
import torch
from golden import RELEASED, assert_stored
from outputs import drawn as noise

from dcd_core.dcd import PUBLISHED
from dcd_core.methods import METHODS
from dcd_lab import records

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER))

import contenders  # noqa: E402
import deployment  # noqa: E402
import loss  # noqa: E402
import measure  # noqa: E402
import memory  # noqa: E402
import methods  # noqa: E402
import metrics  # noqa: E402
import peers  # noqa: E402
import shipping  # noqa: E402
import tables  # noqa: E402

DEPLOY = ("nncf", "onnx", "onnxruntime", "onnxscript", "openvino")


@pytest.mark.parametrize("layout", loss.LAYOUTS)
@pytest.mark.parametrize("path", RELEASED, ids=lambda path: path.stem)
def test_the_dense_peer_is_the_released_loss(path, layout):
    distance = partial(peers.dense_distance, layout=layout)
    assert_stored(path, distance, dtype=torch.float64, tolerance=1e-6)


def test_the_ptwt_peer_sums_the_coefficients_of_pywavelets():
    student, teacher = noise(2, 3, 12, 13, 16), noise(2, 3, 12, 13, 16, seed=1)
    difference, levels = (student - teacher).numpy(), 2
    _, *details = pywt.wavedecn(difference, "db2", mode="zero", level=levels, axes=(2, 3, 4))
    sizes = [details[-1]["ddd"].size, difference.size]
    energies = [sum((level[band] ** 2).sum() for band in PUBLISHED) for level in details]
    expected = sum(energy / size for energy, size in zip(energies, sizes, strict=True)) / levels
    found = peers.ptwt_distance(student, teacher, wavelet="db2", levels=levels)
    assert found.item() == pytest.approx(expected, rel=1e-10)


def test_work_counts_products_and_what_operators_read_and_write():
    a, b = torch.ones(2, 3), torch.ones(3, 5)
    out, total = torch.empty(2, 5), torch.zeros(2, 5)
    assert measure.work(lambda: a @ b) == (4 * (6 + 15 + 10), 60)
    assert measure.work(lambda: torch.mm(a, b, out=out)) == (4 * (6 + 15 + 10), 60)
    assert measure.work(lambda: total.add_(out)) == (4 * 30, 0)
    assert measure.work(lambda: a.view(3, 2).T[:1].detach()) == (0, 0)


def timed():
    ms = {"plain MSE": [3.0, 4.0, 5.0], "orthonormal": [9.0, 8.0, 7.0], "released": [16.0]}
    ms |= {"ptwt": [80.0], "dense": [480.0], "copy": [2.0]}
    grid = contenders.Grid((1, 32, 48, 48, 48))
    work = {name: measure.Work(28 * grid.values, 10**6) for name in ms if name != "copy"}
    return tables.Timed(grid, ms, work, "batch", 0.0, 0.0)


def test_ratios_are_ratios_of_medians():
    (ratios,) = tables.ratios([timed()], "CPU, 2 threads")
    on_cpus = [name for name in tables.RATIOS if "graphs" not in name]
    assert [ratios[name] for name in on_cpus] == ["60", "10", "2", "30"]
    on_gpu = timed()
    on_gpu.samples.update({"plain MSE, graph": [1.0], "orthonormal, graph": [3.0]})
    assert tables.ratios([on_gpu], "a GPU")[0]["orthonormal / MSE, graphs"] == "3"
    (times,) = tables.graphs([on_gpu])
    assert (times["orthonormal (ms)"], times["orthonormal, graph (ms)"]) == ("8", "3")
    (times,) = tables.cost([on_gpu], "a GPU")
    assert not any("graph" in name or "copy" in name for name in times)


def quick(name, *options):
    """What a benchmark prints, run quickly in a process of its own, where warnings are errors."""
    command = [sys.executable, "-W", "error", str(FOLDER / f"{name}.py"), "--quick", *options]
    done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def sidecar(workspace, name):
    path = workspace / "results" / "smoke" / f"{name}.json"
    return json.loads(path.read_text("utf-8"))


def assert_ordered(table):
    assert (table["low_ms"] <= table["time_ms"]).all()
    assert (table["time_ms"] <= table["high_ms"]).all()


@pytest.mark.slow
def test_the_loss(workspace):
    quick("loss", "--threads", "1", "--device", "cpu")
    assert (workspace / "figures" / "smoke" / "loss-growth.svg").exists()
    named = [line.split()[0] for line in loss.__doc__.splitlines() if "<out>/loss-" in line]
    names = {name.removeprefix("results/<out>/loss-") for name in named} - {"graphs"}
    found = {name: records.load("smoke", "loss", name) for name in names}
    assert list(found["times"]["loss"]) == [*contenders.contenders("db4", "batch"), "copy"] * 2
    assert_ordered(found["times"])
    met = found["targets"].set_index("quantity")["met"]
    assert met[met.index.str.contains("difference")].item() == "yes"


@pytest.mark.slow
def test_the_methods(workspace):
    quick("methods", "--threads", "1")
    table = records.load("smoke", "methods", "cost").set_index("method")
    said = sidecar(workspace, "methods-cost")
    assert list(table.index) == list(METHODS)
    assert_ordered(table)
    assert table.loc["feature-mse", "over_mse"] == 1
    assert said["failed"] == {}
    if memory.CLEAR.exists():
        measured = table.dropna(subset=["peak_mib"])
        assert sorted(measured.index) == sorted(methods.QUICK.measured)
        # What was asked for at least: the gradients of the student's features.
        assert measured.loc["feature-mse", "over_features"] > 1
        expected = measured["over_features"] * said["student_mib"]
        np.testing.assert_allclose(measured["peak_mib"], expected, rtol=0.01)


@pytest.mark.slow
def test_the_deployment(workspace):
    """Every contender that can run, and what is missing for the rest."""
    said = quick("deployment", "--threads", "1")
    table, kept = records.load("smoke", "deployment", "cost"), sidecar(workspace, "deployment-cost")
    absent = [name for name in DEPLOY if find_spec(name) is None]
    pruned = find_spec("torch_pruning") is not None
    assert len(table) == 2 + pruned + (0 if absent else 4)
    assert len(kept["missing"]) == (not pruned) + bool(absent)
    assert all(line in said for line in kept["missing"])
    assert_ordered(table)
    student = table[table["network"] == "student"]
    weights = 4 * student["parameters"].iloc[0] / 2**20
    assert weights < student["size_mib"].iloc[0] < weights + 0.01, "of its own file alone"


@pytest.mark.slow
@pytest.mark.skipif(any(find_spec(name) is None for name in DEPLOY), reason="needs [deploy]")
def test_what_ships(checkout):
    """Every route is timed and scored; PyTorch predicts here what the record says of it."""
    quick("shipping", "--threads", "1")
    time, dice, graphs = (records.load("smoke", "shipping", n) for n in ("time", "dice", "graphs"))
    # One thread computes nothing abreast.
    both, more = (
        sum(not route.abreast for route in routes)
        for routes in (shipping.ROUTES, shipping.STUDENTS)
    )
    assert list(time.network.value_counts()) == [both + more, both]
    assert (time.seconds <= time.seconds_p95).all()
    assert (
        dice.groupby(["network", "runtime", "precision", "abreast", "window"]).size().nunique() == 1
    )
    assert graphs.graph.nunique() == 2, "one of the teacher, one of both students"
    job = shipping.networks("smoke")["DCD"]
    assert len(dice[dice.network == "DCD"]) == len(job.cohort.test) * int(
        time.network.eq("DCD").sum()
    )
    plain = shipping.Contender(job, shipping.ROUTES[0], job.result().student, job.folder)
    assert plain.windows((24, 24, 24)) == 8  # two along each axis
    np.testing.assert_allclose(shipping.predicted(plain).dice, job.read().dice, atol=1e-6)


@pytest.mark.slow
def test_the_preparation(workspace):
    quick("preparation")
    table = records.load("smoke", "preparation", "times").set_index("step")
    assert list(table.index) == ["nibabel", "read", "prepare", "resampled", "keep"]
    assert table.loc["nibabel", "over_nibabel"] == 1
    assert (table.time_ms > 0).all()


@pytest.mark.slow
def test_the_training_step(checkout):
    quick("steps")
    table = records.load("smoke", "training", "step").set_index("arm")
    assert list(table.index) == ["undistilled", "DCD"]
    assert table.loc["undistilled", "over_undistilled"] == 1
    assert_ordered(table)


@pytest.mark.slow
def test_the_trajectory(checkout):
    """Both students begin as one network, and are followed to their last step."""
    quick("trajectory")
    table = records.load("smoke", "training", "trajectory")
    shares = table.pivot(index=["step", "part"], columns="network", values="explained")
    assert shares.index.get_level_values("step").max() == 6
    np.testing.assert_allclose(shares.loc[0, "DCD"], shares.loc[0, "undistilled"])
    assert (shares < 1).all(axis=None)


def test_the_metrics(workspace):
    assert metrics.main(["--quick"]) == 0
    times = records.load("smoke", "metrics", "times")
    assert list(times.contender) == ["dcd_core", "whole volume", "dcd_core"]
    assert set(times.loc[times.contender == "dcd_core", "over_dcd_core"]) == {1.0}
    with pytest.raises(RuntimeError, match="WT"):  # contenders that differ are not timed
        metrics.agree([{"region": "WT", "fp": 1}], [{"region": "WT", "fp": 2}])


@pytest.mark.parametrize(
    ("benchmark", "options", "words"),
    [
        (loss, ["--threads", "0"], "at least 1"),
        (loss, ["--device", "cuda"], "--device cpu"),
        (methods, ["--quick", "--threads", "0"], "at least 1"),
        (deployment, ["--quick", "--threads", "0"], "at least 1"),
        (shipping, ["--quick", "--threads", "0"], "at least 1"),
    ],
)
def test_a_wrong_request_is_refused(benchmark, options, words, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmark.main(options) == 2
    assert words in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_nothing_waits_tf32_takes_part_and_large_stages_need_two_sets_of_features():
    cuda = torch.device("cuda")
    found = loss.timed(loss.QUICK.grids[0], loss.QUICK, cuda)
    assert {"orthonormal, TF32", "orthonormal, graph"} < set(found.samples)
    assert max(found.loss_error, found.gradient_error) < 1e-4
    # As the gradient of plain MSE does there. Small ones are worked on whole, and need three.
    for shape, most in [((2, 32, 96, 96, 96), 2.0), ((1, 32, 48, 48, 48), 3.2)]:
        grid = contenders.Grid(shape)
        assert memory.extra_bytes(grid, "orthonormal", "batch", cuda) <= most * 4 * grid.values
