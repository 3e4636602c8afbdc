"""Every benchmark runs whole on little data, writes the tables it names and refuses nonsense."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from dcd_core.methods import METHODS
from dcd_lab import records

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER))

import contenders  # noqa: E402
import deployment  # noqa: E402
import loss  # noqa: E402
import memory  # noqa: E402
import methods  # noqa: E402
import metrics  # noqa: E402

DEPLOY = ("nncf", "onnx", "onnxruntime", "onnxscript", "openvino")


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


@pytest.mark.skipif(not memory.CLEAR.exists(), reason="peaks are read on Linux only")
@pytest.mark.slow
def test_a_method_that_cannot_be_measured_is_reported_and_stops_no_other():
    of_both = methods.QUICK._replace(measured=("nobody", "logits"))
    needed, failed = methods.peaks(of_both, 1)
    assert list(needed) == ["logits"]
    assert "nobody" in failed["nobody"]
    needed, failed = methods.peaks(of_both._replace(measured=("logits",)), 1, limit=1 << 20)
    assert not needed
    assert "memory" in failed["logits"].lower()


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
def test_the_preparation(workspace):
    quick("preparation")
    table = records.load("smoke", "preparation", "times").set_index("step")
    assert list(table.index) == ["nibabel", "read", "prepare", "resampled", "keep"]
    assert table.loc["nibabel", "over_nibabel"] == 1
    assert (table.time_ms > 0).all()


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
    ],
)
def test_a_wrong_request_is_refused(benchmark, options, words, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmark.main(options) == 2
    assert words in capsys.readouterr().err
