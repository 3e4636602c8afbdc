"""The sweep: every method with a weight chosen alike; its units by hand and by Snakemake."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import sweep as command
import torch
from jobs import RECIPE, STUDENT, TEACHER, make_cohort
from torch import nn
from training import Batches, distiller

from dcd_core import methods
from dcd_core.train import Recipe
from dcd_core.train.balance import encoder_parameters, gradient_ratio
from dcd_core.types import ContractError
from dcd_lab.experiments import Study, Sweep, arms, running, scores
from dcd_lab.experiments.calibration import equal_weight
from dcd_lab.records.seals import seal

DIVERGING = 1e39
"""More than float32 holds."""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A sweep that was run; of its published weights, one is far from all and one diverges."""
    root = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCD_ROOT", str(root))
        patch.setattr(methods.METHODS["feature-mse"], "weight", 1e3)
        patch.setattr(methods.METHODS["logits"], "weight", DIVERGING)
        cohort = make_cohort(root / "cases")
        study = Study("tiny", cohort, RECIPE, TEACHER, STUDENT, teacher_floor=0.0)
        chosen = arms(["feature-mse", "logits"], frozen=["feature-mse"])
        options = {"relative_weights": (0.1, 0.5), "warm_steps": 4, "batches": 2}
        made = Sweep(study, chosen, (0, 1), steps=6, **options)
        made.run()
        yield made


def dice(job, value):
    """Keep another Dice on the val cases."""
    kept = json.loads(job.threshold_file.read_text("utf-8"))
    job.threshold_file.write_text(json.dumps({**kept, "val_dice": value}), "utf-8")
    seal(job.folder, job.threshold_file.name)


def test_every_arm_has_the_same_budget(sweep):
    compared = sweep.run()
    assert len(compared) == 2 * (1 + 3)
    plain, *distilled = (job.recipe for job in compared[::2])
    for recipe in distilled:
        assert recipe.kd_balance == "fixed"
        assert dataclasses.replace(recipe, kd_balance=plain.kd_balance, kd_peak=0.2) == plain
    assert {job.recipe.steps for job in compared} == {6}
    table = scores(compared)
    assert set(table.method) == {"undistilled", *sweep.arms}
    assert sorted(set(table.seed)) == [0, 1]


def test_the_val_cases_choose_on_a_seed_that_is_not_compared(sweep):
    for arm in sweep.arms:
        candidates = sweep.candidates(arm)
        for relative, job in candidates.items():
            assert (job.recipe.seed, job.table("scores").exists()) == (1000, False)
            assert job.recipe.kd_peak == pytest.approx(relative * sweep.unit_weight(arm))
        best = max(candidates.values(), key=lambda job: job.result().val_dice)
        assert sweep.student(arm, 1).recipe.kd_peak == sweep.weight(arm) == best.recipe.kd_peak
    assert sweep.choices().groupby("method").chosen.sum().tolist() == [1, 1, 1]


def test_another_dice_on_the_val_cases_is_another_choice(sweep):
    small, large = sweep.candidates("logits").values()
    before = small.val_dice, large.val_dice
    for first, second, chosen in ((1.0, 0.0, small), (0.0, 1.0, large)):
        dice(small, first)
        dice(large, second)
        assert sweep.weight("logits") == chosen.recipe.kd_peak
    dice(small, before[0])
    dice(large, before[1])


def test_relative_weights_are_followed_through_training(sweep):
    table = sweep.by_quarter()
    assert table.shape == (3, 4)
    assert (table[1.0] > 0).all()
    histories = [sweep.student("logits", seed).result().history for seed in (0, 1)]
    last = pd.concat(histories).query("step > 4.5").relative_weight.median()
    assert table.loc["logits", 1.0] == pytest.approx(last)


@pytest.mark.parametrize(
    ("factor", "tried"), [(0.26, False), (0.24, True), (4.6, True), (math.nan, False)]
)
def test_a_published_weight_is_tried_if_more_than_threefold_from_all_others(
    factor, tried, sweep, monkeypatch
):
    sweep = dataclasses.replace(sweep, relative_weights=(0.75, 1.5))
    weight = factor * sweep.unit_weight("logits")
    monkeypatch.setattr(methods.METHODS["logits"], "weight", weight)
    job = sweep.published_job("logits")
    assert (job is not None) == tried
    if job is not None:
        like = sweep.candidates("logits")[1.5]
        recipe = dataclasses.replace(like.recipe, kd_peak=weight)
        assert job == dataclasses.replace(like, recipe=recipe)


def test_published_weights_are_reported_but_never_chosen(sweep):
    job, weight = sweep.published_job("feature-mse"), sweep.weight("feature-mse")
    before = job.val_dice
    dice(job, 1.0)  # the best by far
    table = sweep.published().set_index("method")
    assert table.loc["feature-mse"].tolist() == [1e3, True, 1.0]
    assert not job.table("scores").exists()
    assert sweep.weight("feature-mse") == weight
    assert 1e3 not in sweep.choices().weight.tolist()
    assert table.loc["logits"].tolist()[:2] == [DIVERGING, True]
    assert math.isnan(table.loc["logits"].val_dice), "training diverged, and stopped nothing"
    dice(job, before)


@pytest.mark.parametrize("error", [FloatingPointError("of other origin"), ContractError(*"abcd")])
def test_other_errors_at_a_published_weight_are_not_hidden(error, sweep, monkeypatch):
    monkeypatch.setattr(methods.METHODS["logits"], "weight", 2e3)
    published = sweep.published_job("logits")

    def fail(job):
        if job == published:
            raise error

    monkeypatch.setattr(running, "run", fail)
    with pytest.raises(type(error)):
        sweep.choose(["logits"])


def test_a_candidate_that_diverges_is_an_error(sweep):
    with pytest.raises(FloatingPointError):
        dataclasses.replace(sweep, relative_weights=(DIVERGING,)).choose(["logits"])


def test_a_second_run_of_a_sweep_trains_nothing(sweep):
    folder = sweep.study.teacher().folder.parent
    written = {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}
    assert all(job.done for job in sweep.run())
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")} == written


def test_what_a_sweep_cannot_be_is_refused(sweep):
    for changes, message in (
        ({"val_seed": 1}, "val_seed: got 1"),
        ({"arms": {"undistilled": {}}}, "arms"),
    ):
        with pytest.raises(ContractError, match=message):
            dataclasses.replace(sweep, **changes)
    with pytest.raises(ContractError, match="arm: got 'at'"):
        sweep.candidates("at")


def test_arms_are_methods_and_methods_with_frozen_adapters():
    assert arms(["at", "dcd"], frozen=["dcd", "fitnets"]) == {
        "at": {"method": "at"},
        "dcd": {"method": "dcd"},
        "dcd frozen": {"method": "dcd", "projection": "frozen"},
        "fitnets frozen": {"method": "fitnets", "adapters": "frozen"},
    }
    assert list(arms([])) == list(methods.METHODS)
    with pytest.raises(ContractError, match="frozen: got 'at'; expected a method with adapters"):
        arms([], frozen=["at"])


def test_no_option_of_a_method_is_a_field_of_the_recipe():
    fields = {field.name for field in dataclasses.fields(Recipe)}
    assert not fields & {option for name in methods.METHODS for option in methods.options_of(name)}


# --- units for many machines ----------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["tasks=[isles2022]", "methods=[feature-mse]", "frozen=[feature-mse]", "seeds=[0]"]
UNDISTILLED = "undistilled"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A project folder with the notebooks and nothing else."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    monkeypatch.setenv("DCD_ROOT", str(tmp_path))
    return tmp_path


def unit(*arguments, settings=SMALL):
    given = [part for setting in settings for part in ("--set", setting)]
    return command.main(["--profile", "smoke", *given, *arguments])


def test_the_units_are_those_of_the_page(checkout, capsys):
    def listed(settings):
        assert unit("list", settings=settings) == 0
        return json.loads(capsys.readouterr().out)

    found = listed(SMALL)
    assert (found["tasks"], found["seeds"]) == (["isles2022"], [0])
    assert found["arms"] == [UNDISTILLED, "feature-mse", "feature-mse frozen"]
    assert listed(["methods=[]"])["arms"][1] == "dcd"
    assert listed([*SMALL, "workers=1"])["key"] == found["key"]
    assert listed([*SMALL, "student_steps=5"])["key"] != found["key"]


@pytest.mark.slow
def test_units_that_are_none_or_come_too_early_are_refused_and_others_run(checkout, capsys):
    arm = ("isles2022", "feature-mse")
    for arguments, message in (
        (("prepare", "isles"), "error: task: got 'isles'"),
        (("choose", "isles2022", "feature_mse"), "error: arm: got 'feature_mse'"),
        (("student", *arm, "0"), "error: training run: got no finished run"),
    ):
        assert unit(*arguments) == 2
        assert re.search(message, capsys.readouterr().err)
    for arguments in (("prepare", "isles2022"), ("choose", *arm), ("student", *arm, "0")):
        assert unit(*arguments) == 0
    check_weights(checkout, {"feature-mse"})
    assert list((checkout / "runs").glob("isles2022-feature-mse-s0-*/scores-*.csv"))


def check_weights(root, arms):
    """Each of the arms has the two candidates of the profile, and its published weight."""
    for arm in arms:
        fits = (root / "runs").glob(f"isles2022-{arm}-s1000-*/fit.json")
        weights = [json.loads(fit.read_text())["recipe"]["kd_peak"] for fit in fits]
        assert len(weights) == 3


def snakemake(*arguments, root):
    program = shutil.which("snakemake")
    if program is None:
        pytest.skip("snakemake is not installed; pipx install snakemake")
    config = ["profile=smoke", f"python={sys.executable}", f"set={json.dumps(SMALL)}"]
    done = subprocess.run(
        [program, "-s", "notebooks/Snakefile", *arguments, "--config", *config],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "DCD_ROOT": str(root), "PYTHONPATH": str(ROOT)},
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_snakemake_runs_the_sweep_and_a_second_time_nothing(checkout):
    for room in ("dcd_core", "dcd_lab"):
        (checkout / room).symlink_to(ROOT / room)
    code, said = snakemake("--cores", "2", "students", root=checkout)
    assert code == 0, said
    runs = {path.name.rsplit("-", 1)[0] for path in (checkout / "runs").glob("isles2022-*-s0-*")}
    students = (UNDISTILLED, "feature-mse", "feature-mse-frozen")
    assert runs == {f"isles2022-{arm}-s0" for arm in students}
    check_weights(checkout, {"feature-mse", "feature-mse-frozen"})
    assert "Nothing to be done" in snakemake("--cores", "2", "students", root=checkout)[1]


def test_equal_weight_is_the_median_ratio_and_trains_nothing():
    made, batches = distiller(), Batches()
    before = [p.detach().clone() for p in made.trainable()]
    weight = equal_weight(made, batches, batches=3)
    encoder = encoder_parameters(made.student, batches[0][0])
    each = [gradient_ratio(*made(*batches[i], distil=True), encoder) for i in range(3)]
    assert weight == pytest.approx(sorted(each)[1])
    assert all(torch.equal(a, b) for a, b in zip(before, made.trainable(), strict=True))


def test_a_method_without_a_gradient_has_no_equal_weight():
    class Silent(nn.Module):
        def forward(self, student, teacher, target):
            return 0 * student.stages[0].sum()

    with pytest.raises(ContractError, match="zero on all of 2 batches"):
        equal_weight(distiller(Silent()), Batches(), batches=2)


def test_a_gradient_that_is_not_finite_gives_no_weight():
    class Broken(nn.Module):
        def forward(self, student, teacher, target):
            return math.nan * student.stages[0].sum()

    with pytest.raises(ContractError, match="one that is not finite"):
        equal_weight(distiller(Broken()), Batches(), batches=3)
