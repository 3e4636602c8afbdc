"""Running jobs: a process for each notebook, in the order of their needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import joblib

from dcd_core.storage import atomic
from dcd_lab import records
from runner.jobs import CHECKOUT, Job, is_done, remember, write_json
from runner.pages import failure, publishable
from runner.screen import Screen

LIMIT_BYTES = 1_000_000
TRIES = 3  # parallel kernel starts can lose a race for a port


@dataclass
class Runner:
    """Runs jobs, at most `workers` at a time, inside a scratch folder that vanishes afterwards."""

    jobs: dict[str, Job]
    workers: int
    scratch: Path
    publish: bool = False
    screen: Screen = field(default_factory=lambda: Screen(sys.stdout))

    def run(self) -> bool:
        """Run everything; return whether all went well. An interrupt ends the children first."""
        _kernel(self.scratch)
        try:
            while self._pending():
                self._start_ready()
                self._collect()
                self.screen.show(self.jobs.values(), self.progress)
                time.sleep(0.1)
        finally:
            for job in self.jobs.values():
                if job.process is not None:
                    end(job.process)
            self.screen.leave(self.jobs.values(), self.progress)
        return all(job.state in ("run", "cached") for job in self.jobs.values())

    def progress(self, job: Job) -> dict[str, Any]:
        """Return the latest state the notebook reported through records.progress."""
        with suppress(OSError, ValueError):
            return dict(json.loads(self._file(job, "progress").read_text("utf-8")))
        return {}

    def _file(self, job: Job, suffix: str) -> Path:
        return self.scratch / f"{job.name}.{suffix}"

    def _pending(self) -> bool:
        return any(job.state in ("waiting", "running") for job in self.jobs.values())

    def _start_ready(self) -> None:
        for job in self.jobs.values():
            needs = [self.jobs[name].state for name in job.notebook.needs]
            if job.state != "waiting" or any(state in ("waiting", "running") for state in needs):
                continue
            if any(state in ("failed", "blocked") for state in needs):
                job.state, job.message = "blocked", "a notebook it needs failed"
            elif not job.forced and is_done(job):
                job.state = "cached"
                self._to_book(job)
            elif sum(other.state == "running" for other in self.jobs.values()) < self.workers:
                self._start(job)

    def _start(self, job: Job) -> None:
        import yaml

        job.kept.mkdir(parents=True, exist_ok=True)
        job.state, job.tries = "running", job.tries + 1
        job.started_s = job.started_s or time.monotonic()
        parameters = self._file(job, "yml")
        parameters.write_text(yaml.safe_dump(job.parameters, allow_unicode=True), "utf-8")
        command = [sys.executable, "-m", "papermill", str(job.notebook.path)]
        command += [str(self._file(job, "ipynb")), "-f", str(parameters), "-k", "python3"]
        command += ["--cwd", str(records.root()), "--no-progress-bar", "--start-timeout", "120"]
        with job.log.open("wb") as log:
            # A session of its own: Ctrl-C reaches this process alone, which ends the others.
            job.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(job),
                start_new_session=True,
            )

    def _environment(self, job: Job) -> dict[str, str]:
        threads = str(max(1, joblib.cpu_count() // self.workers))
        paths = (str(CHECKOUT), os.environ.get("PYTHONPATH", ""))
        return {
            # This one alone: MKL and OpenBLAS follow it, and worker processes lower it to 1. Their
            # own variables would win over that, and two workers of two threads spin for each other.
            "OMP_NUM_THREADS": threads,
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "PYTHONUTF8": "1",
            "PYTHONHASHSEED": "0",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            "JUPYTER_PATH": str(self.scratch / "jupyter"),
            "JUPYTER_RUNTIME_DIR": str(self.scratch / "runtime"),
            "JUPYTER_PLATFORM_DIRS": "1",
            "IPYTHONDIR": str(self.scratch / "ipython" / job.name),
            "DCD_ROOT": str(records.root()),
            "DCD_PROGRESS": str(self._file(job, "progress")),
        }

    def _collect(self) -> None:
        for job in self.jobs.values():
            if job.process is None or job.process.poll() is None:
                continue
            code, job.process = job.process.returncode, None
            job.seconds = time.monotonic() - job.started_s
            document = self._executed(job)
            if code == 0 and document is not None:
                self._finish(job, document)
            elif not started(document) and job.tries < TRIES:
                job.state = "waiting"
            else:
                self._fail(job, document, failure(document, job))

    def _executed(self, job: Job) -> dict[str, Any] | None:
        try:
            return dict(json.loads(self._file(job, "ipynb").read_text("utf-8")))
        except (OSError, ValueError):
            return None

    def _finish(self, job: Job, document: dict[str, Any]) -> None:
        document = publishable(document, job)
        size = len(json.dumps(document, ensure_ascii=False).encode("utf-8"))
        if size > LIMIT_BYTES:
            message = f"the executed copy has {size / 1e6:.1f} MB; pages stay below 1 MB: "
            self._fail(job, document, message + "show less, or smaller pictures")
            return
        write_json(job.output, document)
        job.failed.unlink(missing_ok=True)
        job.log.unlink(missing_ok=True)
        remember(job)
        job.state = "run"
        self._to_book(job)

    def _fail(self, job: Job, document: dict[str, Any] | None, message: str) -> None:
        job.state, job.message = "failed", message
        if document is not None:
            write_json(job.failed, document)

    def _to_book(self, job: Job) -> None:
        if self.publish and job.output != job.page:
            with atomic(job.page) as temporary:
                temporary.write_bytes(job.output.read_bytes())


def started(document: Mapping[str, Any] | None) -> bool:
    """Tell whether any cell of an executed copy ran."""
    cells = (document or {}).get("cells", ())
    return any(cell.get("execution_count") or cell.get("outputs") for cell in cells)


def _kernel(scratch: Path) -> None:
    """Write a kernel that is this interpreter: an installed "python3" may be any other."""
    folder = scratch / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "Python 3", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec), "utf-8")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and everything it started, kernels included."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        family = [*parent.children(recursive=True), parent]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.terminate()
        for member in psutil.wait_procs(family, timeout=3)[1]:
            with suppress(psutil.NoSuchProcess):
                member.kill()
    process.wait()
