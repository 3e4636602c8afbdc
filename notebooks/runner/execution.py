"""Running jobs: a process for each notebook, in the order of their needs."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import gettempdir

import joblib
import nbformat
import psutil

from dcd_lab import records
from dcd_lab.cache import scratch
from dcd_lab.pool import PR_SET_PDEATHSIG
from runner.jobs import CHECKOUT, Job, is_done, relative, remember
from runner.pages import failure, settle, write
from runner.screen import Screen

TRIES = 3  # two kernels that start at once can choose the same port
end_with_parent = None
if sys.platform == "linux":
    end_with_parent = partial(ctypes.CDLL(None).prctl, PR_SET_PDEATHSIG, signal.SIGTERM)
PAPERMILL = """
import json, sys, papermill
papermill.execute_notebook(
    **json.load(sys.stdin), kernel_name="python3", progress_bar=False, start_timeout=120,
    coalesce_streams=True)
"""


async def papermill(job: Job, threads: int, *, record: str = "use") -> int:
    """Execute a notebook into `job.scratch` and return the exit status.

    `record` says what becomes of recorded runs (see `dcd_lab.cache.record_policy`). Cancelling this
    ends the process and everything that started from it.
    """
    call = {
        "input_path": str(job.notebook.path),
        "output_path": str(job.scratch / "copy.ipynb"),
        "cwd": str(records.root()),
        "parameters": job.parameters,
    }
    paths = (str(CHECKOUT), os.environ.get("PYTHONPATH"))
    environment = {
        # This one alone: MKL and OpenBLAS follow it, and worker processes lower it to 1. Their own
        # variables would win over that, and two workers of two threads spin for each other.
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONUTF8": "1",
        "PYTHONHASHSEED": "0",
        "JUPYTER_PATH": "",  # another kernel named python3 may be on it
        "JUPYTER_DATA_DIR": str(job.scratch),
        "IPYTHONDIR": str(job.scratch),
        "DCD_ROOT": str(records.root()),
        "DCD_RECORD": record,
        "DCD_PROGRESS": str(job.scratch / "progress"),
    }
    with job.kept("log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PAPERMILL),
            stdin=asyncio.subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            # Ctrl-C reaches this process alone, which ends the others. When it is killed they end
            # too: papermill by a signal, and the kernel because it watches papermill.
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
    try:
        await process.communicate(json.dumps(call).encode())
    finally:
        if process.returncode is None:
            end(process.pid)
        status = await process.wait()
    return status


def end(number: int) -> None:
    """End a process and everything it started."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(number)
        for member in (*parent.children(recursive=True), parent):
            with suppress(psutil.NoSuchProcess):
                member.kill()


Execute = Callable[[Job, int], Awaitable[int]]


async def run(
    jobs: Mapping[str, Job], workers: int, screen: Screen, execute: Execute = papermill
) -> None:
    """Run jobs, at most `workers` at a time, each after the jobs it needs."""
    slots = asyncio.Semaphore(workers)
    threads = max(1, joblib.cpu_count() // workers)
    tasks: dict[str, asyncio.Task[None]] = {}

    async def finish(job: Job) -> None:
        needs = job.notebook.needs
        await asyncio.gather(*(tasks[name] for name in needs))
        if any(jobs[name].state in ("failed", "blocked") for name in needs):
            job.state, job.message = "blocked", "a notebook it needs failed"
        elif is_done(job):
            job.state = "cached"
        else:
            async with slots:
                await _execute(job, partial(execute, job, threads))
        if job.state in ("run", "cached"):
            job.message = relative(job.kept("ipynb"))
            if job.published:
                page = records.root() / "book" / "notebooks" / f"{job.name}.ipynb"
                write(nbformat.read(job.kept("ipynb"), 4), page)
                job.message = relative(page)

    tasks |= {name: asyncio.create_task(finish(job)) for name, job in jobs.items()}
    pending = set(tasks.values())
    while pending:
        done, pending = await asyncio.wait(pending, timeout=0.2)
        screen.show()
        for task in done:
            task.result()  # an error of the runner itself ends the run


async def _execute(job: Job, execute: Callable[[], Awaitable[int]]) -> None:
    job.state, job.started_s = "running", time.monotonic()
    job.kept("log").parent.mkdir(parents=True, exist_ok=True)
    with scratch(Path(gettempdir()), "dcd-run-") as folder:
        job.scratch, document = folder, None
        for _ in range(TRIES):
            code = await execute()
            with suppress(OSError, ValueError):
                document = nbformat.read(job.scratch / "copy.ipynb", 4)
            if code == 0 or (document and any(c.get("execution_count") for c in document.cells)):
                break
    job.seconds = time.monotonic() - job.started_s
    if document and code == 0:
        settle(document, job)
    job.message = failure(document, code, job)
    job.state = "failed" if job.message else "run"
    if document:
        write(document, job.kept("FAILED.ipynb" if job.message else "ipynb"))
    if not job.message:
        for suffix in ("FAILED.ipynb", "log"):
            job.kept(suffix).unlink(missing_ok=True)
        remember(job)  # last: a job that is done is not looked at again
