"""Detail Consistent Distillation (DCD): a student is aligned with the detail of its teacher.

A large segmenter (teacher) and a small one (student) look at the same patch. At every encoder stage
a 3D wavelet transform splits their features, level by level, into a coarse and seven detail bands.
The loss aligns the directional detail of every level. The coarse band of the last level, and what
oscillates along all axes, stay free. It acts in training alone: what is deployed is the student.

With student features s, teacher features t and a 1x1x1 projection P, everything after P is linear.
So one tensor is transformed, x_0 = P(s) - t; `dcd_core.wavelet.energy` has the double sum over its
levels and bands. Stages are averaged, and `kd_weight` is the weight of their mean.

Source: Fan, Geng, Xiao, Wang, Mei, Che, Jiang, Lan, "Detail Consistent Stage-Wise Distillation for
Efficient 3D MRI Segmentation", MICCAI 2026, arXiv 2605.26382. Where the authors' release (commit
7cf0ca6) and the mathematics differ, `convention` names which one is meant; "orthonormal" is sound.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dcd_core.errors import at_least, finite, not_negative, one_of, several, whole, within
from dcd_core.method import Adapters, StageMethod, check_inputs
from dcd_core.types import ContractError, Output, Volume, dense
from dcd_core.wavelet.energy import Convention, LevelWeighting, Selection, usable_levels, voxels
from dcd_core.wavelet.fast import distance
from dcd_core.wavelet.transform import BANDS, MOST_LEVELS, Wavelet, axis_names, taps

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
    level_weighting: LevelWeighting = "resolution",
) -> Float[Tensor, ""]:
    """Mean squared difference of the selected wavelet bands of two feature maps, a scalar.

    `student`, `teacher` (b, c, d, h, w), equal shapes; computed in float32 or better even inside
    autocast. `bands` are names out of `BANDS`; `coarse_weight` adds the coarse band of the last
    level. Convention "orthonormal" compares periodized wavelet coefficients: with all bands and one
    level it is the MSE. "released" compares the masked reconstructions of commit 7cf0ca6.

    `level_weighting` "resolution", as published, takes the mean of each level on its own grid, then
    the mean over levels: a coefficient of level l counts 8^(l-1) times one of level 1 (if every
    axis is split). "energy", our option, divides all squares by |x_0|, the elements of `student`,
    and sums them. With bands BANDS[1:] and coarse weight 1 it is the MSE at any number of levels,
    for an orthonormal wavelet and axes that are even wherever they are split.

    Raises ContractError for unequal shapes, options out of range, or a grid too small for a level.
    """
    selection = _selection(wavelet, levels, bands, coarse_weight, convention, level_weighting)
    student, teacher = dense("student features", student), dense("teacher features", teacher)
    if student.shape != teacher.shape:
        expected = f"the student's shape {tuple(student.shape)}"
        attempt = "DCD(...), which projects channels, on stages of the same grid"
        raise ContractError("teacher features", tuple(teacher.shape), expected, attempt)
    stage = _stage(student, teacher, nn.Identity(), selection)
    if stage.levels == 0:
        raise _too_small(tuple(student.shape[2:]), selection)
    return stage.distance


class DCD(StageMethod):
    """The distillation loss over all encoder stages, with the projections it trains.

    Channels and `stages` as in `StageMethod`, options of the loss as in `detail_distance`.
    `projection` from student to teacher channels: "learned" (give `parameters()` to the optimizer),
    "frozen" (random, as in the release), "orthogonal" (random with orthonormal columns, frozen) or
    "none" (equal channels). Stages too small for a level drop out; ContractError if none is left.

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
        level_weighting: LevelWeighting = "resolution",
    ) -> None:
        selection = _selection(wavelet, levels, bands, coarse_weight, convention, level_weighting)
        one_of("stage_reduction", stage_reduction, "mean", "sum")
        super().__init__(student_channels, teacher_channels, stages=stages, adapters=projection)
        self.selection, self.stage_reduction = selection, stage_reduction
        self.wavelet, self.bands = selection.names, selection.bands

    @classmethod
    def released(cls, student_channels: Sequence[int], teacher_channels: Sequence[int]) -> "DCD":
        """The loss as commit 7cf0ca6 computes it: frozen projections with bias, stages summed."""
        narrow = whole("student_channels", student_channels)
        wide = whole("teacher_channels", teacher_channels)
        kind: Adapters = "none" if narrow == wide else "frozen"
        loss = cls(narrow, wide, projection=kind, stage_reduction="sum", convention="released")
        loss.use_released_adapters()
        return loss

    def per_stage(self, student: Output, teacher: Output) -> list[StageDistance]:
        """The loss of every aligned stage, unreduced, with the number of levels it used."""
        return [
            _stage(s, t.detach(), self.adapters[index], self.selection)
            for index, s, t in self.pairs(student, teacher)
        ]

    def forward(
        self, student: Output, teacher: Output, target: Tensor | None = None
    ) -> Float[Tensor, ""]:
        """The loss of a batch, a scalar; `target` is there because every method takes it."""
        check_inputs(student, teacher, target)
        used = [stage.distance for stage in self.per_stage(student, teacher) if stage.levels]
        if not used:
            raise _too_small([tuple(s.shape[2:]) for s in student.stages], self.selection)
        return self.reduced(used)


def kd_weight(epoch: int | float, *, peak: float, start: int | float, ramp: int | float) -> float:
    """Weight of the distillation loss: 0 until `start`, half a cosine up over `ramp`, then `peak`.

    `epoch`, `start` and `ramp` share a unit (epochs or steps). The release uses peak .01, start
    150, ramp 800 for BraTS 2024 and .05, 100, 300 for ISLES 2022. Raises ContractError for what is
    not finite, which would switch distillation off without a word, or negative.
    """
    finite("epoch", epoch)
    for what, value in {"peak": peak, "start": start, "ramp": ramp}.items():
        not_negative(what, value)
    if epoch < start:
        return 0.0
    if epoch >= start + ramp:
        return peak
    return peak * 0.5 * (1.0 - math.cos(math.pi * (epoch - start) / ramp))


def _selection(
    wavelet: Wavelet,
    levels: int,
    bands: Sequence[str],
    coarse_weight: float,
    convention: Convention,
    level_weighting: LevelWeighting,
) -> Selection:
    """What these options select; ContractError for one that is out of range."""
    at_least("levels", levels, 1, MOST_LEVELS)
    one_of("convention", convention, "orthonormal", "released")
    chosen = several("bands", bands, f"distinct names out of {BANDS}")
    fits = all(isinstance(band, str) for band in chosen) and {*chosen} <= {*BANDS}
    fits = fits and 0 < len({*chosen}) == len(chosen)
    within("bands", chosen, fits, f"distinct names out of {BANDS}")
    released = convention == "released"
    fits = not (not_negative("coarse_weight", coarse_weight) and released)
    within("coarse_weight", coarse_weight, fits, "0 in the released convention")
    one_of("level_weighting", level_weighting, "resolution", "energy")
    fits = not released or level_weighting == "resolution"
    within("level_weighting", level_weighting, fits, "'resolution' in the released convention")
    names = axis_names(wavelet)
    return Selection(names, int(levels), chosen, float(coarse_weight), convention, level_weighting)


def _stage(
    student: Tensor, teacher: Tensor, projection: nn.Module, selection: Selection
) -> StageDistance:
    """The loss of one stage; a 1x1x1 convolution or the identity acts on the student first."""
    size = teacher.shape[2:]
    if not (teacher.numel() and voxels(size, selection)):
        expected = "(b, c, d, h, w) of at least one voxel, if released of two along an axis"
        attempt = "convention='orthonormal', or larger patches"
        raise ContractError("features to compare", tuple(teacher.shape), expected, attempt)
    levels = usable_levels(size, selection)
    if levels == 0:
        return StageDistance(teacher.new_zeros((), dtype=torch.float32), 0)
    weight, bias = None, None
    if isinstance(projection, nn.Conv3d):
        weight, bias = projection.weight.flatten(1), projection.bias
    used = selection._replace(levels=levels)
    return StageDistance(distance(student, teacher, weight, bias, used), levels)


def _too_small(grids: object, selection: Selection) -> ContractError:
    got = f"grid {grids} with {selection.names}"
    expected = f"an axis of at least {min(map(taps, selection.names))} voxels"
    attempt = "a larger patch, an earlier stage, or a shorter wavelet such as 'haar'"
    return ContractError("wavelet levels", got, expected, attempt)
