"""The training runs of a profile: train what the record lacks, and add it to the record.

    python notebooks/study.py list                         all runs, and where each of them is
    python notebooks/study.py run --workers 2              train what is missing, in that order
    python notebooks/study.py run --minutes 150            and stop after that time
    python notebooks/study.py verify --workers 2           hold the record to what is computed here
    python notebooks/study.py pack runs/lease --parts 16   finished runs and checkpoints as archives

The runs that a page shows come first, then those of notebooks/plan.yml that go on from it. A run
that is stopped goes on from its checkpoint at the next call. A finished run enters results/study at
once. Archives are read on another machine by `run.py --import`.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

# The modules that run are those of this checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dcd_core.train import diverged
from dcd_core.types import ContractError
from dcd_lab import records
from dcd_lab.cache import run_dir
from dcd_lab.experiments import Job, enter, record
from dcd_lab.experiments.running import in_waves, run, run_or_diverge
from dcd_lab.experiments.transport import pack
from dcd_lab.experiments.verify import Check, table, verify
from dcd_lab.pool import each, threads
from dcd_lab.records.identity import file_hash
from dcd_lab.records.places import write_json
from dcd_lab.records.seals import check, seal
from dcd_lab.records.text import printable
from runner.parameters import assignments
from runner.runs import PAGES, make_cohorts, runs_of, state
from runner.sources import refuse


def train(todo: Sequence[Job], *, workers: int) -> None:
    """Run jobs and enter each into the record; one that needs others waits for those before.

    What a job needs and the record lacks, its teacher for example, is trained first, also when it
    is none of the jobs.
    """
    todo, done = _each_after_its_needs(todo), 0
    for _, group in groupby(todo, key=lambda job: job.wave):
        wave = list(group)
        make_cohorts(wave, workers=workers)  # not those of all jobs: it may take an hour
        for need in {need.folder: need for job in wave for need in job.needs}.values():
            run(need)  # which reads it from the record
        for line in each(_one, wave, workers=workers):
            done += 1
            print(f"{time.strftime('%H:%M:%S')} {done}/{len(todo)} {line}", flush=True)


def _each_after_its_needs(jobs: Sequence[Job]) -> list[Job]:
    """Jobs in their order; before each, what it needs and the record lacks."""
    found: dict[Path, Job] = {}
    for job in jobs:
        for one in in_waves([job]):
            if one.folder == job.folder or state(one) != "recorded":
                found.setdefault(one.folder, one)
    return list(found.values())


def _one(job: Job) -> str:
    with threads(1):  # sums depend on the number of threads, and the record is to be made again
        run_or_diverge(job)
    enter(job)
    if diverged(job.folder):
        return f"{job.folder.name}: diverged"
    fitted = job.result()
    return f"{job.folder.name}: val Dice {fitted.val_dice:.3f}, {fitted.seconds:.0f} s"


def verified(*, workers: int) -> list[Check]:
    """The checks of the record; kept under `runs/` until a file of it, code or versions change."""
    files = sorted(file for file in record.home().rglob("*") if file.is_file())
    content = [(file.name, file_hash(file)) for file in files]
    folder = run_dir("verified", content, records.source_hash(), records.versions())
    file = folder / "checks.json"
    if not file.is_file():
        checks = verify(workers=workers)
        if not all(check.passed for check in checks):
            return checks
        write_json(file, checks)
        seal(folder, file.name)
    check(folder)
    return [Check(*values) for values in json.loads(file.read_text("utf-8"))]


def answer(options: argparse.Namespace) -> bool:
    """Do what the command line says; return whether all is well."""
    if options.command == "pack":
        for file in pack(Path(options.target), mebibytes=options.parts):
            print(file)
        return True
    if options.command == "verify":
        checks = verified(workers=options.workers)
        passed = all(check.passed for check in checks)
        if not (passed and options.quiet):
            print(table(checks).to_string(index=False))
        return passed
    everything = runs_of(options.profile, assignments(options.assigned), options.pages)
    if options.command == "list":
        for job in everything:
            print(f"{state(job):9} {job.recipe.steps:6} steps  {job.folder.name}")
        return True
    if options.minutes:
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 60 * options.minutes)
    for arm in options.arms:
        refuse(arm, {job.arm for job in everything}, "--arms")
    wanted = [job for job in everything if job.arm in options.arms or not options.arms]
    train([job for job in wanted if state(job) != "recorded"], workers=options.workers)
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 all done, 1 a check failed, 2 a wrong request, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="study.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", default="study", help="study, or smoke to try it")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", dest="assigned")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("list", "show all runs"), ("run", "train what the record lacks")):
        command = commands.add_parser(name, help=text)
        command.add_argument("pages", nargs="*", help=f"some of {', '.join(PAGES)}; all if none")
    command.add_argument("--workers", type=int, default=1, metavar="N", help="runs at a time")
    command.add_argument("--arms", nargs="+", default=[], metavar="arm", help="these alone")
    command.add_argument("--minutes", type=float, default=0, help="stop after this time")
    command = commands.add_parser("verify", help="hold the record to what this machine computes")
    command.add_argument("--workers", type=int, default=1, metavar="N", help="processes")
    command.add_argument("--quiet", action="store_true", help="show the table if a check failed")
    command = commands.add_parser("pack", help="finished runs and checkpoints as archives")
    command.add_argument("target", help="folder of the archives")
    command.add_argument("--parts", type=int, default=16, metavar="MIB", help="largest archive")
    options = parser.parse_args(argv)
    try:
        return 0 if answer(options) else 1
    except ContractError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what is finished is in the record, run again to go on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # `study.py list | head` ends without a word
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
