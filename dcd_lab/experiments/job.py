"""Jobs: training runs described as data, and where what they leave is kept.

A fingerprint of all that decides the weights names a job's folder: recipe, architecture, method,
cohort, teacher, and the version number of training. Notebooks share runs through it, and the record
keeps them by it. Threshold and scores are kept beside the weights, in files named by the version
number of the evaluation: when it changes, they are made again and nothing is trained.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from dcd_core import train
from dcd_core.train import Fit, Recipe, read_fit
from dcd_core.types import ContractError
from dcd_lab import records
from dcd_lab.cache import run_dir
from dcd_lab.data import Cohort
from dcd_lab.experiments import evaluation
from dcd_lab.records.identity import fingerprint
from dcd_lab.records.seals import check
from dcd_lab.tasks import TASKS

PENALTY = "group-lasso"
"""The method of a job that trains with `compress.ReweightedGroupLasso`."""
START = "start.safetensors"
"""The file in a job's folder with the network that it starts from, if that is another job's."""


@dataclass(frozen=True)
class Job:
    """One training run and its test.

    `model`: keyword arguments of `models.build` without the channel counts of the task; `method`:
    "none", a name for `methods.build`, or "group-lasso", a penalty that prepares for
    pruning and needs no teacher, with its `options`; `teacher`: the job that trains the teacher,
    whose Dice on the val cases must reach `teacher_floor`; `start`: the network that is trained on,
    in the place of a `model` with weights drawn from the seed. `label` names the folder, `arm` the
    line in tables. A job that is not `tested` reads nothing of the test
    split. The record has no weights of a job that is not `kept`. These four change no weight.
    """

    label: str
    cohort: Cohort
    model: Mapping[str, Any]
    recipe: Recipe
    method: str = "none"
    options: Mapping[str, Any] = field(default_factory=dict)
    teacher: Job | None = None
    teacher_floor: float = 0.3
    start: Start | None = None
    arm: str = ""
    tested: bool = True
    kept: bool = True

    @property
    def identity(self) -> str:
        """Fingerprint of everything that decides the trained weights."""
        cases: object = self.cohort.identity
        if self.cohort.label_every > 1:
            cases = [cases, self.cohort.label_every]
        return fingerprint(
            train.VERSION,
            cases,
            dict(self.model),
            self.recipe,
            self.method,
            dict(self.options),
            None if self.teacher is None else self.teacher.identity,
            None if self.start is None else self.start.identity,
        )

    @property
    def needs(self) -> tuple[Job, ...]:
        """The jobs whose networks this one takes: its teacher, and the one that it starts from."""
        source = None if self.start is None else self.start.job
        return tuple(job for job in (self.teacher, source) if job is not None)

    @property
    def wave(self) -> int:
        """How many jobs must be done one after the other before this one."""
        return max((1 + job.wave for job in self.needs), default=0)

    @property
    def folder(self) -> Path:
        """Where the run is kept, `runs/<label>-<a fingerprint>`."""
        return run_dir(self.label, self.identity)

    @property
    def trained(self) -> bool:
        """Whether the run is finished."""
        return (self.folder / "fit.json").is_file()

    @property
    def done(self) -> bool:
        """Whether the run is trained and, as far as it is to be, evaluated."""
        scored = not self.tested or self.table("scores").is_file()
        return self.trained and self.threshold_file.is_file() and scored

    @property
    def threshold_file(self) -> Path:
        """File of the threshold that this version of the evaluation chose on the val cases."""
        return self.folder / f"threshold-{evaluation.VERSION}.json"

    def table(self, name: str) -> Path:
        """File of a test table: "scores" (row: case, region) or "lesions" (row: case, lesion).

        Named by the version of the evaluation and by the cases, as one run may be tested on several
        sets.
        """
        return self.folder / f"{name}-{evaluation.VERSION}-{fingerprint(self.cohort.test)}.csv"

    @property
    def val_dice(self) -> float:
        """Mean foreground Dice on the val cases, under the threshold that is best there."""
        return self._chosen()["val_dice"]

    @property
    def seconds(self) -> float:
        """Time of the training. Raises ContractError as `result` does, but needs no weights."""
        return float(json.loads(self._read("fit.json"))["seconds"])

    @property
    def history(self) -> pd.DataFrame:
        """The history of the training, a row per logged step. Errors as those of `seconds`."""
        return pd.read_csv(StringIO(self._read("history.csv")))

    def result(self) -> Fit:
        """The trained student, its history, and its threshold in this version of the evaluation.

        Raises ContractError when the job has not run, when its files have changed since, and when
        it comes from the record without its weights.
        """
        check(self.folder)
        if self.trained and not (self.folder / "student.safetensors").is_file():
            expected, attempt = (
                "a network that the record keeps",
                "DCD_RECORD=ignore, which trains it",
            )
            raise ContractError(f"network of {self.label}", "no weights", expected, attempt)
        fitted = read_fit(self.folder)
        _compare_versions(self.folder)
        chosen = self._chosen()
        return fitted._replace(threshold=chosen["threshold"], val_dice=chosen["val_dice"])

    def read(self, name: str = "scores") -> pd.DataFrame:
        """A test table of a finished job with the columns method (the arm) and seed in front.

        Raises ContractError when the job has not run, or its files have changed since.
        """
        if not self.done or not self.tested:
            raise self._not_run(name)
        _compare_versions(self.folder)
        check(self.folder)
        table = pd.read_csv(self.table(name))
        rows = len(self.cohort.test) * len(TASKS[self.cohort.task].regions)
        if name == "scores" and len(table) != rows:  # files of older versions have no seal
            got, attempt = f"{len(table)} rows", f"removing {self.table(name)} and running again"
            raise ContractError(f"scores of {self.label}", got, f"{rows} rows", attempt)
        table.insert(0, "method", self.arm or self.label)
        table.insert(1, "seed", self.recipe.seed)
        return table

    def _read(self, name: str) -> str:
        if not self.trained:
            raise self._not_run(name)
        check(self.folder)
        return (self.folder / name).read_text("utf-8")

    def _chosen(self) -> dict[str, float]:
        if not self.threshold_file.is_file():
            raise self._not_run("threshold")
        check(self.folder)
        return dict(json.loads(self.threshold_file.read_text("utf-8")))

    def _not_run(self, wanted: str) -> ContractError:
        got = "a job that has not run, or was not tested"
        return ContractError(f"{wanted} of {self.label}", got, "a finished job", "run_all([job])")


@dataclass(frozen=True)
class Start:
    """The trained network of another job, which is trained on: whole, or pruned.

    `parameters`: how many `compress.prune` leaves, in channels that are multiples of `divisor`; all
    of them if None.
    """

    job: Job
    parameters: int | None = None
    divisor: int = 1

    @property
    def identity(self) -> str:
        """Fingerprint of everything that decides the network."""
        return fingerprint(self.job.identity, self.parameters, self.divisor)


def versions() -> dict[str, str]:
    """Versions of the packages that train and predict, without the build ("+cpu")."""
    installed = records.versions()
    return {name: str(installed[name]).partition("+")[0] for name in ("torch", "monai")}


def _compare_versions(folder: Path) -> None:
    """Warn where a kept run was trained with other versions than are installed."""
    kept = json.loads((folder / "versions.json").read_text("utf-8"))
    for name, installed in versions().items():
        if kept[name] != installed:
            warnings.warn(f"a kept run was trained with {name} {kept[name]}, not {installed}")
