"""Distributed: two processes with half a batch each train what one process trains with the whole.

By `fit` under torchrun, with a Dice over the batch and a method that relates its samples; and by
hand, each with its Distiller in PyTorch's DistributedDataParallel. Run as a script, this file is
one of the two processes.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import training as support
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from training import CHANNELS, TINY, VAL, WIDE, Batches, Interrupted

import dcd_core
from dcd_core.dcd import DCD
from dcd_core.methods import build
from dcd_core.models import Segmenter
from dcd_core.train import Distiller, diverged, fit, loop
from dcd_core.train.processes import Processes
from dcd_core.types import ContractError

RANKS = 2
KINDS = ("learned", "frozen", "released")
pytestmark = pytest.mark.slow


class PerVoxel(nn.Module):
    """Cross-entropy: a mean over voxels, so the mean of two halves is that of the whole.

    Dice over a batch is not, and neither is batch normalisation: both are left out here.
    """

    def forward(self, logits, target):
        return nn.functional.cross_entropy(logits, target[:, 0])


def segmenter(*channels):
    """One convolution and instance norm per stage, on one grid; the last stage are the logits."""
    stages = [
        nn.Sequential(nn.Conv3d(i, o, 3, padding=1), nn.InstanceNorm3d(o, affine=True))
        for i, o in zip((1, *channels), channels, strict=False)
    ]
    return Segmenter(nn.Sequential(*stages), [str(i) for i in range(len(channels))], channels)


def distiller(kind, seed):
    torch.manual_seed(seed)
    student, teacher = segmenter(2, 3), segmenter(4, 3)
    if kind == "released":
        method = DCD.released([2, 3], [4, 3])
    else:
        method = DCD([2, 3], [4, 3], wavelet="db2", projection=kind)
    return Distiller(student, teacher, method, PerVoxel()).double()


def train(module, part):
    """Two steps of plain SGD on that part of every batch of two, both losses in one pass."""
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    for step in range(2):
        generator = torch.Generator().manual_seed(step)
        image = torch.randn(RANKS, 1, 12, 10, 12, dtype=torch.float64, generator=generator)
        target = torch.randint(0, 3, image.shape, generator=generator)
        losses = module(image[part], target[part], distil=True)
        optimizer.zero_grad()
        (losses.segmentation + losses.distillation).backward()
        optimizer.step()


RUNS = {
    "dice": lambda seed: support.distiller("none", seed=seed),
    "dcd": lambda seed: support.distiller(seed=seed),
    "samples": lambda seed: support.distiller(build("cirkd", CHANNELS, WIDE), seed=seed),
    "half": lambda seed: support.distiller(seed=seed),
}
"""What `fit` trains; "half" in bfloat16."""


def recipe_of(name):
    # Plain gradient descent: Adam makes steps of equal size out of rounding.
    plain = replace(TINY, optimizer="sgd", learning_rate=1e-2)
    return replace(plain, precision="bf16-mixed") if name == "half" else plain


class Broken(Batches):
    """The second patch of the third batch, which is the second process's, is not finite."""

    def __getitem__(self, step):
        image, target = super().__getitem__(step)
        image[1] = math.nan if step == 2 else image[1]
        return image, target


def fit_in_two(rank, folder):
    """Runs that are interrupted and gone on with; then one that ends, in both processes."""
    if rank:  # which must write nothing
        loop.atomic = loop.models.save = None
    for name, make in RUNS.items():
        recipe, options = recipe_of(name), {"run_dir": folder / name}
        with pytest.raises(Interrupted):
            fit(make(rank), Batches(recipe, fail_at=5), VAL, recipe, **options)
        fitted = fit(make(rank), Batches(recipe), VAL, recipe, **options)
        torch.save(facts(fitted), folder / f"{name}-{rank}.pt")
        again = fit(make(rank), Batches(recipe), VAL, recipe, **options)
        assert again.val_dice == fitted.val_dice
    with pytest.raises(FloatingPointError, match="step 2"):
        fit(RUNS["dcd"](rank), Broken(), VAL, TINY, run_dir=folder / "broken")


def facts(fitted):
    """What a run gave, but for its seconds."""
    history = fitted.history.drop(columns="seconds").to_dict("list")
    weights = {**fitted.student.state_dict(), **fitted.method}
    return {"weights": weights, "history": history, "decision": [fitted.threshold, fitted.val_dice]}


def one_of_two(rank, folder):
    """What one process does: its own seed, its own half, its weights to a file."""
    torch.set_num_threads(1)
    fit_in_two(rank, folder)
    for kind in KINDS:
        made = distiller(kind, seed=rank)  # DDP must hand rank 0's weights to everybody
        train(DistributedDataParallel(made), slice(rank, rank + 1))
        torch.save(made.state_dict(), folder / f"{kind}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Where the two processes left what they trained."""
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch is built without gloo")
    folder = tmp_path_factory.mktemp("two")
    paths = [Path(dcd_core.__file__).parents[1], Path(support.__file__).parent]
    added = {"PYTHONPATH": ":".join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        added["GLOO_SOCKET_IFNAME"] = "lo"  # a host name that resolves is not asked for
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node", str(RANKS), __file__, str(folder)]
    subprocess.run(command, env=os.environ | added, check=True, timeout=120)
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_fit_trains_in_two_processes_what_it_trains_in_one(trained, name, tmp_path):
    first, second = (torch.load(trained / f"{name}-{rank}.pt") for rank in range(RANKS))
    recipe = recipe_of(name)
    fitted = fit(RUNS[name](0), Batches(recipe), VAL, recipe, run_dir=tmp_path)
    alone, half = facts(fitted), name == "half"
    assert first["decision"] == second["decision"]
    for key, p in alone["weights"].items():
        assert torch.equal(first["weights"][key], second["weights"][key]), key
        torch.testing.assert_close(first["weights"][key], p, rtol=0, atol=1e-3 if half else 1e-5)
    for column, values in alone["history"].items():
        close = {"rel": 0.1 if half else 1e-5, "nan_ok": True}
        assert first["history"][column] == pytest.approx(values, **close), column
        assert second["history"][column] == pytest.approx(first["history"][column], **close)


def test_a_batch_that_is_not_finite_ends_all_processes(trained):
    kept = torch.load(trained / "broken" / "offending-batch.pt")
    assert (kept["step"], len(kept["image"])) == (2, RANKS)
    assert diverged(trained / "broken")


def test_the_processes_are_those_of_torchrun_and_cut_a_batch_evenly(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # as other launchers set it, too
    monkeypatch.delenv("RANK", raising=False)
    assert Processes.started(3) == Processes(0, 1)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ContractError, match="batch: got 3; expected a multiple of 2 processes"):
        Processes.started(3)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_what_one_trains_with_the_whole_batch(trained, kind):
    first, second = (torch.load(trained / f"{kind}-{rank}.pt") for rank in range(RANKS))
    alone, half, before = (distiller(kind, seed=0) for _ in range(3))
    train(alone, slice(None))
    train(half, slice(0, 1))
    start, other = dict(before.named_parameters()), dict(half.named_parameters())
    assert any(name.startswith("method.") for name in first)
    assert max((first[n] - other[n]).abs().max() for n in start) > 1e-3
    for name, p in alone.named_parameters():
        # The segmentation loss is float32 by contract; all else is float64.
        assert torch.allclose(first[name], p, rtol=0, atol=1e-7), name
        assert torch.equal(first[name], second[name]), name
        fixed = name.startswith("teacher.") or (name.startswith("method.") and kind != "learned")
        if not (name.startswith("student.") and name.endswith("0.bias")):  # the norm undoes those
            assert torch.equal(p, start[name]) == fixed, name


if __name__ == "__main__":
    one_of_two(int(os.environ["RANK"]), Path(sys.argv[1]))
