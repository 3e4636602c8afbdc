"""The training runs behind the pages of a profile, and those that the study will add."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from dcd_lab import records
from dcd_lab.experiments import Job, Study, enter, record
from dcd_lab.experiments.running import in_waves
from dcd_lab.experiments.transport import unpack
from dcd_lab.tasks import BRATS, ISLES, SIMULATED
from runner.jobs import BOOK_PROFILE
from runner.parameters import resolve
from runner.sources import discover, refuse, select

PAGES = {
    "06-isles": (ISLES.name,),
    "08-ablations": (ISLES.name,),
    "10-cost": (ISLES.name,),
    "05-brats": (BRATS.name,),
    "12-beyond": tuple(SIMULATED),
}
"""Pages whose runs are arms of studies, in the order in which they are trained, and their tasks."""
SEEDS = (0, 1, 2)
OPENED: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "06-isles": (("undistilled", "equal compute", "DCD", "feature MSE", "half width"), SEEDS),
    "08-ablations": (("undistilled", "DCD"), SEEDS),
    "10-cost": ((), (0,)),  # of the others it shows the scores
    "05-brats": ((), SEEDS),
}
"""Pages that open networks, each with the arms and the seeds that it opens; () stands for all arms.
The record keeps the weights of these networks and of no others."""
PLAN = "notebooks/plan.yml"
"""The blocks of the study: runs of its own profile that no page shows yet."""


def runs_of(profile: str, overrides: dict[str, Any], names: Sequence[str] = ()) -> list[Job]:
    """The runs, each once: those of a page, then the blocks of the plan that go on from it.

    Within each of these, a run comes after those that it needs. Their cases are described and not
    made; `make_cohorts` does that.
    """
    known = discover(records.root() / "notebooks")
    pages = {name: known[name] for name in PAGES}
    chosen = select(pages, names)
    for key in overrides:
        refuse(key, {key for name in PAGES for key in known[name].declared}, "--set")
    resolved = resolve(known, profile, overrides)
    ladder = {**known["04-teacher"].declared, **resolved["04-teacher"]}
    runs: list[Job] = []
    opened = set[Path]()
    for name in PAGES:
        page = {**known[name].declared, **resolved[name]}
        for task in PAGES[name]:
            study = Study.of(task, ready=False, **page)
            if name in OPENED:  # by whichever page its runs are trained
                shown, seeds = OPENED[name]
                arms = {
                    arm: page["arms"][arm] for arm in shown or page["arms"] if arm in page["arms"]
                }
                opened |= {job.folder for job in (study.teacher(), *study.arms(arms, seeds))}
            if name not in chosen:
                continue
            runs += in_waves([study.teacher(), *study.arms(page["arms"], page["seeds"])])
            if name == "06-isles":
                runs += study.ladder(ladder["ladder_steps"], ladder["ladder_seeds"])
            for block in plan().values() if profile == BOOK_PROFILE else ():
                if block["page"] == name and task in block.get("tasks", PAGES[name]):
                    runs += _block(study, block, page["arms"])
    first: dict[Path, Job] = {}
    for job in runs:
        first.setdefault(job.folder, job)
    return [replace(job, kept=folder in opened) for folder, job in first.items()]


def _block(study: Study, block: Mapping[str, Any], shown: Mapping[str, Any]) -> list[Job]:
    """The runs of a block of the plan; an arm without options is the one that the page shows."""
    teachers = [study.teacher(seed) for seed in block.get("teachers", ())]
    arms = {
        arm: shown[arm] if options is None else options for arm, options in block["arms"].items()
    }
    return in_waves(teachers + study.arms(arms, block["seeds"]))


def make_cohorts(jobs: Iterable[Job], *, workers: int) -> None:
    """Make the cases of jobs, as far as they are absent."""
    for cohort in {job.cohort.identity: job.cohort for job in jobs}.values():
        cohort.make(workers=workers)


def plan() -> dict[str, dict[str, Any]]:
    """The blocks of the study by title, in the order in which they are trained."""
    blocks: dict[str, dict[str, Any]] = yaml.safe_load((records.root() / PLAN).read_text("utf-8"))
    return blocks


def state(job: Job) -> str:
    """Where a run is: recorded, trained, begun or nowhere."""
    if record.has(job.folder):
        return "recorded"
    if job.done:
        return "trained"
    return "begun" if job.folder.is_dir() else "to do"


def enter_archives(archives: Sequence[str], profile: str, overrides: dict[str, Any]) -> list[str]:
    """Add the runs in archives to `runs/` and the finished ones to the record; returns these."""
    for archive in archives:
        unpack(Path(archive))
    finished = [job for job in runs_of(profile, overrides) if state(job) == "trained"]
    make_cohorts(finished, workers=1)
    return [enter(job).name for job in finished]
