"""Workers: units of work in several processes, with progress, stopped together on an error."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import torch

from dcd_core.progress import progress
from dcd_lab.records import capacity


@runtime_checkable
class Unit(Protocol):
    """Work that is done once and kept in a folder of its own."""

    @property
    def label(self) -> str:
        """What progress calls it."""

    @property
    def folder(self) -> Path:
        """Where it is kept."""

    @property
    def done(self) -> bool:
        """Whether it is there already."""


SomeUnit = TypeVar("SomeUnit", bound=Unit)


def run_each(
    units: Iterable[SomeUnit], run: Callable[[SomeUnit], object], *, workers: int, what: str
) -> None:
    """Call `run` on every unit that is not done, `workers` processes at a time.

    Units that share a folder take turns: tests of one run on several sets of cases, for example.
    On an error the others are stopped; what they keep in their folders lets them resume. Threads
    are shared out among the workers: on small networks two processes of one thread each do about
    1.7 times the work of one process with two.
    """
    waiting = [unit for unit in units if not unit.done]
    while waiting:
        # By folder: two workers in one folder would overwrite each other's checkpoints.
        turn = {unit.folder: unit for unit in waiting}
        _run_apart(turn, run, workers=workers, what=what)
        waiting = [unit for unit in waiting if unit != turn[unit.folder] and not unit.done]


def _run_apart(
    units: Mapping[Path, SomeUnit], run: Callable[[SomeUnit], object], *, workers: int, what: str
) -> None:
    """Call `run` on units of different folders, given by folder."""
    if workers <= 1 or len(units) <= 1:
        for unit in units.values():
            run(unit)
        return
    # Spawned, not forked: a forked child inherits OpenMP's locks without its threads.
    context = multiprocessing.get_context("spawn")
    threads = max(1, capacity()["cores"] // workers)
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=torch.set_num_threads, initargs=(threads,)
    )
    try:
        pending = {pool.submit(run, unit): folder for folder, unit in units.items()}
        while pending:
            for future in wait(pending, timeout=1.0, return_when=FIRST_COMPLETED).done:
                del pending[future]
                future.result()
            begun = at_work({folder: units[folder] for folder in pending.values()})
            progress(what, len(units) - len(pending), len(units), begun)
    finally:
        if pending:  # an error: a worker would finish its unit before it heard of it
            for process in list((pool._processes or {}).values()):
                process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def at_work(pending: Mapping[Path, Unit]) -> str:
    """The labels of those units, given by folder, that were begun.

    A unit's own `folder` is not asked: it may hash source files, and this is told every second.
    """
    return ", ".join(unit.label for folder, unit in pending.items() if folder.is_dir())
