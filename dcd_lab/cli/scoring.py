"""Scores: predictions against references, file by file or matched by the ids of two folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcd_lab.cli.console import (
    Json,
    TaskName,
    Workers,
    print_json,
    print_table,
    refusal,
    task_of,
    to_write,
)

if TYPE_CHECKING:
    from dcd_lab.tasks import Task

Prediction = Annotated[Path, typer.Argument(help="Label file, or a folder of them.")]
Reference = Annotated[
    Path, typer.Argument(help="True label file, or a folder: a data set will do.")
]
Partial = Annotated[
    bool, typer.Option("--partial", help="References without a prediction are left out.")
]
Table = Annotated[Path | None, typer.Option(help="CSV file for all scores.")]
SHOWN = {
    "brats2024": ("lesion_dice", "lesion_hd95_mm"),
    "isles2022": ("avd_ml", "lesion_count_diff", "lesion_f1"),
}
"""Scores that the challenge of a task ranks by and that are shown beside ours."""


def score(
    prediction: Prediction,
    reference: Reference,
    task: TaskName,
    partial: Partial = False,
    out: Table = None,
    workers: Workers = 1,
    as_json: Json = False,
) -> None:
    """Score predictions against references, by our scores and by those of the challenge.

    Files of two folders are matched by their ids. A prediction must lie on the grid of its
    reference. Means are over the cases in which the region is present. What a challenge alone
    defines has the prefix "challenge".
    """
    import pandas as pd

    from dcd_core.progress import progress
    from dcd_lab.pool import each
    from dcd_lab.records.text import write_table

    if out is not None:
        to_write(out, ".csv")
    pairs = _pairs(prediction, reference, task_of(task), partial)
    rows: list[dict[str, Any]] = []
    for done, scored in enumerate(each(_scored, pairs, workers=workers), start=1):
        rows += scored
        progress("scores", done, len(pairs), scored[0]["case"])
    rows.sort(key=lambda row: row["case"])
    table = pd.DataFrame(rows)
    if out is not None:
        write_table(out, table)
    if as_json:
        return print_json(rows)
    shown = ["dice", "hd95_mm", "nsd_1mm", *(f"challenge_{name}" for name in SHOWN[task])]
    print_table(table[["case", "region", *shown]].to_dict("records"))
    means = table[table["present"]].groupby("region", sort=False)[shown].mean()
    print_table(means.reset_index().to_dict("records"), f"means, cases: {len(pairs)}")


def _pairs(
    prediction: Path, reference: Path, task: Task, partial: bool
) -> list[tuple[str, Path, Path, Task]]:
    """The id, prediction and reference of every case, by id; ContractError for those unmatched."""
    if prediction.is_file() and reference.is_file():
        return [(_id(prediction, prediction.parent, task), prediction, reference, task)]
    predicted, true = (_labels(place, task) for place in (prediction, reference))
    if alone := sorted(predicted.keys() - true.keys()):
        raise refusal(
            "predictions",
            f"{len(alone)} without a reference: {_some(alone)}",
            f"ids of the references, such as {_some(sorted(true)[:1])}",
            "names that begin with the id of the case",
        )
    if (alone := sorted(true.keys() - predicted.keys())) and not partial:
        got = f"{len(alone)} without a prediction: {_some(alone)}"
        raise refusal("references", got, "a prediction each", "--partial leaves them out")
    return [(id, predicted[id], true[id], task) for id in sorted(predicted)]


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _labels(place: Path, task: Task) -> dict[str, Path]:
    """The label files of a folder, at any depth, by id; the images of a data set are left out."""
    if not place.exists():
        raise refusal("labels", f"nothing at {place}", "a file or folder", "another path")
    files = [place] if place.is_file() else sorted(place.rglob("*.nii*"))
    home, labels = place if place.is_dir() else place.parent, dict[str, Path]()
    for file in files:
        stem = file.name.split(".nii")[0].lower()
        if file.name.startswith(".") or stem.endswith(task.channels):
            continue
        if (id := _id(file, home, task)) in labels:
            got, expected = f"two labels of {id}: {labels[id]} and {file}", "one of each case"
            raise refusal("labels", got, expected, "move one of them elsewhere")
        labels[id] = file
    if not labels:
        raise refusal("labels", f"none in {place}", "files in .nii.gz or .nii", "dcd predict")
    return labels


def _id(file: Path, home: Path, task: Task) -> str:
    """The id that a path below `home` names in the form of the task, else the name of the file."""
    from dcd_lab.data.scans import BRATS_ID, ISLES_ID
    from dcd_lab.records.text import printable

    pattern = {"brats2024": BRATS_ID, "isles2022": ISLES_ID}[task.name]
    named = pattern.findall(file.relative_to(home).as_posix())
    return named[-1] if named else printable(file.name.split(".nii")[0])


def _scored(pair: tuple[str, Path, Path, Task]) -> list[dict[str, Any]]:
    """All scores of one case: a row per region."""
    from nibabel.affines import voxel_sizes

    from dcd_lab import metrics
    from dcd_lab.data import volumes
    from dcd_lab.data.editions import OWN, renumbered

    id, *files, task = pair
    predicted, true = map(volumes.load, files)
    predicted = volumes.turned_to(predicted, true)
    volumes.refuse_other_grid(predicted, true)
    for volume in (predicted, true):
        volumes.refuse_fractions(volume)
    pred, ref = (
        renumbered(volume.array, task.name, OWN[task.name], str(volume.path))
        for volume in (predicted, true)
    )
    i, j, k = (round(float(size), 6) for size in voxel_sizes(true.affine))
    ours = metrics.score(pred, ref, task, (i, j, k))
    theirs = metrics.challenge(pred, ref, task, (i, j, k))  # the same regions in the same order
    return [
        {"case": id, **row, **{f"challenge_{key}": official[key] for key in [*official][1:]}}
        for row, official in zip(ours, theirs, strict=True)
    ]
