"""What the student sees: feature regression, band-blind and therefore DCD's first control."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from dcd_core.method import Adapters, Narrow, Scalar, StageMethod, in_chunks
from dcd_core.types import Volume


class FeatureMSE(StageMethod):
    """The adapted student has the teacher's features: every wavelet band alike, coarse or fine.

    With A the adapter of a stage, and means over samples, teacher channels and voxels,

        mean_stages mean (A student - teacher)^2.

    Source: the control of Fan et al., MICCAI 2026, arXiv 2605.26382, that keeps all bands: with an
    orthonormal wavelet, one level and all eight bands DCD is this number.
    3D change: slabs along D are adapted and compared one by one, so neither the adapted student nor
    the difference, each of the teacher's size, ever exists whole.
    Differs from the authors' code: none was released; a sibling release regresses the last stage
    alone, by a convolution that is never trained.

    Options: `stages`, `adapters`. `weight` 1 belongs to the mean over stages; as a control of DCD
    it takes DCD's weight, stages, adapters and schedule instead.
    """

    weight: ClassVar[float] = 1.0

    def unadapted(
        self, index: int, student: Narrow, teacher: Volume, target: Tensor | None
    ) -> Scalar:
        def error(s: Tensor, t: Tensor) -> Tensor:
            return (self.adapters[index](s) - t).square().sum()

        return in_chunks(error, student, teacher) / teacher.numel()


class FitNets(FeatureMSE):
    """The teacher's features are hints that the student learns to regress.

    With A the adapter of a stage, and means over samples, teacher channels and voxels,

        mean_stages mean (A student - teacher)^2,

    the teacher's channels, if `standardise`, brought to mean 0 and deviation 1 over the batch and
    its voxels first. Without it this is FeatureMSE to the digit, under the name of its paper.

    Source: Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets: hints for thin deep nets",
    ICLR 2015, arXiv 1412.6550.
    3D change: 1x1x1 convolutions without bias at all encoder stages, in slabs along D.
    Differs from the authors' code: one hint layer and a phase of its own there; here all stages,
    trained together with the segmentation, as in later comparisons.

    Options: `standardise` (without it the stages and channels of largest variance decide; with it a
    copy of the teacher is made), `stages`, `adapters`. `weight` 1 belongs to the mean over stages;
    published weights are 1 to 100.
    """

    weight: ClassVar[float] = 1.0

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        *,
        standardise: bool = False,
        stages: Sequence[int] | None = None,
        adapters: Adapters = "learned",
    ) -> None:
        super().__init__(student_channels, teacher_channels, stages=stages, adapters=adapters)
        self.standardise = standardise

    def unadapted(
        self, index: int, student: Narrow, teacher: Volume, target: Tensor | None
    ) -> Scalar:
        if self.standardise:
            variance, mean = torch.var_mean(teacher, (0, 2, 3, 4), correction=0, keepdim=True)
            teacher = (teacher - mean) * (variance + 1e-5).rsqrt()
        return super().unadapted(index, student, teacher, target)
