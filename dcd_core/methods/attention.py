"""Where a network looks: one map per stage, or one distribution over space per channel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import conv3d, log_softmax, normalize

from dcd_core.method import Narrow, Scalar, StageMethod, UnadaptedMethod, positive
from dcd_core.methods.logits import LogitMethod, as_volume
from dcd_core.types import Volume


class AttentionTransfer(UnadaptedMethod):
    """The student is active where the teacher is, whatever the channels.

    With q = mean_c features_c^2, a vector of voxels, divided by its Euclidean norm,

        mean_stages mean_b sum_v (q_s(v) - q_t(v))^2.

    Source: Zagoruyko, Komodakis, ICLR 2017, arXiv 1612.03928.
    3D change: none but the voxels.
    Differs from the authors' code: theirs is the mean over voxels, which shrinks with their number.
    Its weight of 1000 on maps of 8^2 to 32^2 is 15.6 to 1 here.
    Options: `stages`. `weight` 1 belongs to the sum over voxels.
    """

    weight: ClassVar[float] = 1.0

    def stage(self, index: int, student: Narrow, teacher: Volume, target: Tensor | None) -> Scalar:
        return (_attention(student) - _attention(teacher)).square().sum(1).mean()


class ChannelWiseLogits(LogitMethod):
    """Every class map of the student is bright where the teacher's is.

    With phi = softmax_v(logits / T), per sample and class,

        T^2 * mean_(b,k) sum_v phi_t (log phi_t - log phi_s).

    Source: Shu, Liu, Gao, Yan, Shen, ICCV 2021, arXiv 2011.13256.
    3D change: by the logarithm of the softmax, as probabilities of 2 million voxels underflow half
    precision; a few classes at a time.
    Differs from the authors' code: their scripts add adversarial and pixel-wise terms, and ignore
    no voxels. Classes absent from a patch count as any other, as there.
    Options: `temperature` T, `ignore`. `weight` 3 belongs to T = 4 and the mean over classes.
    """

    weight: ClassVar[float] = 3.0
    regions: bool | None = None
    decided: ClassVar[tuple[str, ...]] = ("regions",)

    def __init__(self, *channels: Sequence[int], temperature: float = 4.0, **shared: Any) -> None:
        super().__init__(*channels, regions=None, **shared)
        self.temperature = positive("temperature", temperature)

    def logits(self, student: Volume, teacher: Volume, counts: Bool[Tensor, "b d h w"]) -> Scalar:
        weights = () if counts.all() else (as_volume(counts, student),)
        divergence = partial(_divergence, self.temperature)
        total = self.in_chunks(divergence, student, teacher, *weights, dim=1)
        return total / (student.shape[0] * student.shape[1])


class ChannelWiseFeatures(StageMethod):
    """Every channel of the adapted student is active where the teacher's is, at every stage.

    With phi = softmax_v(features / T), per sample and channel,

        mean_stages T^2 * mean_(b,c) sum_v phi_t (log phi_t - log phi_a).

    Source: as ChannelWiseLogits.
    3D change: all stages; a few of the teacher's channels are adapted and compared at a time.
    Differs from the authors' code: their adapter adds normalisation and ReLU. A well-known port
    divides by the student's channels, which makes the loss larger by the width factor.
    Options: `temperature` T, `stages`, `adapters`. `weight` 50 belongs to T = 4: the published one
    of a single map, shared among the stages. Calibrate it.
    """

    weight: ClassVar[float] = 50.0

    def __init__(self, *channels: Sequence[int], temperature: float = 4.0, **shared: Any) -> None:
        super().__init__(*channels, **shared)
        self.temperature = positive("temperature", temperature)

    def stage(self, index: int, student: Narrow, teacher: Volume, target: Tensor | None) -> Scalar:
        adapter, divergence = self.adapters[index], partial(_divergence, self.temperature)
        if isinstance(adapter, nn.Identity):
            total = self.in_chunks(divergence, student, teacher, dim=1)
        else:
            # A channel of the adapted student is made by one row of the adapter.
            rows = adapter.get_parameter("weight").transpose(0, 1)
            total = self.in_chunks(
                lambda r, t: divergence(conv3d(student, r.transpose(0, 1)), t), rows, teacher, dim=1
            )
        return total / (teacher.shape[0] * teacher.shape[1])


def _attention(features: Volume) -> Float[Tensor, "b v"]:
    return normalize(features.square().mean(1).flatten(1), dim=1)


def _divergence(temperature: float, student: Volume, teacher: Volume, *weights: Volume) -> Scalar:
    """Divergence of the channels' distributions over space, times T^2, summed over b and c.

    `weights`, if any, is one volume of 0 where voxels are no part of the distributions, else 1.
    """
    p, q = (_log_distribution(x / temperature, *weights) for x in (student, teacher))
    return temperature**2 * (q.exp() * (q - p)).sum()


def _log_distribution(x: Tensor, *weights: Tensor) -> Tensor:
    for w in weights:
        # Not -inf: the probability is 0 as well, but differences of its logarithms stay finite.
        x = x.masked_fill(w == 0, torch.finfo(x.dtype).min)
    return log_softmax(x.flatten(2), -1)
