"""The loss of one stage and its gradient in one pass: they are made of the same bands.

A few channels at a time: neither the projected student nor the difference ever exists as a whole.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from dcd_core.wavelet import energy as definition
from dcd_core.wavelet.energy import Selection, units
from dcd_core.wavelet.fast import filters, matrices
from dcd_core.wavelet.transform import at_least_float32

Inputs: TypeAlias = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""Student (b, c_s, d, h, w), teacher (b, c_t, d, h, w), weight (c_t, c_s) and bias (c_t)."""

BLOCK_BYTES = {"cpu": 3 << 20}
"""Most bytes of differences in work at a time, per CPU thread; 256 MiB on other devices."""


def distance(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    selection: Selection,
) -> Tensor:
    """The loss of one stage, a scalar, of `Inputs`; the levels of `selection` must be usable."""
    measure = _Distance.apply
    if torch.compiler.is_compiling():  # it leaves nothing to fuse; a decorator imports the compiler
        measure = torch.compiler.disable(measure)
    return measure(student, teacher, weight, bias, selection)


def energy(x: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
    """`units` times the loss of `x` (c, d, h, w), which is overwritten, and half the gradient."""
    filtered = filters.serves(x)
    if matrices.is_diagonal(x.shape[1:], selection):
        return (filters if filtered else matrices).energy(x, selection)
    if filtered and selection.convention == "released":
        return filters.released(x, selection)
    return by_autograd(x, selection)


def by_autograd(x: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
    """The same for any wavelet, size and convention: the definition, differentiated."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = (x.clone() if x.is_inference() else x)[None].detach().requires_grad_()
        scale = len(x) * units(x.shape[1:], selection)
        value = scale * definition.energy(leaf, selection)
        (gradient,) = torch.autograd.grad(value / 2, leaf)
    return value.detach(), gradient[0]


def by_definition(inputs: Inputs, selection: Selection) -> Tensor:
    """The loss of one stage as a graph, which has derivatives of any order."""
    student, teacher, weight, bias = inputs
    with torch.autocast(teacher.device.type, enabled=False):
        projected = at_least_float32(student)
        if weight is not None:
            projected = torch.einsum("ts,bsdhw->btdhw", weight.to(projected.dtype), projected)
        if bias is not None:
            projected = projected + bias[:, None, None, None]
        return definition.energy(projected - teacher.to(projected.dtype), selection)


class _Distance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        inputs, ctx.selection = arguments[:4], arguments[4]
        value, ctx.gradients = _measure(inputs, ctx.selection, ctx.needs_input_grad)
        ctx.save_for_backward(*inputs)
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        inputs, needed = ctx.saved_tensors, ctx.needs_input_grad
        if torch.is_grad_enabled():  # create_graph=True: the gradient is to be differentiated
            wanted = [x for x, need in zip(inputs, needed, strict=False) if need]
            value = by_definition(inputs, ctx.selection)
            results = iter(torch.autograd.grad(value, wanted, upstream, create_graph=True))
            return tuple(next(results) if need else None for need in needed)
        # Scaled in place the gradients are given away: a second pass (retain_graph) measures again.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            _, gradients = _measure(inputs, ctx.selection, needed)
        factor = upstream * (2 * _scale(inputs[1], ctx.selection))
        return (*(None if g is None else g.mul_(factor) for g in gradients), None)


def _measure(
    inputs: Inputs, selection: Selection, needed: Sequence[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    """The loss, and by every input that needs it half the gradient, before it is scaled."""
    student, teacher, weight, _ = inputs
    dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
    create = torch.empty if weight is None else torch.zeros
    gradients = [
        create(x.shape, dtype=dtype, device=x.device) if x is not None and need else None
        for x, need in zip(inputs, needed, strict=False)
    ]
    buffer = gradients[0] if weight is None else None  # of the difference: its gradient replaces it
    values = []
    with torch.autocast(teacher.device.type, enabled=False):
        for block in blocks(teacher, dtype):
            out = None if buffer is None else buffer[block]
            difference = _difference(inputs, block, dtype, out)
            value, gradient = energy(difference.flatten(0, 1), selection)
            values.append(value)
            _add(gradients, inputs, block, gradient.view_as(difference))
    return sum(values[1:], values[0]) * _scale(teacher, selection), gradients


def _scale(teacher: Tensor, selection: Selection) -> float:
    """What turns the sum of `energy` over all channels into the loss."""
    batch, width, *size = teacher.shape
    return 1 / (batch * width * units(size, selection))


Block: TypeAlias = tuple[slice, slice]  # samples and channels, contiguous in memory


def blocks(features: Tensor, dtype: torch.dtype) -> Iterator[Block]:
    """Cut features (b, c, d, h, w) into blocks of at most `BLOCK_BYTES`, or one channel each."""
    batch, width, *size = features.shape
    volume = math.prod(size) * dtype.itemsize
    device = features.device.type
    threads = torch.get_num_threads() if device == "cpu" else 1
    limit = threads * BLOCK_BYTES.get(device, 256 << 20)
    # A stage that is not tiny has three blocks at least. Threads share a block's channels evenly.
    limit = min(limit, max(limit // 4, batch * width * volume * 2 // 5))
    count = max(1, limit // volume)
    count -= count % min(threads, count)
    samples, channels = max(1, count // width), min(count, width)
    for i in range(0, batch, samples):
        for j in range(0, width, channels):
            yield slice(i, i + samples), slice(j, j + channels)


def _difference(inputs: Inputs, block: Block, dtype: torch.dtype, out: Tensor | None) -> Tensor:
    """Projected student minus teacher in a block (b, c, d, h, w), contiguous, in `out` if given."""
    student, teacher, weight, bias = inputs
    samples, channels = block
    target = teacher[block]
    result = target.new_empty(target.shape, dtype=dtype) if out is None else out
    if weight is None:
        return torch.sub(student[block].to(dtype), target.to(dtype), out=result)
    for to, s in zip(result.flatten(2), student[samples].flatten(2), strict=True):
        torch.mm(weight[channels].to(dtype), s.to(dtype), out=to)
    if bias is not None:
        result += bias[channels, None, None, None]
    return result.sub_(target.to(dtype))


def _add(
    gradients: Sequence[Tensor | None], inputs: Inputs, block: Block, gradient: Tensor
) -> None:
    """Add the gradient by the difference in one block to the gradients by the inputs."""
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
            # One product per slice: a single float32 sum over all voxels would drift.
            slices = g.flatten(2).transpose(0, 1), s.to(g.dtype).flatten(2).permute(1, 2, 0)
            of_weight[channels].add_(torch.bmm(*slices).sum(0))
        if of_bias is not None:
            of_bias[channels].add_(g.sum((1, 2, 3)))
