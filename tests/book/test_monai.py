"""The page on MONAI: its loop, its bundle and its pair of networks on different grids."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from book_pages import ROOT, blocks, prose

from dcd_core.types import ContractError

PAGE = prose("howto/monai")
CODE = blocks(PAGE, "python")


def dynunet(*channels: int, residual: bool = False) -> torch.nn.Module:
    """MONAI's network, of one channel in and two classes, as the page has it."""
    from monai.networks.nets import DynUNet

    options = {"filters": channels, "res_block": residual}
    return DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2, 2], **options)


def test_the_loop_runs_on_batches_of_monai_and_distils() -> None:
    from monai.data import DataLoader, MetaTensor
    from monai.losses import DiceCELoss

    lines = [line for line in CODE[0].splitlines() if line.strip()]
    assert len(lines) <= 20
    case = {"image": MetaTensor(torch.randn(1, 32, 32, 32))}
    case["label"] = MetaTensor(torch.randint(0, 2, (1, 32, 32, 32)))
    space: dict[str, Any] = {
        "student_network": dynunet(8, 16, 32),
        "teacher_network": dynunet(32, 64, 128),
        "loader": DataLoader([case] * 2, batch_size=1),
        "loss_function": DiceCELoss(softmax=True, to_onehot_y=True),
    }
    before = [weight.detach().clone() for weight in space["student_network"].parameters()]
    exec(CODE[0], space)
    assert space["equal"] > 0
    assert all(p.grad is not None and p.grad.any() for p in space["distil"].parameters())
    after = space["student_network"].parameters()
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(m._forward_hooks for m in space["student_network"].modules())


@pytest.mark.slow
def test_grids_that_differ_are_refused_and_the_page_says_what_to_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    message, grids = blocks(PAGE, "text")
    space: dict[str, Any] = {}
    with pytest.raises(ContractError) as refused:
        exec(CODE[1], space)
    assert f"ContractError: {refused.value}" == message.strip()
    exec(CODE[2], space)
    assert capsys.readouterr().out == grids
    exec(CODE[3], space)
    space["loss"].backward()
    first = space["student"].network.input_block.conv1.conv.weight
    assert first.grad.abs().max() > 0


def write_cases(folder: Path) -> None:
    """Four volumes with a bright ball each, three to train on, and the page's list of them."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*3 * [np.arange(20)], indexing="ij"))
    listed: dict[str, list[dict[str, str]]] = {"training": [], "validation": []}
    for index in range(4):
        centre = rng.uniform(7, 13, (3, 1, 1, 1))
        label = (np.square(grid - centre).sum(0) < 25).astype(np.uint8)
        image = (3 * label + rng.standard_normal(label.shape)).astype(np.float32)
        case = {name: f"{index}-{name}.nii.gz" for name in ("image", "label")}
        for name, voxels in {"image": image, "label": label}.items():
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / case[name])
        listed["training" if index < 3 else "validation"].append(case)
    (shown,) = (json.loads(text) for text in blocks(PAGE, "json"))
    assert {key: shown[key][0].keys() for key in shown} == {
        key: listed[key][0].keys() for key in listed
    }
    (folder / "dataset.json").write_text(json.dumps(listed), "utf-8")


@pytest.mark.slow
def test_the_bundle_trains_a_teacher_then_a_student_and_scores_it(tmp_path: Path) -> None:
    pytest.importorskip("fire", reason="the extra [bundle] is not installed")
    pytest.importorskip("ignite", reason="the extra [bundle] is not installed")
    write_cases(tmp_path)
    small = "--epochs 2 --val_interval 2 --patch [16,16,16] --samples 1"
    small += " --student_channels [4,4,8] --teacher_channels [8,8,16]"
    small += f" --models {tmp_path}/models --output_dir {tmp_path}/eval"
    (commands,) = blocks(PAGE, "bash")
    for line in commands.splitlines():
        call = [*shlex.split(line.replace("/data", str(tmp_path))), *shlex.split(small)]
        done = subprocess.run(
            [sys.executable, *call[1:]],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    for name, widths in {"student": (4, 4, 8), "teacher": (8, 8, 16)}.items():
        plain = dynunet(*widths, residual=True)
        plain.load_state_dict(torch.load(tmp_path / f"models/{name}.pt", weights_only=True))
    (case, score), *_ = [
        line.split(",")[:2]
        for line in (tmp_path / "eval/val_mean_dice_raw.csv").read_text("utf-8").splitlines()[1:]
    ]
    assert "3-image" in case
    assert 0 <= float(score) <= 1


def test_the_bundle_has_what_monai_asks_of_one() -> None:
    pytest.importorskip("ignite", reason="the extra [bundle] is not installed")
    from monai.bundle import ConfigParser

    from dcd_core.models import Segmenter

    metadata = json.loads((ROOT / "bundle/configs/metadata.json").read_text("utf-8"))
    assert {"version", "monai_version", "pytorch_version", "numpy_version"} <= metadata.keys()
    table = [line for line in PAGE.splitlines() if line.startswith("| `")]
    named = [name.strip(" `") for line in table for name in line.split("|")[1].split(",")]
    parser = ConfigParser()
    parser.read_config(ROOT / "bundle/configs/train.yaml")
    assert [name for name in named if name not in parser.get()] == []
    (other,) = blocks(PAGE, "yaml")
    parser.update(yaml.safe_load(other))
    student = parser.get_parsed_content("student")
    assert isinstance(student, Segmenter)
    widths = [stage.shape[1] for stage in student.encode(torch.zeros(1, 1, 32, 32, 32))]
    assert widths == list(student.channels)
