"""The comparison on a cluster: the same units by hand, by Snakemake, and on the page."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["tasks=[isles2022]", "methods=[feature-mse]", "frozen=[feature-mse]", "seeds=[0]"]
SNAKEMAKE = shutil.which("snakemake")
needs_snakemake = pytest.mark.skipif(
    SNAKEMAKE is None, reason="snakemake is not installed; pipx install snakemake"
)


def matrix(*arguments, settings=SMALL, **environment):
    command = [sys.executable, str(ROOT / "notebooks" / "matrix.py"), "--profile", "smoke"]
    given = [part for setting in settings for part in ("--set", setting)]
    return subprocess.run(
        [*command, *given, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def listed(settings=SMALL):
    return json.loads(matrix("list", settings=settings).stdout)


def test_the_units_are_those_of_the_page():
    found = listed()
    assert found["tasks"] == ["isles2022"]
    assert found["arms"] == ["undistilled", "feature-mse", "feature-mse frozen"]
    assert found["seeds"] == [0]
    assert listed(["methods=[]"])["arms"][1] == "dcd"  # empty: all of them


def test_another_parameter_makes_other_units_but_not_another_number_of_workers():
    key = listed()["key"]
    assert listed([*SMALL, "workers=1"])["key"] == key
    assert listed([*SMALL, "rival_steps=5"])["key"] != key


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prepare", "isles"), "error: task: got 'isles'.*Try: 'isles2022'"),
        (("tune", "isles2022", "feature_mse"), "error: arm: got 'feature_mse'.*Try: 'feature-mse'"),
        (("student", "isles2022", "feature-mse", "0"), "error: weight-of-.*was not measured"),
    ],
)
def test_a_unit_that_is_none_or_comes_too_early_is_refused(arguments, message, tmp_path):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    done = matrix(*arguments, DCD_ROOT=str(tmp_path))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert re.search(message, done.stderr), done.stderr


def check_weights(root, arms):
    """Each of the arms was tuned at the two strengths of the profile, and as it was published."""
    for arm in arms:
        fits = (root / "runs").glob(f"isles2022-{arm}-s1000-*/fit.json")
        weights = [json.loads(fit.read_text())["recipe"]["kd_peak"] for fit in fits]
        assert (len(weights), max(weights)) == (3, 1.0)


def test_tuning_an_arm_tries_its_published_weight_too(tmp_path):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    for unit in (("prepare", "isles2022"), ("tune", "isles2022", "feature-mse")):
        done = matrix(*unit, DCD_ROOT=str(tmp_path))
        assert done.returncode == 0, done.stderr
    check_weights(tmp_path, {"feature-mse"})


def snakemake(*arguments, root=ROOT):
    config = ["profile=smoke", f"python={sys.executable}", f"set={json.dumps(SMALL)}"]
    command = [str(SNAKEMAKE), "-s", "notebooks/Snakefile", *arguments, "--config", *config]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "DCD_ROOT": str(root), "PYTHONPATH": str(ROOT)},
    )


@needs_snakemake
def test_snakemake_runs_the_matrix_and_a_second_time_nothing(tmp_path):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    (tmp_path / "dcd_core").symlink_to(ROOT / "dcd_core")
    done = snakemake("--cores", "2", "students", root=tmp_path)
    assert done.returncode == 0, done.stderr
    runs = {path.name.rsplit("-", 1)[0] for path in (tmp_path / "runs").glob("isles2022-*-s0-*")}
    assert runs == {
        "isles2022-undistilled-s0",
        "isles2022-feature-mse-s0",
        "isles2022-feature-mse-frozen-s0",
    }
    check_weights(tmp_path, {"feature-mse", "feature-mse-frozen"})
    again = snakemake("--cores", "2", "students", root=tmp_path)
    assert "Nothing to be done" in again.stdout + again.stderr


@needs_snakemake
@pytest.mark.parametrize("cluster", ["slurm", "kubernetes"])
def test_the_cluster_profiles_plan_the_same_jobs(cluster):
    done = snakemake("--profile", f"notebooks/cluster/{cluster}", "-n")
    said = done.stdout + done.stderr
    if "executor" in said and "invalid choice" in said:
        pytest.skip(f"snakemake-executor-plugin-{cluster} is not installed")
    assert done.returncode == 0, said
    counts = dict(line.split() for line in said.splitlines() if len(line.split()) == 2)
    assert (counts["prepare"], counts["tune"], counts["student"]) == ("1", "2", "3")
