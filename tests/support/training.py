"""Tiny runs: noise with a lesion, a student, a teacher and a method, and a machine that is lost."""

import math

import numpy as np
import torch

from dcd_core.dcd import DCD
from dcd_core.models import dynunet
from dcd_core.train import Distiller, Recipe, fit
from dcd_core.types import Case

CHANNELS, WIDE = (4, 4, 8), (6, 8, 8)
TINY = Recipe(
    steps=8,
    patch=(8, 8, 8),
    warmup=2,
    kd_start=0.25,
    kd_ramp=0.25,
    precision="32-true",
    checkpoint_every=3,
)


def make_case(seed, *, size=12):
    """Noise with a brighter cube, which is the lesion."""
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((1, size, size, size), dtype=np.float32)
    mask = np.zeros((size, size, size), np.uint8)
    i, j, k = rng.integers(1, size - 6, 3)
    mask[i : i + 5, j : j + 5, k : k + 5] = 1
    image[0] += 3 * mask
    return Case(f"case{seed}", image, mask, (1.0, 1.0, 1.0), np.eye(4))


VAL = [make_case(10)]


class Interrupted(Exception):
    """Stands for a lost machine."""


class Batches:
    """The batch of a step: corners of new cases. They stop arriving at step `fail_at`."""

    def __init__(self, recipe=TINY, *, fail_at=math.inf):
        self.recipe, self.fail_at = recipe, fail_at

    def __getitem__(self, step):
        if step >= self.fail_at:
            raise Interrupted
        first = 1000 * self.recipe.seed + self.recipe.batch * step
        cases = [make_case(100 + first + i) for i in range(self.recipe.batch)]
        d, h, w = self.recipe.patch
        images = np.stack([case.image[:, :d, :h, :w] for case in cases])
        labels = np.stack([case.label[None, :d, :h, :w] for case in cases])
        return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))


def distiller(method="dcd", *, seed=0):
    """A tiny student, teacher and method, the same every time."""
    torch.manual_seed(seed)
    student, teacher = dynunet(1, 2, channels=CHANNELS), dynunet(1, 2, channels=WIDE)
    if method == "none":
        return Distiller(student)
    made = DCD(CHANNELS, WIDE, wavelet="haar") if method == "dcd" else method
    return Distiller(student, teacher, made)


def run(folder, recipe=TINY, *, method="dcd", fail_at=math.inf, ambient=0, **options):
    made = distiller(method)
    torch.manual_seed(ambient)  # whatever else the process has drawn
    return fit(made, Batches(recipe, fail_at=fail_at), VAL, recipe, run_dir=folder, **options)
