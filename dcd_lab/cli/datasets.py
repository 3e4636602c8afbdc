"""Data sets: what is wrong with one, its folds, and its cases prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dcd_lab.cli.console import Json, TaskName, Workers, print_json, task_of, to_write

Root = Annotated[Path, typer.Argument(help="Folder that holds BraTS or ISLES, at any depth.")]
AnyTask = Annotated[str | None, typer.Option(help="Task; by default whatever lies there.")]
Edition = Annotated[
    int | None, typer.Option(help="Year whose numbers the BraTS labels hold; by default 2024.")
]
Findings = Annotated[Path | None, typer.Option(help="Folder for findings.csv and manifest.csv.")]
ByScan = Annotated[
    bool,
    typer.Option("--by-scan", help="As nnU-Net does: scans of a patient end up on both sides."),
]
Splits = Annotated[Path, typer.Option(help="File to write.")]
Spacing = Annotated[
    float | None, typer.Option(help="Voxel size in mm to resample to; by default none.")
]


def audit(
    root: Root,
    task: AnyTask = None,
    edition: Edition = None,
    out: Findings = None,
    workers: Workers = 1,
    as_json: Json = False,
) -> None:
    """List everything that is wrong with a data set. Exit code 1 means errors."""
    from dcd_lab.audit import audit as examine

    name = None if task is None else task_of(task).name
    result = examine(root, task=name, edition=edition, out=out, workers=workers)
    if as_json:
        tables = {key: table.to_dict("records") for key, table in result._asdict().items()}
        print_json({"verdict": result.verdict(), **tables})
    else:
        if text := result.text():
            print(text)
        print(result.verdict())
    raise typer.Exit(1 if result.count("error") else 0)


def folds(
    root: Root,
    task: TaskName,
    by_scan: ByScan = False,
    out: Splits = Path("splits_final.json"),
    as_json: Json = False,
) -> None:
    """Split the labelled scans of a data set into the five folds of nnU-Net, by patient."""
    from dcd_lab import data
    from dcd_lab.data.scans import READERS

    to_write(out, ".json")
    scans = READERS[task_of(task).name](root)
    patients = {scan.id: scan.group for scan in scans if scan.label is not None}
    made = data.folds(patients, group=None if by_scan else patients)
    data.write_splits(made, out)
    leaks = [len(data.shared(fold, patients)) for fold in made]
    if as_json:
        rows = [{**fold._asdict(), "shared": leak} for fold, leak in zip(made, leaks, strict=True)]
        return print_json({"file": out, "folds": rows})
    for number, (fold, leak) in enumerate(zip(made, leaks, strict=True)):
        warning = f"; {leak} patients on both sides: scores on it are too high" if leak else ""
        print(f"fold {number}: {len(fold.train)} train, {len(fold.val)} val{warning}")
    print(out)


def prepare(
    root: Root,
    task: TaskName,
    spacing: Spacing = None,
    workers: Workers = 1,
    as_json: Json = False,
) -> None:
    """Crop, normalise and resample the scans of a data set, and keep them for training.

    They are kept under runs/ of the project folder. What is there already is not made again.
    """
    from dcd_core.errors import positive
    from dcd_lab.data import prepared
    from dcd_lab.data.scans import READERS

    size = None if spacing is None else positive("spacing", spacing)
    scans = READERS[task_of(task).name](root)
    cases = prepared(scans, spacing_mm=size, workers=workers)
    # The images are mapped from their files.
    folders = [Path(getattr(case.image, "filename")).parent for case in cases]  # noqa: B009
    if as_json:
        rows = zip(cases, folders, strict=True)
        return print_json([{"case": case.id, "folder": folder} for case, folder in rows])
    print(f"{len(cases)} prepared: {folders[0].parent}")
