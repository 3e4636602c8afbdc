"""Computed tomography of slices: X-rays of many energies, photons that are counted, and the image.

A slice is projected by exact areas, attenuated by water and bone at several energies, counted,
corrected as if all of it were water, and reconstructed by filtered back projection. So the noise
has the texture of that reconstruction, and thick bone leaves dark bands and streaks.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import sparse

from dcd_lab.phantom.fields import Array, Rng

ANGLES = 160
# Attenuation in 1/mm of water and of cortical bone (1.92 g/ml) at 40, 50, 60, 80 and 100 keV, and
# the share of a filtered spectrum of 120 kV that is detected at each.
# Source: Hubbell, Seltzer, NISTIR 5632, 1995, for the coefficients.
WATER = np.array([0.2683, 0.2269, 0.2059, 0.1837, 0.1707]) / 10
BONE = 1.92 * np.array([0.6655, 0.4242, 0.3148, 0.2229, 0.1855]) / 10
SPECTRUM = np.array([0.08, 0.20, 0.28, 0.30, 0.14])
ELECTRONICS = 12.0  # standard deviation of a reading, in photons


@lru_cache(maxsize=2)
def projector(size: int) -> sparse.csr_array:
    """Strip integrals (ANGLES * bins, size * size) of a square slice, in voxels.

    A row holds the areas of the voxels within one strip as wide as a voxel. Its transpose is the
    back projection: for each angle the weights of a voxel sum to one.
    """
    bins = int(np.ceil(size * np.sqrt(2.0))) + 3
    centre = np.arange(size) - (size - 1) / 2
    x, y = (a.ravel() for a in np.meshgrid(centre, centre, indexing="ij"))
    rows, weights = [], []
    for number, angle in enumerate(np.pi * np.arange(ANGLES) / ANGLES):
        cos, sin = np.cos(angle), np.sin(angle)
        along = x * cos + y * sin + bins / 2  # bin edges are whole numbers
        first = np.floor(along).astype(int) - 1
        for step in range(3):
            left = first + step - along
            area = _shadow(left + 1, abs(cos), abs(sin)) - _shadow(left, abs(cos), abs(sin))
            rows.append(number * bins + first + step)
            weights.append(area)
    columns = np.tile(np.arange(size * size), 3 * ANGLES)
    entries = np.concatenate(weights), (np.concatenate(rows), columns)
    return sparse.csr_array(entries, shape=(ANGLES * bins, size * size))


def _shadow(t: Array, a: float, b: float) -> Array:
    """The share of a unit square's shadow below `t`: its sides cast shadows of `a` and `b`."""
    wide, narrow = (a + b) / 2, abs(a - b) / 2
    inner, slope = max(a, b), max(min(a, b), 1e-9)  # the height of a trapezoid, and its ramps
    t = np.clip(t, -wide, wide)
    rise = np.clip(t + wide, 0.0, slope)
    flat = np.clip(t + narrow, 0.0, 2 * narrow)
    fall = np.clip(t - narrow, 0.0, slope)
    return (rise**2 / (2 * slope) + flat + fall - fall**2 / (2 * slope)) / inner


def reconstruct(paths: Array, size: int, *, sharpness: float = 1.0) -> Array:
    """Filtered back projection of line integrals (ANGLES, bins, k) to slices (size, size, k).

    The ramp filter ends in half a cosine at `sharpness` times the highest frequency.
    Source: Kijewski, Judy, Physics in Medicine and Biology, 1987, for the noise that it makes.
    """
    bins = paths.shape[1]
    length = 1 << int(np.ceil(np.log2(2 * bins)))
    n = np.fft.fftfreq(length, 1 / length)
    odd = np.abs(n) % 2 == 1
    ramp = np.where(n == 0, 0.25, 0.0)
    ramp[odd] = -1.0 / (np.pi * n[odd]) ** 2
    frequency = np.fft.rfftfreq(length)
    window = 0.5 + 0.5 * np.cos(np.pi * np.clip(frequency / (0.5 * sharpness), 0.0, 1.0))
    response = np.fft.rfft(ramp).real * window
    spectrum = np.fft.rfft(paths, length, axis=1) * response[:, None]
    filtered = np.fft.irfft(spectrum, length, axis=1)[:, :bins]
    image = projector(size).T @ filtered.reshape(ANGLES * bins, -1)
    return np.asarray(image).reshape(size, size, -1) * np.pi / ANGLES


def transmitted(water_mm: Array, bone_mm: Array) -> Array:
    """The share of a beam of many energies that passes through water and bone."""
    shares = zip(SPECTRUM, WATER, BONE, strict=True)
    return np.sum([s * np.exp(-w * water_mm - b * bone_mm) for s, w, b in shares], axis=0)


def scan(
    rng: Rng, water: Array, bone: Array, *, voxel_mm: float, photons: float, sharpness: float
) -> Array:
    """Hounsfield units (i, i, k) of slices given by the densities of water and of bone, 1 = pure.

    `photons` reach a bin without a patient. Raises nothing; slices are square.
    Source: the correction as if all were water, and the bands that bone then leaves, after Joseph,
    Spital, Journal of Computer Assisted Tomography, 1978.
    """
    size = len(water)
    matrix = projector(size)
    lines = [voxel_mm * (matrix @ part.reshape(size * size, -1)) for part in (water, bone)]
    expected = photons * transmitted(*lines)
    counted = expected + np.sqrt(expected + ELECTRONICS**2) * rng.standard_normal(expected.shape)
    measured = np.maximum(counted, 1.0) / photons
    # As if all of it were water: the path through water that would let as much pass.
    path_mm = np.arange(0.0, 1200.0, 0.5)
    attenuation = -np.log(transmitted(path_mm, np.zeros_like(path_mm)))
    equivalent = np.interp(-np.log(measured), attenuation, path_mm) / voxel_mm
    image = reconstruct(equivalent.reshape(ANGLES, -1, water.shape[2]), size, sharpness=sharpness)
    return 1000.0 * (image - 1.0)
