"""Contrast: does each channel look like what its file name says?

Fluid is bright on T2 and ADC and dark elsewhere, the two T1 images resemble each other most, and
each lesion is bright in known channels. That is too little to be sure: a finding is a warning.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32
from scipy import ndimage

from dcd_lab.tasks import ISLES, Task

FEWEST = 20
"""Voxels of a lesion below which its brightness says nothing."""
_EDGE = 2  # voxels taken off the brain: its rim is half air


class Contrast(NamedTuple):
    """What the channels of one scan look like inside the brain, free of intensity units.

    `tails` (c) the 98th percentile over the median; `likeness` (c, c) correlations; `levels` (c)
    the median of the lesion over that of the rest, or None without a lesion.
    """

    tails: Float[np.ndarray, " c"]
    likeness: Float[np.ndarray, "c c"]
    levels: Float[np.ndarray, " c"] | None

    def swapped(self, first: int, second: int) -> Contrast:
        """Return what it would be if two channels changed names."""
        order = np.arange(len(self.tails))
        order[[first, second]] = second, first
        levels = None if self.levels is None else self.levels[order]
        return Contrast(self.tails[order], self.likeness[np.ix_(order, order)], levels)


def contrast(
    channels: list[Float32[np.ndarray, "i j k"]],
    brain: Bool[np.ndarray, "i j k"],
    lesion: Bool[np.ndarray, "i j k"] | None,
) -> Contrast | None:
    """Measure a scan; None when intensities are centred, so that ratios have no meaning."""
    inner = ndimage.binary_erosion(brain, iterations=_EDGE)
    inner = inner if inner.any() else brain
    inside = [channel[inner] for channel in channels]
    quantiles = np.array([np.percentile(values, (1, 50, 98, 99)) for values in inside])
    if (quantiles[:, 1] <= 0).any() or (quantiles[:, 0] == quantiles[:, 3]).any():
        return None
    edges = zip(inside, quantiles[:, 0], quantiles[:, 3], strict=True)
    clipped = [np.clip(values, low, high) for values, low, high in edges]
    levels = None
    if lesion is not None and (lesion & brain).sum() >= FEWEST and (brain & ~lesion).any():
        both = [(np.median(c[lesion & brain]), np.median(c[brain & ~lesion])) for c in channels]
        levels = np.array([ill / max(well, 1e-9) for ill, well in both], dtype=np.float64)
    return Contrast(quantiles[:, 2] / quantiles[:, 1], np.corrcoef(clipped), levels)


def implausible(task: Task, measured: Contrast) -> str:
    """Return in words what contradicts the names of the channels; empty when nothing does."""
    faults = list(_faults(task, measured))
    if not faults:
        return ""
    names = task.channels
    mended = [
        f"{names[first]} and {names[second]}"
        for first, second in combinations(range(len(names)), 2)
        if not any(_faults(task, measured.swapped(first, second)))
    ]
    guess = f": {' or '.join(mended)} may be swapped" if mended else ""
    return "; ".join(faults) + guess


def _faults(task: Task, measured: Contrast) -> Iterator[str]:
    tail = dict(zip(task.channels, measured.tails, strict=True))
    level = None
    if measured.levels is not None:
        level = dict(zip(task.channels, measured.levels, strict=True))
    if task.name == ISLES.name:
        # A large infarct lengthens the tail of the DWI: where there is a lesion, it decides.
        if level and level["dwi"] < level["adc"]:
            yield f"the lesion is dark in dwi ({level['dwi']:.2f}) and bright in adc"
        elif not level and tail["adc"] <= max(tail["dwi"], tail["flair"]):
            yield f"fluid is not brightest in adc (98th percentile {tail['adc']:.2f} x median)"
        return
    if tail["t2w"] <= max(tail["t1n"], tail["t2f"]):
        yield f"fluid is not brightest in t2w (98th percentile {tail['t2w']:.2f} x median)"
    t1n, t1c, _, t2f = range(4)
    alike = measured.likeness
    if alike[t1n, t1c] <= max(alike[t1n, t2f], alike[t1c, t2f]):
        yield f"t1n and t1c differ more than t2f does (correlation {alike[t1n, t1c]:.2f})"
    if level and level["t1c"] < level["t1n"]:
        yield f"enhancing tumour is brighter in t1n ({level['t1n']:.2f}) than in t1c"
