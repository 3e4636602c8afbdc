"""What the student sees: features compared voxel by voxel, or where each channel is active."""

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import conv3d, normalize

from dcd_core.errors import Flag, Positive
from dcd_core.method import Narrow, Scalar, StageMethod, UnadaptedMethod
from dcd_core.methods.logits import channelwise
from dcd_core.types import Volume


class FeatureMSE(StageMethod):
    """The adapted student has the teacher's features: every wavelet band alike, coarse or fine.

        mean_stages mean (a - t)^2.

    Source: the control of Fan et al., MICCAI 2026, arXiv 2605.26382, that keeps all bands: with an
    orthonormal wavelet, one level and all eight bands DCD is this number.
    3D change: chunks along D, so that neither the adapted student nor the difference exists whole.
    Differs from the authors' code: none was released.
    Options: none of its own. `weight` 1; as a control of DCD it takes DCD's weight and schedule.
    """

    weight: ClassVar[float] = 1.0

    def stage(self, index: int, student: Narrow, teacher: Volume, target: Tensor | None) -> Scalar:
        def error(s: Tensor, t: Tensor) -> Tensor:
            return (self.adapters[index](s) - t).square().sum()

        return self.in_chunks(error, student, teacher) / teacher.numel()


class FitNets(FeatureMSE):
    """The teacher's features are hints that the student learns to regress.

        mean_stages mean (a - t)^2, t, if `standardise`, at mean 0 and deviation 1 per channel.

    Source: Romero, Ballas, Kahou, Chassang, Gatta, Bengio, ICLR 2015, arXiv 1412.6550.
    3D change: as in FeatureMSE.
    Differs from the authors' code: there one layer has a hint, and a phase of its own.
    Options: `standardise`; else channels of large variance decide. `weight` 1; published 1 to 100.
    """

    standardise: Flag = False

    def stage(self, index: int, student: Narrow, teacher: Volume, target: Tensor | None) -> Scalar:
        if self.standardise:
            variance, mean = torch.var_mean(teacher, (0, 2, 3, 4), correction=0, keepdim=True)
            teacher = (teacher - mean) * (variance + 1e-5).rsqrt()
        return super().stage(index, student, teacher, target)


class ChannelWiseFeatures(StageMethod):
    """Every channel of the adapted student is active where the teacher's is, at every stage.

        mean_stages T^2 * mean_(b,c) sum_v phi_t (log phi_t - log phi_a),
        phi = softmax_v(features / T).

    Source: Shu, Liu, Gao, Yan, Shen, ICCV 2021, arXiv 2011.13256.
    3D change: all stages; a few of the teacher's channels are adapted and compared at a time.
    Differs from the authors' code: their adapter adds normalisation and ReLU.
    Options: `temperature` T. `weight` 50 at T = 4, published for one map.
    """

    weight: ClassVar[float] = 50.0
    temperature: Positive = 4.0

    def stage(self, index: int, student: Narrow, teacher: Volume, target: Tensor | None) -> Scalar:
        divergence = partial(channelwise, self.temperature, None)
        weight = getattr(self.adapters[index], "weight", None)

        def adapted(rows: Tensor, t: Tensor) -> Tensor:
            return divergence(conv3d(student, rows.transpose(0, 1)), t)

        if weight is None:
            total = self.in_chunks(divergence, student, teacher, dim=1)
        else:  # a channel of the adapted student is made by one row of the adapter
            total = self.in_chunks(adapted, weight.transpose(0, 1), teacher, dim=1)
        return total / (teacher.shape[0] * teacher.shape[1])


class AttentionTransfer(UnadaptedMethod):
    """The student is active where the teacher is, whatever the channels.

        mean_stages mean_b sum_v (q_s - q_t)^2,
        q = mean_c features_c^2, a vector of voxels, divided by its Euclidean norm.

    Source: Zagoruyko, Komodakis, ICLR 2017, arXiv 1612.03928.
    3D change: none but the voxels.
    Differs from the authors' code: theirs is 1000 times the mean over voxels, which shrinks with
    their number, summed over maps of 32^2, 16^2 and 8^2. In sums over voxels they weigh 1, 3.9 and
    15.6: the deepest decides. Here stages weigh alike. The paper writes half of that, beta / 2.
    Options: none of its own. `weight` 20.5, the total of the three, belongs to the formula above.
    """

    weight: ClassVar[float] = 20.5

    def stage(self, index: int, student: Narrow, teacher: Volume, target: Tensor | None) -> Scalar:
        s, t = (normalize(x.square().mean(1).flatten(1), dim=1) for x in (student, teacher))
        return (s - t).square().sum(1).mean()
