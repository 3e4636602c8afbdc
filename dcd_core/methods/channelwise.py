"""Where each channel looks: channel-wise distillation, of logits and of encoder features.

A channel becomes a distribution over space, and the student's must be the teacher's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.functional import conv3d, log_softmax

from dcd_core.method import Adapters, LogitMethod, Narrow, Scalar, StageMethod, in_chunks, positive
from dcd_core.methods.logits import as_volume
from dcd_core.types import Volume


class ChannelWiseLogits(LogitMethod):
    """Every class map of the student is bright where the teacher's is.

    With phi_c(v) = softmax over the voxels v of logits_c / T, per sample and class,

        T^2 / (b * k) * sum_(b,c) sum_v phi_t(v) (log phi_t(v) - log phi_s(v)).

    Source: Shu, Liu, Gao, Yan, Shen, "Channel-wise knowledge distillation for dense prediction",
    ICCV 2021, arXiv 2011.13256.
    3D change: the softmax runs over the voxels of a patch, by its logarithm, as probabilities of
    2 million voxels underflow half precision; a few classes at a time.
    Differs from the authors' code: their scripts add adversarial and pixel-wise terms; this is the
    channel-wise term alone, and ignored voxels are no part of the distributions. Classes absent
    from a patch count as any other, as there. Regions and classes are treated alike.

    Options: `temperature` T (no unit), `ignore`. `weight` 3 belongs to T = 4 and the mean over
    samples and classes.
    """

    weight: ClassVar[float] = 3.0

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        *,
        temperature: float = 4.0,
        ignore: int | None = -1,
    ) -> None:
        super().__init__(student_channels, teacher_channels, ignore=ignore)
        self.temperature = positive("temperature", temperature)

    def logits(self, student: Volume, teacher: Volume, counts: Bool[Tensor, "b d h w"]) -> Scalar:
        weights = () if counts.all() else (as_volume(counts, student),)
        return channelwise(student, teacher, *weights, temperature=self.temperature)


class ChannelWiseFeatures(StageMethod):
    """Every channel of the adapted student is active where the teacher's is, at every stage.

    With phi_c(v) = softmax over the voxels v of features_c / T, and c the teacher's channels,

        mean_stages T^2 / (b * c) * sum_(b,c) sum_v phi_t(v) (log phi_t(v) - log phi_s(v)).

    Source: Shu, Liu, Gao, Yan, Shen, "Channel-wise knowledge distillation for dense prediction",
    ICCV 2021, arXiv 2011.13256.
    3D change: all encoder stages, averaged; the softmax runs over the voxels of a patch. A few of
    the teacher's channels are adapted and compared at a time, so the adapted student never exists
    whole.
    Differs from the authors' code: their adapter adds normalisation and ReLU; here it is the 1x1x1
    convolution all methods share. A well-known port divides by the student's channels, which makes
    the loss larger by the width factor; here by the teacher's.

    Options: `temperature` T (no unit), `stages`, `adapters`. `weight` 50 belongs to T = 4 and the
    mean over samples, teacher channels and stages: the published 50 on one map, shared among n
    stages as 50 / n each; calibrate it.
    """

    weight: ClassVar[float] = 50.0

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        *,
        temperature: float = 4.0,
        stages: Sequence[int] | None = None,
        adapters: Adapters = "learned",
    ) -> None:
        super().__init__(student_channels, teacher_channels, stages=stages, adapters=adapters)
        self.temperature = positive("temperature", temperature)

    def unadapted(
        self, index: int, student: Narrow, teacher: Volume, target: Tensor | None
    ) -> Scalar:
        adapter = self.adapters[index]
        if isinstance(adapter, nn.Identity):
            return channelwise(student, teacher, temperature=self.temperature)

        def divergence(rows: Tensor, t: Tensor) -> Tensor:
            return _divergence(conv3d(student, rows.transpose(0, 1)), t, self.temperature)

        # A channel of the adapted student is made by one row of the adapter.
        rows = adapter.get_parameter("weight").transpose(0, 1)
        total = in_chunks(divergence, rows, teacher, dim=1)
        return total / (teacher.shape[0] * teacher.shape[1])


def channelwise(student: Volume, teacher: Volume, *weights: Volume, temperature: float) -> Scalar:
    """Divergence of the channels' distributions over space, times T^2, mean over samples, channels.

    `weights`, if any, is one volume of 0 where voxels are no part of the distributions, else 1.
    """

    def divergence(s: Tensor, t: Tensor, *w: Tensor) -> Tensor:
        return _divergence(s, t, temperature, *w)

    total = in_chunks(divergence, student, teacher, *weights, dim=1)
    return total / (student.shape[0] * student.shape[1])


def _divergence(student: Volume, teacher: Volume, temperature: float, *weights: Volume) -> Scalar:
    """As `channelwise`, but the sum over samples and channels."""
    p, q = (_log_distribution(x / temperature, *weights) for x in (student, teacher))
    return temperature**2 * (q.exp() * (q - p)).sum()


def _log_distribution(x: Tensor, *weights: Tensor) -> Tensor:
    for w in weights:
        # Not -inf: the probability is 0 as well, but differences of its logarithms stay finite.
        x = x.masked_fill(w == 0, torch.finfo(x.dtype).min)
    return log_softmax(x.flatten(2), -1)
