"""What the student sees: feature regression, band-blind and therefore DCD's first control."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from dcd_core.method import Narrow, Scalar, StageMethod
from dcd_core.types import Volume


class FeatureMSE(StageMethod):
    """The adapted student has the teacher's features: every wavelet band alike, coarse or fine.

        mean_stages mean (a - t)^2.

    Source: the control of Fan et al., MICCAI 2026, arXiv 2605.26382, that keeps all bands: with an
    orthonormal wavelet, one level and all eight bands DCD is this number.
    3D change: slabs along D are adapted and compared one by one, so that neither the adapted
    student nor the difference ever exists whole.
    Differs from the authors' code: none was released; a sibling release regresses the last stage
    alone, by a convolution that is never trained.
    Options: `stages`, `adapters`. `weight` 1 belongs to these means; as a control of DCD it takes
    DCD's weight, stages, adapters and schedule instead.
    """

    weight: ClassVar[float] = 1.0

    def stage(self, index: int, student: Narrow, teacher: Volume, target: Tensor | None) -> Scalar:
        def error(s: Tensor, t: Tensor) -> Tensor:
            return (self.adapters[index](s) - t).square().sum()

        return self.in_chunks(error, student, teacher) / teacher.numel()


class FitNets(FeatureMSE):
    """The teacher's features are hints that the student learns to regress.

    FeatureMSE under the name of its paper, with the teacher's channels, if `standardise`, brought
    to mean 0 and deviation 1 over the batch and its voxels first.

    Source: Romero, Ballas, Kahou, Chassang, Gatta, Bengio, ICLR 2015, arXiv 1412.6550.
    3D change: as in FeatureMSE.
    Differs from the authors' code: one hint layer and a phase of its own there; here all stages,
    trained together with the segmentation, as in later comparisons.
    Options: `standardise` (without it the channels of largest variance decide; with it a copy of
    the teacher is made), `stages`, `adapters`. `weight` 1; published weights are 1 to 100.
    """

    def __init__(self, *channels: Sequence[int], standardise: bool = False, **shared: Any) -> None:
        super().__init__(*channels, **shared)
        self.standardise = standardise

    def stage(self, index: int, student: Narrow, teacher: Volume, target: Tensor | None) -> Scalar:
        if self.standardise:
            variance, mean = torch.var_mean(teacher, (0, 2, 3, 4), correction=0, keepdim=True)
            teacher = (teacher - mean) * (variance + 1e-5).rsqrt()
        return super().stage(index, student, teacher, target)
