"""Distributed: two processes with half a batch each train what one process trains with the whole.

Each wraps its Distiller in PyTorch's DistributedDataParallel. Run as a script, this file is one of
the two processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import dcd_core
from dcd_core.dcd import DCD
from dcd_core.models import Segmenter
from dcd_core.train import Distiller

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


def one_of_two(rank, folder):
    """What one process does: its own seed, its own half, its weights to a file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS
    )
    for kind in KINDS:
        made = distiller(kind, seed=rank)  # DDP must hand rank 0's weights to everybody
        train(DistributedDataParallel(made), slice(rank, rank + 1))
        torch.save(made.state_dict(), folder / f"{kind}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Where the two processes left their weights."""
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch is built without gloo")
    folder = tmp_path_factory.mktemp("ddp")
    added = {"PYTHONPATH": str(Path(dcd_core.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        added["GLOO_SOCKET_IFNAME"] = "lo"  # a host name that resolves is not asked for
    processes = [
        subprocess.Popen([sys.executable, __file__, str(rank), folder], env=os.environ | added)
        for rank in range(RANKS)
    ]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0] * RANKS
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return folder


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
    one_of_two(int(sys.argv[1]), Path(sys.argv[2]))
