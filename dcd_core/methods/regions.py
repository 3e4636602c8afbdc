"""Regions by the labels: how alike the voxels of a class are, and which regions count how much."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate, one_hot

from dcd_core.errors import Check, Count, Positive, finite
from dcd_core.method import Ignored, Narrow, Scalar, StageMethod, UnadaptedMethod, directions
from dcd_core.types import ContractError, Volume

Labels = Int[Tensor, "b v"]
Sums: TypeAlias = tuple[Tensor, Tensor, Tensor]
Members = Bool[Tensor, "b v"]


class IFVD(UnadaptedMethod):
    """The voxels of a class are as alike among themselves for the student as for the teacher.

        mean_stages mean_v (cos(s(v), mu(s, v)) - cos(t(v), mu(t, v)))^2,
        mu(f, v) the mean of the features f of the class of v in its sample.

    Source: Wang, Zhou, Jiang, Bai, Xu, ECCV 2020.
    3D change: stages of at most `side` voxels a side, with the labels of the nearest voxels.
    Differs from the authors' code: ignored voxels, which add 0 there but are counted, leave the
    mean as well; the adversarial and pixel-wise terms are left out.
    Options: `side`, `ignore`. `weight` 10; published 200 and 20, beside other terms.
    """

    weight: ClassVar[float] = 10.0
    side: Count = 32
    ignore: Ignored = -1

    def compares(self, size: Sequence[int]) -> bool:
        return max(size) <= self.side

    def stage(self, index: int, student: Narrow, teacher: Volume, target: Tensor | None) -> Scalar:
        labels, counts = labels_at(teacher.shape[2:], target, self.ignore)
        difference = _closeness(student, labels, counts) - _closeness(teacher, labels, counts)
        return (difference.square() * counts).sum() / counts.sum().clamp(min=1)


class ReCo(StageMethod):
    """The student has the teacher's features, above all where both the labels and the teacher look.

        sum_stages w_i [R(foreground) + R(background)
                        + mean |C_a - C_t| + mean |S_a - S_t| + mean (g(a) - g(t))^2],
        R(m) = sum_(b,c,v) (a - t)^2 S_t C_t m / (c * sum_(b,v) m), where m is 1 / size of the
        voxel's class in its sample on the foreground, 1 / size on the background, else 0,
        S = v softmax_v(mean_c |f| / T) and C = c softmax_c(mean_v |f| / T), attention of f,
        g(f) = f + U(sum_v softmax_v(k f) f), a block of global context,
        w_i = r^i / sum_j r^j of the stages in use, r = 2^(-3 decay).

    Source: Lan, Hsu, Khan, Jiang, ReCo-KD, 2026, arXiv 2601.08301, terms MS-SARD and MS-CA; blocks
    of context as in Cao, Xu, Lin, Wei, Hu, GCNet, ICCVW 2019, arXiv 1904.11492.
    3D change: none. All stages but the deepest, in chunks along D.
    Differs from the authors' code: the public one is a port in a sibling of DCD's release
    (`released`). There ignored voxels are background; labels are resized by "nearest-exact", as in
    nnU-Net's deep supervision, half a voxel of the stage beside the centres of strided
    convolutions; adapters have a bias and are never trained, nor are blocks of context, which begin
    at 0, so that g(f) = f; a voxel of several regions has the largest m. Here ignored voxels are in
    no region, both are trained, one block serves both networks, and labels are classes.
    Options: `masks`, "sound" or "released"; `context`, "learned" or "frozen" at 0; `temperature` T;
    `decay`; `ignore`. `weight` 0.01 belongs to this sum.
    """

    weight: ClassVar[float] = 0.01
    usual = slice(-1)
    stage_reduction = "sum"
    masks: Literal["sound", "released"] = "sound"
    context: Literal["learned", "frozen"] = "learned"
    temperature: Positive = 0.5
    decay: Annotated[float, Check(finite)] = 0.4
    ignore: Ignored = -1

    def __init__(self, *channels: Sequence[int], **options: Any) -> None:
        super().__init__(*channels, **options)
        trained = self.context == "learned"
        self.contexts = nn.ModuleList(Context(width, trained=trained) for _, width in self.channels)
        powers = [2 ** (-3 * self.decay * i) for i in range(len(self.stages))]
        self.shares = [power / sum(powers) for power in powers]

    @classmethod
    def released(cls, student_channels: Sequence[int], teacher_channels: Sequence[int]) -> "ReCo":
        """The loss as it was run on labels: adapters with bias and context, all of it frozen."""
        channels = student_channels, teacher_channels
        loss = cls(*channels, masks="released", context="frozen", adapters="frozen")
        loss.use_released_adapters()
        return loss

    def stage(self, index: int, student: Narrow, teacher: Volume, target: Tensor | None) -> Scalar:
        adapter, context = self.adapters[index], cast(Context, self.contexts[index])

        def reduced(s: Tensor, t: Tensor) -> tuple[Sums, Sums]:
            return _sums(adapter(s), context), _sums(t, context)

        chunks = zip(*self.each_chunk(reduced, student, teacher), strict=True)
        (space_s, channels_s, scores_s), (space_t, channels_t, scores_t) = map(self._seen, chunks)
        attention = (channels_s - channels_t).abs().mean() + (space_s - space_t).abs().mean()
        # g(f) is f plus a vector per sample; the adapter commutes with a weighted mean.
        shift = context(adapter(_attended(student, scores_s)))
        shift = shift - context(_attended(teacher, scores_t))
        weights = self._weights(target, teacher) * space_t / teacher.shape[1]

        def squares(s: Tensor, t: Tensor, w: Tensor) -> Tensor:
            difference = adapter(s) - t
            regions = (difference.square() * (w * channels_t)).sum()
            return regions + (difference + shift).square().sum() / teacher.numel()

        return self.shares[index] * (self.in_chunks(squares, student, teacher, weights) + attention)

    def _seen(self, chunks: Sequence[Sums]) -> tuple[Tensor, Tensor, Tensor]:
        """Of a whole patch: attention S (b, 1, d, h, w) and C (b, c, 1, 1, 1), and scores k f."""
        over_channels, over_space, scores = zip(*chunks, strict=True)
        space = torch.cat(over_channels, 2)
        channels = torch.stack(over_space).sum(0) / space[0].numel()
        return self._attention(space), self._attention(channels), torch.cat(scores, 2)

    def _attention(self, size: Volume) -> Volume:
        """Weights of mean 1 in every sample."""
        return ((size.flatten(1) / self.temperature).softmax(1) * size[0].numel()).view_as(size)

    def _weights(self, target: Tensor | None, teacher: Volume) -> Float[Tensor, "b 1 d h w"]:
        """The m / sum_(b,v) m of both regions, added up: no voxel is in both."""
        released = self.masks == "released"
        nearest = "nearest-exact" if released else "nearest"
        labels, counts = labels_at(teacher.shape[2:], target, self.ignore, nearest)
        foreground = counts & (labels > 0)
        background = ~foreground if released else counts & (labels == 0)
        # As one class, whatever the background's labels are.
        areas = _per_area(labels * foreground, foreground), _per_area(0 * labels, background)
        weights = torch.stack([a / (a.sum() + 1e-8) for a in areas]).sum(0)
        return weights.view(len(teacher), 1, *teacher.shape[2:])


class Context(nn.Module):
    """What a block of global context adds to every voxel: U(sum_v softmax_v(k f) f).

    U goes through half the channels, normalised. If not `trained`, its output is 0.
    """

    def __init__(self, channels: int, *, trained: bool) -> None:
        super().__init__()
        hidden = max(2, channels // 2)  # one alone would always be normalised to 0
        # No bias where it would cancel: in a softmax, and in the difference of two contexts.
        self.key = nn.Linear(channels, 1, bias=False)
        last = nn.Linear(hidden, channels, bias=False)
        if not trained:
            nn.init.zeros_(last.weight)
        self.change = nn.Sequential(
            nn.Linear(channels, hidden), nn.GroupNorm(1, hidden, affine=False), nn.ReLU(), last
        )
        self.requires_grad_(trained)

    def forward(self, attended: Float[Tensor, "b c 1 1 1"]) -> Float[Tensor, "b c 1 1 1"]:
        """What U makes of `attended`, the sum."""
        return self.change(attended.flatten(1))[:, :, None, None, None]


def _sums(features: Volume, context: Context) -> Sums:
    """Of a chunk: mean_c |f| (b, 1, d, h, w), sum_v |f| (b, c, 1, 1, 1), k f (b, 1, d, h, w)."""
    size = features.abs()
    scores = torch.einsum("oc,bcdhw->bodhw", context.key.weight, features)
    return size.mean(1, keepdim=True), size.sum((2, 3, 4), keepdim=True), scores


def _attended(features: Narrow, scores: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b _ 1 1 1"]:
    """Mean of the voxels of features, weighted by the softmax of their scores."""
    return (features.flatten(2) @ scores.flatten(2).softmax(2).mT)[..., None, None]


def labels_at(
    size: Sequence[int], target: Tensor | None, ignore: int | None, nearest: str = "nearest"
) -> tuple[Labels, Members]:
    """Labels of the nearest voxels of a grid, and which count: not `ignore`, not below 0."""
    if target is None:
        raise ContractError("target", None, "labels", "forward(student, teacher, target)")
    if target.shape[2:] != tuple(size):
        target = interpolate(target.float(), tuple(size), mode=nearest)
    labels = target.long().flatten(1)
    counts = labels >= 0
    return labels, counts if ignore is None else counts & (labels != ignore)


def _closeness(features: Narrow, labels: Labels, counts: Members) -> Float[Tensor, "b v"]:
    """Cosine of each voxel and the centre of its class in its sample."""
    f = features.flatten(2)
    known = labels * counts  # a label of its own for ignored voxels may be 255
    members = one_hot(known).to(f.dtype) * counts[:, :, None]  # (b, v, k)
    centres = torch.einsum("bcv,bvk->bck", f, members) / members.sum(1).clamp(min=1)[:, None]
    f, centres = (directions(x, 1) for x in (f, centres))
    return torch.einsum("bck,bcv->bkv", centres, f).gather(1, known[:, None])[:, 0]


def _per_area(labels: Labels, region: Members) -> Float[Tensor, "b v"]:
    """In a region 1 / the voxels of it that have the label, in the sample; 0 outside."""
    sizes = (one_hot(labels) * region[:, :, None]).sum(1)
    return region / sizes.gather(1, labels).clamp(min=1)
