"""The record: runs that are read instead of trained, and what verification finds in them."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from dataclasses import replace

import pandas as pd
import pytest
import torch

from dcd_core.models import load, parameters
from dcd_core.train import diverged
from dcd_core.types import ContractError
from dcd_lab.experiments import Study, enter, record, run, run_all
from dcd_lab.experiments import verify as verify_module
from dcd_lab.experiments.description import describe, made_again
from dcd_lab.experiments.job import START
from dcd_lab.experiments.transport import pack, unpack
from dcd_lab.experiments.verify import verify
from dcd_lab.pool import threads

pytestmark = pytest.mark.slow

PAGE = {
    "data_source": "synthetic",
    "cohort_seed": 0,
    "stroke_spacing_mm": 4.0,
    "stroke_split": [2, 1, 2],
    "stroke_steps": 6,
    "stroke_patch": [16, 16, 16],
    "batch": 2,
    "learning_rate": 0.003,
    "ema": 0.9,
    "teacher_channels": [4, 8, 8],
    "student_channels": [2, 4, 8],
    "architecture": "dynunet",
    "network": {},
    "training": {"kd_start": 0.2, "precision": "32-true"},
    "teacher_training": {},
    "teacher_floor": 0.0,
    "workers": 1,
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A project whose record holds a teacher and a distilled student; runs/ has them, too."""
    folder = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DCD_ROOT", str(folder))
        jobs = made()
        for job in run_all(jobs):
            enter(job)
    return folder


def made():
    study = Study.of("isles2022", **PAGE)
    return [study.teacher(), study.student("DCD", 0, method="dcd", wavelet="haar")]


@pytest.fixture
def jobs(recorded, tmp_path, monkeypatch):
    """The jobs in a copy of the project of which runs/ has the cases alone."""
    shutil.copytree(recorded, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("DCD_ROOT", str(tmp_path))
    for folder in (tmp_path / "runs").glob("isles2022-*"):
        shutil.rmtree(folder)
    return made()


def test_a_recorded_run_is_read_and_not_trained(jobs, monkeypatch):
    monkeypatch.setenv("DCD_RECORD", "only")
    teacher, student = run_all(jobs)
    entry = record.home() / student.folder.name
    assert student.done
    assert student.result().student.spec["channels"] == [2, 4, 8]
    assert (student.folder / "history.csv").read_bytes() == (entry / "history.csv").read_bytes()
    assert len(student.read("scores")) == 2
    assert teacher.done


def test_what_is_scored_is_what_is_stored(jobs):
    """Weights are kept in half precision, and their threshold and scores are those of halves."""
    _, student = run_all(jobs)
    weights = student.result().student.state_dict().values()
    assert all((w == w.half().float()).all() for w in weights)


def test_a_run_whose_network_is_not_kept_has_all_but_weights(jobs, monkeypatch):
    monkeypatch.setenv("DCD_RECORD", "use")
    student = replace(run_all(jobs)[1], kept=False)
    entry = enter(student)
    assert not list(entry.glob("*.safetensors"))
    shutil.rmtree(student.folder)
    monkeypatch.setenv("DCD_RECORD", "only")
    run(student)
    assert student.done
    assert len(student.history) == len(pd.read_csv(entry / "history.csv"))
    assert student.seconds > 0
    assert len(student.read("scores")) == 2
    with pytest.raises(ContractError, match="network of isles2022-DCD-s0: got no weights"):
        student.result()
    checks = verify()
    assert all(check.passed for check in checks)
    assert not any(entry.name in check.what for check in checks)


def test_without_training_a_run_that_is_not_recorded_is_refused(jobs, monkeypatch):
    monkeypatch.setenv("DCD_RECORD", "only")
    other = replace(jobs[0], recipe=replace(jobs[0].recipe, seed=7))
    with pytest.raises(ContractError, match=r"no isles2022-teacher.*--recompute"):
        run(other)
    assert not other.folder.exists()


def test_recomputed_runs_lie_apart_and_equal_the_recorded_ones(jobs, monkeypatch):
    monkeypatch.setenv("DCD_RECORD", "ignore")
    again = run_all(made())[1]
    assert again.folder.parent.name == "recomputed"
    entry = record.home() / again.folder.name
    for name in ("student.safetensors", again.table("scores").name):
        assert (again.folder / name).read_bytes() == (entry / name).read_bytes()


def test_a_job_is_made_again_from_its_description(jobs):
    plain = json.loads(json.dumps(describe(jobs[1])))
    assert made_again(plain).identity == jobs[1].identity


def test_a_network_that_was_pruned_is_trained_on_and_recorded(jobs):
    """The teacher under the penalty, cut, and distilled: the record keeps where it started from."""
    pytest.importorskip("torch_pruning", reason="needs the extra [compress]")
    study, lasso = Study.of("isles2022", **PAGE), {"steps": 4, "strength": 0.001}
    given = {"method": "dcd", "wavelet": "haar", "start": {"divisor": 1, "lasso": lasso}}
    (job,) = run_all([study.student("cut", 0, **given)])
    sparse, small = job.start.job, job.result().student
    assert job.teacher == sparse.start.job == study.teacher()
    assert sparse.result().method["calls"] == 4
    assert small.spec["architecture"] == "pruned"
    assert abs(parameters(small) - job.start.parameters) <= 0.05 * job.start.parameters
    assert job.history.distillation.iloc[-1] > 0
    before = load(job.folder / START)
    trained = zip(before.parameters(), small.parameters(), strict=True)
    assert all(not torch.equal(one, two) for one, two in trained if one.ndim > 1)
    assert made_again(json.loads(json.dumps(describe(job)))).identity == job.identity
    enter(sparse)
    enter(job)
    for one in (sparse, job):
        shutil.rmtree(one.folder)
    checks = [check for check in verify() if "cut" in check.what]
    assert [check.how for check in checks] == ["recomputed", "replayed"]
    assert max(check.deviation for check in checks) < 1e-5


def test_verification_passes_and_names_what_it_did(jobs):
    checks = verify()
    assert [check.note for check in checks if not check.passed] == []
    assert [check.how for check in checks].count("recomputed") == 3
    assert [check.how for check in checks].count("replayed") == 2
    assert max(check.deviation for check in checks) < 1e-5  # this machine made them


def change_score(entry, metric="dice"):
    file = next(entry.glob("scores-*.csv"))
    table = pd.read_csv(file)
    table.loc[0, metric] += 0.05 * max(1, 4 * table[metric].mean())
    table.to_csv(file, index=False)


def change_distance(entry):
    change_score(entry, "hd95_mm")


def swap_cases(entry):
    file = next(entry.parent.glob("cases-*.csv"))
    table = pd.read_csv(file)
    table.loc[[0, 1], "case"] = table.loc[[1, 0], "case"].to_numpy()
    table.to_csv(file, index=False)


def lose_cases(entry):
    next(entry.parent.glob("cases-*.csv")).unlink()


def change_history(entry):
    table = pd.read_csv(entry / "history.csv")
    table.loc[2, "segmentation"] *= 1.02
    table.to_csv(entry / "history.csv", index=False)


def change_weights(entry):
    other = next(e for e in record.entries() if e != entry)
    shutil.copyfile(other / "student.safetensors", entry / "student.safetensors")


def change_recipe(entry):
    description = json.loads((entry / "run.json").read_text())
    description["job"]["recipe"]["learning_rate"] = 0.004
    (entry / "run.json").write_text(json.dumps(description))


def test_runs_are_replayed_in_one_thread_however_many_there_are(jobs, monkeypatch):
    used, first_steps = [], verify_module.first_steps

    def counted(job, steps):
        used.append(torch.get_num_threads())
        return first_steps(job, steps)

    monkeypatch.setattr(verify_module, "first_steps", counted)
    with threads(2):
        verify()
        assert torch.get_num_threads() == 2
    assert set(used) == {1}


def test_a_run_that_logs_seldom_is_replayed_to_its_first_row(jobs, monkeypatch):
    monkeypatch.setattr(verify_module, "REPLAYED_STEPS", 0)
    replayed = [check for check in verify() if check.how == "replayed"]
    assert replayed
    assert all(check.passed for check in replayed)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (change_score, "scores of"),
        (change_distance, "scores of"),
        (swap_cases, "cases of"),
        (lose_cases, "cases of"),
        (change_history, "history of"),
        (change_weights, "scores of"),
        (change_recipe, "description of"),
    ],
)
def test_verification_names_what_was_changed(jobs, change, named):
    """Hashes alone would not do: who changes a file can change its hash."""
    entry = record.home() / jobs[1].folder.name
    change(entry)
    found = [check for check in verify() if not check.passed]
    hashed = [check for check in found if check.what.startswith("files")]
    assert len(hashed) == (change not in (swap_cases, lose_cases, change_recipe))
    description = record.read(entry)
    for name in description["files"]:
        description["files"][name] = hashlib.sha256((entry / name).read_bytes()).hexdigest()
    (entry / "run.json").write_text(json.dumps(description))
    (found,) = [check for check in verify() if not check.passed]
    assert found.what.startswith(named)
    assert entry.name in found.what or change in (swap_cases, lose_cases)


def test_archives_carry_runs_to_another_machine(jobs, tmp_path, monkeypatch):
    run_all(jobs)
    begun = jobs[0].folder.with_name("isles2022-begun-0")
    begun.mkdir()
    (begun / "checkpoint.pt").write_bytes(b"half way")
    archives = pack(tmp_path / "packed", mebibytes=1)
    monkeypatch.setenv("DCD_ROOT", str(tmp_path / "other"))
    found = [folder for archive in archives for folder in unpack(archive)]
    assert {f.name for f in found} == {jobs[0].folder.name, jobs[1].folder.name, begun.name}
    for folder in found:
        for file in folder.iterdir():
            assert file.read_bytes() == (begun.parent / folder.name / file.name).read_bytes()
    assert [unpack(archive) for archive in archives]  # again: nothing is lost


@pytest.mark.parametrize("name", ["../out/fit.json", "/run/fit.json", "fit.json", "run/.x"])
def test_an_archive_that_leads_elsewhere_is_refused_whole(name, tmp_path, monkeypatch):
    monkeypatch.setenv("DCD_ROOT", str(tmp_path / "project"))
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        for member in ("run/history.csv", name):
            archive.addfile(tarfile.TarInfo(member))
    with pytest.raises(ContractError, match=r"bad\.tar.*a member"):
        unpack(tmp_path / "bad.tar")
    assert not (tmp_path / "project").exists()


def test_a_cut_archive_is_refused_and_large_runs_are_named(jobs, tmp_path):
    run_all(jobs)
    (archive,) = pack(tmp_path / "packed")
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(ContractError, match="archive"):
        unpack(archive)
    with pytest.raises(ContractError, match="larger"):
        pack(tmp_path / "packed", mebibytes=0)


def test_a_run_that_diverged_is_recorded_as_such(jobs):
    wild = replace(jobs[0], recipe=replace(jobs[0].recipe, learning_rate=1e30, clip=1e30))
    with pytest.raises(FloatingPointError, match="not finite at step"):
        run(wild)
    entry = enter(wild)
    assert not list(entry.glob("*.pt"))
    shutil.rmtree(wild.folder)
    with pytest.raises(FloatingPointError, match="diverged when it was recorded"):
        run(wild)
    assert diverged(wild.folder)
    assert len(pd.read_csv(wild.folder / "history.csv")) >= 1
    assert all(check.passed for check in verify())
