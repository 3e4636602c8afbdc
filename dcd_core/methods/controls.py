"""Is it the wavelet, the bands, or detail as such? High-pass filters, and DCD with other bands."""

import random
from collections.abc import Sequence
from itertools import combinations
from typing import Annotated, Any, ClassVar

import numpy as np
from torch import Tensor

from dcd_core.dcd import DCD, PUBLISHED
from dcd_core.errors import Check, at_least, finite
from dcd_core.method import Narrow, Scalar
from dcd_core.methods.features import FeatureMSE
from dcd_core.types import Volume
from dcd_core.wavelet import BANDS
from dcd_core.wavelet.transform import apply_separable, matrix


class HighPass(FeatureMSE):
    """FeatureMSE of what a low-pass filter along each axis takes from the features."""

    def lowpass(self, n: int, like: Tensor) -> Tensor:
        """The filter of an axis of n voxels, a matrix (n, n)."""
        raise NotImplementedError

    def stage(self, index: int, student: Narrow, teacher: Volume, target: Tensor | None) -> Scalar:
        # A filter commutes with an adapter without bias, so the narrow student is filtered.
        filters = [self.lowpass(n, teacher) for n in teacher.shape[2:]]
        s, t = (x - apply_separable(x, filters) for x in (student, teacher))
        return super().stage(index, s, t, target)


class GaussianHighPass(HighPass):
    """The adapted student has what a Gaussian blur takes from the teacher: detail, no wavelet.

        mean_stages mean (d - G d)^2,    d = a - t,    G the blur.

    Source: ours, as a control of Fan et al., MICCAI 2026, arXiv 2605.26382.
    3D change: one blur along each axis, in voxels, whatever the spacing.
    Differs from the authors' code: there is none. The blur is that of `scipy.ndimage`, "reflect".
    Options: `sigma` in voxels; 1 divides the frequencies about where a wavelet's first level does.
    `weight` 1 as in FeatureMSE.
    """

    widest: ClassVar[str] = "above 0 and at most 1000 voxels"
    sigma: Annotated[float, Check(finite, lambda x: 0 < x <= 1000, widest)] = 1.0

    def lowpass(self, n: int, like: Tensor) -> Tensor:
        return matrix(_blur, n, self.sigma, like=like)


class FourierHighPass(HighPass):
    """The adapted student has the teacher's high frequencies: the sharpest cut, no wavelet.

        mean_stages mean (H d)^2,    d = a - t,
        H what keeps frequencies at or above the cutoff along at least one axis.

    Source: ours, as GaussianHighPass.
    3D change: the frequencies left out are a cube, as those of a wavelet's coarse band.
    Differs from the authors' code: there is none. Patches are periodic, as in DCD.
    Options: `cutoff` in cycles per voxel, at most 0.5; at 0.25 it keeps what seven ideal detail
    bands would. `weight` 1 as in FeatureMSE.
    """

    highest: ClassVar[str] = "above 0 and at most 0.5 cycles per voxel, the highest there is"
    cutoff: Annotated[float, Check(finite, lambda x: 0 < x <= 0.5, highest)] = 0.25

    def lowpass(self, n: int, like: Tensor) -> Tensor:
        return matrix(_low_frequencies, n, self.cutoff, like=like)


class CoarseBand(DCD):
    """DCD of the coarse bands alone. That of the last level is what the paper leaves free.

    With one level it is that and nothing else; coarse bands above the last also hold deeper detail.
    """

    decided: ClassVar[tuple[str, ...]] = ("bands",)
    only: ClassVar[str] = "aaa"

    def __init__(self, *channels: Sequence[int], **options: Any) -> None:
        super().__init__(*channels, bands=(self.only,), **options)


class FinestBand(CoarseBand):
    """DCD of the finest diagonal alone, which the paper leaves out as noise."""

    only = "ddd"


class RandomBands(DCD):
    """DCD of as many bands as published, but drawn once from `draw`: do these six matter?

    One of the 27 other choices of six, all equally likely. 21 of them hold the coarse band, which
    has most of the energy; name the bands (`.bands`) with every result.
    """

    decided: ClassVar[tuple[str, ...]] = ("bands",)

    def __init__(self, *channels: Sequence[int], draw: int = 0, **options: Any) -> None:
        others = [b for b in combinations(BANDS, len(PUBLISHED)) if b != PUBLISHED]
        drawn = random.Random(at_least("draw", draw, 0)).choice(others)
        super().__init__(*channels, bands=drawn, **options)


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
