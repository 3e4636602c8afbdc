"""Is it the wavelet, the bands, or detail as such? High-pass filters, and DCD with other bands."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from dcd_core.dcd import DCD, PUBLISHED
from dcd_core.method import Narrow, Scalar, positive
from dcd_core.methods.features import FeatureMSE
from dcd_core.types import ContractError, Volume
from dcd_core.wavelet import BANDS
from dcd_core.wavelet.transform import apply_separable, matrix


class HighPass(FeatureMSE):
    """FeatureMSE of what a low-pass filter along each axis takes from the features.

    A linear filter commutes with an adapter without bias, so the narrow student is filtered.
    """

    def stage(self, index: int, student: Narrow, teacher: Volume, target: Tensor | None) -> Scalar:
        s, t = (
            x - apply_separable(x, [self.lowpass(n, x) for n in x.shape[2:]])
            for x in (student, teacher)
        )
        return super().stage(index, s, t, target)

    def lowpass(self, n: int, like: Volume) -> Float[Tensor, "n n"]:
        """The filter of an axis of `n` voxels, in the precision and on the device of `like`."""
        raise NotImplementedError


class GaussianHighPass(HighPass):
    """The adapted student has what a Gaussian blur takes from the teacher: detail, no wavelet.

        mean_stages mean (d - G d)^2,    d = a - t,    G the blur.

    Source: ours, as a control of Fan et al., MICCAI 2026, arXiv 2605.26382.
    3D change: one blur along each axis, in voxels, whatever the spacing.
    Differs from the authors' code: there is none. The blur ends at 4 sigma and mirrors the patch at
    its faces (`scipy.ndimage.gaussian_filter`, mode "reflect"), so a constant is no detail.
    Options: `sigma` in voxels; at 1 half the power is kept at a quarter of the sampling frequency,
    where a wavelet's first level divides. `stages`, `adapters`. `weight` 1 as in FeatureMSE.
    """

    def __init__(self, *channels: Sequence[int], sigma: float = 1.0, **shared: Any) -> None:
        super().__init__(*channels, **shared)
        self.sigma = positive("sigma", sigma)

    def lowpass(self, n: int, like: Volume) -> Float[Tensor, "n n"]:
        return matrix(_blur, n, self.sigma, like=like)


class FourierHighPass(HighPass):
    """The adapted student has the teacher's high frequencies: the sharpest cut, no wavelet.

        mean_stages mean (H d)^2,    d = a - t,
        H what keeps frequencies at or above the cutoff along at least one axis.

    Source: ours, as GaussianHighPass.
    3D change: the frequencies left out are a cube, as those of a wavelet's coarse band.
    Differs from the authors' code: there is none. Patches are periodic, as in DCD.
    Options: `cutoff` in cycles per voxel, at most 0.5; at 0.25 it keeps what seven ideal detail
    bands would. `stages`, `adapters`. `weight` 1 as in FeatureMSE.
    """

    def __init__(self, *channels: Sequence[int], cutoff: float = 0.25, **shared: Any) -> None:
        super().__init__(*channels, **shared)
        self.cutoff = positive("cutoff", cutoff)
        if cutoff > 0.5:
            expected = "at most 0.5 cycles per voxel, the highest there is"
            raise ContractError("cutoff", cutoff, expected, "cutoff=0.25")

    def lowpass(self, n: int, like: Volume) -> Float[Tensor, "n n"]:
        return matrix(_low_frequencies, n, self.cutoff, like=like)


class OtherBands(DCD):
    """DCD with bands of its own choice; the other options are DCD's."""

    decided: ClassVar[tuple[str, ...]] = ("bands",)


class CoarseBand(OtherBands):
    """DCD of the coarse band alone: what the paper leaves free, and nothing else."""

    def __init__(self, *channels: Sequence[int], **options: Any) -> None:
        super().__init__(*channels, bands=("aaa",), **options)


class FinestBand(OtherBands):
    """DCD of the finest diagonal alone, which the paper leaves out as noise."""

    def __init__(self, *channels: Sequence[int], **options: Any) -> None:
        super().__init__(*channels, bands=("ddd",), **options)


class RandomBands(OtherBands):
    """DCD of as many bands as published, but drawn once from `draw`: do these six matter?

    One of the 27 other choices of six, all equally likely. 21 of them hold the coarse band, which
    has most of the energy; name the bands (`.bands`) with every result.
    """

    def __init__(self, *channels: Sequence[int], draw: int = 0, **options: Any) -> None:
        others = [b for b in combinations(BANDS, len(PUBLISHED)) if b != PUBLISHED]
        super().__init__(*channels, bands=random.Random(draw).choice(others), **options)


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
