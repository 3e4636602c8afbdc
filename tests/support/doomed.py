"""Work that is killed as it writes: run as a program, it does each piece of work, killed and again.

    python doomed.py FOLDER WORK TIMES

The work is done once in FOLDER/whole. Then, in FOLDER/0 and so on, it is killed at a moment out of
all those at which it writes or asks for a batch, and done again. Prints the moments.
"""

import importlib
import json
import os
import random
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

import training
from cases import make_case
from jobs import make_cohort, make_job

from dcd_lab.data import isles2022, prepared, write
from dcd_lab.experiments import record, run, transport
from dcd_lab.tasks import ISLES

MOMENTS = [(os, "fsync"), (os, "replace"), (training.Batches, "__getitem__")]


def train(folder):
    training.run(folder / "run")


def prepare(folder):
    write([make_case(ISLES, seed=n, id=f"case-{n}") for n in (1, 2)], folder / "data", task=ISLES)
    without_times(folder)
    prepared(isles2022(folder / "data"))


def run_job(folder):
    cohort = make_cohort(folder / "cases")
    without_times(folder)
    run(make_job(cohort))


def replay(folder):
    """Enter a run into the record, and copy it from there."""
    cohort = make_cohort(folder / "cases")
    without_times(folder)
    job = make_job(cohort)
    run(job)  # from the record, where it is entered
    record.enter(job.folder, {"identity": job.identity})
    shutil.rmtree(job.folder)
    record.restore(job.folder)


def bring(folder):
    """Pack a run, and unpack it in another checkout."""
    os.environ["DCD_ROOT"] = str(folder / "there")
    run_job(folder)
    archives = transport.pack(folder / "archives")
    os.environ["DCD_ROOT"] = str(folder / "here")
    for archive in archives:
        transport.unpack(archive)


def run_pages(folder):
    """Run a notebook, and make its page."""
    import run as runner
    from nbformat import v4

    notebooks = folder / "notebooks"
    (notebooks / "params").mkdir(parents=True, exist_ok=True)
    (notebooks / "params" / "study.yml").write_text("shared: {steps: 2}", "utf-8")
    cell = v4.new_code_cell("steps = 3", id="a")
    cell.metadata.tags = ["parameters"]
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [cell, v4.new_code_cell("import dcd_core\nsteps", id="b")]
    made = v4.new_notebook(cells=cells, metadata={"kernelspec": spec})
    (notebooks / "01-page.ipynb").write_text(json.dumps(made), "utf-8")
    assert runner.main(["--profile", "study"]) == 0


def without_times(folder):
    """Give all images one time: it is part of the name of a prepared case."""
    for path in folder.rglob("*.gz"):
        os.utime(path, ns=(1, 1))


WORK = {work.__name__: work for work in (train, prepare, run_job, replay, bring, run_pages)}


def child(work, folder, kill_at=0):
    """Do work in a process of its own, which kills itself at a moment.

    Returns how many moments there were, and what it imported.
    """
    inward, outward = os.pipe()
    if pid := os.fork():
        os.close(outward)
        with os.fdopen(inward) as pipe:
            text = pipe.read()
        status = os.waitpid(pid, 0)[1]
        assert status == (signal.SIGKILL if kill_at else 0), (work, kill_at, status)
        return json.loads(text) if text else None
    os.dup2(2, 1)  # the moments alone are printed
    count = 0

    def counted(function):
        def called(*arguments, **options):
            nonlocal count
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return called

    for owner, name in MOMENTS:
        setattr(owner, name, counted(getattr(owner, name)))
    folder.mkdir(exist_ok=True)
    os.environ["DCD_ROOT"] = str(folder)
    work(folder)
    with os.fdopen(outward, "w") as pipe:
        json.dump((count, list(sys.modules)), pipe)
    os._exit(0)


def main(base, name, times):
    count, modules = child(WORK[name], base / "whole")
    for module in modules:  # once, and not in every child again: it takes longer than the work
        with suppress(ImportError):
            importlib.import_module(module)
    moments = random.Random(name).sample(range(1, count + 1), min(times, count))
    for turn, moment in enumerate(moments):
        child(WORK[name], base / str(turn), kill_at=moment)
        child(WORK[name], base / str(turn))
    print(*moments)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
