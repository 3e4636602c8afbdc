"""What a person sees of a run: live lines, the closing table, the list, the results."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

from dcd_core.types import ContractError
from dcd_lab import records
from runner.jobs import Job, is_done

QUIET_S = 15.0  # between two lines on a pipe or in a log


class Screen:
    """One line per running notebook at a terminal; elsewhere a line now and then."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream, self.live = stream, stream.isatty()
        self.lines, self.told, self.spoke_s = list[str](), dict[str, str](), time.monotonic()

    def show(self, jobs: Iterable[Job], progress: Callable[[Job], Mapping[str, Any]]) -> None:
        """Tell what changed since the last call, and how far the running notebooks are."""
        jobs = list(jobs)
        fresh = [job for job in jobs if self.told.get(job.name, "waiting") != job.state]
        running = [job for job in jobs if job.state == "running"]
        self.told = {job.name: job.state for job in jobs}
        if self.live:
            self._redraw(fresh, [self._line(job, progress(job)) for job in running])
        elif fresh or (running and time.monotonic() - self.spoke_s > QUIET_S):
            self.spoke_s = time.monotonic()
            for job in fresh or running:
                self._print(self._line(job, progress(job)))

    def leave(self, jobs: Iterable[Job], progress: Callable[[Job], Mapping[str, Any]]) -> None:
        """Show the last changes and put the cursor below everything."""
        self.show([job for job in jobs if job.state != "running"], progress)

    def _redraw(self, fresh: Sequence[Job], lines: Sequence[str]) -> None:
        width = shutil.get_terminal_size().columns - 1
        lines = [line[:width] for line in lines]
        if not fresh and lines == self.lines:
            return
        if self.lines:
            self.stream.write(f"\x1b[{len(self.lines)}A\x1b[J")
        for job in fresh:
            if job.state != "running":
                self._print(self._line(job, {}))
        for line in lines:
            self._print(line)
        self.lines = lines

    def _line(self, job: Job, told: Mapping[str, Any]) -> str:
        if job.state != "running":
            detail = f"{job.seconds:.0f} s" if job.seconds else ""
            return f"{job.name:<14} {job.state:<8} {detail} {job.message}".rstrip()
        seconds = time.monotonic() - job.started_s
        step = f"{told['label']} {told['done']}/{told['total']} {told['note']}" if told else ""
        return f"{job.name:<14} running  {seconds:.0f} s  {step}".rstrip()

    def _print(self, line: str) -> None:
        with suppress(BrokenPipeError):
            print(line, file=self.stream, flush=True)


def status_table(jobs: Iterable[Job], publish: bool = False) -> str:
    """Return the closing table: notebook, state, seconds and where to look."""
    rows = [("notebook", "state", "seconds", "page")]
    for job in jobs:
        seconds = f"{job.seconds:.1f}" if job.seconds else ""
        done = job.page if publish else job.output
        place = {"run": done, "cached": done, "failed": job.failed}.get(job.state)
        shown = place is not None and place.is_file()
        where = place.relative_to(records.root()).as_posix() if shown and place else ""
        rows.append((job.name, job.state, seconds, where))
    return columns(rows)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of texts as aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def listing(jobs: Mapping[str, Job]) -> str:
    """Return every notebook with its state, what it needs and its parameters in this profile."""
    blocks = []
    for job in jobs.values():
        needs = f"  needs {', '.join(job.notebook.needs)}" if job.notebook.needs else ""
        values = {**job.notebook.declared, **job.parameters}
        lines = [f"  {key} = {value!r}" for key, value in values.items()]
        blocks.append(
            "\n".join([f"{job.name}  {'done' if is_done(job) else 'to do'}{needs}", *lines])
        )
    return "\n".join(blocks)


def results(profile: str) -> str:
    """Return the tables of the last notebook of a profile, the ones that sum it up."""
    import pandas

    folder = records.root() / "results" / profile
    files = sorted(folder.glob("*.csv"))
    if not files:
        raise ContractError(
            "results", "none", f"tables in results/{profile}", f"run.py --profile {profile}"
        )
    last = files[-1].name[:3]
    texts = []
    for file in files:
        if file.name.startswith(last):
            table = pandas.read_csv(file).to_string(index=False, na_rep="", max_rows=30)
            texts.append(f"{file.relative_to(records.root()).as_posix()}\n{table}")
    return "\n\n".join(texts)
