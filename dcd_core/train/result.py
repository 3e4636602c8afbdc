"""What a run leaves in its folder, and how that is read back."""

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from dcd_core import models
from dcd_core.models import Segmenter
from dcd_core.storage import atomic, digest
from dcd_core.train.recipe import Recipe
from dcd_core.types import ContractError

if TYPE_CHECKING:
    import pandas as pd

DIVERGED = "diverged.json"
"""File that names the step at which a loss or a gradient was not finite."""


class Fit(NamedTuple):
    """A finished training run.

    `student`: the averaged weights, rounded to half precision, in eval mode; `threshold` and
    `val_dice`: the decision and its mean foreground Dice on the val cases; `history`: one row per
    logged step; `seconds` of training; `method`: the method's last state dict, empty without one.
    """

    student: Segmenter
    threshold: float
    val_dice: float
    history: "pd.DataFrame"
    seconds: float
    method: Mapping[str, Tensor] = MappingProxyType({})


def read_fit(run_dir: str | Path) -> Fit:
    """Read a finished run back; raises ContractError when there is none in `run_dir`."""
    import pandas as pd
    from safetensors.torch import load_file

    folder = Path(run_dir)
    facts = facts_of(folder)
    student = models.load(folder / "student.safetensors")
    path = folder / "method.safetensors"
    method = load_file(path) if path.is_file() else {}
    history = pd.read_csv(folder / "history.csv")
    return Fit(student, facts["threshold"], facts["val_dice"], history, facts["seconds"], method)


def read_same(folder: Path, recipe: Recipe, spec: object, method: Collection[str]) -> Fit:
    """Read a run back; ContractError unless its recipe, its student and its method's state are so.

    `spec` of the student's network, names of the tensors in the state of the `method`.
    """
    if facts_of(folder)["recipe"] != recipe.plain():
        raise unfit(folder, "made by another recipe")
    fitted = read_fit(folder)
    if fitted.student.spec != spec or {*fitted.method} != {*method}:
        raise unfit(folder, "of another student or method")
    return fitted


def diverged(run_dir: str | Path) -> bool:
    """Whether a run ended, after its `history.csv`, with a loss or gradient that was not finite."""
    return (Path(run_dir) / DIVERGED).is_file() and not (Path(run_dir) / "fit.json").is_file()


def write_facts(path: Path, facts: Mapping[str, Any]) -> None:
    """Write a small file of a run as JSON, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(facts, indent=1), "utf-8")


def facts_of(folder: Path) -> dict[str, Any]:
    """The decision, seconds and recipe of a finished run; ContractError unless it is whole."""
    got = f"no finished run in {folder}"
    with suppress(OSError, ValueError, TypeError):
        facts = dict(json.loads((folder / "fit.json").read_text("utf-8")))
        if facts.pop("sha256", None) in (None, seal(folder, facts)):
            return facts
        got = f"{folder}, where a file was changed or removed"
    attempt = "removing that folder, and training again"
    raise ContractError("training run", got, "fit.json and the files with it", attempt)


def seal(folder: Path, facts: Mapping[str, Any]) -> str:
    """A hash of what a run leaves; the file of the student has one of its own."""
    files = [folder / name for name in ("history.csv", "method.safetensors")]
    return digest(facts, (file.read_bytes() for file in files if file.is_file()))


def unfit(path: Path, why: str) -> ContractError:
    """The error for a file that belongs to another run, or to none."""
    attempt = "another run_dir, or resume=False to start again"
    return ContractError("run to go on with", f"{path}, {why}", "a file of this run", attempt)
