"""Commands: every command of `dcd` in the order of its help, with an example each."""

from __future__ import annotations

from collections.abc import Callable

import typer

from dcd_lab.cli import checkout, datasets, networks, scoring, training

app = typer.Typer(
    help="Detail Consistent Distillation: data, networks and scores from a terminal.",
    epilog="Exit codes: 0 done, 1 findings or failed checks, 2 a wrong request, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
EXAMPLES: dict[Callable[..., None], str] = {
    datasets.audit: "dcd audit /data/brats --out audit",
    datasets.folds: "dcd folds /data/brats --task brats2024",
    datasets.prepare: "dcd prepare /data/isles --task isles2022 --workers 4",
    training.train: "dcd train /data/isles --task isles2022 -o runs/one --teacher net.safetensors",
    networks.predict: "dcd predict dwi.nii adc.nii flair.nii -m net.safetensors -o out.nii.gz",
    scoring.score: "dcd score predictions/ /data/isles --task isles2022 --out scores.csv",
    networks.cost: "dcd cost net.safetensors --patch 64 64 64",
    networks.export: "dcd export net.safetensors -o net.onnx --patch 64 64 64",
    checkout.reproduce: "dcd reproduce --workers 2",
    checkout.doctor: "dcd doctor",
}
"""An example of every command."""

for command, example in EXAMPLES.items():
    app.command(epilog=f"Example: {example}")(command)
