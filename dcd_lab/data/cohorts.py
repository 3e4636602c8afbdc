"""Cohorts: the cases of one experiment, split into train, val and test, with a name for the whole.

The val split chooses thresholds and weights, the test split is looked at once. A cohort is
synthetic (phantoms, written to disk in the layout of the real data) or clinical (found under
DCD_DATA); both are read by the same readers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from dcd_core.progress import progress
from dcd_core.types import BRATS, ISLES, TASKS, Case, ContractError
from dcd_lab import phantom
from dcd_lab.cache import run_dir
from dcd_lab.data.nifti import write
from dcd_lab.data.scans import Scan, brats2024, isles2022, layout
from dcd_lab.data.splits import folds
from dcd_lab.data.store import prepared
from dcd_lab.records import fingerprint, source_hash

Split: TypeAlias = Literal["train", "val", "test"]
READERS = {BRATS.name: brats2024, ISLES.name: isles2022}
PHANTOMS = {
    BRATS.name: ("glioma", "BraTS-GLI-{:05}-100"),
    ISLES.name: ("stroke", "sub-strokecase{:04}"),
}


@dataclass(frozen=True)
class Cohort:
    """Which cases an experiment uses.

    `folder` holds the files in the layout of `task`; `train`, `val`, `test` are case ids, no
    patient in two of them; `spacing_mm` is the grid they are prepared on (None: their own);
    `identity` names the content, not the place, so that results can be compared across machines.
    """

    task: str
    folder: Path
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    spacing_mm: float | None
    identity: str

    def scans(self, split: Split) -> list[Scan]:
        """The files of one split, in order; raises ContractError when a case is not there."""
        found = {scan.id: scan for scan in READERS[self.task](self.folder)}
        wanted: tuple[str, ...] = getattr(self, split)
        missing = [id for id in wanted if id not in found]
        if missing:
            raise ContractError(
                f"cases of the {split} split",
                f"{missing[:3]} missing",
                f"them under {self.folder}",
                "the folder the cohort was made from",
            )
        return [found[id] for id in wanted]

    def cases(self, split: Split, *, workers: int = 1) -> list[Case]:
        """The prepared cases of one split, memory-mapped; `workers` processes make those absent."""
        return prepared(self.scans(split), spacing_mm=self.spacing_mm, workers=workers)


def cohort(
    source: Literal["synthetic", "clinical"],
    task: str,
    *,
    train: int,
    val: int,
    test: int,
    seed: int = 0,
    spacing_mm: float = 2.0,
    workers: int = 1,
) -> Cohort:
    """The cohort a notebook asks for by name, prepared: `synthetic`, or `clinical`.

    Clinical cases are split by folds: of the arguments after `task` only `spacing_mm`, to which
    they are resampled, and `workers` count for them, the others describe phantoms.
    Raises ContractError for another source, and as `synthetic`, `clinical` and `read` do.
    """
    if source not in ("synthetic", "clinical"):
        raise ContractError("data source", repr(source), "'synthetic' or 'clinical'", "'synthetic'")
    if source == "clinical":
        found = clinical(task, spacing_mm=spacing_mm)
    else:
        sizes = {"train": train, "val": val, "test": test}
        found = synthetic(task, **sizes, seed=seed, spacing_mm=spacing_mm, workers=workers)
    for split in get_args(Split):
        found.cases(split, workers=workers)
    return found


def synthetic(
    task: str,
    *,
    train: int,
    val: int,
    test: int,
    seed: int = 0,
    spacing_mm: float = 2.0,
    workers: int = 1,
) -> Cohort:
    """A cohort of phantoms, made once and kept under `runs/`.

    `train`, `val`, `test` count subjects; they are disjoint by construction. Interrupted work goes
    on where it stopped. Raises ContractError for an unknown task or an empty split.
    """
    if task not in PHANTOMS:
        raise ContractError("task", repr(task), f"one of {sorted(PHANTOMS)}", "'isles2022'")
    if min(train, val, test) < 1:
        raise ContractError("splits", (train, val, test), "at least one case each", "train=8")
    (kind, form), count = PHANTOMS[task], train + val + test
    key = (kind, seed, spacing_mm, source_hash("dcd_lab.phantom"))
    folder = run_dir(f"cohort-{kind}", *key)
    # Case i does not depend on how many there are: a larger profile extends a smaller one's folder.
    ids = [form.format(index + 1) for index in range(count)]
    absent = [i for i, id in enumerate(ids) if not _is_written(folder, id, task)]
    made = phantom.members(kind, absent, seed=seed, spacing_mm=spacing_mm, workers=workers)
    for done, case in enumerate(made):
        write([case], folder, task=TASKS[task])
        progress(f"{kind} phantoms", done + 1, len(absent))
    return Cohort(
        task,
        folder,
        train=tuple(ids[:train]),
        val=tuple(ids[train : train + val]),
        test=tuple(ids[train + val :]),
        spacing_mm=None,
        identity=fingerprint(*key, train, val, test),
    )


def clinical(task: str, *, fold: int = 0, spacing_mm: float | None = None) -> Cohort:
    """The real data set under the folder named by the environment variable DCD_DATA.

    Test is one of five folds grouped by patient; a tenth of the other patients is the val split.
    Raises ContractError for an unknown task or fold, and when DCD_DATA is not set or holds fewer
    than 13 labelled patients of the task.
    """
    if task not in READERS:
        raise ContractError("task", repr(task), f"one of {sorted(READERS)}", "'isles2022'")
    if not 0 <= fold < 5:
        raise ContractError("fold", fold, "0 to 4", "fold=0")
    place = os.environ.get("DCD_DATA")
    if not place:
        raise ContractError(
            "DCD_DATA",
            "not set",
            "the folder that holds BraTS 2024 GLI or ISLES 2022",
            "DCD_DATA=/path/to/data, or data=synthetic for the phantoms",
        )
    scans = {scan.id: scan for scan in READERS[task](place) if scan.label is not None}
    groups = {id: scan.group for id, scan in scans.items()}
    outer = folds(groups, group=groups)[fold]
    inner = folds(outer.train, k=10, group=groups)[0]
    identity = fingerprint(task, outer, inner, spacing_mm)
    return Cohort(task, Path(place), inner.train, inner.val, outer.val, spacing_mm, identity)


def _is_written(folder: Path, id: str, task: str) -> bool:
    return all((folder / path).is_file() for path in layout(id, TASKS[task]).values())
