"""What matters most: masks that student and teacher learn together while one distils the other."""

from collections.abc import Sequence
from itertools import combinations
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, scaled_dot_product_attention

from dcd_core.errors import Check, NotNegative, at_least
from dcd_core.method import Narrow, Scalar, StageMethod, averaged
from dcd_core.types import Volume

TOKENS = 16
"""Places along an axis that attend to each other, at most: 4096 in all."""


class ACAMKD(StageMethod):
    """The student has the teacher's features where, and in the channels where, masks of both look.

        mean_stages [mean_m (sum_v S_m(v) mean_c e / sum_v S_m
                             + sum_c C_m(c) mean_v e / sum_c C_m)
                     + diversity * mean_(m < n) (dice(S_m, S_n) + dice(C_m, C_n))],
        e = (a - t)^2, masks S_m = sigmoid(w_m . F(v)) and C_m = sigmoid(u_m * mean_v F), m = 1..M,
        F = softmax(Q(t) K(a)^T / sqrt(c / 2)) V(a) the attention over places.

    Source: Lan, Tian, ICCV 2025, arXiv 2503.06307.
    3D change: attention at no more than 16^3 places, pooled; the logits of S are interpolated to
    the voxels. Stages 2 to 4; errors in chunks along D.
    Differs from the authors' code: there is none. Our choices, where the paper leaves one: errors
    are divided by the sum of the mask, or masks would vanish; the student learns nothing from them,
    or it would be driven off where it agrees; V keeps all channels; dice(p, q) = 2 <p, q> / (<p, p>
    + <q, q>), added, so that masks part; masks are of encoder features; M is an option.
    Options: `masks` M, `diversity`. `weight` 1 belongs to these means.
    """

    weight: ClassVar[float] = 1.0
    usual = slice(2, 5)
    masks: Annotated[int, Check(at_least, 2)] = 4
    diversity: NotNegative = 1.0

    def __init__(self, *channels: Sequence[int], **options: Any) -> None:
        super().__init__(*channels, **options)
        self.fusions = nn.ModuleList(Fusion(width, self.masks) for _, width in self.channels)

    def stage(self, index: int, student: Narrow, teacher: Volume, target: Tensor | None) -> Scalar:
        adapter = self.adapters[index]
        # Pooling commutes with the adapter, so the adapted student never exists whole.
        s, t = adapter(averaged(student, TOKENS)).detach(), averaged(teacher, TOKENS)
        space, channels = self.fusions[index](s, t, teacher.shape[2:])
        over_space = _shares(space).mean(1).unflatten(1, (1, *teacher.shape[2:]))
        over_channels = _shares(channels).mean(1)[:, :, None, None, None]
        width, voxels = teacher.shape[1], space.shape[2]

        def error(s: Tensor, t: Tensor, of_space: Tensor) -> Tensor:
            squares = (adapter(s) - t).square()
            return (squares * (of_space / width + over_channels / voxels)).sum()

        errors = self.in_chunks(error, student, teacher, over_space) / len(teacher)
        return errors + self.diversity * (overlap(space) + overlap(channels))


class Fusion(nn.Module):
    """Attention of the teacher's places to the student's, and `masks` of each kind made of it."""

    def __init__(self, channels: int, masks: int) -> None:
        super().__init__()
        half = max(1, channels // 2)
        self.query, self.key = (nn.Linear(channels, half, bias=False) for _ in range(2))
        self.value = nn.Linear(channels, channels, bias=False)
        # Equal masks would stay equal: nothing but chance tells them apart at first.
        self.space = nn.Parameter(torch.randn(masks, channels) / channels**0.5)
        self.channel = nn.Parameter(torch.randn(masks, 1))

    def forward(
        self, student: Volume, teacher: Volume, size: Sequence[int]
    ) -> tuple[Float[Tensor, "b m v"], Float[Tensor, "b m c"]]:
        """Masks between 0 and 1 of the voxels of a grid `size` and of the channels."""
        fused = self.fused(student, teacher)
        logits = torch.einsum("mc,bcdhw->bmdhw", self.space, fused)
        logits = interpolate(logits, tuple(size), mode="trilinear")
        channels = self.channel * fused.mean((2, 3, 4))[:, None]
        return logits.flatten(2).sigmoid(), channels.sigmoid()

    def fused(self, student: Volume, teacher: Volume) -> Volume:
        """The student's values, where the teacher asks for them."""
        s, t = student.flatten(2).mT, teacher.flatten(2).mT
        q, k, v = self.query(t), self.key(s), self.value(s)
        scale, more = q.shape[2] ** -0.5, v.shape[2] - q.shape[2]
        # Kernels that keep no matrix of places by places, a tenth of the memory at 16^3, want q, k
        # and v to be equally wide, by zeros, and an axis of heads.
        q, k, v = (x[:, None] for x in (pad(q, (0, more)), pad(k, (0, more)), v))
        fused = scaled_dot_product_attention(q, k, v, scale=scale)[:, 0]
        return fused.mT.unflatten(2, teacher.shape[2:])


def overlap(masks: Float[Tensor, "b m _"]) -> Scalar:
    """Mean Dice of every two of the m masks: 1 where they are equal, 0 where they are apart."""
    products = masks @ masks.mT
    squares = products.diagonal(dim1=1, dim2=2)
    dice = 2 * products / (squares[:, :, None] + squares[:, None] + 1e-8)
    first, second = zip(*combinations(range(masks.shape[1]), 2), strict=True)
    return dice[:, first, second].mean()


def _shares(masks: Float[Tensor, "b m n"]) -> Float[Tensor, "b m n"]:
    return masks / (masks.sum(2, keepdim=True) + 1e-8)
