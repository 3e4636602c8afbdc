"""What a scanner adds to a signal: thick slices, coil shading, noise, misregistration.

Noise is drawn on the grid of the acquisition and interpolated as the signal is, so it is as
band-limited as in a resampled scan.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from dcd_lab.phantom.fields import Array, Grid, Rng, along_axes, neighbour_matrix, smooth

Range: TypeAlias = tuple[float, float]


class Acquisition(NamedTuple):
    """Resolution in mm along (i, j, k), signal-to-noise ratio in white matter, shift in mm."""

    resolution_mm: tuple[float, ...]
    snr: float
    shift_mm: tuple[float, ...]


def draw_acquisition(
    rng: Rng, in_plane_mm: Range, slice_mm: Range, *, snr: Range, shift_mm: float, axis: int = 2
) -> Acquisition:
    """Draw a resolution (thick along `axis`), a noise level and a misregistration."""
    fine = float(rng.uniform(*in_plane_mm))
    thick = max(fine, float(rng.uniform(*slice_mm)))
    resolution_mm = tuple(thick if a == axis else fine for a in range(3))
    shift = tuple(rng.normal(0.0, shift_mm, 3).tolist())
    return Acquisition(resolution_mm, float(np.exp(rng.uniform(*np.log(snr)))), shift)


def slice_matrix(count: int, spacing: float, step: float, start: float) -> Array:
    """Rows: acquired samples; each averages the voxels within one step (a soft box profile)."""
    centres = np.arange(start, (count - 0.5) * spacing + step / 2, step)
    distance = np.abs(centres[:, None] - spacing * np.arange(count)[None])
    profile = np.clip((step / 2 - distance) / spacing + 0.5, 0.0, 1.0)
    total = profile.sum(1, keepdims=True)
    return np.divide(profile, total, out=np.zeros_like(profile), where=total > 0)


def cubic_matrix(count: int, spacing: float, step: float, start: float, samples: int) -> Array:
    """Rows: voxels; Catmull-Rom interpolation between acquired samples, edges repeated."""
    t = np.clip((spacing * np.arange(count) - start) / step, 0.0, samples - 1.0)
    below = np.minimum(t.astype(int), samples - 2)
    u = t - below
    weights = (
        (-(u**3) + 2 * u**2 - u) / 2,
        (3 * u**3 - 5 * u**2 + 2) / 2,
        (-3 * u**3 + 4 * u**2 + u) / 2,
        (u**3 - u**2) / 2,
    )
    return neighbour_matrix(below - 1, weights, samples)


def acquire(
    signals: Sequence[Array], acquisition: Acquisition, rng: Rng, grid: Grid, *, reference: float
) -> list[Array]:
    """Signals as acquired and resampled to the grid, with Rician noise of `reference` / SNR."""
    down, up = [], []
    for axis, count in enumerate(grid.shape):
        coarse = acquisition.resolution_mm[axis] > 1.1 * grid.spacing_mm
        step = acquisition.resolution_mm[axis] if coarse else grid.spacing_mm
        start = float(rng.uniform(-0.5, 0.5)) * step if coarse else 0.0
        matrix = slice_matrix(count, grid.spacing_mm, step, start)
        down.append(matrix)
        moved = start + acquisition.shift_mm[axis]
        up.append(cubic_matrix(count, grid.spacing_mm, step, moved, len(matrix)))
    sigma = reference / acquisition.snr
    acquired = []
    for signal in signals:
        low = along_axes(signal, down)
        noise = sigma * rng.standard_normal((2, *low.shape))
        acquired.append(along_axes(np.hypot(low + noise[0], noise[1]), up))
    return acquired


def coil_shading(rng: Rng, grid: Grid, amplitude: float) -> Array:
    """Receive sensitivity: the exponential of a smooth field with the given amplitude."""
    return np.exp(amplitude * smooth(rng, grid, 85.0))
