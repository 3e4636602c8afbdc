"""Tiny runs: noise with a lesion, a student, a teacher and a method, and a machine that is lost."""

from __future__ import annotations

import math

import numpy as np
import torch

from dcd_core.dcd import DCD
from dcd_core.models import dynunet
from dcd_core.train import Distiller, Recipe, fit
from dcd_core.types import Case
from dcd_lab.data import Patches

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


def make_case(seed, *, size=12, label=True):
    """Noise with a brighter cube, which is the lesion."""
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((1, size, size, size), dtype=np.float32)
    mask = np.zeros((size, size, size), np.uint8)
    i, j, k = rng.integers(1, size - 6, 3)
    mask[i : i + 5, j : j + 5, k : k + 5] = 1
    image[0] += 3 * mask
    return Case(f"case{seed}", image, mask if label else None, (1.0, 1.0, 1.0), np.eye(4))


CASES, TUNE = [make_case(seed) for seed in range(3)], [make_case(10)]


class Interrupted(Exception):
    """Stands for a lost machine."""


class FailingPatches(Patches):
    """Patches that stop arriving at a step."""

    fail_at = math.inf

    def __getitem__(self, step):
        if step >= self.fail_at:
            raise Interrupted
        return super().__getitem__(step)


def patches(recipe=TINY, *, fail_at=math.inf, cases=CASES):
    made = FailingPatches(
        cases,
        patch=recipe.patch,
        batch=recipe.batch,
        seed=recipe.seed,
        foreground=recipe.foreground,
    )
    made.fail_at = fail_at
    return made


def distiller(method="dcd", *, architecture=dynunet, seed=0):
    """A tiny student, teacher and method, the same every time."""
    torch.manual_seed(seed)
    student, teacher = architecture(1, 2, channels=CHANNELS), dynunet(1, 2, channels=WIDE)
    if method == "none":
        return Distiller(student)
    made = DCD(CHANNELS, WIDE, wavelet="haar") if method == "dcd" else method
    return Distiller(student, teacher, made)


def run(tmp_path, recipe=TINY, *, method="dcd", fail_at=math.inf, ambient=0, **options):
    made = distiller(method)
    torch.manual_seed(ambient)  # whatever else the process has drawn
    return fit(made, patches(recipe, fail_at=fail_at), TUNE, recipe, run_dir=tmp_path, **options)
