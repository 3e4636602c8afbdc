"""Flow: which bands the features of an encoder hold, and which loss sends which gradient to them.

A loss trains an encoder by the gradient at each stage. That of the segmentation arrives through the
skip connection of the stage and through the deeper encoder; that of a distillation term starts at
its own stage and reaches finer ones through the encoder alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dcd_core.dcd import PUBLISHED
from dcd_core.models import Segmenter
from dcd_core.types import ContractError, Stages, Volume
from dcd_core.wavelet import BANDS, Wavelet, wavedec3

Moments: TypeAlias = Float64[Tensor, "*band both both"]
Projection: TypeAlias = Float64[Tensor, "*band t s"]
PARTS = ("offset", *BANDS)
"""What the energy of features is split into: channel means, then the eight bands without them."""


def band_shares(x: Volume, wavelet: Wavelet = "db4", *, levels: int = 1) -> Float[Tensor, " 9"]:
    """Shares of the energy of features (b, c, d, h, w) in `PARTS`, with sum 1; NaN without energy.

    A band is summed over the levels, `aaa` is the coarse band of the last one. A constant lies in
    `aaa` entirely and would dominate it, so the mean of every channel counts apart, as the offset.
    Shares are those of the voxels' energy where the wavelet is orthogonal and every halved extent
    is even. Raises ContractError as `wavedec3` does.
    """
    bands = _bands(x, wavelet, levels, lambda band: band.square().sum(dim=(0, 1, 3, 4, 5)))
    offset = x.mean(dim=(2, 3, 4)).square().sum() * x[0, 0].numel()
    parts = torch.cat([offset[None], bands])
    return parts / parts.sum()


def _bands(x: Volume, wavelet: Wavelet, levels: int, measure: Callable[[Tensor], Tensor]) -> Tensor:
    """`measure` (k, ...) of bands (b, c, k, d, h, w) of x less its channel means: (8, ...)."""
    pyramid = wavedec3(x - x.mean(dim=(2, 3, 4), keepdim=True), wavelet, levels=levels)
    details = torch.stack([measure(level) for level in pyramid.details]).sum(0)
    return torch.cat([measure(pyramid.coarse.unsqueeze(2)), details])


def stage_gradients(loss: Float[Tensor, ""], stages: Stages) -> Stages:
    """Gradients of a scalar at the features of all stages; the graph is kept for other losses."""
    return torch.autograd.grad(loss, stages, retain_graph=True, materialize_grads=True)


def through_encoder(gradient: Volume, stages: Stages, *, start: int = -1) -> Stages:
    """A gradient at stage `start`, carried to the finer stages through the encoder alone.

    `gradient` has the shape of `stages[start]`; returned are stages 0 to `start`, that one being
    the gradient itself. For the segmentation gradient of the deepest stage these are the gradients
    of a forward pass with every skip connection detached. The graph is kept.
    Raises ContractError for a gradient of another shape.
    """
    last = range(len(stages))[start]
    if gradient.shape != stages[last].shape:
        what, shape = f"gradient at stage {last}", tuple(stages[last].shape)
        raise ContractError(what, tuple(gradient.shape), f"{shape}, as its features", "start=")
    if last == 0:
        return (gradient,)
    finer = torch.autograd.grad(stages[last], stages[:last], gradient, retain_graph=True)
    return (*finer, gradient)


def cosine(one: Tensor, other: Tensor) -> float:
    """Cosine of the angle between two tensors of one shape, -1 to 1; NaN where one is zero."""
    # In double precision: a float32 sum over a million products drifts.
    a, b = one.double().flatten(), other.double().flatten()
    return float(a @ b / (a.norm() * b.norm()))


def moments(
    student: Volume, teacher: Tensor, wavelet: Wavelet = "db4", *, levels: int = 1
) -> Float64[Tensor, "8 both both"]:
    """Products of all channels of student and teacher, summed over each band: (8, c, c).

    Features (b, c_s, d, h, w) and (b, c_t, d, h, w) without their channel means; student channels
    first, c = c_s + c_t; bands over the levels as in `band_shares`. Moments of several patches add
    up; summed over the bands they are those of the voxels. Raises ContractError for different
    grids, and as `wavedec3` does.
    """
    if student.shape[2:] != teacher.shape[2:]:
        grid = f"the student's grid {tuple(student.shape[2:])}"
        raise ContractError("teacher features", tuple(teacher.shape), grid, "the same stage")
    return _bands(torch.cat([student, teacher], dim=1).double(), wavelet, levels, _products)


@torch.no_grad()
def stage_moments(
    student: Segmenter,
    teacher: Segmenter,
    images: Iterable[Volume],
    wavelet: Wavelet = "db4",
    *,
    levels: Sequence[int],
) -> list[Float64[Tensor, "8 both both"]]:
    """The moments of every encoder stage, finest first, summed over images (b, c, d, h, w).

    `levels` of the transform by stage, at least one each. Raises ContractError as `moments` does.
    """
    total: list[Tensor] = []
    for image in images:
        stages = zip(student.encode(image), teacher.encode(image), levels, strict=True)
        found = [moments(s, t, wavelet, levels=count) for s, t, count in stages]
        total = [a + b for a, b in zip(total, found, strict=True)] if total else found
    return total


def by_part(moments: Float64[Tensor, "8 both both"]) -> dict[str, Float64[Tensor, "both both"]]:
    """Moments of what the published loss leaves free, what it aligns, and what it leaves out."""
    detail = sum((moments[BANDS.index(band)] for band in PUBLISHED), torch.zeros_like(moments[0]))
    return {"coarse": moments[0], "published detail": detail, "ddd": moments[7]}


def _products(bands: Tensor) -> Tensor:
    """(b, c, k, d, h, w) -> (k, c, c)."""
    rows = bands.permute(2, 1, 0, 3, 4, 5).flatten(2)
    return rows @ rows.mT


def best_projection(moments: Moments, student_channels: int) -> Projection:
    """The 1x1x1 projection, (..., c_t, c_s), that takes student to teacher with the least error.

    One for each leading index of `moments`; of minimum norm where channels are equal.
    """
    s = student_channels
    inverse = torch.linalg.pinv(moments[..., :s, :s], hermitian=True)
    return (inverse @ moments[..., :s, s:]).mT


def explained(moments: Moments, projection: Projection) -> Float64[Tensor, "*band"]:
    """Share of the teacher's energy that the projected student accounts for, 1 - error / energy.

    1 is a perfect copy, 0 is what zeros would reach; on other patches than the projection was
    fitted on it can be negative. Channels count by their energy, as in the loss.
    """
    t, s = projection.shape[-2:]
    unit = torch.eye(t).to(projection).expand(*projection.shape[:-2], t, t)
    error = torch.cat([projection, -unit], dim=-1)
    lost = (error @ moments * error).sum(dim=(-2, -1))
    return 1 - lost / moments[..., s:, s:].diagonal(dim1=-2, dim2=-1).sum(dim=-1)
