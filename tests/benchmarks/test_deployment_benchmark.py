"""The benchmark of what ships: every contender that can run, and what is missing for the rest."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from dcd_lab import records

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = PROJECT / "benchmarks" / "deployment.py"
PACKAGES = ("nncf", "onnx", "onnxruntime", "onnxscript", "openvino")
ABSENT = [name for name in PACKAGES if find_spec(name) is None]


@pytest.mark.slow
def test_a_quick_benchmark_writes_its_table_and_says_what_is_missing(workspace):
    asked = [sys.executable, "-W", "error", str(SCRIPT), "--quick", "--threads"]
    wrong, done = (
        subprocess.run([*asked, threads], cwd=PROJECT, capture_output=True, text=True)
        for threads in ("0", "1")
    )
    assert (wrong.returncode, done.returncode) == (2, 0), done.stderr
    assert "at least 1" in wrong.stderr
    table = records.load("smoke", "deployment", "cost")
    path = workspace / "results" / "smoke" / "deployment-cost.csv"
    sidecar = json.loads(path.with_suffix(".json").read_text("utf-8"))
    pruned = find_spec("torch_pruning") is not None
    assert len(table) == 2 + pruned + (0 if ABSENT else 4)
    assert len(sidecar["missing"]) == (not pruned) + bool(ABSENT)
    assert all(line in done.stdout for line in sidecar["missing"])
    assert (table["low_ms"] <= table["time_ms"]).all()
    assert (table["time_ms"] <= table["high_ms"]).all()
    assert set(table["threads"]) == {1}
    assert {len(samples) for samples in sidecar["samples_ms"].values()} == {2}
    student = table[table["network"] == "student"]
    weights = 4 * student["parameters"].iloc[0] / 2**20
    assert weights < student["size_mib"].iloc[0] < weights + 0.01, "of its own file alone"
    assert student["parameters"].nunique() == 1
    if pruned:
        [cut] = table.loc[table["network"] == "pruned teacher", "parameters"]
        assert cut == pytest.approx(student["parameters"].iloc[0], rel=0.05)
