"""Audit: the state of a whole data set, before anyone spends a week training on it.

Reading stops at the first fault of a scan. An audit lists all faults of all scans, and a manifest
that says which files, with which labels, a result was made from.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from dcd_core.errors import one_of
from dcd_core.progress import progress
from dcd_core.storage import atomic
from dcd_lab.audit.findings import DATA_SET, SEVERITIES, Finding
from dcd_lab.audit.inspection import Inspection, inspect
from dcd_lab.data.editions import OWN, numbering
from dcd_lab.data.scans import Scan, Survey, no_scans, scans_of, survey, twice
from dcd_lab.pool import each
from dcd_lab.records import fingerprint
from dcd_lab.records.text import printable, write_table
from dcd_lab.tasks import ISLES, PUBLIC

VERSION = 2
"""Raise it by hand when the same files get other findings or another manifest than before."""


class Audit(NamedTuple):
    """The result of an audit.

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
        counts = [_counted(errors, "error"), _counted(warnings, "warning"), _counted(notes, "note")]
        return f"{scans}: {word} ({', '.join(counts)})"

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


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def audit(
    root: str | os.PathLike[str],
    *,
    task: str | None = None,
    edition: int | None = None,
    out: str | os.PathLike[str] | None = None,
    workers: int = 1,
) -> Audit:
    """Examine every scan below `root` and list all that is wrong, without stopping at a fault.

    `task` is a name out of `tasks.PUBLIC`, None for whatever lies there. `edition` is the year of
    whose numbers the BraTS labels are (None: 2024). With `out`, that folder gets `findings.csv`,
    `manifest.csv` and a file per scan. By these files a repeated or interrupted audit examines only
    scans that had errors or that have changed. `workers` > 1 examines in that many processes, each
    with about 1 GiB of memory.
    Raises ContractError when `root` is absent or holds no scan of the task, for an unknown task or
    edition, and when a worker was killed.
    """
    if task is not None:
        one_of("task", task, *sorted(PUBLIC))
    tree, names = survey(root), [task] if task else list(PUBLIC)
    scans: list[Scan] = []
    for name in names:
        scans += scans_of(tree, PUBLIC[name], _edition(name, edition, task))
    if not scans:
        raise no_scans(tree.base, names)
    findings = list(_of_the_tree(tree, names))
    rows: dict[Scan, dict[str, Any]] = {}
    store = None if out is None else Path(out)
    for scan, one in _inspections(scans, tree.base, store, workers):
        findings += one.findings
        rows[scan] = one.row
        progress("audit", len(rows), len(scans), scan.id)
    manifest = pd.DataFrame([rows[scan] for scan in scans])
    manifest["files"] = manifest["files"].map(printable)
    result = Audit(_table(findings), manifest)
    if store is not None:
        for name, table in result._asdict().items():
            write_table(store / f"{name}.csv", table)
    return result


def _edition(name: str, edition: int | None, task: str | None) -> int:
    """Return the edition of a task: the one given is meant for BraTS unless ISLES is named."""
    if edition is None or (name == ISLES.name and task is None):
        return OWN[name]
    numbering(name, edition)
    return edition


def _of_the_tree(tree: Survey, names: Sequence[str]) -> Iterator[Finding]:
    """Yield what the names alone tell: copies, folders that cannot be opened, files of no scan."""

    def below(path: Path) -> str:
        return path.relative_to(tree.base).as_posix()

    for task in names:
        for id, name, paths in twice(tree, PUBLIC[task]):
            got = f"{name}: {', '.join(map(below, paths))}"
            yield Finding(id, "duplicate", got, "one copy", "error")
    for path in tree.closed:
        got, expected = f"{below(path)}: cannot be opened", "a folder that can be read"
        yield Finding(DATA_SET, "unreadable folder", got, expected, "error")
    for path in tree.strays:
        expected = "files named after their scan"
        yield Finding(DATA_SET, "file of no scan", below(path), expected, "info")


def _table(findings: Sequence[Finding]) -> pd.DataFrame:
    def order(finding: Finding) -> tuple[int, str, str, str]:
        return SEVERITIES.index(finding.severity), finding.check, finding.case, finding.got

    ordered: list[Finding] = sorted(findings, key=order)
    texts = [tuple(map(printable, one)) for one in ordered]
    return pd.DataFrame(texts, columns=list(Finding._fields))


def _inspections(
    scans: Sequence[Scan], base: Path, store: Path | None, workers: int
) -> Iterator[tuple[Scan, Inspection]]:
    """Yield the inspection of every scan, kept ones first; new ones are kept as they arrive."""
    pending = []
    for scan in scans:
        kept = None if store is None else _recalled(scan, base, store)
        if kept is None:
            pending.append(scan)
        else:
            yield scan, kept
    for scan, key, one in each(partial(_examined, base=base), pending, workers=workers):
        if store is not None:
            with atomic(_kept_file(scan, store)) as temporary:
                found = {"key": key, **one._asdict()}
                content = {**found, "content": fingerprint(found)}
                temporary.write_text(json.dumps(content), "utf-8")
        yield scan, one


def _examined(scan: Scan, base: Path) -> tuple[Scan, str, Inspection]:
    key = _key(scan, base)  # before the files are read: one that changes meanwhile is read again
    return scan, key, inspect(scan, base)


def _key(scan: Scan, base: Path) -> str:
    """Return what names the state of a scan: the code, its edition and its files."""
    paths = [path.relative_to(base) for path in scan.files]
    return fingerprint(VERSION, scan.label_edition, paths, scan.state())


def _kept_file(scan: Scan, store: Path) -> Path:
    return store / "scans" / f"{scan.task}-{scan.id}.json"


def _recalled(scan: Scan, base: Path, store: Path) -> Inspection | None:
    """Return what an earlier audit found at the same files, unless there were errors."""
    try:
        kept = json.loads(_kept_file(scan, store).read_text("utf-8"))
        findings = [Finding(*finding) for finding in kept["findings"]]
        one = Inspection(findings, dict(kept["row"]))
        same = kept.pop("content") == fingerprint(kept) and kept["key"] == _key(scan, base)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # An error may have come from the network or the disk: such a scan is examined again.
    sound = same and not any(finding.severity == "error" for finding in findings)
    return one if sound else None
