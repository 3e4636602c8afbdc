"""Training: one network on one fold of a data set, with a teacher or without."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from dcd_lab.cli.console import Json, TaskName, Workers, print_json, refusal, task_of

Root = Annotated[Path, typer.Argument(help="Folder that holds BraTS or ISLES, at any depth.")]
Run = Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")]
Teacher = Annotated[Path | None, typer.Option(help="File of the teacher; by default none.")]
MethodName = Annotated[str, typer.Option(help="Distillation method, where there is a teacher.")]
Width = Annotated[
    int | None,
    typer.Option(min=1, help="Channels of the finest of four stages; 16, or the teacher's / 4."),
]
Fold = Annotated[int, typer.Option(min=0, max=4, help="Fold that is held out.")]
Steps = Annotated[int, typer.Option(min=1, help="Optimizer steps.")]
Patch = Annotated[tuple[int, int, int], typer.Option(help="Voxels of a patch.")]
Spacing = Annotated[float | None, typer.Option(help="Voxel size in mm; by default each scan's.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the initial weights and the batches.")]


def train(
    root: Root,
    task: TaskName,
    out: Run,
    teacher: Teacher = None,
    method: MethodName = "dcd",
    width: Width = None,
    fold: Fold = 0,
    steps: Steps = 1000,
    patch: Patch = (32, 32, 32),
    spacing: Spacing = None,
    seed: Seed = 0,
    workers: Workers = 1,
    as_json: Json = False,
) -> None:
    """Train a segmenter on four of five folds; the held-out one chooses the threshold.

    An interrupted run goes on when the command is given again. The Dice that is told is that of the
    cases that chose the threshold, so it is no test. Exit code 1 means that the run diverged.
    """
    import torch

    from dcd_core import methods, models
    from dcd_core.errors import positive
    from dcd_core.train import Recipe, fit, training_device
    from dcd_lab import data
    from dcd_lab.data.scans import READERS
    from dcd_lab.experiments.running import distiller_of, patches_of
    from dcd_lab.records import fingerprint

    chosen, recipe = task_of(task), Recipe(steps=steps, patch=patch, seed=seed)
    size_mm = None if spacing is None else positive("spacing", spacing)
    guide = None if teacher is None else models.load(teacher).to(training_device())
    shape = (len(chosen.channels), len(chosen.labels))
    if guide and guide.spec and (guide.spec["in_channels"], guide.spec["classes"]) != shape:
        got = f"{guide.spec['in_channels']} channels, {guide.spec['classes']} classes"
        expected = f"{shape[0]} and {shape[1]}, those of {task}"
        raise refusal("teacher", got, expected, "a network that was trained on this task")
    scans = {scan.id: scan for scan in READERS[task](root) if scan.label is not None}
    ids = data.folds(scans, group={scan.id: scan.group for scan in scans.values()})[fold]

    if width is None and guide is not None:
        channels = models.shrink(guide.channels, 4)
    else:
        channels = tuple((width or 16) * 2**stage for stage in range(4))
    student = partial(models.dynunet, *shape, channels=channels)
    with torch.inference_mode():  # what does not fit is told before any case is prepared
        student()(torch.zeros(recipe.batch, shape[0], *patch))
    if guide is not None:
        methods.build(method, channels, guide.channels)

    request = {
        "task": task,
        "channels": channels,
        "method": method if guide is not None else "none",
        "teacher": guide and fingerprint(*(w.cpu().numpy() for w in guide.state_dict().values())),
        "spacing_mm": spacing,
        "fold": ids,
    }
    _claim(out, request)
    seen, held_out = (
        data.prepared([scans[id] for id in part], spacing_mm=size_mm, workers=workers)
        for part in ids
    )
    patches = patches_of(seen, recipe)
    distiller = distiller_of(student, guide, patches, recipe, method)
    try:
        fitted = fit(distiller, patches, held_out, recipe, run_dir=out)
    except FloatingPointError as error:
        typer.echo(f"{out}: diverged: {error}", err=True)
        raise typer.Exit(1) from None
    weights = out / "student.safetensors"
    if as_json:
        kept = {"threshold": fitted.threshold, "val_dice": fitted.val_dice}
        return print_json({"file": weights, "seconds": fitted.seconds, **kept})
    print(f"{weights}: Dice {fitted.val_dice:.3f} on the held-out fold, {fitted.seconds:.0f} s")


def _claim(folder: Path, request: Mapping[str, object]) -> None:
    """Keep in the folder of a run what was asked for; ContractError where it holds another run."""
    from dcd_lab.records.places import read_json, write_json
    from dcd_lab.records.seals import check, seal

    file = folder / "request.json"
    wanted = json.loads(json.dumps(request))
    if not file.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise refusal("--out", f"{folder}, which holds files", "a new folder", "another name")
        write_json(file, wanted)
        return seal(folder, file.name)
    check(folder)
    kept = read_json(file)
    if other := [key for key in wanted if kept.get(key) != wanted[key]]:
        got = f"{folder}, a run with another {' and '.join(other)}"
        raise refusal("--out", got, "a new folder, or the same command", "another name")
