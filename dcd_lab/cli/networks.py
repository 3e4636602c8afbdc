"""Networks: what one predicts, what it costs, and how it is exported.

A network is a file that training wrote. In the folder of its run lie also the patch and the
voxel size that it was trained on, and the threshold that the val cases chose. They are taken from
there unless given.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcd_lab.cli.console import Json, print_json, refusal, task_of, to_write, waiting

if TYPE_CHECKING:
    from dcd_core.models import Segmenter
    from dcd_core.types import Size3
    from dcd_lab.tasks import Task

Images = Annotated[
    list[Path], typer.Argument(help="One file per channel, in the order of the task.")
]
Network = Annotated[Path, typer.Argument(help="File of the network, .safetensors.")]
NetworkOption = Annotated[
    Path, typer.Option("--model", "-m", help="File of the network, .safetensors.")
]
Label = Annotated[Path, typer.Option("--out", "-o", help="Label file to write, .nii.gz.")]
Onnx = Annotated[
    Path | None, typer.Option("--out", "-o", help="File to write; by default beside the network.")
]
AnyTask = Annotated[
    str | None, typer.Option(help="Task; by default the one with as many channels and labels.")
]
Patch = Annotated[
    tuple[int, int, int] | None, typer.Option(help="Voxels of a patch; by default as in training.")
]
Threshold = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Of the foreground; by default as chosen in training, or 0.5."),
]
Spacing = Annotated[
    float | None,
    typer.Option(help="Voxel size in mm; by default as in training, if known."),
]
Overlap = Annotated[float, typer.Option(help="Share of a window that the next one covers again.")]
Mirror = Annotated[bool, typer.Option("--mirror", help="Average all flips: eight times the time.")]
Cpu = Annotated[bool, typer.Option("--cpu", help="Leave a GPU alone.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads; by default those of PyTorch.")]
Rounds = Annotated[int, typer.Option(min=1, help="Passes that are timed.")]


def predict(
    images: Images,
    model: NetworkOption,
    out: Label,
    task: AnyTask = None,
    patch: Patch = None,
    threshold: Threshold = None,
    spacing: Spacing = None,
    overlap: Overlap = 0.5,
    mirror: Mirror = False,
    cpu: Cpu = False,
    as_json: Json = False,
) -> None:
    """Segment one scan and write the label on its own grid, with the header of the first image."""
    to_write(out, ".nii.gz", ".nii", reads=images)
    network = _loaded(model, cpu=cpu)
    chosen = _task_of(network, task)
    _refuse_other_channels(images, chosen)
    window = _patch_of(model, patch)
    facts = _facts(model)
    cut = facts.get("threshold", 0.5) if threshold is None else threshold
    size_mm = facts.get("spacing_mm") if spacing is None else spacing

    import numpy as np

    from dcd_core.errors import positive
    from dcd_lab import data

    size_mm = None if size_mm is None else positive("spacing", size_mm)
    id = images[0].name.split(".nii")[0]
    with waiting("reading"):
        case = data.read(data.Scan(id, chosen.name, tuple(images), None, id))
    with waiting("predicting"):
        label = data.predict_case(
            network,
            case,
            chosen,
            patch=window,
            threshold=cut,
            spacing_mm=size_mm,
            overlap=overlap,
            mirror=mirror,
        )
    data.export(label, out, reference=images[0])
    ml = float(np.prod(case.spacing_mm)) / 1000
    sizes = {name: ml * int((label == n).sum()) for n, name in enumerate(chosen.labels) if n}
    if as_json:
        settings = {"file": out, "threshold": cut, "patch": window, "spacing_mm": size_mm}
        return print_json({**settings, "volume_ml": sizes})
    print(f"{out}: " + ", ".join(f"{name} {volume:.2f} ml" for name, volume in sizes.items()))


def cost(
    model: Network,
    patch: Patch = None,
    threads: Threads = None,
    rounds: Rounds = 11,
    cpu: Cpu = False,
    as_json: Json = False,
) -> None:
    """Measure one forward pass: parameters, operations, memory and time."""
    from dcd_lab.deploy import cost as measure

    network, window = _loaded(model, cpu=cpu), _patch_of(model, patch)
    shape = (1, _spec(network)["in_channels"], *window)
    with waiting("measuring"):
        price = measure(network, shape, threads=threads, rounds=rounds)
    if as_json:
        return print_json({"shape": shape, **price._asdict()})
    print(f"input         {' x '.join(map(str, shape))}")
    print(f"parameters    {price.parameters:,}")
    print(f"operations    {price.macs / 1e9:.3g} billion multiply-accumulates")
    print(f"peak memory   {price.peak_mib:.0f} MiB")
    quartiles = f"{price.low_ms:.1f} to {price.high_ms:.1f}"
    print(f"time          {price.latency_ms:.1f} ms ({quartiles}; {price.threads} threads)")
    print(f"device        {price.device}")


def export(model: Network, out: Onnx = None, patch: Patch = None, as_json: Json = False) -> None:
    """Write a network as ONNX and compare its logits. Exit code 1 means that they differ."""
    import torch

    from dcd_core.errors import ContractError, require
    from dcd_lab.deploy import check_export, export_onnx

    require("deploy", "onnx", "onnxscript", "onnxruntime")
    path = to_write(model.with_suffix(".onnx") if out is None else out, ".onnx")
    network = _loaded(model, cpu=True)
    shape = (1, _spec(network)["in_channels"], *_patch_of(model, patch))
    with waiting("exporting"):
        export_onnx(network, path, shape)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    try:
        error = check_export(network, path, [noise])
    except ContractError as difference:
        typer.echo(f"{path}: {difference}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        return print_json({"file": path, "largest_difference": error})
    print(f"{path}: logits differ by at most {error:.2g}")


def _loaded(path: Path, *, cpu: bool) -> Segmenter:
    """The network of a file, on the GPU if there is one and it is wanted."""
    import torch

    import dcd_lab.compress  # noqa: F401  it teaches `load` to read a pruned network
    from dcd_core import models

    return models.load(path).to("cuda" if torch.cuda.is_available() and not cpu else "cpu")


def _spec(network: Segmenter) -> dict[str, Any]:
    return network.spec or {}  # a network that was loaded has one


def _facts(model: Path) -> dict[str, Any]:
    """Recipe, threshold and spacing of the run a network lies in; empty where there is none."""
    from dcd_core.train.result import facts_of
    from dcd_lab.experiments import evaluation
    from dcd_lab.records.places import read_json
    from dcd_lab.records.seals import check

    facts: dict[str, Any] = {}
    check(model.parent)
    for name in ("request.json", "fit.json", f"threshold-{evaluation.VERSION}.json"):
        if (file := model.parent / name).is_file():
            whole = name == "fit.json"  # it has a hash of its own
            facts |= facts_of(model.parent) if whole else read_json(file)
    return facts


def _patch_of(model: Path, given: Sequence[int] | None) -> Size3:
    """The patch that is given, else that of the network's training."""
    from dcd_core.errors import at_least

    recipe = _facts(model).get("recipe")
    patch = given or (recipe.get("patch") if isinstance(recipe, dict) else None)
    if not patch:
        got, expected = "none, and no fit.json beside the network", "the patch of its training"
        raise refusal("patch", got, expected, "--patch 64 64 64")
    i, j, k = (at_least("patch", size, 1) for size in patch)
    return i, j, k


def _task_of(network: Segmenter, name: str | None) -> Task:
    """The task by name, else the one with the network's channels and classes."""
    from dcd_lab.tasks import PUBLIC

    spec = _spec(network)
    size = (spec["in_channels"], spec["classes"])
    fitting = [t.name for t in PUBLIC.values() if (len(t.channels), len(t.labels)) == size]
    if name is not None and task_of(name).name in fitting:
        return task_of(name)
    if name is not None or not fitting:
        got, expected = f"{size[0]} channels and {size[1]} classes", "those of the task"
        attempt = f"--task {fitting[0]}" if fitting else "a network that was trained on a task"
        raise refusal("network", got, expected, attempt)
    return PUBLIC[fitting[0]]


def _refuse_other_channels(images: Sequence[Path], task: Task) -> None:
    """Raise ContractError for other images than one per channel, in order as far as names tell."""
    order = " ".join(task.channels)
    if len(images) != len(task.channels):
        expected = f"{len(task.channels)}, the channels of this network and of {task.name}"
        raise refusal("images", f"{len(images)} files", expected, f"in this order: {order}")
    if len({image.resolve() for image in images}) < len(images):
        expected = f"a file for each of {order}"
        raise refusal("images", "one file more than once", expected, f"in this order: {order}")
    for image, channel in zip(images, task.channels, strict=True):
        words = set(re.split(r"[^a-z0-9]+", image.name.lower())) & {*task.channels}
        if words and channel not in words:
            raise refusal(f"image of {channel}", image.name, channel, f"the order {order}")
