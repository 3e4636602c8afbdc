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
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dcd_core.types import ContractError, Output, Volume
from dcd_core.wavelet import (
    BANDS,
    Wavelet,
    analysis,
    apply_separable,
    at_least_float32,
    axis_names,
    discrete,
    matrix,
    taps,
)

PUBLISHED = BANDS[1:7]
"""The bands the paper aligns: all but the coarse `aaa` and the finest diagonal `ddd`."""

Convention: TypeAlias = Literal["orthonormal", "released"]
Projection: TypeAlias = Literal["learned", "frozen", "orthogonal", "none"]


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
    result = _stage(student, teacher, wavelet, levels, bands, coarse_weight, convention)
    if result.levels == 0:
        raise _too_small(student.shape[2:], wavelet)
    return result.distance


class DCD(nn.Module):
    """The distillation loss over all encoder stages, with the projections it trains.

    `student_channels`, `teacher_channels`: channels per stage, finest first. `stages`: indices of
    the stages to align, None for all. `projection` from student to teacher channels: "learned"
    (train it: give `parameters()` to the optimizer), "frozen" (random, as in the release),
    "orthogonal" (random with orthonormal columns, frozen) or "none" (equal channels). Stages whose
    grid is too small for a level drop out; an error is raised only if none is left.

    Source: Fan et al., MICCAI 2026, arXiv 2605.26382.
    """

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
        projection: Projection = "learned",
        stage_reduction: Literal["mean", "sum"] = "mean",
        convention: Convention = "orthonormal",
    ) -> None:
        super().__init__()
        _check(wavelet, levels, bands, coarse_weight, convention)
        _check_stages(student_channels, teacher_channels, stages, stage_reduction)
        self.wavelet = axis_names(wavelet)
        self.levels = levels
        self.bands = tuple(bands)
        self.coarse_weight = coarse_weight
        self.stages = tuple(range(len(student_channels)) if stages is None else stages)
        self.stage_reduction = stage_reduction
        self.convention = convention
        self.projections = nn.ModuleList(
            _projection(student_channels[i], teacher_channels[i], projection) for i in self.stages
        )

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
        loss.projections = nn.ModuleList(
            nn.Identity()
            if s == t
            else nn.Conv3d(s, t, kernel_size=1, bias=True).requires_grad_(False)
            for s, t in zip(student_channels, teacher_channels, strict=True)
        )
        return loss

    def per_stage(self, student: Output, teacher: Output) -> list[StageDistance]:
        """The loss of every aligned stage, unreduced, with the number of levels it used."""
        result = []
        for stage, project in zip(self.stages, self.projections, strict=True):
            s, t = student.stages[stage], teacher.stages[stage]
            with torch.autocast(s.device.type, enabled=False):
                projected = project(at_least_float32(s))
            if projected.shape != t.shape:
                raise ContractError(
                    f"grid of encoder stage {stage}",
                    f"student {tuple(s.shape)}, projected {tuple(projected.shape)}, "
                    f"teacher {tuple(t.shape)}",
                    "the same batch, (D, H, W) and, once projected, channels in both",
                    "teacher and student with the same strides, fed the same patch",
                )
            result.append(
                _stage(
                    projected,
                    t,
                    self.wavelet,
                    self.levels,
                    self.bands,
                    self.coarse_weight,
                    self.convention,
                )
            )
        return result

    def forward(
        self, student: Output, teacher: Output, target: Tensor | None = None
    ) -> Float[Tensor, ""]:
        """The loss of a batch, a scalar; `target` is there because every method takes it."""
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


def _stage(
    student: Tensor,
    teacher: Tensor,
    wavelet: Wavelet,
    levels: int,
    bands: Sequence[str],
    coarse_weight: float,
    convention: Convention,
) -> StageDistance:
    with torch.autocast(student.device.type, enabled=False):
        difference = at_least_float32(student) - at_least_float32(teacher)
        names = axis_names(wavelet)
        if convention == "released":
            return _released(difference, names, levels, bands)
        return _orthonormal(difference, names, levels, bands, coarse_weight)


# --- convention "orthonormal": energies of periodized wavelet coefficients ------------------------


def _orthonormal(
    x: Tensor, names: tuple[str, ...], levels: int, bands: Sequence[str], coarse_weight: float
) -> StageDistance:
    total = x.new_zeros(())
    used = 0
    while used < levels and any(map(_usable, x.shape[2:], names)):
        matrices = [
            (matrix(_low, n, name, like=x), matrix(_high, n, name, like=x))
            for n, name in zip(x.shape[2:], names, strict=True)
        ]
        coarse = _band(x, "aaa", matrices)
        parseval = all(map(_is_orthonormal, x.shape[2:], names))
        total = total + _energy(x, coarse, bands, matrices, parseval) / x.numel()
        x, size, used = coarse, x.numel(), used + 1
    if used and coarse_weight:
        total = total + coarse_weight * _square(x) / size
    return StageDistance(total / max(used, 1), used)


def _energy(
    x: Tensor,
    coarse: Tensor,
    bands: Sequence[str],
    matrices: Sequence[tuple[Tensor, Tensor]],
    parseval: bool,
) -> Tensor:
    """Squared norm of the selected bands, by way of the others where those are fewer.

    An orthonormal transform keeps ||x||^2, so the published bands cost two transforms, not six:
    x less its parts in `aaa` and `ddd`.
    """
    others = [band for band in BANDS if band not in bands]
    if parseval and len(others) < len(bands):
        return _Complement.apply(x, coarse.detach(), others, matrices)
    total = x.new_zeros(())
    for band in bands:
        total = total + _square(coarse if band == "aaa" else _band(x, band, matrices))
    return total


class _Complement(torch.autograd.Function):
    """Squared norm of x without some bands of an orthonormal transform; its gradient is 2r.

    The remainder r = x - sum_b W_b^T W_b x is formed because ||x||^2 - sum_b ||W_b x||^2 is a small
    difference of large numbers: in float32, features with a common offset made it negative.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        coarse: Tensor,
        bands: Sequence[str],
        matrices: Sequence[tuple[Tensor, Tensor]],
    ) -> Tensor:
        rest = x
        for band in bands:
            chosen = _chosen(band, matrices)
            part = coarse if band == "aaa" else apply_separable(x, chosen)
            rest = rest - apply_separable(part, [one.T for one in chosen])
        ctx.save_for_backward(rest)
        return _square(rest)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (rest,) = ctx.saved_tensors
        return 2 * gradient * rest, None, None, None


def _band(x: Tensor, band: str, matrices: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    return apply_separable(x, _chosen(band, matrices))


def _chosen(band: str, matrices: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """The low or high matrix of each axis, as the letters of the band say."""
    return [pair[letter == "d"] for letter, pair in zip(band, matrices, strict=True)]


def _square(x: Tensor) -> Tensor:
    # Not torch.dot: its float32 accumulator drifts by 1e-5 over millions of voxels.
    return x.square().sum()


def _usable(n: int, name: str) -> bool:
    """Whether an axis is long enough for one more level: the filter must not wrap onto itself."""
    return n >= taps(name)


# An axis too short for its filter passes through untouched (low = identity, no high half), so that
# thick slices keep their in-plane detail.


def _low(n: int, name: str) -> np.ndarray:
    if not _usable(n, name):
        return np.eye(n)
    whole = analysis(n, name, "periodization")
    return whole[: len(whole) // 2]


def _high(n: int, name: str) -> np.ndarray:
    if not _usable(n, name):
        return np.empty((0, n))
    whole = analysis(n, name, "periodization")
    return whole[len(whole) // 2 :]


@lru_cache(maxsize=512)
def _is_orthonormal(n: int, name: str) -> bool:
    """Whether the transform of this axis keeps energy: measured, as odd sizes and dmey do not."""
    whole = np.concatenate([_low(n, name), _high(n, name)])
    return whole.shape == (n, n) and np.allclose(whole.T @ whole, np.eye(n), rtol=0, atol=1e-10)


# --- convention "released": masked reconstructions, as commit 7cf0ca6 computes them ---------------


def _released(
    x: Tensor, names: tuple[str, ...], levels: int, bands: Sequence[str]
) -> StageDistance:
    total = x.new_zeros(())
    for _ in range(levels):
        axes = list(zip(x.shape[2:], names, strict=True))
        round_trips = [
            (matrix(_round_trip_low, n, name, like=x), matrix(_round_trip_high, n, name, like=x))
            for n, name in axes
        ]
        total = total + _masked_reconstruction(x, bands, round_trips).square().mean()
        x = apply_separable(x, [matrix(_correlation, n, name, 0, like=x) for n, name in axes])
    return StageDistance(total / levels, levels)


def _masked_reconstruction(
    x: Tensor, bands: Sequence[str], round_trips: Sequence[tuple[Tensor, Tensor]]
) -> Tensor:
    """Analyse, keep the selected bands, synthesise: a sum of separable operators.

    All eight bands together are separable too, so up to seven bands cost at most five products.
    """
    others = [band for band in BANDS if band not in bands]
    if len(others) + 1 >= len(bands):
        return torch.stack([_band(x, band, round_trips) for band in bands]).sum(0)
    whole = apply_separable(x, [low + high for low, high in round_trips])
    for band in others:
        whole = whole - _band(x, band, round_trips)
    return whole


def _correlation(n: int, name: str, high: int) -> np.ndarray:
    """Analysis of one axis (m, n): stride 2, zero padding K - 1, float32 taps, not flipped."""
    filters = discrete(name).filter_bank[high]
    return _strided(np.asarray(filters, dtype=np.float32), n)


def _strided(taps_float32: np.ndarray, n: int) -> np.ndarray:
    k = len(taps_float32)
    rows = (n + 2 * (k - 1) - k) // 2 + 1
    whole = np.zeros((rows, n))
    for row in range(rows):
        for tap, value in enumerate(taps_float32):
            column = 2 * row + tap - (k - 1)
            if 0 <= column < n:
                whole[row, column] = value
    return whole


def _round_trip_low(n: int, name: str) -> np.ndarray:
    return _round_trip(n, name, 0)


def _round_trip_high(n: int, name: str) -> np.ndarray:
    return _round_trip(n, name, 1)


def _round_trip(n: int, name: str, high: int) -> np.ndarray:
    """Analysis then synthesis of one band of one axis, cropped: (n, n), or (n - 1, n) for odd n."""
    down = _correlation(n, name, high)
    rec = np.asarray(discrete(name).filter_bank[2 + high], dtype=np.float32)
    k, m = len(rec), len(down)
    length = 2 * m - k
    up = np.zeros((length, m))
    for column in range(m):
        for tap, value in enumerate(rec):
            row = 2 * column + tap - (k - 1)
            if 0 <= row < length:
                up[row, column] = value
    return (up @ down)[:n]


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


def _check_stages(
    student_channels: Sequence[int],
    teacher_channels: Sequence[int],
    stages: Sequence[int] | None,
    stage_reduction: str,
) -> None:
    if len(student_channels) != len(teacher_channels):
        raise ContractError(
            "encoder stages",
            f"{len(student_channels)} in the student, {len(teacher_channels)} in the teacher",
            "equally many",
            "student channels = shrink(teacher channels, factor)",
        )
    count = len(student_channels)
    if stages is not None and (not stages or any(not 0 <= i < count for i in stages)):
        raise ContractError(
            "stages", tuple(stages), f"indices from 0 to {count - 1}", "stages=None"
        )
    if stage_reduction not in ("mean", "sum"):
        raise ContractError("stage_reduction", repr(stage_reduction), "'mean' or 'sum'", "'mean'")


def _projection(student: int, teacher: int, kind: str) -> nn.Module:
    if kind == "none":
        if student != teacher:
            raise ContractError(
                "projection 'none'",
                f"{student} student and {teacher} teacher channels",
                "equal channels",
                "projection='learned'",
            )
        return nn.Identity()
    if kind not in ("learned", "frozen", "orthogonal"):
        raise ContractError(
            "projection",
            repr(kind),
            "'learned', 'frozen', 'orthogonal' or 'none'",
            "'learned'",
        )
    project = nn.Conv3d(student, teacher, kernel_size=1, bias=False)
    if kind == "orthogonal":
        nn.init.orthogonal_(project.weight)
    return project.requires_grad_(kind == "learned")


def _too_small(size: object, wavelet: Wavelet) -> ContractError:
    return ContractError(
        "wavelet levels",
        f"grid {size} with {wavelet}",
        f"an axis of at least {min(taps(n) for n in axis_names(wavelet))} voxels",
        "a larger patch, an earlier stage, or a shorter wavelet such as 'haar'",
    )
