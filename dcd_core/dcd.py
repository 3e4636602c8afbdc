"""Detail Consistent Distillation (DCD): the student copies the teacher's detail, not its blur.

A large segmenter (teacher) and a small one (student) look at the same patch. At every encoder stage
their features are split by a 3D wavelet transform, and only the *directional detail* bands are
pulled together; the coarse band stays free, so the student keeps its own global semantics. The loss
acts in training alone: what is deployed is exactly the undistilled student.

With student features s, teacher features t and a 1x1x1 projection P, everything after P is linear,
so one tensor is transformed, x_0 = P(s) - t, and with x_l = W_aaa x_(l-1) the loss of a stage is

    1/L * sum_l sum_(b in bands) ||W_b x_(l-1)||^2 / size(x_(l-1)).

Source: Fan, Geng, Xiao, Wang, Mei, Che, Jiang, Lan, "Detail Consistent Stage-Wise Distillation for
Efficient 3D MRI Segmentation", MICCAI 2026, arXiv 2605.26382. Where the authors' release (commit
7cf0ca6) and the mathematics differ, `convention` names which one is meant; "orthonormal" is sound.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dcd_core.method import Adapters, StageMethod, check_target
from dcd_core.types import ContractError, Output, Volume
from dcd_core.wavelet import (
    BANDS,
    Convention,
    Selection,
    Wavelet,
    axis_names,
    energy,
    taps,
    usable_levels,
    voxels,
)

PUBLISHED = BANDS[1:7]
"""The bands the paper aligns: all but the coarse `aaa` and the finest diagonal `ddd`."""


class StageDistance(NamedTuple):
    """The loss of one encoder stage (scalar) and how many wavelet levels its grid allowed."""

    distance: Tensor
    levels: int


def detail_distance(
    student: Volume,
    teacher: Tensor,
    *,
    wavelet: Wavelet = "db4",
    levels: int = 3,
    bands: Sequence[str] = PUBLISHED,
    coarse_weight: float = 0.0,
    convention: Convention = "orthonormal",
) -> Float[Tensor, ""]:
    """Mean squared difference of the selected wavelet bands of two feature maps, a scalar.

    `student`, `teacher` (b, c, d, h, w), equal shapes; computed in float32 or better even inside
    autocast. `bands` are names out of `BANDS`; `coarse_weight` adds the coarse band of the last
    level. Convention "orthonormal" compares periodized wavelet coefficients: with all bands and one
    level it is the MSE. Convention "released" repeats commit 7cf0ca6, whose synthesis does not
    invert its analysis: it compares masked reconstructions on a zero-padded grid.
    Raises ContractError for unequal shapes, unknown names, or a grid too small for a single level.
    """
    _check(wavelet, levels, bands, coarse_weight, convention)
    if student.shape != teacher.shape:
        raise ContractError(
            "teacher features",
            tuple(teacher.shape),
            f"the student's shape {tuple(student.shape)}",
            "DCD(...), which projects channels, on stages of the same grid",
        )
    selection = Selection(axis_names(wavelet), levels, tuple(bands), coarse_weight, convention)
    result = _stage(student, teacher, None, None, selection)
    if result.levels == 0:
        raise _too_small(student.shape[2:], wavelet)
    return result.distance


class DCD(StageMethod):
    """The distillation loss over all encoder stages, with the projections it trains.

    `student_channels`, `teacher_channels`: channels per stage, finest first. `stages`: indices of
    the stages to align, None for all. `projection` from student to teacher channels: "learned"
    (train it: give `parameters()` to the optimizer), "frozen" (random, as in the release),
    "orthogonal" (random with orthonormal columns, frozen) or "none" (equal channels). Stages whose
    grid is too small for a level drop out; an error is raised only if none is left.

    Source: Fan et al., MICCAI 2026, arXiv 2605.26382.
    """

    adapter_option: ClassVar[str | None] = "projection"

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        *,
        wavelet: Wavelet = "db4",
        levels: int = 3,
        bands: Sequence[str] = PUBLISHED,
        coarse_weight: float = 0.0,
        stages: Sequence[int] | None = None,
        projection: Adapters = "learned",
        stage_reduction: Literal["mean", "sum"] = "mean",
        convention: Convention = "orthonormal",
    ) -> None:
        _check(wavelet, levels, bands, coarse_weight, convention)
        if stage_reduction not in ("mean", "sum"):
            raise ContractError(
                "stage_reduction", repr(stage_reduction), "'mean' or 'sum'", "'mean'"
            )
        super().__init__(student_channels, teacher_channels, stages=stages, adapters=projection)
        self.wavelet = axis_names(wavelet)
        self.levels = levels
        self.bands = tuple(bands)
        self.coarse_weight = coarse_weight
        self.stage_reduction = stage_reduction
        self.convention = convention

    @classmethod
    def released(cls, student_channels: Sequence[int], teacher_channels: Sequence[int]) -> DCD:
        """The loss as commit 7cf0ca6 computes it: frozen projections with bias, stages summed."""
        loss = cls(
            student_channels,
            teacher_channels,
            projection="none" if tuple(student_channels) == tuple(teacher_channels) else "frozen",
            stage_reduction="sum",
            convention="released",
        )
        loss.adapters = nn.ModuleList(
            nn.Identity()
            if s == t
            else nn.Conv3d(s, t, kernel_size=1, bias=True).requires_grad_(False)
            for s, t in zip(student_channels, teacher_channels, strict=True)
        )
        return loss

    def per_stage(self, student: Output, teacher: Output) -> list[StageDistance]:
        """The loss of every aligned stage, unreduced, with the number of levels it used."""
        selection = Selection(
            self.wavelet, self.levels, self.bands, self.coarse_weight, self.convention
        )
        result = []
        for index, s, t in self.pairs(student, teacher):
            adapter = self.adapters[index]
            weight, bias = None, None
            if isinstance(adapter, nn.Conv3d):
                weight, bias = adapter.weight.flatten(1), adapter.bias
            width = s.shape[1] if weight is None else len(weight)
            if width != t.shape[1]:
                raise ContractError(
                    f"channels of encoder stage {self.stages[index]}",
                    f"student {tuple(s.shape)}, projected to {width}, teacher {tuple(t.shape)}",
                    "once projected, as many in both",
                    "DCD(student_channels, teacher_channels) of these two networks",
                )
            result.append(_stage(s, t, weight, bias, selection))
        return result

    def forward(
        self, student: Output, teacher: Output, target: Tensor | None = None
    ) -> Float[Tensor, ""]:
        """The loss of a batch, a scalar; `target` is there because every method takes it."""
        check_target(target, student)
        used = [d.distance for d in self.per_stage(student, teacher) if d.levels]
        if not used:
            raise _too_small([tuple(s.shape[2:]) for s in student.stages], self.wavelet)
        total = torch.stack(used)
        return total.mean() if self.stage_reduction == "mean" else total.sum()


def kd_weight(epoch: int | float, *, peak: float, start: int | float, ramp: int | float) -> float:
    """Weight of the distillation loss: 0 until `start`, half a cosine up over `ramp`, then `peak`.

    `epoch`, `start` and `ramp` share a unit (epochs or steps). The release uses peak .01, start
    150, ramp 800 for BraTS 2024 and .05, 100, 300 for ISLES 2022.
    """
    if epoch < start:
        return 0.0
    if epoch >= start + ramp:
        return peak
    return peak * 0.5 * (1.0 - math.cos(math.pi * (epoch - start) / ramp))


@torch.compiler.disable(reason="filters or products with a gradient of their own: nothing to fuse")
def _stage(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    selection: Selection,
) -> StageDistance:
    """The loss of one stage; a projection, `weight` (c_t, c_s), acts on the student first."""
    if not teacher.numel() or not voxels(teacher.shape[2:], selection):
        raise ContractError(
            "features to compare",
            tuple(teacher.shape),
            "at least one voxel, and in the released convention two along every axis",
            "convention='orthonormal', or larger patches",
        )
    levels = usable_levels(teacher.shape[2:], selection)
    if levels == 0:
        return StageDistance(teacher.new_zeros((), dtype=torch.float32), 0)
    selection = selection._replace(levels=levels)
    return StageDistance(_Distance.apply(student, teacher, weight, bias, selection), levels)


_Inputs: TypeAlias = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""Student and teacher features (b, c, d, h, w), weight and bias of the projection."""


class _Distance(torch.autograd.Function):
    """The loss and, in the same pass, its gradients: both are made of the same bands."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        selection: Selection,
    ) -> Tensor:
        inputs = student, teacher, weight, bias
        value, ctx.gradients = _measure(inputs, selection, ctx.needs_input_grad)
        ctx.save_for_backward(*inputs)
        ctx.selection = selection
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # Scaling in place spares a tensor of the features' size. The gradients are then given away,
        # so a second backward pass (retain_graph) measures them again.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            _, gradients = _measure(ctx.saved_tensors, ctx.selection, ctx.needs_input_grad)
        factor = upstream * (2 * _scale(ctx.saved_tensors[1], ctx.selection))
        return (*(None if g is None else g.mul_(factor) for g in gradients), None)


_BLOCK_BYTES = {"cpu": 3 << 20}
"""Bytes of differences in work at a time, for each thread, at most; 256 MiB on other devices.

Smaller blocks pay more for calls than they gain in caches, larger ones only need more memory.
"""


def _measure(
    inputs: _Inputs, selection: Selection, needed: Sequence[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    """The loss and the gradients of its energy, halved, by the inputs that need one, else None.

    A few channels are worked on at a time, so neither the projected student nor the difference ever
    exists as a whole. Without a projection the student's gradient is the room they are worked in.
    """
    student, teacher, weight, _ = inputs
    dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
    gradients = [
        (torch.empty if weight is None else torch.zeros)(x.shape, dtype=dtype, device=x.device)
        if x is not None and need
        else None
        for x, need in zip(inputs, needed, strict=False)
    ]
    room = gradients[0] if weight is None else None
    values = []
    with torch.autocast(teacher.device.type, enabled=False):
        for block in _blocks(teacher, dtype):
            difference = _difference(inputs, block, dtype, None if room is None else room[block])
            value, gradient = energy(difference.flatten(0, 1), selection)
            values.append(value)
            _add(gradients, inputs, block, gradient.view_as(difference))
    return reduce(torch.add, values).mul_(_scale(teacher, selection)), gradients


def _scale(teacher: Tensor, selection: Selection) -> float:
    """What makes a mean over levels, channels and voxels of an energy."""
    batch, width, *size = teacher.shape
    return 1 / (selection.levels * batch * width * voxels(size, selection))


_Block: TypeAlias = tuple[slice, slice]
"""Some samples and some of their channels, side by side in memory."""


def _blocks(features: Tensor, dtype: torch.dtype) -> Iterator[_Block]:
    batch, width, *size = features.shape
    volume = math.prod(size) * dtype.itemsize
    device = features.device.type
    threads = torch.get_num_threads() if device == "cpu" else 1
    limit = threads * _BLOCK_BYTES.get(device, 256 << 20)
    if batch * width * volume > limit // 4:  # two fifths of a stage at once, unless it is tiny
        limit = min(limit, batch * width * volume * 2 // 5)
    count = max(1, limit // volume)
    unit = min(threads, count)  # none idles while others work on the last channels
    count -= count % unit
    blocks = math.ceil(batch * width / count)
    count = unit * math.ceil(batch * width / (blocks * unit))  # as many blocks, more alike
    samples, channels = max(1, count // width), min(count, width)
    for i in range(0, batch, samples):
        for j in range(0, width, channels):
            yield slice(i, i + samples), slice(j, j + channels)


def _difference(inputs: _Inputs, block: _Block, dtype: torch.dtype, room: Tensor | None) -> Tensor:
    """Projected student minus teacher in a block (b, c, d, h, w), contiguous, in `room` if any."""
    student, teacher, weight, bias = inputs
    samples, channels = block
    target = teacher[block]
    result = target.new_empty(target.shape, dtype=dtype) if room is None else room
    if weight is None:
        return torch.sub(student[block].to(dtype), target.to(dtype), out=result)
    for out, s in zip(result.flatten(2), student[samples].flatten(2), strict=True):
        torch.mm(weight[channels].to(dtype), s.to(dtype), out=out)
    if bias is not None:
        result += bias[channels, None, None, None]
    return result.sub_(target)


def _add(
    gradients: Sequence[Tensor | None], inputs: _Inputs, block: _Block, gradient: Tensor
) -> None:
    """Enter the gradient by the difference, in one block, into those by the inputs."""
    student, _, weight, _ = inputs
    samples, channels = block
    of_student, of_teacher, of_weight, of_bias = gradients
    if of_teacher is not None:
        torch.neg(gradient, out=of_teacher[block])
    if weight is None:
        if of_student is not None and of_student[block].data_ptr() != gradient.data_ptr():
            of_student[block] = gradient
        return
    for i, (g, s) in enumerate(zip(gradient, student[samples], strict=True)):
        if of_student is not None:
            of_student[samples][i].flatten(1).addmm_(weight[channels].to(g.dtype).T, g.flatten(1))
        if of_weight is not None:
            # A product for each slice: over all voxels, one float32 sum would drift.
            slices = g.flatten(2).transpose(0, 1), s.to(g.dtype).flatten(2).permute(1, 2, 0)
            of_weight[channels].add_(torch.bmm(*slices).sum(0))
        if of_bias is not None:
            of_bias[channels].add_(g.sum((1, 2, 3)))


# --- what a user may hand in ----------------------------------------------------------------------


def _check(
    wavelet: Wavelet,
    levels: int,
    bands: Sequence[str],
    coarse_weight: float,
    convention: str,
) -> None:
    axis_names(wavelet)
    if levels < 1:
        raise ContractError("levels", levels, "an integer of at least 1", "levels=3")
    unknown = [band for band in bands if band not in BANDS]
    if unknown or not bands or len(set(bands)) < len(bands):
        raise ContractError(
            "bands", tuple(bands), f"distinct names out of {BANDS}", "bands=PUBLISHED"
        )
    if convention not in ("orthonormal", "released"):
        raise ContractError(
            "convention", repr(convention), "'orthonormal' or 'released'", "'orthonormal'"
        )
    if not 0 <= coarse_weight < math.inf:
        raise ContractError("coarse_weight", coarse_weight, "a finite number >= 0", "0.0")
    if convention == "released" and coarse_weight:
        raise ContractError(
            "coarse_weight", coarse_weight, "0 in the released convention", "'aaa' among the bands"
        )


def _too_small(size: object, wavelet: Wavelet) -> ContractError:
    return ContractError(
        "wavelet levels",
        f"grid {size} with {wavelet}",
        f"an axis of at least {min(taps(n) for n in axis_names(wavelet))} voxels",
        "a larger patch, an earlier stage, or a shorter wavelet such as 'haar'",
    )
