"""What a person sees of a run: a table of its notebooks, and the list."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import IO

from rich.console import Console
from rich.progress import Progress, TextColumn

from runner.jobs import Job, is_done

QUIET_S = 15.0  # between two lines on a pipe or in a log


class Screen:
    """A row for each notebook: live at a terminal; elsewhere a line at every change, then the rows.

    It is a context: the last rows stay on the screen.
    """

    def __init__(self, stream: IO[str], jobs: Iterable[Job]) -> None:
        self.live, self.spoke_s = stream.isatty(), time.monotonic()
        width = None if self.live else 120
        self.console = Console(file=stream, force_terminal=self.live, width=width, highlight=False)
        columns = [TextColumn(f"{{task.fields[shown][{i}]}}", markup=False) for i in range(4)]
        self.rows = Progress(*columns, console=self.console, auto_refresh=False)
        self.jobs = {self.rows.add_task("", shown=row(job)): job for job in jobs}
        self.states = dict.fromkeys(self.jobs, "waiting")

    def __enter__(self) -> Screen:
        self.rows.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.rows.stop()

    def show(self) -> None:
        """Tell what changed since the last call, and how far the running notebooks are."""
        overdue = time.monotonic() - self.spoke_s > QUIET_S
        for task, job in self.jobs.items():
            self.rows.update(task, shown=row(job))
            changed, self.states[task] = self.states[task] != job.state, job.state
            silent = self.live and job.state != "failed"
            if not silent and (changed or (overdue and job.state == "running")):
                self.spoke_s = time.monotonic()
                self.console.print(*row(job), markup=False, soft_wrap=True)
        self.rows.refresh()


def row(job: Job) -> tuple[str, str, str, str]:
    """Return what is shown of a job: its name, state, seconds, and progress or message."""
    running = job.state == "running"
    seconds = time.monotonic() - job.started_s if running else job.seconds
    told = job.progress() if running else {}
    note = "{label} {done}/{total} {note}".format(**told) if told else job.message
    return job.name, job.state, f"{seconds:.0f} s" if seconds else "", note


def listing(jobs: Iterable[Job]) -> str:
    """Return every notebook with its state, what it needs and its parameters in this profile."""
    lines = []
    for job in jobs:
        needs = f"  needs {', '.join(job.notebook.needs)}" if job.notebook.needs else ""
        lines.append(f"{job.name}  {'done' if is_done(job) else 'to do'}{needs}")
        values = job.notebook.declared | job.parameters
        lines += [f"  {key} = {value!r}" for key, value in values.items()]
    return "\n".join(lines)
