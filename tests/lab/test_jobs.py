"""Jobs: runs described as data, found again by content, several at a time."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
import torch
from jobs import IDS, RECIPE, STUDENT, TEACHER, distilled, make_case, make_cohort, make_job

from dcd_core import infer, methods, train
from dcd_core.models import Segmenter
from dcd_core.storage import locked
from dcd_core.types import ContractError
from dcd_lab.data import read, write
from dcd_lab.data.prediction import predict_case
from dcd_lab.experiments import (
    Study,
    check_teacher,
    evaluate,
    evaluation,
    histories,
    lesions,
    measure,
    run,
    run_all,
    running,
    scores,
    study,
)
from dcd_lab.experiments import job as job_module
from dcd_lab.experiments.job import Start
from dcd_lab.metrics import score
from dcd_lab.records.seals import SUMS
from dcd_lab.tasks import ISLES

GOLDEN = Path(__file__).parents[1] / "golden" / "experiments"
SHORT = dataclasses.replace(RECIPE, steps=2)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """The cases, in a project folder of their own; all runs of this file are kept there."""
    root = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCD_ROOT", str(root))
        yield make_cohort(root / "cases")


@pytest.fixture(scope="module")
def taught(cohort):
    """A student that was distilled and tested, and its teacher."""
    [job] = run_all([distilled(cohort, arm="DCD")])
    return job


def replaced(job, **changes):
    """The job with other fields; those of the recipe and of the cohort by their own names."""
    for name in ("recipe", "cohort"):
        part = getattr(job, name)
        own = {field.name for field in dataclasses.fields(part)} & changes.keys()
        part = dataclasses.replace(part, **{field: changes.pop(field) for field in own})
        job = dataclasses.replace(job, **{name: part})
    return dataclasses.replace(job, **changes)


def weights_written_ns(job):
    return (job.folder / "student.safetensors").stat().st_mtime_ns


# --- what names a run -----------------------------------------------------------------------------


def test_all_that_decides_the_weights_changes_the_identity(cohort, monkeypatch):
    job = distilled(cohort)
    start = Start(make_job(cohort, "another"), parameters=100)
    changes = [
        {"model": {"architecture": "dynunet", "channels": [4, 4, 6]}},
        {"method": "feature-mse"},
        {"options": {"wavelet": "db2"}},
        {"options": {"wavelet": ("haar", "haar", "db2")}},
        {"teacher": make_job(cohort, "teacher")},
        {"identity": "other"},
        {"steps": 13},
        {"kd_balance": "fixed"},
        {"start": start},
        {"start": dataclasses.replace(start, divisor=2)},
        {"start": dataclasses.replace(start, job=job)},
    ]
    names = [job.identity, *(replaced(job, **change).identity for change in changes)]
    monkeypatch.setattr(train, "VERSION", train.VERSION + 1)
    names.append(job.identity)
    assert len(set(names)) == len(changes) + 2


def test_the_identity_knows_neither_place_nor_name(cohort, tmp_path, monkeypatch):
    job = distilled(cohort, options={"bands": ("aaa", "aad")})
    named = replaced(job, label="x", arm="y", teacher_floor=0.9, tested=False)
    same = [named, replaced(job, folder=tmp_path), replaced(job, options={"bands": ["aaa", "aad"]})]
    assert {other.identity for other in same} == {job.identity}
    folder = job.folder
    monkeypatch.setenv("DCD_ROOT", str(tmp_path))
    assert job.folder == tmp_path / "runs" / folder.name != folder


@pytest.mark.slow
def test_the_edit_of_a_comment_keeps_all_runs(cohort, project, tmp_path):
    job = distilled(cohort)
    for room in ("dcd_core", "dcd_lab"):
        shutil.copytree(project / room, tmp_path / room)
        for file in (tmp_path / room).rglob("*.py"):
            file.write_text(file.read_text("utf-8") + "# another comment\n", "utf-8")
    code = "import pickle, sys; job = pickle.load(sys.stdin.buffer); print(job.done, job.folder)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(job),
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=True,
    )
    assert done.stdout.decode().split() == [str(job.done), str(job.folder)]


# --- runs -----------------------------------------------------------------------------------------


def test_a_job_is_run_once_and_read_back(taught):
    table = taught.read()
    assert list(table.columns[:4]) == ["method", "seed", "case", "region"]
    assert table.iloc[0, :4].tolist() == ["DCD", 0, IDS[4], "lesion"]
    assert table["dice"].between(0, 1).all()
    found = taught.read("lesions")
    assert list(found.columns) == ["method", "seed", "case", "lesion", "volume_ml", "dice"]
    assert found["volume_ml"].tolist() == [pytest.approx(64 * 8 / 1000)]
    written = weights_written_ns(taught)
    assert run_all([taught]) == [taught]
    assert run(taught) == taught.folder
    assert weights_written_ns(taught) == written


def test_a_network_that_is_scored_again_has_the_scores_of_its_job(taught):
    fitted = taught.result()
    again = evaluate(fitted.student, fitted.threshold, taught.cohort, RECIPE)
    for table, name in ((again.scores, "scores"), (again.lesions, "lesions")):
        kept = taught.read(name).drop(columns=["method", "seed"])
        pd.testing.assert_frame_equal(table, kept, rtol=1e-5, check_dtype=False)


@pytest.mark.parametrize("spacing_mm", [None, 3.0])
def test_scores_are_those_of_the_prediction_of_each_case(spacing_mm, taught):
    """From prepared cases and labels alone, equal to reading and preparing the whole case."""
    fitted = taught.result()
    cases = replaced(taught, spacing_mm=spacing_mm, test=(IDS[4], IDS[2])).cohort
    table = evaluate(fitted.student, fitted.threshold, cases, RECIPE).scores
    options = {"spacing_mm": spacing_mm, "patch": RECIPE.patch, "overlap": RECIPE.overlap}
    for scan, row in zip(cases.scans("test"), table.to_dict("records"), strict=True):
        case = read(scan)
        label = predict_case(
            fitted.student, case, ISLES, threshold=fitted.threshold, precision="32-true", **options
        )
        assert label.any()
        (expected,) = score(label, case.label, ISLES, case.spacing_mm)
        assert row["case"] == scan.id
        assert {key: row[key] for key in expected} == pytest.approx(expected, nan_ok=True)


def test_a_test_case_without_lesion_leaves_an_empty_but_readable_table(cohort):
    id = "sub-strokecase0009"
    write([make_case(9, id, lesion=False)], cohort.folder, task=ISLES)
    job = replaced(make_job(cohort, recipe=SHORT), test=(id,))
    run(job)
    assert job.read("lesions").empty
    assert len(job.read()) == 1


def test_equal_seeds_start_every_method_from_the_same_student_and_batches(taught):
    """A tiny step keeps the weights that were drawn."""
    haar = replaced(taught, steps=1, learning_rate=1e-30, kd_ramp=0.0, tested=False)
    plain = replaced(haar, method="none", teacher=None, options={})
    jobs = [plain, haar, replaced(haar, options={"levels": 1})]
    run_all(jobs)
    first, *others = (list(job.result().student.parameters()) for job in jobs)
    for other in others:
        pairs = zip(first, other, strict=True)
        assert all(torch.allclose(a, b, rtol=0, atol=1e-20) for a, b in pairs)
    batches = [
        running.patches_of(job.cohort.cases("train"), job.recipe)[0][0] for job in (plain, taught)
    ]
    assert torch.equal(*batches)


def test_a_method_learns_of_the_teacher_before_the_first_step(taught, monkeypatch):
    seen = []

    def prepare(self, teacher, batches):
        seen.append((teacher.channels, len(list(batches))))

    monkeypatch.setattr(methods.METHODS["logits"], "prepare", prepare)
    run(replaced(taught, method="logits", options={}, steps=2, kd_prepare=3))
    assert seen == [(TEACHER, 3)]


@pytest.mark.slow
def test_workers_run_jobs_after_their_teachers_and_those_of_one_folder_by_turns(cohort):
    """One run, untested and tested on two sets of cases; beside it a run of another folder."""
    model = {"architecture": "dynunet", "channels": [6, 6, 6]}
    teacher = make_job(cohort, "other-teacher", model=model, recipe=SHORT)
    tested = distilled(cohort, teacher=teacher, recipe=dataclasses.replace(RECIPE, steps=4))
    other, untested = replaced(tested, test=(IDS[3], IDS[4])), replaced(tested, tested=False)
    beside = replaced(tested, seed=1)
    assert tested.folder == other.folder == untested.folder != beside.folder
    jobs = [untested, tested, other, beside, beside]
    assert run_all(jobs, workers=2) == jobs
    assert all(job.done for job in (teacher, *jobs))
    with pytest.raises(ContractError, match="was not tested"):
        untested.read()
    assert other.read()["case"].tolist() == [IDS[3], IDS[4]]
    pd.testing.assert_frame_equal(tested.read(), other.read()[1:].reset_index(drop=True))
    # A worker trains what this process would have trained; the number of threads may differ.
    alone = replaced(beside, label="alone")
    run(alone)
    pairs = zip(*(job.result().student.parameters() for job in (alone, beside)), strict=True)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-3) for a, b in pairs)


@pytest.mark.slow
def test_an_error_in_a_worker_arrives_whole_and_stops_the_others(cohort):
    endless = dataclasses.replace(RECIPE, steps=10**6, checkpoint_every=10)
    bad = make_job(cohort, "bad", model={"architecture": "vnet"})
    with pytest.raises(ContractError, match="architecture: got 'vnet'") as caught:
        run_all([make_job(cohort, "endless", recipe=endless), bad], workers=2)
    assert caught.value.attempt == "'dynunet'"


def copied(job, label):
    """The same job under another label, with a copy of what it left."""
    other = replaced(job, label=label)
    shutil.copytree(job.folder, other.folder)
    return other


@pytest.mark.slow
def test_files_of_a_finished_job_that_were_changed_are_refused(taught):
    job = copied(taught, "changed")
    table = job.table("scores")
    table.write_text(table.read_text("utf-8").splitlines()[0] + "\n", "utf-8")
    with pytest.raises(ContractError, match=r"scores.*changed since it was written.*removing"):
        job.read()
    (job.folder / SUMS).unlink()  # as versions before this one left it
    with pytest.raises(ContractError, match=r"scores of changed: got 0 rows; expected 1 rows"):
        job.read()
    shutil.rmtree(job.folder)
    run(job)
    pd.testing.assert_frame_equal(job.read(), taught.read())


@pytest.mark.slow
def test_a_second_runner_waits_for_the_first_and_trains_nothing(taught, monkeypatch):
    job, reached = replaced(taught, label="second"), threading.Event()

    def noted(folder):
        reached.set()
        return locked(folder)

    monkeypatch.setattr(running, "locked", noted)
    monkeypatch.setattr(running, "fit", lambda *_, **__: pytest.fail("it was trained twice"))
    job.folder.mkdir()
    with ThreadPoolExecutor(1) as other:
        with locked(job.folder):
            result = other.submit(run, job)
            assert reached.wait(timeout=300)
            shutil.copytree(taught.folder, job.folder, dirs_exist_ok=True)
        assert result.result() == job.folder


# --- versions -------------------------------------------------------------------------------------


def test_a_new_version_of_the_evaluation_chooses_and_scores_again_but_trains_nothing(
    taught, monkeypatch
):
    before, written = taught.read(), weights_written_ns(taught)
    old = taught.result().threshold
    monkeypatch.setattr(infer, "THRESHOLDS", (0.4321,))
    assert taught.result().threshold == old
    monkeypatch.setattr(evaluation, "VERSION", evaluation.VERSION + 1)
    assert not taught.done
    for stale in (taught.result, taught.read, lambda: taught.val_dice):
        with pytest.raises(ContractError, match="not run"):
            stale()
    run_all([taught])
    fitted = taught.result()
    assert (fitted.threshold, fitted.val_dice) == (0.4321, taught.val_dice)
    again = evaluate(fitted.student, 0.4321, taught.cohort, RECIPE).scores
    assert taught.read()["dice"].tolist() == pytest.approx(again["dice"].tolist())
    assert taught.read()["dice"].tolist() != before["dice"].tolist()
    assert weights_written_ns(taught) == written
    monkeypatch.undo()
    pd.testing.assert_frame_equal(taught.read(), before)


def test_a_run_of_other_versions_is_read_with_a_warning(taught, monkeypatch):
    kept = json.loads((taught.folder / "versions.json").read_text("utf-8"))
    assert kept == {"torch": torch.__version__.partition("+")[0], "monai": kept["monai"]}
    with monkeypatch.context() as other:
        other.setattr(job_module, "versions", lambda: {**kept, "monai": "0.1"})
        for read_back in (taught.result, taught.read):
            with pytest.warns(UserWarning, match=f"monai {kept['monai']}, not 0.1"):
                read_back()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        taught.result()


def golden(name, table, advice):
    """Hold a table to the one that is kept; DCD_GOLDEN=write keeps it anew."""
    file = GOLDEN / f"{name}.csv"
    if os.environ.get("DCD_GOLDEN") == "write":
        file.parent.mkdir(exist_ok=True)
        table.to_csv(file, index=False, float_format="%.6g")
    try:
        pd.testing.assert_frame_equal(table, pd.read_csv(file), rtol=2e-3, check_dtype=False)
    except AssertionError as error:
        pytest.fail(f"{advice}, and keep {file.name} anew with DCD_GOLDEN=write\n{error}")


def test_the_history_of_a_job_is_the_one_that_is_kept(taught):
    history = taught.result().history[["step", "segmentation", "distillation", "weight"]]
    golden("history", history, "training has changed: raise dcd_core.train.VERSION")


def test_a_fixed_network_is_scored_as_it_was(cohort):
    """A lesion is where DWI, averaged over a cube, is bright."""
    average = torch.nn.Conv3d(3, 2, 3, padding=1)
    torch.nn.init.zeros_(average.weight)
    with torch.no_grad():
        average.weight[1, 0] = 3 / 27
        average.bias.copy_(torch.tensor([0.0, -1.5]))
    network = Segmenter(torch.nn.Sequential(average), ["0"], (2,))
    tables = []
    for spacing_mm in (None, 3.0):
        cases = dataclasses.replace(cohort, test=(IDS[4], IDS[1]), spacing_mm=spacing_mm)
        threshold, dice = evaluation.choose(network, cases, RECIPE)
        table = evaluate(network, threshold, cases, RECIPE).scores
        tables.append(table.assign(threshold=threshold, val_dice=dice))
    changed = "scoring has changed: raise dcd_lab.experiments.evaluation.VERSION"
    golden("scores", pd.concat(tables, ignore_index=True), changed)


# --- refusals -------------------------------------------------------------------------------------


def test_a_weak_teacher_is_refused(taught):
    with pytest.raises(ContractError, match=r"teacher teacher: got Dice 0\.\d+ on the val cases"):
        check_teacher(taught.teacher, floor=1.01)
    assert check_teacher(taught.teacher, floor=0.0).student.channels == TEACHER
    with pytest.raises(ContractError, match=r"expected at least 1\.01"):
        run(replaced(taught, teacher_floor=1.01, steps=3))


def test_a_method_needs_a_name_and_a_trained_teacher(taught):
    untrained = make_job(taught.cohort, "untrained", recipe=dataclasses.replace(RECIPE, seed=8))
    for options, message in (
        ({"teacher": None}, "teacher of dcd: got none"),
        ({"teacher": untrained}, "no finished run"),
        ({"method": "magic"}, "method: got 'magic'"),
    ):
        with pytest.raises(ContractError, match=message):
            run(replaced(taught, **options))
    for ask in (untrained.read, untrained.result, lambda: untrained.val_dice):
        with pytest.raises(ContractError):
            ask()


# --- calibration ----------------------------------------------------------------------------------


def test_a_weight_is_measured_once_and_named_by_what_decides_it(taught, monkeypatch):
    warmed = make_job(taught.cohort, "warmed", recipe=SHORT, tested=False)
    run(warmed)
    weight = measure(taught, warmed, batches=2)
    assert weight > 0
    half = replaced(taught, options={"wavelet": "haar", "stages": [0]})
    changed = [(half, warmed, 2), (taught, replaced(warmed, seed=1), 2), (taught, warmed, 3)]
    run(changed[1][1])
    weights = [measure(job, student, batches=count) for job, student, count in changed]
    assert len({weight, *weights}) == 4
    # What was measured is read back: this student could not be measured on.
    (warmed.folder / "student.safetensors").unlink()
    assert measure(taught, warmed, batches=2) == weight
    monkeypatch.setattr(train, "VERSION", train.VERSION + 1)
    with pytest.raises(ContractError, match="no finished run"):
        measure(taught, warmed, batches=2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_method_is_prepared_and_a_kept_run_scored_on_the_gpu(taught, monkeypatch):
    """Networks are read back on the CPU; a method may learn for hours before the first step."""
    seen = []
    watch = {methods.METHODS["freekd"]: "prepare", evaluation: "evaluate"}
    for owner, name in watch.items():
        real = getattr(owner, name)

        def watched(*given, real=real):
            networks = (x for x in given if isinstance(x, torch.nn.Module))
            seen.extend(p.device.type for network in networks for p in network.parameters())
            return real(*given)

        monkeypatch.setattr(owner, name, watched)
    job = replaced(taught, method="freekd", options={}, steps=2, kd_prepare=2, tested=False)
    run(job)
    run(replaced(job, tested=True))
    assert set(seen) == {"cuda"}


# --- studies --------------------------------------------------------------------------------------


def make_study(cohort, **changes):
    given = {"recipe": RECIPE, "teacher_channels": TEACHER, "student_channels": STUDENT}
    return Study("tiny", cohort, **{**given, **changes})


def test_all_arms_of_a_study_share_cohort_teacher_and_recipe(cohort):
    made = make_study(cohort, teacher_floor=0.1)
    plain, dcd = made.student("none", 3), made.student("D C", 3, method="dcd", wavelet="db2")
    assert (plain.teacher, dcd.teacher, dcd.teacher.recipe.seed) == (None, made.teacher(), 100)
    assert (dcd.method, dcd.options, dcd.teacher_floor) == ("dcd", {"wavelet": "db2"}, 0.1)
    assert plain.recipe == dcd.recipe
    assert plain.model == dcd.model == {"architecture": "dynunet", "channels": list(STUDENT)}
    assert made.teacher(7).identity != made.teacher().identity
    late = made.student("late", 0, method="dcd", kd_start=0.3, wavelet="haar", steps=24)
    assert (late.recipe.kd_start, late.recipe.steps, late.options) == (0.3, 24, {"wavelet": "haar"})
    wide = make_study(cohort, student_channels=(4, 4, 65)).student("none", 0)
    assert (plain.recipe.channels_last, wide.recipe.channels_last) == (True, False)
    with pytest.raises(ContractError, match="options of none: got wavelet"):
        made.student("none", 0, wavelet="haar")


def test_tables_of_a_study_are_one_long_table(cohort):
    arms = [make_study(cohort, recipe=SHORT).student("none", seed) for seed in (0, 1)]
    run_all(arms)
    rows = [["none", 0, IDS[4]], ["none", 1, IDS[4]]]
    assert scores(arms)[["method", "seed", "case"]].values.tolist() == rows
    assert lesions(arms)["seed"].tolist() == [0, 1]
    assert histories(arms)[["seed", "step"]].values.tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]


def test_arms_and_ladder_of_a_study(cohort):
    made = make_study(cohort, kd_peak=0.3, teacher_training={"steps": 9})
    options = {"half": {"channels": [2, 2, 4]}, "DCD": {"method": "dcd"}}
    half, other, dcd, _ = made.arms(options, [0, 1])
    assert [half.recipe.seed, other.recipe.seed, half.arm] == [0, 1, "half"]
    assert half.model["channels"] == [2, 2, 4]
    assert (dcd.recipe.kd_peak, dcd.teacher.recipe.steps) == (0.3, 9)
    rungs = made.ladder([3, 6], [0, 1])
    assert [(job.arm, job.recipe.steps, job.recipe.seed) for job in rungs] == [
        *(("undistilled", steps, seed) for steps in (3, 6) for seed in (0, 1)),
        *(("teacher", steps, made.teacher_seed) for steps in (3, 6)),
    ]
    assert not any(job.tested for job in rungs)


PAGE = {
    **{"data_source": "synthetic", "stroke_split": [3, 1, 2], "glioma_split": [9, 9, 9]},
    **{"stroke_spacing_mm": 4.0, "cohort_seed": 5, "workers": 2, "stroke_steps": 7, "batch": 3},
    **{"stroke_patch": [8, 8, 16], "learning_rate": 0.1, "ema": 0.5, "training": {"warmup": 1}},
    **{"teacher_channels": [6, 6, 8], "student_channels": [4, 4, 8], "teacher_floor": 0.2},
    **{"architecture": "resenc", "network": {"blocks": [1]}, "json": json, "patch": 0},
    **{"teacher_training": {"steps": 9}, "kd_peak": 0.3},
}


def test_a_study_is_made_of_the_parameters_of_a_page(cohort, monkeypatch):
    asked = []
    monkeypatch.setattr(study, "cohort", lambda *a, **b: asked.append((a, b)) or cohort)
    made = Study.of("isles2022", **PAGE)
    sizes = {"train": 3, "val": 1, "test": 2}
    options = {**sizes, "seed": 5, "spacing_mm": 4.0, "workers": 2, "ready": True}
    assert asked == [(("synthetic", "isles2022"), options)]
    recipe = train.Recipe(steps=7, batch=3, patch=(8, 8, 16), learning_rate=0.1, ema=0.5, warmup=1)
    expected = make_study(cohort, recipe=recipe, teacher_floor=0.2, architecture="resenc")
    own = {name: PAGE[name] for name in ("network", "teacher_training", "kd_peak")}
    assert made == dataclasses.replace(expected, name="isles2022", **own)
    for task, page, message in (
        ("isles", PAGE, "task: got 'isles'"),
        ("brats2024", PAGE, "no 'glioma_spacing_mm'"),
    ):
        with pytest.raises(ContractError, match=message):
            Study.of(task, **page)
