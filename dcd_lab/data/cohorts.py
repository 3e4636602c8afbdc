"""Cohorts: the cases of one experiment, split into train, val and test, with a name for the whole.

The val split chooses thresholds and weights; the test split is looked at once. A cohort is
synthetic (phantoms, written in the layout of the real data) or clinical (the data under DCD_DATA).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from dcd_core.errors import at_least, one_of, whole
from dcd_core.progress import progress
from dcd_core.types import Case, ContractError
from dcd_lab import phantom
from dcd_lab.cache import run_dir
from dcd_lab.data.nifti import write
from dcd_lab.data.scans import READERS, Scan, layout, layout_id
from dcd_lab.data.splits import folds
from dcd_lab.data.store import VERSION, prepared
from dcd_lab.records import fingerprint
from dcd_lab.tasks import BRATS, ISLES, PUBLIC, SIMULATED, TASKS

Split: TypeAlias = Literal["train", "val", "test"]
_KINDS = {BRATS.name: "glioma", ISLES.name: "stroke", **{name: name for name in SIMULATED}}


@dataclass(frozen=True)
class Cohort:
    """Which cases an experiment uses.

    `folder` holds the files in the layout of `task`; `train`, `val`, `test` are case ids, no
    patient in two of them; `spacing_mm` is the grid they are prepared on (None: their own);
    `identity` names the content, not the folder, so that results of two machines can be compared;
    `origin` holds the arguments of `cohort` that make it again, empty for a cohort made by hand.
    Of the training cases only every `label_every`-th has a label (see `few_labels`).
    """

    task: str
    folder: Path
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    spacing_mm: float | None
    identity: str
    origin: Mapping[str, Any] = field(default_factory=dict)
    label_every: int = 1

    def few_labels(self, every: int) -> Cohort:
        """The same cases, but only every `every`-th of the training split has a label.

        `identity` stays: the files are the same. Raises ContractError for a count below 1.
        """
        at_least("label_every", every, 1)
        origin = {**self.origin, "label_every": every} if self.origin and every > 1 else self.origin
        return replace(self, label_every=every, origin=origin)

    def make(self, *, workers: int = 1) -> None:
        """Make and prepare what is absent of a cohort that `cohort` described, by its `origin`."""
        if self.origin:
            cohort(**self.origin, workers=workers)

    def scans(self, split: Split) -> list[Scan]:
        """The files of one split, in order; raises ContractError when a case is not there."""
        scans = {scan.id: scan for scan in READERS[self.task](self.folder)}
        ids: tuple[str, ...] = getattr(self, split)
        if missing := [id for id in ids if id not in scans]:
            expected, attempt = f"them under {self.folder}", "the folder the cohort was made from"
            what = f"cases of the {split} split"
            raise ContractError(what, f"{missing[:3]} missing", expected, attempt)
        return [scans[id] for id in ids]

    def cases(self, split: Split, *, workers: int = 1) -> list[Case]:
        """The prepared cases of one split, memory-mapped; `workers` processes make those absent.

        Where labels are few, the other training cases have none.
        """
        cases = prepared(self.scans(split), spacing_mm=self.spacing_mm, workers=workers)
        every = self.label_every if split == "train" else 1
        return [c if i % every == 0 else c._replace(label=None) for i, c in enumerate(cases)]


def cohort(
    source: Literal["synthetic", "clinical"],
    task: str,
    *,
    train: int,
    val: int,
    test: int,
    seed: int = 0,
    spacing_mm: float = 2.0,
    label_every: int = 1,
    workers: int = 1,
    ready: bool = True,
) -> Cohort:
    """The cohort a notebook asks for by name, prepared: `synthetic`, or `clinical`.

    One that need not be `ready` is described alone; `Cohort.make` then makes its cases.

    Clinical cases are split by folds: of the arguments after `task` only `spacing_mm`, to which
    they are resampled, `label_every` and `workers` count for them, the others describe phantoms.
    Raises ContractError for another source, and as `synthetic`, `clinical` and `read` do.
    """
    if one_of("data source", source, "synthetic", "clinical") == "clinical":
        made = clinical(task, spacing_mm=spacing_mm)
    else:
        sizes = {"train": train, "val": val, "test": test}
        options: dict[str, Any] = {"seed": seed, "spacing_mm": spacing_mm, "workers": workers}
        made = synthetic(task, **sizes, **options, ready=ready)
    for split in get_args(Split) if ready else ():
        made.cases(split, workers=workers)
    return made.few_labels(label_every)


def synthetic(
    task: str,
    *,
    train: int,
    val: int,
    test: int,
    seed: int = 0,
    spacing_mm: float = 2.0,
    workers: int = 1,
    ready: bool = True,
) -> Cohort:
    """A cohort of phantoms, made once and kept under `runs/`; if not `ready`, later.

    `train`, `val`, `test` count subjects; no subject is in two splits. Interrupted work is
    continued. Raises ContractError for an unknown task or an empty split.
    """
    one_of("task", task, *sorted(TASKS))
    whole("splits", (train, val, test), 0)
    if min(train, val, test) < 1:
        raise ContractError("splits", (train, val, test), "at least one case each", "train=8")
    kind, count = _KINDS[task], train + val + test
    key = (kind, seed, spacing_mm, phantom.VERSION)
    folder = run_dir(f"cohort-{kind}", *key)
    # Case i does not depend on how many there are: a larger profile extends a smaller one's folder.
    ids = [layout_id(f"{kind}-{number}", TASKS[task]) for number in range(1, count + 1)]
    wanted = enumerate(ids if ready else ())
    absent = [index for index, id in wanted if not _is_written(folder, id, task)]
    painted = phantom.members(kind, absent, seed=seed, spacing_mm=spacing_mm, workers=workers)
    for done, case in enumerate(painted, start=1):
        write([case], folder, task=TASKS[task])
        progress(f"{kind} phantoms", done, len(absent))
    splits = tuple(ids[:train]), tuple(ids[train : train + val]), tuple(ids[train + val :])
    origin = {"source": "synthetic", "task": task, "train": train, "val": val, "test": test}
    origin |= {"seed": seed, "spacing_mm": spacing_mm}
    identity = fingerprint(*key, VERSION, train, val, test)
    return Cohort(task, folder, *splits, None, identity, origin)


def clinical(task: str, *, fold: int = 0, spacing_mm: float | None = None) -> Cohort:
    """The real data set under the folder named by the environment variable DCD_DATA.

    Test is one of five folds grouped by patient; a tenth of the other patients is the val split.
    Raises ContractError for a task without public data, an unknown fold, and when DCD_DATA is not
    set or holds fewer than 13 labelled patients of the task.
    """
    one_of("task", task, *sorted(PUBLIC))
    if not 0 <= fold < 5:
        raise ContractError("fold", fold, "0 to 4", "fold=0")
    root = os.environ.get("DCD_DATA")
    if not root:
        expected = "the folder that holds BraTS 2024 GLI or ISLES 2022"
        attempt = "DCD_DATA=/path/to/data, or data_source: synthetic for the phantoms"
        raise ContractError("DCD_DATA", "not set", expected, attempt)
    groups = {scan.id: scan.group for scan in READERS[task](root) if scan.label is not None}
    outer = folds(groups, group=groups)[fold]
    inner = folds(outer.train, k=10, group=groups)[0]
    identity = fingerprint(task, outer, inner, spacing_mm, VERSION)
    return Cohort(task, Path(root), inner.train, inner.val, outer.val, spacing_mm, identity)


def _is_written(folder: Path, id: str, task: str) -> bool:
    return all((folder / path).is_file() for path in layout(id, TASKS[task]).values())
