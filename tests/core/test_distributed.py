"""Distributed: two processes with half a batch each train what one process trains with the whole.

Run as a script, this file is one of the two processes.
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
SECONDS = 120
KINDS = ("learned", "frozen", "released")


class PerVoxel(nn.Module):
    """Cross-entropy: a mean over voxels, so the mean of two halves is that of the whole.

    Dice over a batch is not, and neither is batch normalisation: both are left out here.
    """

    def forward(self, logits, target):
        return nn.functional.cross_entropy(logits, target[:, 0])


def segmenter(*channels):
    """One convolution and instance norm per stage, on one grid; the last stage are the logits."""
    pairs = zip((1, *channels), channels, strict=False)
    stages = [
        nn.Sequential(nn.Conv3d(i, o, 3, padding=1), nn.InstanceNorm3d(o, affine=True))
        for i, o in pairs
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


def batch(step):
    generator = torch.Generator().manual_seed(step)
    image = torch.randn(2 * RANKS, 1, 12, 10, 12, dtype=torch.float64, generator=generator)
    return image, torch.randint(0, 3, image.shape, generator=generator)


def train(module, part, steps=2):
    """Two steps of plain SGD on that part of every batch, both losses in one backward pass."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for step in range(steps):
        image, target = batch(step)
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
        whole = distiller(kind, seed=rank)  # DDP must hand rank 0's weights to everybody
        train(DistributedDataParallel(whole), slice(rank, None, RANKS))
        torch.save(whole.state_dict(), folder / f"{kind}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Where the two processes left their weights."""
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch is built without gloo")
    folder = tmp_path_factory.mktemp("ddp")
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(dcd_core.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
    }
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # a host name that resolves is not asked for
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(RANKS)
    ]
    try:
        texts = [process.communicate(timeout=SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0] * RANKS, "\n".join(texts)
    return folder


def weights(folder, kind, rank):
    return torch.load(folder / f"{kind}-{rank}.pt", weights_only=True)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_what_one_trains_with_the_whole_batch(trained, kind):
    alone = distiller(kind, seed=0)
    before = {name: p.detach().clone() for name, p in alone.named_parameters()}
    train(alone, slice(None))
    found = weights(trained, kind, 0)
    for name, p in alone.named_parameters():
        # The segmentation loss is float32 by contract; all else is float64.
        assert torch.allclose(found[name], p, rtol=0, atol=1e-7), name
        fixed = name.startswith("teacher.") or (name.startswith("method.") and kind != "learned")
        convolution = name.endswith("0.bias") and name.startswith("student.")  # the norm undoes it
        if not convolution:
            assert torch.equal(p, before[name]) == fixed, name


@pytest.mark.parametrize("kind", KINDS)
def test_both_processes_hold_the_same_weights_projections_included(trained, kind):
    first, second = (weights(trained, kind, rank) for rank in range(RANKS))
    assert any(name.startswith("method.") for name in first)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_half_the_batch_alone_trains_something_else(trained, kind):
    half = distiller(kind, seed=0)
    train(half, slice(0, None, RANKS))
    found = weights(trained, kind, 0)
    gaps = [(found[n] - p).abs().max() for n, p in half.named_parameters() if p.requires_grad]
    assert max(gaps) > 1e-3


if __name__ == "__main__":
    one_of_two(int(sys.argv[1]), Path(sys.argv[2]))
