"""Work that is killed as it writes and done again: the same bytes, and nothing is left over."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from doomed import WORK
from faults import MANY

from dcd_core.storage import atomic
from dcd_lab.cache import scratch

SUPPORT = Path(__file__).resolve().parents[1] / "support"
TIMED = (
    "fit.json",
    "SHA256SUMS",
    "run.json",
    "runs-01.tar",
)  # they hold seconds, or hashes of them


def content(folder):
    """All files of a folder: their bytes, but for what depends on the clock."""
    found = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        kept = None if file.name in TIMED else file.read_bytes()
        if file.name == "history.csv":
            kept = pd.read_csv(file).drop(columns="seconds").to_csv()
        found[file.relative_to(folder).as_posix()] = kept
    return found


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX processes")
@pytest.mark.parametrize("work", WORK)
def test_work_that_is_killed_ends_as_if_it_had_not_been(work, tmp_path, project, tally):
    if work == "run_pages" and not MANY:
        pytest.skip("starts many kernels: in make faults")
    places = (project, project / "notebooks", SUPPORT, os.environ.get("PYTHONPATH", ""))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))}
    command = [sys.executable, SUPPORT / "doomed.py", tmp_path, work, str(20 if MANY else 2)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected, moments = content(tmp_path / "whole"), done.stdout.split()
    again = [content(tmp_path / str(turn)) for turn in range(len(moments))]
    different = {
        moment: [name for name in {*made, *expected} if made.get(name) != expected.get(name)]
        for moment, made in zip(moments, again, strict=True)
        if made != expected
    }
    outcomes = {"caused": len(moments), "survived": len(moments) - len(different)}
    tally({**outcomes, "wrong": len(different)})
    assert moments
    assert different == {}


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path):
    code = (
        "import os, sys, pathlib; from dcd_core.storage import atomic\n"
        "with atomic(pathlib.Path(sys.argv[1], 'a.json')) as half:\n"
        "    half.write_text('{'); os.kill(os.getpid(), 9)"
    )
    with atomic(tmp_path / "a.json") as used:
        subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
        assert len([*tmp_path.iterdir()]) == 2
        with atomic(tmp_path / "a.json") as another:
            another.write_text("{}")
            assert {*tmp_path.iterdir()} == {used, another}
        used.write_text("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_what_a_killed_process_left_goes_and_what_is_in_use_stays(tmp_path):
    code = (
        "import os, sys, pathlib; from dcd_lab.cache import scratch\n"
        "with scratch(pathlib.Path(sys.argv[1]), '.a-') as folder:\n"
        "    (folder / 'half').touch(); os.kill(os.getpid(), 9)"
    )
    with scratch(tmp_path, ".a-") as used:
        subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
        assert len([*tmp_path.iterdir()]) == 2
        with scratch(tmp_path, ".a-") as another:
            assert {*tmp_path.iterdir()} == {used, another}
    assert not [*tmp_path.iterdir()]
