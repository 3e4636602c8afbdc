"""Smooth random fields, and the grid on which a phantom is painted.

A field is a lattice of random numbers in head millimetres, interpolated by cubic B-splines. So the
same seed gives the same subject on every grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import ndimage

Array = np.ndarray
Rng = np.random.Generator
# Head millimetres covered by every lattice; positions outside take the value at its border.
LOW_MM, HIGH_MM = -135.0, 115.0
# Mean over positions of the sum of squared cubic B-spline weights, per axis (closed form 151/315).
_SPLINE_POWER = (151.0 / 315.0) ** 1.5


class Grid(NamedTuple):
    """Voxel centres in head millimetres: one coordinate vector per array axis."""

    axes: tuple[Array, Array, Array]
    spacing_mm: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (i, j, k)."""
        i, j, k = self.axes
        return len(i), len(j), len(k)

    @property
    def points(self) -> list[Array]:
        """The three coordinates in mm; each can be broadcast to the grid."""
        i, j, k = self.axes
        return [i[:, None, None], j[None, :, None], k[None, None, :]]

    def offsets(self, centre_mm: Iterable[float]) -> list[Array]:
        """The three coordinates in mm, counted from a centre."""
        return [p - c for p, c in zip(self.points, centre_mm, strict=True)]

    def crop(self, box: Sequence[slice]) -> Grid:
        """The part of the grid within a box of voxels."""
        i, j, k = (axis[part] for axis, part in zip(self.axes, box, strict=True))
        return Grid((i, j, k), self.spacing_mm)


def length(offsets: Iterable[Array]) -> Array:
    """Euclidean length of vectors given by their components."""
    return np.sqrt(sum(o**2 for o in offsets))


def neighbour_matrix(first: Array, weights: Iterable[Array], columns: int) -> Array:
    """Row per position with its `weights` from column `first` on, edges repeated."""
    rows = np.arange(len(first))
    matrix = np.zeros((len(first), columns))
    for offset, weight in enumerate(weights):
        np.add.at(matrix, (rows, np.clip(first + offset, 0, columns - 1)), weight)
    return matrix


@lru_cache(maxsize=96)
def _spline_matrix(positions: bytes, step_mm: float, nodes: int) -> Array:
    positions_mm = np.frombuffer(positions)
    t = (np.clip(positions_mm, LOW_MM, HIGH_MM) - LOW_MM) / step_mm + 1.0
    first = np.floor(t).astype(int) - 1
    u = t - first - 1.0
    weights = (
        (1 - u) ** 3 / 6,
        (3 * u**3 - 6 * u**2 + 4) / 6,
        (-3 * u**3 + 3 * u**2 + 3 * u + 1) / 6,
        u**3 / 6,
    )
    return neighbour_matrix(first, weights, nodes)


def along_axes(values: Array, matrices: Sequence[Array]) -> Array:
    """Apply one matrix per axis to a three-dimensional array."""
    first, second, third = matrices
    values = values @ third.T
    values = np.matmul(second, values)
    return (first @ values.reshape(len(values), -1)).reshape(len(first), *values.shape[1:])


def smooth(rng: Rng, grid: Grid, scale_mm: float) -> Array:
    """A random field of zero mean, unit variance and the given correlation length."""
    nodes = int(np.ceil((HIGH_MM - LOW_MM) / scale_mm)) + 4
    lattice = rng.standard_normal((nodes, nodes, nodes))
    weights = [_spline_matrix(axis.tobytes(), scale_mm, nodes) for axis in grid.axes]
    return along_axes(lattice, weights) / _SPLINE_POWER


def soft(level: Array, width: float) -> Array:
    """Occupancy (0-1) of a voxel `level` inside a boundary that is blurred over `width`."""
    return np.clip(level / width + 0.5, 0.0, 1.0)


def sample(volume: Array, index: Array) -> Array:
    """Trilinear lookup at fractional voxel positions (3, ...), edges repeated."""
    return ndimage.map_coordinates(volume, index, output=np.float64, order=1, mode="nearest")


def blur(volume: Array, sigma_mm: float, grid: Grid) -> Array:
    """Gaussian blur with its width in millimetres."""
    return ndimage.gaussian_filter(volume, sigma_mm / grid.spacing_mm, truncate=3.0)


def uncrop(volume: Array, shape: tuple[int, int, int], box: Sequence[slice]) -> Array:
    """Put a cropped volume (..., i, j, k) back into a grid of zeros."""
    full = np.zeros((*volume.shape[:-3], *shape), volume.dtype)
    i, j, k = box
    full[..., i, j, k] = volume
    return full


def components(mask: Array, structure: Array | None = None) -> tuple[Array, Array]:
    """Number of the connected component of every voxel, and sizes; that of the background is 0."""
    parts, count = ndimage.label(mask, structure)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[0] = 0
    return parts, sizes


def without_specks(mask: Array, smallest: float) -> Array:
    """The mask without 26-connected components of fewer than `smallest` voxels."""
    parts, sizes = components(mask, np.ones((3, 3, 3)))
    return (sizes >= max(smallest, 1))[parts]
