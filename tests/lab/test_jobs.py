"""Jobs: runs described as data, found again by content, several at a time."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dcd_core import methods
from dcd_core.train import Recipe
from dcd_core.types import ISLES, Case, ContractError
from dcd_lab.data import Cohort, read, write
from dcd_lab.data.prediction import predict_case
from dcd_lab.experiments import (
    Calibration,
    Job,
    Matrix,
    Study,
    arms,
    calibration,
    check_teacher,
    evaluate,
    histories,
    lesions,
    measure,
    run,
    run_all,
    scores,
)
from dcd_lab.experiments import (
    job as jobs,
)
from dcd_lab.experiments import sweep as matrix_module
from dcd_lab.experiments.pool import at_work
from dcd_lab.metrics import score

RECIPE = Recipe(
    steps=12,
    patch=(8, 8, 8),
    warmup=2,
    learning_rate=1e-2,
    ema=0.5,
    kd_start=0.0,
    kd_ramp=0.5,
    precision="32-true",
    foreground=0.5,
)
IDS = [f"sub-strokecase000{number}" for number in range(1, 6)]


def make_case(seed, id, *, lesion=True):
    """A block of tissue in which the lesion is bright on DWI and dark on ADC."""
    rng = np.random.default_rng(seed)
    image = np.zeros((3, 14, 14, 14), np.float32)
    image[:, 2:12, 2:12, 2:12] = 1 + 0.1 * rng.standard_normal((3, 10, 10, 10), dtype=np.float32)
    label = np.zeros((14, 14, 14), np.uint8)
    if lesion:
        i, j, k = rng.integers(2, 8, 3)
        label[i : i + 4, j : j + 4, k : k + 4] = 1
    image[0] += label
    image[1] -= 0.5 * label
    return Case(id, image, label, (2.0, 2.0, 2.0), np.diag([2.0, 2.0, 2.0, 1.0]))


@pytest.fixture
def cohort(tmp_path, monkeypatch):
    monkeypatch.setenv("DCD_ROOT", str(tmp_path))
    folder = tmp_path / "cases"
    write([make_case(seed, id) for seed, id in enumerate(IDS)], folder, task=ISLES)
    return Cohort(
        ISLES.name, folder, tuple(IDS[:3]), (IDS[3],), (IDS[4],), None, f"tiny-{tmp_path.name}"
    )


def make_job(cohort, label="plain", **options):
    given = {"model": {"architecture": "dynunet", "channels": [4, 4, 8]}, "recipe": RECIPE}
    return Job(label, cohort, **{**given, **options})


def distilled(cohort, **options):
    teacher = make_job(cohort, "teacher", model={"architecture": "dynunet", "channels": [6, 6, 8]})
    given = {"method": "dcd", "options": {"wavelet": "haar"}, "teacher": teacher}
    return make_job(cohort, "dcd", **{**given, "teacher_floor": 0.0, **options})


# --- identity -------------------------------------------------------------------------------------

OTHER = {
    "steps": 13,
    "seed": 1,
    "patch": (8, 8, 4),
    "batch": 3,
    "foreground": 0.4,
    "optimizer": "sgd",
    "learning_rate": 2e-2,
    "weight_decay": 0.0,
    "schedule": "poly",
    "warmup": 3,
    "clip": 1.0,
    "ema": 0.6,
    "kd_peak": 0.3,
    "kd_start": 0.1,
    "kd_ramp": 0.4,
    "kd_balance": "fixed",
    "kd_prepare": 3,
    "deep_weights": 0.4,
    "overlap": 0.5,
    "precision": "auto",
    "channels_last": True,
    "checkpoint_every": 100,
}


def test_every_recipe_field_changes_the_identity(cohort):
    assert OTHER.keys() == {field.name for field in dataclasses.fields(Recipe)}
    one = make_job(cohort).identity
    others = {
        make_job(cohort, recipe=dataclasses.replace(RECIPE, **{field: value})).identity
        for field, value in OTHER.items()
    }
    assert len(others | {one}) == len(OTHER) + 1


def test_all_that_decides_the_weights_changes_the_identity(cohort):
    job = distilled(cohort)
    changed = [
        dataclasses.replace(job, model={"architecture": "dynunet", "channels": [4, 4, 6]}),
        dataclasses.replace(job, method="none"),
        dataclasses.replace(job, options={"wavelet": "db2"}),
        dataclasses.replace(job, teacher=make_job(cohort, "teacher")),
        dataclasses.replace(job, cohort=dataclasses.replace(cohort, identity="other")),
    ]
    assert len({each.identity for each in [job, *changed]}) == 6


def test_the_identity_knows_neither_place_nor_name(cohort, tmp_path, monkeypatch):
    job = distilled(cohort)
    moved = dataclasses.replace(cohort, folder=tmp_path / "elsewhere")
    assert dataclasses.replace(job, cohort=moved).identity == job.identity
    assert dataclasses.replace(job, label="x", arm="y", teacher_floor=0.9).identity == job.identity
    folder = job.folder
    monkeypatch.setenv("DCD_ROOT", str(tmp_path / "elsewhere"))
    assert job.folder == tmp_path / "elsewhere" / "runs" / folder.name
    assert folder.name == f"dcd-{folder.name[4:]}"


def test_the_source_of_what_trains_counts_and_of_what_tests_names_the_table(cohort, monkeypatch):
    job, asked = make_job(cohort), []
    identity, table = job.identity, job.table("scores")
    monkeypatch.setattr(jobs, "source_hash", lambda *names: asked.append(names) or "changed")
    assert job.identity != identity
    assert job.table("scores").name != table.name
    assert {"wavelet", "dcd", "models", "data", "train.loop", "train.jobs"} <= set(asked[0])
    assert ("infer", "metrics", "train.evaluation") in asked


# They choose what stands in a job, when and where it runs, and score what it trained.
OTHERS = ("__init__", "calibration", "evaluation", "matrix", "study", "workers")


def test_every_file_of_train_decides_weights_or_is_known_not_to():
    package = Path(jobs.__file__).parent
    names = [file.relative_to(package).with_suffix("").parts for file in package.rglob("*.py")]
    deciding = [name for name in jobs.TRAINING if name.startswith("train")]
    others = [f"train.{name}" for name in OTHERS]
    assert sorted([*deciding, *others]) == sorted(".".join(("train", *name)) for name in names)


def test_a_new_method_retrains_no_student_without_one(cohort, monkeypatch):
    asked = []
    monkeypatch.setattr(jobs, "source_hash", lambda *names: asked.append(names) or "changed")
    for job, has_method in ((make_job(cohort), False), (distilled(cohort), True)):
        asked.clear()
        assert job.identity
        assert ("rivals" in asked[-1]) == has_method


# What of a job's recipe decides the weight that is measured.
MEASURED = ("seed", "patch", "batch", "foreground", "kd_prepare", "deep_weights")


def test_a_measured_weight_is_named_by_what_decides_it(cohort):
    job, warmed = distilled(cohort), make_job(cohort, "warmed")

    def other(**fields):
        return Calibration(dataclasses.replace(job, **fields), warmed).folder

    def recipe(field):
        return dataclasses.replace(RECIPE, **{field: OTHER[field]})

    changed = [
        other(cohort=dataclasses.replace(cohort, identity="other")),
        other(options={"wavelet": "db2"}),
        other(teacher=make_job(cohort, "teacher")),
        *(other(recipe=recipe(field)) for field in MEASURED),
        Calibration(job, make_job(cohort, "warmed", recipe=recipe("steps"))).folder,
        Calibration(job, warmed, batches=3).folder,
    ]
    one = Calibration(job, warmed).folder
    assert len({one, *changed}) == 1 + len(changed)
    assert one == other(recipe=recipe("kd_peak")) == other(recipe=recipe("steps"))


def test_the_source_of_what_measures_and_of_the_method_counts(cohort, monkeypatch):
    one, asked = Calibration(distilled(cohort), make_job(cohort, "warmed")), []
    folder = one.folder
    monkeypatch.setattr(calibration, "source_hash", lambda *names: asked.append(names) or "changed")
    assert one.folder != folder
    assert {"train.calibration", "train.balance", "rivals"} <= set(asked[0])


def test_a_job_crosses_process_boundaries(cohort):
    job = distilled(cohort)
    again = pickle.loads(pickle.dumps(job))
    assert again == job
    assert again.folder == job.folder
    assert pickle.loads(pickle.dumps(make_job(cohort))).options == {}


# --- runs -----------------------------------------------------------------------------------------


def test_a_job_is_run_once_and_read_back(cohort, monkeypatch):
    job = make_job(cohort, arm="none")
    assert not job.done
    for unready in (job.read, job.result):
        with pytest.raises(ContractError):
            unready()
    folder = run(job)
    assert job.done
    assert folder == job.folder
    table = job.read()
    assert list(table.columns[:4]) == ["method", "seed", "case", "region"]
    assert table.loc[0, ["method", "seed", "case", "region"]].tolist() == [
        "none",
        0,
        IDS[4],
        "lesion",
    ]
    assert table["dice"].between(0, 1).all()
    found = job.read("lesions")
    assert list(found.columns) == ["method", "seed", "case", "lesion", "volume_ml", "dice"]
    assert found["volume_ml"].tolist() == [pytest.approx(64 * 8 / 1000)]
    monkeypatch.setattr(jobs, "fit", None)  # would fail if it were called
    assert run(job) == folder
    assert run_all([job]) == [job]


def test_a_network_that_is_scored_again_has_the_scores_of_its_job(cohort):
    job = make_job(cohort)
    run(job)
    fitted = job.result()
    again = evaluate(fitted.student, fitted.threshold, cohort, RECIPE)
    for table, name in ((again.scores, "scores"), (again.lesions, "lesions")):
        kept = job.read(name).drop(columns=["method", "seed"])
        pd.testing.assert_frame_equal(table, kept, rtol=1e-5, check_dtype=False)
    nothing = evaluate(fitted.student, 1.0, cohort, RECIPE).scores
    assert nothing["volume_pred_ml"].tolist() == [0.0]


@pytest.mark.parametrize("spacing_mm", [None, 3.0])
def test_scores_are_those_of_the_prediction_of_each_case(spacing_mm, cohort):
    """From prepared cases and labels alone, equal to reading and preparing the whole case."""
    cohort = dataclasses.replace(cohort, spacing_mm=spacing_mm, test=(IDS[4], IDS[2]))
    job = make_job(cohort)
    run(job)
    fitted = job.result()
    found = evaluate(fitted.student, fitted.threshold, cohort, RECIPE).scores
    options = {"spacing_mm": spacing_mm, "patch": RECIPE.patch, "overlap": RECIPE.overlap}
    for scan, row in zip(cohort.scans("test"), found.to_dict("records"), strict=True):
        case = read(scan)
        label = predict_case(
            fitted.student, case, ISLES, threshold=fitted.threshold, precision="32-true", **options
        )
        assert label.any()
        (expected,) = score(label, case.label, ISLES, case.spacing_mm)
        assert row["case"] == scan.id
        assert {key: row[key] for key in expected} == pytest.approx(expected, nan_ok=True)


def test_only_the_test_is_repeated_when_the_tests_source_changes(cohort, monkeypatch):
    job = make_job(cohort, recipe=dataclasses.replace(RECIPE, steps=2))
    run(job)
    weights = (job.folder / "student.safetensors").stat().st_mtime_ns
    job.table("scores").rename(job.folder / "scores-of-older-source.csv")
    assert not job.done
    for training in ("fit", "check_teacher", "build_method"):
        monkeypatch.setattr(jobs, training, None)  # would fail if it were called
    run(job)
    assert job.done
    assert (job.folder / "student.safetensors").stat().st_mtime_ns == weights


def test_one_run_tested_on_other_cases_keeps_both_tables(cohort, monkeypatch):
    """As where one page scores all test cases of a student and another page some of them."""
    job = make_job(cohort, recipe=dataclasses.replace(RECIPE, steps=2))
    other = dataclasses.replace(job, cohort=dataclasses.replace(cohort, test=(IDS[3], IDS[4])))
    run(job)
    assert other.folder == job.folder
    assert not other.done
    monkeypatch.setattr(jobs, "fit", None)  # would fail if it were called
    run(other)
    assert other.read()["case"].tolist() == [IDS[3], IDS[4]]
    pd.testing.assert_frame_equal(job.read(), other.read()[1:].reset_index(drop=True))


def test_a_test_case_without_lesion_leaves_an_empty_but_readable_table(cohort, tmp_path):
    write([make_case(9, "sub-strokecase0009", lesion=False)], cohort.folder, task=ISLES)
    empty = dataclasses.replace(cohort, test=("sub-strokecase0009",), identity="empty")
    job = make_job(empty, recipe=dataclasses.replace(RECIPE, steps=2))
    run(job)
    assert job.read("lesions").empty
    assert len(job.read()) == 1


def test_equal_seeds_start_every_method_from_the_same_student(cohort, monkeypatch):
    students = []

    def stop(distiller, patches, *_, **__):
        students.append((distiller, patches[0][0]))
        raise InterruptedError

    teacher = distilled(cohort).teacher
    run(teacher)
    monkeypatch.setattr(jobs, "fit", stop)
    for job in (make_job(cohort), distilled(cohort), distilled(cohort, options={})):
        with pytest.raises(InterruptedError):
            run(job)
    (plain, batch), (haar, second), (db4, _) = students
    assert plain.method is None
    assert haar.method.wavelet == ("haar",) * 3
    assert torch.equal(batch, second)
    for other in (haar, db4):
        pairs = zip(plain.student.parameters(), other.student.parameters(), strict=True)
        assert all(torch.equal(one, two) for one, two in pairs)
        assert other.teacher.channels == (6, 6, 8)


def test_two_workers_run_two_students_after_their_teacher(cohort):
    student = distilled(cohort)
    seeds = [
        dataclasses.replace(student, recipe=dataclasses.replace(RECIPE, seed=seed, steps=4))
        for seed in (0, 1)
    ]
    assert run_all([*seeds, seeds[0]], workers=2) == [*seeds, seeds[0]]
    assert student.teacher.done
    assert all(job.done for job in seeds)
    tables = pd.concat([job.read() for job in seeds])
    assert tables["seed"].tolist() == [0, 1]
    # A worker trains what this process would have trained; the number of threads may differ.
    alone = dataclasses.replace(seeds[1], label="alone")
    run(alone)
    one, two = alone.result().student, seeds[1].result().student
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-3)


def test_an_error_in_a_worker_arrives_whole_and_stops_the_others(cohort):
    endless = dataclasses.replace(RECIPE, steps=10**6, checkpoint_every=10)
    bad = make_job(cohort, "bad", model={"architecture": "vnet"})
    with pytest.raises(ContractError, match="architecture: got 'vnet'") as caught:
        run_all([make_job(cohort, "endless", recipe=endless), bad], workers=2)
    assert caught.value.attempt == "'dynunet'"


@pytest.mark.parametrize("workers", [1, 2])
def test_jobs_that_share_a_run_take_turns(workers, cohort):
    """One run, untested and tested on two sets of cases; beside it a run of another folder."""
    recipe = dataclasses.replace(RECIPE, steps=2)
    tested = make_job(cohort, recipe=recipe)
    other = dataclasses.replace(tested, cohort=dataclasses.replace(cohort, test=(IDS[3],)))
    untested = dataclasses.replace(tested, tested=False)
    beside = make_job(cohort, "beside", recipe=recipe)
    assert tested.folder == other.folder == untested.folder != beside.folder
    run_all([tested, other, untested, beside], workers=workers)
    assert [tested.read().case.tolist(), other.read().case.tolist()] == [[IDS[4]], [IDS[3]]]
    assert untested.done
    assert beside.done


def test_progress_names_what_is_running(cohort):
    running, waiting = make_job(cohort, "running"), make_job(cohort, "waiting")
    running.folder.mkdir(parents=True)
    assert at_work({job.folder: job for job in (running, waiting)}) == "running"


# --- studies --------------------------------------------------------------------------------------


def make_study(cohort, **changes):
    given = {"recipe": RECIPE, "teacher_channels": (6, 6, 8), "student_channels": (4, 4, 8)}
    return Study("tiny", cohort, **{**given, **changes})


def test_all_arms_of_a_study_share_cohort_teacher_and_seed(cohort):
    study = make_study(cohort, teacher_floor=0.1)
    plain, dcd = (
        study.student("none", 3),
        study.student("DCD, haar", 3, method="dcd", wavelet="db2"),
    )
    assert plain.teacher is None
    assert dcd.teacher == study.teacher()
    assert dcd.teacher.recipe.seed == 100
    assert (dcd.method, dcd.options, dcd.teacher_floor) == ("dcd", {"wavelet": "db2"}, 0.1)
    assert plain.recipe == dcd.recipe
    assert plain.model == dcd.model == {"architecture": "dynunet", "channels": [4, 4, 8]}
    assert study.teacher(7).identity != study.teacher().identity


def test_recipe_options_reach_the_recipe_of_every_arm(cohort):
    study = make_study(cohort)
    dcd = study.student("late", 0, method="dcd", kd_start=0.3, wavelet="haar")
    assert (dcd.recipe.kd_start, dcd.options) == (0.3, {"wavelet": "haar"})
    assert study.student("slow", 0, learning_rate=1e-4).recipe.learning_rate == 1e-4
    assert study.student("long", 0, steps=24).recipe.steps == 24
    with pytest.raises(ContractError, match="options of none: got wavelet"):
        study.student("none", 0, wavelet="haar")


def test_options_that_are_sequences_count_by_content_and_reach_the_loss(cohort):
    def make(**changes):
        options = {"wavelet": ("haar", "haar", "db2"), "bands": ("aaa", "aad"), "stages": [0]}
        return make_study(cohort).student("some", 0, method="dcd", **{**options, **changes})

    job = make()
    assert pickle.loads(pickle.dumps(job)).folder == job.folder
    as_lists = make(wavelet=["haar", "haar", "db2"], bands=["aaa", "aad"], stages=(0,))
    assert as_lists.identity == job.identity
    others = [
        make(wavelet=("db2", "haar", "haar")),
        make(bands=("aaa", "ada")),
        make(bands=("aaa",)),
        make(stages=[1]),
    ]
    assert len({each.identity for each in [job, *others]}) == 5
    method = methods.build(job.method, (4, 4, 8), (6, 6, 8), **job.options)
    assert (method.wavelet, method.bands, method.stages) == (
        ("haar", "haar", "db2"),
        ("aaa", "aad"),
        (0,),
    )


@pytest.mark.parametrize(("width", "last"), [(64, True), (65, False)])
def test_narrow_networks_train_in_channels_last(width, last, cohort):
    study = make_study(cohort, student_channels=(4, 4, width))
    assert study.student("none", 0).recipe.channels_last == last


def test_tables_of_a_study_are_one_long_table(cohort):
    study = make_study(cohort, recipe=dataclasses.replace(RECIPE, steps=2))
    arms = [study.student("none", seed) for seed in (0, 1)]
    run_all(arms)
    assert scores(arms)[["method", "seed", "case"]].values.tolist() == [
        ["none", 0, IDS[4]],
        ["none", 1, IDS[4]],
    ]
    assert lesions(arms)["seed"].tolist() == [0, 1]
    table = histories(arms)
    assert table["seed"].tolist() == [0, 0, 1, 1]
    assert table["step"].tolist() == [1, 2, 1, 2]


# --- refusals -------------------------------------------------------------------------------------


def test_a_weak_teacher_is_refused(cohort):
    weak = make_job(cohort, "weak", recipe=dataclasses.replace(RECIPE, steps=1))
    run(weak)
    with pytest.raises(ContractError, match=r"teacher weak: got Dice 0\.\d+ on the tune cases"):
        check_teacher(weak, floor=1.01)
    assert check_teacher(weak, floor=0.0).student.channels == (4, 4, 8)
    with pytest.raises(ContractError, match=r"expected at least 1\.01"):
        run(distilled(cohort, teacher=weak, teacher_floor=1.01))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": None}, "teacher of dcd: got none"),
        ({}, "no finished run"),
    ],
    ids=["no teacher", "teacher not run"],
)
def test_a_method_needs_a_trained_teacher(options, message, cohort):
    with pytest.raises(ContractError, match=message):
        run(distilled(cohort, **options))


def test_an_unknown_method_is_refused(cohort):
    job = distilled(cohort, method="magic")
    run(job.teacher)
    with pytest.raises(ContractError, match="method: got 'magic'"):
        run(job)


# --- the matrix -----------------------------------------------------------------------------------


@pytest.fixture
def matrix(cohort):
    study = Study("tiny", cohort, RECIPE, (6, 6, 8), (4, 4, 8), teacher_floor=0.0)
    chosen = arms(["feature-mse", "logits"], frozen=["feature-mse"])
    return Matrix(study, chosen, (0, 1), steps=6, strengths=(0.1, 0.5), warm_steps=4, batches=2)


def test_arms_are_methods_and_methods_with_frozen_adapters():
    assert arms(["at", "dcd"], frozen=["dcd", "fitnets"]) == {
        "at": {"method": "at"},
        "dcd": {"method": "dcd"},
        "dcd frozen": {"method": "dcd", "projection": "frozen"},
        "fitnets frozen": {"method": "fitnets", "adapters": "frozen"},
    }
    with pytest.raises(ContractError, match="frozen: got 'at'; expected a method with adapters"):
        arms([], frozen=["at"])


def test_no_option_of_a_method_is_a_field_of_the_recipe():
    fields = {field.name for field in dataclasses.fields(Recipe)}
    assert not fields & {option for name in methods.METHODS for option in methods.options_of(name)}


def test_a_matrix_gives_every_arm_the_same_budget(matrix):
    compared = matrix.run()
    assert len(compared) == 2 * (1 + 3)
    plain, *distilled = (job.recipe for job in compared[::2])
    for recipe in distilled:
        assert recipe.kd_balance == "fixed"
        assert dataclasses.replace(recipe, kd_balance=plain.kd_balance, kd_peak=0.2) == plain
    assert {job.recipe.steps for job in compared} == {6}
    table = scores(compared)
    assert set(table.method) == {"undistilled", *matrix.arms}
    assert sorted(set(table.seed)) == [0, 1]


def test_the_tune_split_chooses_the_strength_on_a_seed_that_is_not_compared(matrix):
    matrix.run()
    for arm in matrix.arms:
        tuned = matrix.tuning(arm)
        assert all(job.recipe.seed == 1000 and not job.tested for job in tuned.values())
        assert not any(job.table("scores").exists() for job in tuned.values())
        best = max(job.result().val_dice for job in tuned.values())
        chosen = matrix.strength(arm)
        assert tuned[chosen].result().val_dice == best
        expected = chosen * matrix.calibration(arm).weight
        assert matrix.student(arm, 1).recipe.kd_peak == pytest.approx(expected)
    choices = matrix.choices()
    assert choices.groupby("method").chosen.sum().tolist() == [1, 1, 1]


def test_the_measured_weight_makes_both_losses_pull_alike(matrix):
    matrix.prepare()
    found = measure(matrix.calibration("feature-mse"))
    assert matrix.calibration("feature-mse").weight == found > 0
    # Half the loss needs twice the weight.
    doubled = {"half": {"method": "feature-mse", "stages": [0]}}
    other = dataclasses.replace(matrix, arms=matrix.arms | doubled)
    assert other.calibration("feature-mse").weight == found
    assert measure(other.calibration("half")) != found


def test_a_pull_close_to_the_strength_is_seen_in_training(matrix):
    matrix.run()
    pulls = matrix.pulls()
    assert list(pulls.columns) == [0.25, 0.5, 0.75, 1.0]
    assert set(pulls.index) == set(matrix.arms)
    assert (pulls[1.0] > 0).all()


def publish(monkeypatch, weight, method="logits"):
    monkeypatch.setattr(methods.METHODS[method], "weight", weight)


@pytest.mark.parametrize(
    ("weight", "tried"),
    [(0.25, False), (0.249, True), (4.5, False), (4.51, True), (1.0, False), (math.nan, False)],
)
def test_a_published_weight_is_tried_if_more_than_threefold_from_all_others(
    weight, tried, matrix, monkeypatch
):
    publish(monkeypatch, weight)
    matrix = dataclasses.replace(matrix, strengths=(0.75, 1.5))
    measured(matrix, "logits")
    job = matrix.published_job("logits")
    assert (job is not None) == tried
    if job is not None:
        like = matrix.tuning("logits")[1.5]
        recipe = dataclasses.replace(like.recipe, kd_peak=weight)
        assert job == dataclasses.replace(like, recipe=recipe)
        assert (recipe.kd_balance, recipe.seed, job.tested) == ("fixed", 1000, False)


def measured(matrix, arm, weight=1.0):
    """As if the weight of an arm had been measured."""
    folder = matrix.calibration(arm).folder
    folder.mkdir(parents=True)
    (folder / "weight.json").write_text(f'{{"weight": {weight}}}')


def test_a_published_weight_between_two_strengths_may_be_far_from_both(matrix, monkeypatch):
    publish(monkeypatch, 0.3)
    matrix = dataclasses.replace(matrix, strengths=(0.03, 3.0))
    measured(matrix, "logits")
    assert matrix.published_job("logits").recipe.kd_peak == 0.3


def test_a_method_without_a_published_weight_tries_none(matrix):
    matrix = dataclasses.replace(matrix, arms=arms(["dcd"]))
    measured(matrix, "dcd")
    assert math.isnan(matrix.published_weight("dcd"))
    assert matrix.published_job("dcd") is None
    assert matrix.published().tried.tolist() == [False]


def test_a_published_weight_is_tried_and_reported_but_never_chosen(matrix, monkeypatch):
    publish(monkeypatch, 1e3)
    matrix.prepare()
    matrix.tune(["logits"])
    job, chosen = matrix.published_job("logits"), matrix.strength("logits")
    assert job.done
    assert not job.table("scores").exists()
    facts = json.loads((job.folder / "fit.json").read_text())
    (job.folder / "fit.json").write_text(json.dumps(facts | {"val_dice": 1.0}))  # the best by far
    matrix = dataclasses.replace(matrix, arms=arms(["logits"]))
    assert matrix.published().values.tolist() == [["logits", 1e3, True, 1.0]]
    assert matrix.strength("logits") == chosen
    assert matrix.choices().strength.tolist() == list(matrix.strengths)
    assert matrix.choices().tune_dice.max() < 1
    assert job.recipe.kd_peak not in {one.recipe.kd_peak for one in matrix.jobs()}


DIVERGING = 1e39
"""More than float32 holds."""


def test_a_published_weight_that_diverges_stops_nothing(matrix, monkeypatch):
    publish(monkeypatch, DIVERGING)
    assert all(job.done for job in matrix.run(workers=2))
    row = matrix.published().set_index("method").loc["logits"]
    assert row.tried
    assert math.isnan(row.tune_dice)


@pytest.mark.parametrize("error", [FloatingPointError("of other origin"), ContractError(*"abcd")])
def test_other_errors_at_a_published_weight_are_not_hidden(error, matrix, monkeypatch):
    publish(monkeypatch, 1e3)
    measured(matrix, "logits")
    published = matrix.published_job("logits")

    def fail(job):
        if job == published:
            raise error

    monkeypatch.setattr(matrix_module, "run", fail)
    with pytest.raises(type(error)):
        matrix.tune(["logits"])


def test_a_strength_that_diverges_is_an_error(matrix):
    matrix = dataclasses.replace(matrix, strengths=(DIVERGING,))
    matrix.prepare()
    with pytest.raises(FloatingPointError):
        matrix.tune(["logits"])


def test_a_second_run_of_a_matrix_does_nothing(matrix, monkeypatch):
    publish(monkeypatch, DIVERGING)
    publish(monkeypatch, 1e3, "feature-mse")
    matrix.run()
    published = matrix.published()
    assert published.tried.all()
    assert published.tune_dice.notna().tolist() == [True, False, True]
    monkeypatch.setattr(jobs, "fit", None)  # would fail if it were called
    assert all(job.done for job in matrix.run())
    pd.testing.assert_frame_equal(matrix.published(), published)


def test_a_matrix_refuses_a_tuning_seed_it_compares(matrix):
    with pytest.raises(ContractError, match="tuning_seed: got 1"):
        dataclasses.replace(matrix, tuning_seed=1)
    with pytest.raises(ContractError, match="arm: got 'at'"):
        matrix.calibration("at")
    with pytest.raises(ContractError, match="weight that was not measured"):
        matrix.tuning("logits")


def test_an_untested_job_is_the_same_run_and_can_be_tested_later(cohort):
    job = dataclasses.replace(make_job(cohort), tested=False)
    folder = run(job)
    assert job.done
    with pytest.raises(ContractError, match="was not tested"):
        job.read()
    tested = dataclasses.replace(job, tested=True)
    assert not tested.done
    weights = (folder / "student.safetensors").read_bytes()
    assert run(tested) == folder
    assert tested.done
    assert (folder / "student.safetensors").read_bytes() == weights


def test_a_method_learns_of_the_teacher_before_the_first_step(cohort, monkeypatch):
    seen = []

    def prepare(self, teacher, batches):
        seen.append((teacher.channels, len(list(batches))))

    monkeypatch.setattr(methods.METHODS["logits"], "prepare", prepare)
    recipe = dataclasses.replace(RECIPE, steps=2, kd_prepare=3)
    job = distilled(cohort, method="logits", options={}, recipe=recipe)
    run_all([job])
    assert seen == [((6, 6, 8), 3)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_prepares_measures_and_scores_even_what_was_trained_before(cohort, monkeypatch):
    """Networks are read back on the CPU; a method may learn for hours before the first step."""
    seen = []

    def watch(module, name):
        real = getattr(module, name)

        def watched(network, *arguments, **options):
            networks = (x for x in (network, *arguments) if isinstance(x, torch.nn.Module))
            tensors = [t for n in networks for t in (*n.parameters(), *n.buffers())]
            seen.append((name, {t.device.type for t in tensors}))
            return real(network, *arguments, **options)

        monkeypatch.setattr(module, name, watched)

    watch(methods.METHODS["freekd"], "prepare")
    watch(jobs, "evaluate")
    watch(calibration, "equal_weight")
    recipe = dataclasses.replace(RECIPE, steps=2, kd_prepare=2)
    job = distilled(cohort, method="freekd", options={}, recipe=recipe)
    plain, teacher, trained = (
        dataclasses.replace(one, tested=False) for one in (make_job(cohort), job.teacher, job)
    )
    run_all([teacher])
    run_all([plain, dataclasses.replace(trained, teacher=teacher)])
    run(job)
    measure(Calibration(job, plain, batches=2))
    assert [name for name, _ in seen] == ["prepare", "evaluate", "prepare", "equal_weight"]
    assert all(devices == {"cuda"} for _, devices in seen), seen
