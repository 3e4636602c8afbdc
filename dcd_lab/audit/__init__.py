"""Audit: the state of a whole data set, before anyone spends a week training on it.

Reading stops at the first fault of a scan; an audit lists all faults of all scans, and beside them
a manifest that says which files, with which labels, a result was made from.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from dcd_core.progress import progress
from dcd_core.storage import atomic
from dcd_core.types import ISLES, TASKS, ContractError, Task
from dcd_lab.audit.findings import DATA_SET, SEVERITIES, Finding
from dcd_lab.audit.inspection import Inspection, inspect
from dcd_lab.data.editions import OWN, numbering
from dcd_lab.data.scans import EXPECTED, Scan, Survey, nothing, scans_of, survey, twice
from dcd_lab.records import fingerprint, source_hash


class Audit(NamedTuple):
    """What an audit found.

    `findings` has the columns case, check, got, expected and severity ("error", "warning", "info"),
    worst first. `manifest` has one row per scan: id, task, edition, group (the patient), post_op,
    files, label_sha256, shape, spacing_mm, orientation, brain_ml, and for every label its `..._ml`
    and `..._components` (26 neighbours); for ISLES also flair_overlap (Dice) and adc_median (1e-3
    mm2/s). What could not be measured is empty.
    """

    findings: pd.DataFrame
    manifest: pd.DataFrame

    def count(self, severity: str) -> int:
        """Return the number of findings of a severity."""
        return int((self.findings["severity"] == severity).sum())

    def verdict(self) -> str:
        """Return the result in one line."""
        tasks = self.manifest.groupby("task", sort=False).size()
        scans = " and ".join(f"{_counted(n, 'scan')} of {task}" for task, n in tasks.items())
        errors, warnings, notes = map(self.count, SEVERITIES)
        word = "not usable as it is" if errors else "usable, look at it" if warnings else "sound"
        counts = [_counted(n, word) for n, word in ((errors, "error"), (warnings, "warning"))]
        return f"{scans}: {word} ({', '.join(counts)}, {_counted(notes, 'note')})"

    def text(self, most: int = 5) -> str:
        """Return the findings as lines for a terminal, at most `most` cases of each check."""
        lines = []
        for (severity, check), rows in self.findings.groupby(["severity", "check"], sort=False):
            lines.append(f"{str(severity).upper()}  {check} ({len(rows)})")
            shown = rows.head(most).itertuples(index=False)
            lines += [f"  {row.case}  {row.got}; expected {row.expected}" for row in shown]
            if len(rows) > most:
                lines.append(f"  ... and {len(rows) - most} more")
        return "\n".join(lines)


def audit(
    root: str | os.PathLike[str],
    *,
    task: str | None = None,
    edition: int | None = None,
    out: str | os.PathLike[str] | None = None,
    workers: int = 1,
) -> Audit:
    """Examine every scan below `root` and list all that is wrong, without stopping at a fault.

    `task` is a name out of `types.TASKS`, None for whatever lies there. `edition` is the year whose
    numbers the BraTS labels hold (None: 2024). With `out`, that folder gets `findings.csv`,
    `manifest.csv` and a file per scan, by which a repeated or interrupted audit looks again only at
    scans that had errors or whose files, or this code, have changed. `workers` > 1 examines in that
    many processes, each with about 1 GiB of memory.
    Raises ContractError when `root` is absent or holds no scan of the task, for an unknown task or
    edition, and when a worker was killed.
    """
    if task is not None and task not in TASKS:
        raise ContractError("task", repr(task), f"one of {sorted(TASKS)}", "'isles2022'")
    found = survey(root)
    scans = {
        name: scans_of(found, TASKS[name], _edition(name, edition, task))
        for name in ([task] if task else TASKS)
    }
    tasks = [TASKS[name] for name in scans if scans[name]]
    if not tasks:
        raise nothing(found.base, " or ".join(EXPECTED[name] for name in scans))
    findings = _of_the_tree(found, tasks)
    rows: dict[Scan, dict[str, Any]] = {}
    every = [scan for task in tasks for scan in scans[task.name]]
    store = None if out is None else Path(out)
    for done, (scan, one) in enumerate(_inspections(every, found.base, store, workers), start=1):
        progress("audit", done, len(every), scan.id)
        findings += one.findings
        rows[scan] = one.row
    result = Audit(_table(findings), pd.DataFrame([rows[scan] for scan in every]))
    if store is not None:
        for name, table in result._asdict().items():
            with atomic(store / f"{name}.csv") as temporary:
                table.to_csv(temporary, index=False, lineterminator="\n")
    return result


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _edition(name: str, edition: int | None, task: str | None) -> int:
    """Return the edition of a task: the one given is meant for BraTS unless ISLES is named."""
    if edition is None or (name == ISLES.name and task is None):
        return OWN[name]
    numbering(name, edition)
    return edition


def _of_the_tree(found: Survey, tasks: Sequence[Task]) -> list[Finding]:
    """Return what the names alone tell: copies, folders that are shut, files of no scan."""

    def told(path: Path) -> str:
        return path.relative_to(found.base).as_posix()

    findings = []
    for task in tasks:
        for copies in twice(found, task):
            got = f"{copies.name}: {', '.join(map(told, copies.places))}"
            findings.append(Finding(copies.id, "duplicate", got, "one copy", "error"))
    for path in found.closed:
        got, expected = f"{told(path)}: cannot be opened", "a folder that can be read"
        findings.append(Finding(DATA_SET, "folder that is shut", got, expected, "error"))
    for path in found.strays:
        expected = "files named after their scan"
        findings.append(Finding(DATA_SET, "file of no scan", told(path), expected, "info"))
    return findings


def _table(findings: Sequence[Finding]) -> pd.DataFrame:
    def order(finding: Finding) -> tuple[int, str, str, str]:
        return SEVERITIES.index(finding.severity), finding.check, finding.case, finding.got

    ordered: list[Finding] = sorted(findings, key=order)
    return pd.DataFrame(ordered, columns=list(Finding._fields))


def _inspections(
    scans: Sequence[Scan], base: Path, store: Path | None, workers: int
) -> Iterator[tuple[Scan, Inspection]]:
    """Yield what is found at every scan, known results first, each kept as soon as it is there."""
    code = source_hash("dcd_lab.audit", "dcd_lab.data") if store else ""
    pending = []
    for scan in scans:
        known = _recalled(scan, base, store, code) if store else None
        if known:
            yield scan, known
        else:
            pending.append(scan)
    for scan, (key, one) in zip(
        pending, _examined(pending, base, code, min(workers, len(pending))), strict=True
    ):
        if store:
            with atomic(_memory(scan, store)) as temporary:
                temporary.write_text(json.dumps({"key": key, **one._asdict()}), "utf-8")
        yield scan, one


def _examined(
    scans: Sequence[Scan], base: Path, code: str, workers: int
) -> Iterator[tuple[str, Inspection]]:
    examine = partial(_keyed, base=base, code=code)
    if workers <= 1:
        yield from map(examine, scans)
        return
    try:
        # Forking a process in which torch has started threads can hang; spawned workers cannot.
        with ProcessPoolExecutor(workers, get_context("spawn"), _leave_interrupts) as pool:
            yield from pool.map(examine, scans)
    except BrokenProcessPool as error:
        attempt = "fewer workers; with `out` the audit goes on where it was"
        raise ContractError("audit", "a worker that was killed", "memory", attempt) from error


def _leave_interrupts() -> None:
    """Let the parent alone answer to Ctrl-C: it keeps what is done and ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _keyed(scan: Scan, base: Path, code: str) -> tuple[str, Inspection]:
    """Examine a scan; the key is taken first, so that a file changed meanwhile is seen again."""
    return _key(scan, base, code), inspect(scan, base)


def _key(scan: Scan, base: Path, code: str) -> str:
    """Return what names the state of a scan: its files by place, size and time, and the code."""
    paths = [*scan.channels, *([scan.label] if scan.label else [])]
    return fingerprint(
        code, scan.edition, [(path.relative_to(base), _state(path)) for path in paths]
    )


def _state(path: Path) -> tuple[int, int] | None:
    try:
        known = path.stat()
    except OSError:
        return None
    return known.st_size, known.st_mtime_ns


def _memory(scan: Scan, store: Path) -> Path:
    return store / "scans" / f"{scan.task}-{scan.id}.json"


def _recalled(scan: Scan, base: Path, store: Path, code: str) -> Inspection | None:
    """Return what an earlier audit found at the same files, unless that were errors."""
    try:
        kept = json.loads(_memory(scan, store).read_text("utf-8"))
        findings = [Finding(*finding) for finding in kept["findings"]]
        if kept["key"] != _key(scan, base, code):
            return None
        row = dict(kept["row"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # An error may have been the network's: such a scan is worth a second look.
    return None if any(f.severity == "error" for f in findings) else Inspection(findings, row)
