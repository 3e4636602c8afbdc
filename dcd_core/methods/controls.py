"""Is it the wavelet, the bands, or detail as such? Controls that change one of them.

High-pass filters without a wavelet: features lose a smooth part, and what is left is regressed.
DCD with other bands: the coarse one alone, the finest alone, or as many as published but drawn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from dcd_core.dcd import DCD, PUBLISHED
from dcd_core.method import Adapters, Narrow, Scalar, positive
from dcd_core.methods.features import FeatureMSE
from dcd_core.types import ContractError, Volume
from dcd_core.wavelet import BANDS, Convention, Wavelet
from dcd_core.wavelet.transform import apply_separable, matrix


class GaussianHighPass(FeatureMSE):
    """The adapted student has what a Gaussian blur takes from the teacher: detail, no wavelet.

    With A the adapter of a stage, G the blur, and means over samples, teacher channels and voxels,

        mean_stages mean (d - G d)^2,    d = A student - teacher.

    Source: ours, as a control of Fan et al., MICCAI 2026, arXiv 2605.26382.
    3D change: one blur along each axis, in voxels, whatever the spacing.
    Differs from the authors' code: there is none. The blur ends at 4 sigma and mirrors the patch at
    its faces (`scipy.ndimage.gaussian_filter`, mode "reflect"), so a constant is no detail.

    A linear filter commutes with an adapter without bias, so both networks are filtered before it:
    on the way back the narrow student is, not the wide difference. The filtered teacher exists
    whole.

    Options: `sigma` in voxels; at 1 half the power is kept at a quarter of the sampling frequency,
    where a wavelet's first level divides. `stages`, `adapters`. `weight` 1 belongs to the mean over
    stages; as a control of DCD it takes DCD's weight, stages, adapters and schedule instead.
    """

    weight: ClassVar[float] = 1.0

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        *,
        sigma: float = 1.0,
        stages: Sequence[int] | None = None,
        adapters: Adapters = "learned",
    ) -> None:
        super().__init__(student_channels, teacher_channels, stages=stages, adapters=adapters)
        self.sigma = positive("sigma", sigma)

    def unadapted(
        self, index: int, student: Narrow, teacher: Volume, target: Tensor | None
    ) -> Scalar:
        s, t = (_without(_blur, x, self.sigma) for x in (student, teacher))
        return super().unadapted(index, s, t, target)


class FourierHighPass(FeatureMSE):
    """The adapted student has the teacher's high frequencies: the sharpest cut, no wavelet.

    With A the adapter of a stage, H what keeps frequencies at or above the cutoff along at least
    one axis, and means over samples, teacher channels and voxels,

        mean_stages mean (H d)^2,    d = A student - teacher.

    Source: ours, as a control of Fan et al., MICCAI 2026, arXiv 2605.26382.
    3D change: the frequencies left out are a cube, as those of a wavelet's coarse band, so the
    filter is one matrix along each axis and no spectrum is stored.
    Differs from the authors' code: there is none. Patches are periodic, as in DCD.

    Options: `cutoff` in cycles per voxel, at most 0.5; at 0.25 it keeps what seven ideal detail
    bands would. `stages`, `adapters`; filters and adapters as in GaussianHighPass. `weight` 1
    belongs to the mean over stages; as a control of DCD it takes DCD's weight, stages, adapters and
    schedule instead.
    """

    weight: ClassVar[float] = 1.0

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        *,
        cutoff: float = 0.25,
        stages: Sequence[int] | None = None,
        adapters: Adapters = "learned",
    ) -> None:
        super().__init__(student_channels, teacher_channels, stages=stages, adapters=adapters)
        self.cutoff = positive("cutoff", cutoff)
        if cutoff > 0.5:
            raise ContractError(
                "cutoff",
                cutoff,
                "at most 0.5 cycles per voxel, the highest there is",
                "cutoff=0.25",
            )

    def unadapted(
        self, index: int, student: Narrow, teacher: Volume, target: Tensor | None
    ) -> Scalar:
        s, t = (_without(_low_frequencies, x, self.cutoff) for x in (student, teacher))
        return super().unadapted(index, s, t, target)


aaa_only = partial(DCD, bands=("aaa",))
"""DCD of the coarse band alone: what the paper leaves free, and nothing else."""

ddd_only = partial(DCD, bands=("ddd",))
"""DCD of the finest diagonal alone, which the paper leaves out as noise."""


def random_bands(
    student_channels: Sequence[int],
    teacher_channels: Sequence[int],
    *,
    draw: int = 0,
    wavelet: Wavelet = "db4",
    levels: int = 3,
    stages: Sequence[int] | None = None,
    projection: Adapters = "learned",
    stage_reduction: Literal["mean", "sum"] = "mean",
    convention: Convention = "orthonormal",
) -> DCD:
    """DCD of as many bands as published, but drawn once from `draw`: do these six matter?

    One of the 27 other choices of six, all equally likely. 21 of them hold the coarse band, which
    has most of the energy; name the bands (`.bands`) with every result. Other options as in DCD.
    """
    others = [b for b in combinations(BANDS, len(PUBLISHED)) if b != PUBLISHED]
    return DCD(
        student_channels,
        teacher_channels,
        bands=random.Random(draw).choice(others),
        wavelet=wavelet,
        levels=levels,
        stages=stages,
        projection=projection,
        stage_reduction=stage_reduction,
        convention=convention,
    )


# --- low-pass filters as matrices of one axis -----------------------------------------------------


def _without(lowpass: Callable[[int, float], np.ndarray], x: Volume, width: float) -> Volume:
    """`x` less what the filter `lowpass(samples, width)` keeps of it along all three axes."""
    return x - apply_separable(x, [matrix(lowpass, n, width, like=x) for n in x.shape[2:]])


def _blur(n: int, sigma: float) -> np.ndarray:
    """Gaussian filter of an axis that is mirrored at its ends, (n, n)."""
    radius = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    mirrored = np.pad(np.eye(n), ((radius, radius), (0, 0)), mode="symmetric")
    rows = np.lib.stride_tricks.sliding_window_view(mirrored, n, axis=0)  # (2r + 1, n, n)
    return np.einsum("k,kji->ij", kernel / kernel.sum(), rows)


def _low_frequencies(n: int, cutoff: float) -> np.ndarray:
    """What keeps the frequencies of a periodic axis below `cutoff` cycles per voxel, (n, n)."""
    below = np.abs(np.fft.fftfreq(n)) < cutoff
    return np.fft.ifft(below[:, None] * np.fft.fft(np.eye(n), axis=0), axis=0).real
