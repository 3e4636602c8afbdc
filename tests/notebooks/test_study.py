"""The runs behind the pages: each once, trained where the record lacks them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import study

from runner import runs

pytestmark = pytest.mark.slow


def test_the_runs_of_the_pages_are_trained_once_and_recorded(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    smoke = ["--profile", "smoke", "--set", "stroke_steps=2"]
    jobs = runs.runs_of("smoke", {"stroke_steps": 2}, ["06"])
    assert len({job.folder for job in jobs}) == len(jobs)
    assert {"teacher", "undistilled", "DCD", "half width"} <= {job.arm for job in jobs}
    assert study.main([*smoke, "run", "06-isles", "--arms", "half width"]) == 0
    assert study.main([*smoke, "list", "06-isles"]) == 0
    listed = capsys.readouterr().out.splitlines()
    recorded = [line for line in listed if line.startswith("recorded")]
    assert len(recorded) == 2
    assert all("half-width" in line for line in recorded)
    assert study.main(["verify"]) == 0
    assert "FAILED" not in capsys.readouterr().out
    entry = next((checkout / "results" / "study" / "runs").glob("*half-width-s0*"))
    (entry / "history.csv").write_text("step\n1\n", "utf-8")
    assert study.main(["verify", "--quiet"]) == 1
    assert f"{entry.name}/history.csv" in capsys.readouterr().out


def test_a_teacher_is_trained_or_read_from_the_record_before_it_teaches(checkout: Path) -> None:
    smoke = ["--profile", "smoke", "--set", "stroke_steps=2", "run", "06-isles", "--arms"]
    assert study.main([*smoke, "DCD"]) == 0
    recorded = checkout / "results" / "study" / "runs"
    assert len(list(recorded.glob("*teacher*"))) == 1
    students = list(recorded.glob("*DCD*"))
    assert students
    for folder in (*students, *checkout.glob("runs/*DCD*"), *checkout.glob("runs/*teacher*")):
        shutil.rmtree(folder)  # as in a fresh clone, whose record has the teacher alone
    written = (next(recorded.glob("*teacher*")) / "run.json").read_bytes()
    assert study.main([*smoke, "DCD"]) == 0
    assert all(folder.is_dir() for folder in students)
    assert (next(recorded.glob("*teacher*")) / "run.json").read_bytes() == written


def test_a_wrong_request_is_answered_in_words(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in {
        "--profile smoke list 04": "06-isles",
        "--profile smoke run 06-isles --arms dcd": "one of DCD",
        "--profile smoke --set steps=1 list": "--set",
    }.items():
        assert study.main(words.split()) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
