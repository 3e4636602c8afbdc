"""Flow: which bands the features of an encoder hold, and what pulls on them from where.

A loss trains an encoder through the gradient that arrives at each stage. That of the segmentation
comes by two roads, the stage's own skip connection and the deeper encoder. The distillation loss of
a stage enters at that stage and reaches the finer ones through the encoder alone. Features and
gradients are split into the same wavelet bands, so that one can ask what a loss that leaves the
coarse band of one stage free does to the coarse band of the stages before it.

Everything here reads `Output.stages` and the graph behind them; no network is changed for it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dcd_core.types import ContractError, Stages, Volume
from dcd_core.wavelet import BANDS, Wavelet, wavedec3

PARTS = ("offset", *BANDS)
"""What the energy of features is split into: channel means, then the eight bands without them."""


def band_shares(x: Volume, wavelet: Wavelet = "db4", *, levels: int = 1) -> Float[Tensor, " 9"]:
    """Shares of the energy of features (b, c, d, h, w) in `PARTS`, with sum 1; NaN without energy.

    A band is summed over the levels, `aaa` is the coarse band of the last one. A constant lies in
    `aaa` entirely and would hide all else there, so the mean of every channel is set apart as the
    offset. Shares are those of the voxels' energy where the wavelet is orthogonal and every halved
    extent is even. Raises ContractError as `wavedec3` does.
    """
    mean = x.mean(dim=(2, 3, 4), keepdim=True)
    pyramid = wavedec3(x - mean, wavelet, levels=levels)
    details = torch.stack([d.square().sum(dim=(0, 1, 3, 4, 5)) for d in pyramid.details]).sum(0)
    offset = mean.square().sum() * x[0, 0].numel()
    parts = torch.cat([torch.stack([offset, pyramid.coarse.square().sum()]), details])
    return parts / parts.sum()


def stage_gradients(loss: Float[Tensor, ""], stages: Stages) -> Stages:
    """The gradient of a scalar at the features of every stage, zero where no road leads there.

    The graph is kept, so that several losses of one forward pass can be asked.
    """
    found = torch.autograd.grad(loss, stages, retain_graph=True, allow_unused=True)
    return tuple(
        torch.zeros_like(s) if g is None else g for s, g in zip(stages, found, strict=True)
    )


def through_encoder(gradient: Volume, stages: Stages, *, start: int = -1) -> Stages:
    """A gradient at stage `start`, carried to the finer stages through the encoder alone.

    `gradient` has the shape of `stages[start]`; returned are stages 0 to `start`, that one being
    the gradient itself. The segmentation gradient of the deepest stage, carried so, is the one that
    a forward pass with every skip connection detached would give: its values are the same, and the
    only road left is the encoder. The graph is kept.
    Raises ContractError for a gradient of another shape.
    """
    last = range(len(stages))[start]
    if gradient.shape != stages[last].shape:
        raise ContractError(
            f"gradient at stage {last}",
            tuple(gradient.shape),
            f"the shape of its features, {tuple(stages[last].shape)}",
            "start=, the stage the gradient belongs to",
        )
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
        raise ContractError(
            "teacher features",
            tuple(teacher.shape),
            f"the student's grid {tuple(student.shape[2:])}",
            "stages of equal index",
        )
    x = torch.cat([student, teacher], dim=1).double()
    pyramid = wavedec3(x - x.mean(dim=(2, 3, 4), keepdim=True), wavelet, levels=levels)
    coarse = _products(pyramid.coarse.unsqueeze(2))
    details = torch.stack([_products(level) for level in pyramid.details]).sum(0)
    return torch.cat([coarse, details])


def _products(bands: Tensor) -> Tensor:
    """(b, c, k, d, h, w) -> (k, c, c)."""
    rows = bands.permute(2, 1, 0, 3, 4, 5).flatten(2)
    return rows @ rows.mT


def best_projection(
    moments: Float64[Tensor, "*band both both"], student_channels: int
) -> Float64[Tensor, "*band t s"]:
    """The 1x1x1 projection, (..., c_t, c_s), that takes student to teacher with the least error.

    From `moments`, one projection for each leading index. Channels that say the same share the
    weight (minimum norm).
    """
    s = student_channels
    inverse = torch.linalg.pinv(moments[..., :s, :s], hermitian=True)
    return (inverse @ moments[..., :s, s:]).mT


def explained(
    moments: Float64[Tensor, "*band both both"], projection: Float64[Tensor, "*band t s"]
) -> Float64[Tensor, "*band"]:
    """Share of the teacher's energy that the projected student accounts for, 1 - error / energy.

    1 is a perfect copy, 0 is no better than silence, and on other patches than the projection was
    fitted on it can be negative. Channels count by their energy, as in the loss.
    """
    t, s = projection.shape[-2:]
    unit = torch.eye(t).to(projection).expand(*projection.shape[:-2], t, t)
    error = torch.cat([projection, -unit], dim=-1)
    lost = (error @ moments * error).sum(dim=(-2, -1))
    return 1 - lost / moments[..., s:, s:].diagonal(dim1=-2, dim2=-1).sum(dim=-1)
