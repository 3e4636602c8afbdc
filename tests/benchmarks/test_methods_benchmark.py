"""The benchmark of the methods: all are timed, and one that cannot be measured stops no other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dcd_core.methods import METHODS
from dcd_lab import records

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = PROJECT / "benchmarks" / "methods.py"
sys.path.insert(0, str(SCRIPT.parent))

import memory  # noqa: E402
import methods as benchmark  # noqa: E402

needs_record = pytest.mark.skipif(not memory.CLEAR.exists(), reason="peaks are read on Linux only")


@pytest.mark.slow
def test_a_quick_benchmark_writes_its_table(workspace):
    asked = [sys.executable, "-W", "error", str(SCRIPT), "--quick", "--threads", "1"]
    done = subprocess.run(asked, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = records.load("smoke", "methods", "cost").set_index("method")
    path = workspace / "results" / "smoke" / "methods-cost.csv"
    sidecar = json.loads(path.with_suffix(".json").read_text("utf-8"))
    assert list(table.index) == list(METHODS)
    assert (table["low_ms"] <= table["time_ms"]).all()
    assert (table["time_ms"] <= table["high_ms"]).all()
    assert table.loc["feature-mse", "over_mse"] == 1
    assert {len(samples) for samples in sidecar["samples_ms"].values()} == {benchmark.QUICK.rounds}
    assert sidecar["failed"] == {}
    assert set(table["threads"]) == {1}
    if memory.CLEAR.exists():
        measured = table.dropna(subset=["peak_mib"])
        assert sorted(measured.index) == sorted(benchmark.QUICK.measured)
        # What was asked for at least: the gradients of the student's features.
        assert measured.loc["feature-mse", "over_features"] > 1
        expected = measured["over_features"] * sidecar["student_mib"]
        np.testing.assert_allclose(measured["peak_mib"], expected, rtol=0.01)


def test_a_patch_has_a_student_of_a_quarter_and_every_class():
    patch = benchmark.noise(benchmark.QUICK, 16)
    assert [s.shape[1:3] for s in patch.teacher.stages] == [(32, 16), (64, 8), (64, 4)]
    assert [s.shape[1] for s in patch.student.stages] == [8, 16, 16]
    assert all(x.requires_grad for x in (patch.student.logits, *patch.student.stages))
    assert not any(x.requires_grad for x in (patch.teacher.logits, *patch.teacher.stages))
    assert set(patch.target.unique().tolist()) == set(range(5))


@needs_record
@pytest.mark.slow
def test_a_method_that_cannot_be_measured_is_reported_and_stops_no_other():
    quick = benchmark.QUICK._replace(measured=("nobody", "logits"))
    needed, failed = benchmark.peaks(quick, 1)
    assert list(needed) == ["logits"]
    assert "nobody" in failed["nobody"]
    needed, failed = benchmark.peaks(quick._replace(measured=("logits",)), 1, limit=1 << 20)
    assert not needed
    assert "memory" in failed["logits"].lower()


def test_a_wrong_number_of_threads_is_refused(capsys):
    assert benchmark.main(["--quick", "--threads", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err
