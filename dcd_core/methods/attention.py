"""Where the student looks: attention transfer, which compares one map per encoder stage."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dcd_core.method import Narrow, Scalar, UnadaptedMethod
from dcd_core.types import Volume


class AttentionTransfer(UnadaptedMethod):
    """The student is active where the teacher is, whatever the channels.

    With q = vec(mean_c features_c^2) over the voxels, divided by its Euclidean norm,

        mean_stages mean_b sum_v (q_s(v) - q_t(v))^2.

    Source: Zagoruyko, Komodakis, "Paying more attention to attention", ICLR 2017, arXiv 1612.03928.
    3D change: none but the voxels; all encoder stages, averaged.
    Differs from the authors' code: it takes the mean over voxels, which shrinks with their number,
    by 512 from 8^3 to 64^3; the sum does not depend on the size. Its weight of 1000 on maps of 8^2
    to 32^2 is 15.6 to 1 here.

    Options: `stages`. No adapters: the channels are averaged away, so teacher and student may have
    any number of them. A map of zeros stays zeros. `weight` 1 belongs to the sum over voxels, mean
    over samples and stages.
    """

    weight: ClassVar[float] = 1.0

    def stage(self, index: int, student: Narrow, teacher: Volume, target: Tensor | None) -> Scalar:
        return (_attention(student) - _attention(teacher)).square().sum(1).mean()


def _attention(features: Volume) -> Float[Tensor, "b v"]:
    return normalize(features.square().mean(1).flatten(1), dim=1)
