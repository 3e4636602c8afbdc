"""Who takes part, on which features, and what one timed call does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from peers import Layout, dense_distance, plain_mse, ptwt_distance
from torch import Tensor

from dcd_core.dcd import detail_distance

Loss = Callable[[Tensor, Tensor], Tensor]
SLOW = ("ptwt", "dense")
"""Contenders that take a hundred times as long as the others: they get fewer rounds."""


class Grid(NamedTuple):
    """Features to compare: their shape (b, c, d, h, w), cubic, and the wavelet."""

    shape: tuple[int, int, int, int, int]
    wavelet: str = "db4"

    @property
    def name(self) -> str:
        """Batch, channels and edge in words."""
        b, c, n, *_ = self.shape
        return f"{b}×{c}×{n}³"

    @property
    def values(self) -> int:
        """Number of feature values of the student, and of the teacher."""
        return math.prod(self.shape)


def contenders(wavelet: str, layout: Layout) -> dict[str, Loss]:
    """Every loss under its name, a function of student and teacher features."""
    return {
        "plain MSE": plain_mse,
        "orthonormal": partial(detail_distance, wavelet=wavelet),
        "released": partial(detail_distance, wavelet=wavelet, convention="released"),
        "ptwt": partial(ptwt_distance, wavelet=wavelet),
        "dense": partial(dense_distance, wavelet=wavelet, layout=layout),
    }


def features(shape: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Student (with gradient) and teacher noise, the same numbers on every device."""
    draw = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(*shape, generator=draw).to(device) for _ in range(2))
    return student.requires_grad_(), teacher


def training_pass(
    loss: Loss, student: Tensor, teacher: Tensor, *, tf32: bool = False
) -> Callable[[], None]:
    """Forward and backward of one loss, the student's old gradient dropped first.

    `tf32` lets a GPU round the factors of its matrix products to 10 bits.
    """

    def call() -> None:
        if student.is_cuda:
            torch.set_float32_matmul_precision("high" if tf32 else "highest")
        student.grad = None
        loss(student, teacher).backward()

    return call
