"""Ultrasound of a tissue like liver with solid lesions: speckle, attenuation and shadows.

The echo of many small scatterers is complex noise. A pulse blurs it, narrowly along the beam and
widely across, so that its envelope is speckle of Rayleigh statistics. Sound is lost with depth, in
some tissue more than in other: what lies behind a rib or chalk is dark, behind a cyst bright.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from dcd_lab.phantom.fields import Array, Grid, Rng, length, smooth, soft, without_specks

FIELD_MM = (64.0, 64.0, 80.0)
"""Extent across the beam, from plane to plane, and along the beam (depth)."""
ATTENUATION = 0.5  # dB per cm and MHz, of soft tissue
RANGE_DB = 60.0  # that is shown, as 0 to 255
_FLOOR = 1 / 16  # of an image: zero means that nothing was scanned


def field(spacing_mm: float) -> Grid:
    """The grid of a volume: lateral, elevation, depth from the probe on, in mm."""
    i, j, k = (spacing_mm * np.arange(round(size / spacing_mm)) for size in FIELD_MM)
    return Grid((i - i.mean(), j - j.mean(), k + spacing_mm / 2), spacing_mm)


def affine(spacing_mm: float) -> Array:
    """Voxel index to millimetres of a patient: lateral to the left, planes upwards, depth back."""
    turned = np.array([[-1.0, 0, 0, 0], [0, 0, -1.0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1.0]])
    turned[:3, :3] *= spacing_mm
    return turned


def paint(seed: int, grid: Grid) -> tuple[Array, Array]:
    """Image (1, ...) float64 of grey values up to 255, and label (...) of the solid lesions."""
    rng = np.random.default_rng((seed, 3))
    level_mm = _lesions(rng, grid)
    echo_db, loss = _tissue(rng, grid, level_mm)
    image = _image(rng, grid, echo_db, loss)
    drawn = level_mm + 0.4 * smooth(rng, grid, 5.0) > 0.0
    return np.maximum(np.rint(image * 16) / 16, _FLOOR)[None], without_specks(drawn, 2)


def _lesions(rng: Rng, grid: Grid) -> Array:
    """Level in mm (positive inside) of one to four solid lesions of irregular shape."""
    level = np.full(grid.shape, -60.0)
    rough = 0.30 * smooth(rng, grid, 7.0) + 0.15 * smooth(rng, grid, 3.5)
    for _ in range(int(rng.integers(1, 5))):
        radius = float(np.clip(6.5 * np.exp(0.5 * rng.standard_normal()), 2.0, 16.0))
        np.maximum(level, radius * (1.0 + rough) - _away(rng, grid, radius), out=level)
    return level


def _away(rng: Rng, grid: Grid, radius: float) -> Array:
    """Distance in mm, stretched along the axes, to a place within the field, not at its top."""
    low, high = zip(*((axis[0] + radius, axis[-1] - radius) for axis in grid.axes), strict=True)
    centre = rng.uniform(np.add(low, (0.0, 0.0, 8.0)), high)
    stretch = np.exp(0.2 * rng.standard_normal(3))
    return length(o / s for o, s in zip(grid.offsets(centre), stretch, strict=True))


def _tissue(rng: Rng, grid: Grid, level_mm: Array) -> tuple[Array, Array]:
    """Echo strength in dB, and attenuation in units of that of soft tissue."""
    echo = 1.5 * smooth(rng, grid, 14.0) + 1.0 * smooth(rng, grid, 6.0)
    loss = 1.0 + 0.15 * smooth(rng, grid, 25.0)
    inside = soft(level_mm, 2.0)
    strength = -float(rng.uniform(5.0, 11.0)) + 1.5 * smooth(rng, grid, 8.0)
    echo, loss = echo + inside * strength, loss + inside * float(rng.uniform(0.0, 0.8))
    # Veins: tubes along which two fields vanish together. They are darker than any lesion.
    width = float(rng.uniform(0.12, 0.22))
    vein = soft(width - np.hypot(smooth(rng, grid, 26.0), smooth(rng, grid, 26.0)), 0.06)
    fluid = vein * (1.0 - inside)
    for _ in range(int(rng.integers(0, 3))):  # cysts, without an echo of their own
        radius = float(rng.uniform(3.0, 8.0))
        fluid = np.maximum(fluid, soft(radius - _away(rng, grid, radius), 1.5) * (1.0 - inside))
    echo, loss = echo - 28.0 * fluid, loss * (1.0 - 0.9 * fluid)
    ribs, chalk = _shadowing(rng, grid)
    return echo + 10.0 * ribs + 14.0 * chalk, loss + 14.0 * ribs + 10.0 * chalk


def _shadowing(rng: Rng, grid: Grid) -> tuple[Array, Array]:
    """Shares of ribs, which run from plane to plane near the probe, and of small calcifications."""
    x, _, depth = grid.points
    ribs, chalk = np.zeros(grid.shape), np.zeros(grid.shape)
    for _ in range(int(rng.choice(3, p=(0.4, 0.4, 0.2)))):
        place = rng.uniform(grid.axes[0][0], grid.axes[0][-1]) + 4.0 * smooth(rng, grid, 50.0)
        away = np.hypot((x - place) / 2.0, depth - float(rng.uniform(3.0, 7.0)))
        ribs = np.maximum(ribs, soft(2.0 - away, 1.0))
    for _ in range(int(rng.integers(0, 4))):
        radius = float(rng.uniform(0.8, 2.0))
        chalk = np.maximum(chalk, soft(radius - _away(rng, grid, radius), 1.0))
    return ribs, chalk


def _image(rng: Rng, grid: Grid, echo_db: Array, loss: Array) -> Array:
    """Grey values: the logarithm of the envelope, after a gain that grows with depth.

    Source: the echo as scatterers convolved with a pulse after Bamber, Dickinson, Physics in
    Medicine and Biology, 1980; the statistics of its envelope after Burckhardt, IEEE Transactions
    on Sonics and Ultrasonics, 1978.
    """
    mhz, depth = float(rng.uniform(2.5, 4.0)), grid.points[2]
    per_mm = 2.0 * ATTENUATION * mhz / 10.0  # there and back
    lost_db = per_mm * grid.spacing_mm * (np.cumsum(loss, axis=2) - 0.5 * loss)
    amplitude = 10.0 ** ((echo_db - lost_db) / 20.0)
    echoes = speckle(rng, grid, amplitude, *_pulse(rng, mhz))
    noise = 10.0 ** (-float(rng.uniform(38.0, 50.0)) / 20.0)
    echoes = echoes + noise * _complex(rng, grid.shape)
    gain_db = per_mm * depth * float(rng.uniform(0.85, 1.1))  # the operator guesses the loss
    shown_db = 20.0 * np.log10(np.abs(echoes) + 1e-9) + gain_db
    return np.clip((shown_db + 42.0) / RANGE_DB, 0.0, 1.0) * 255.0


def _pulse(rng: Rng, mhz: float) -> tuple[float, float, float]:
    """Standard deviations in mm across, from plane to plane and along the beam."""
    wave_mm = 1.54 / mhz
    lateral = wave_mm * float(rng.uniform(2.0, 3.0))
    return lateral, lateral * float(rng.uniform(1.2, 1.6)), wave_mm * float(rng.uniform(1.0, 1.4))


def speckle(
    rng: Rng, grid: Grid, amplitude: Array, lateral: float, elevation: float, axial: float
) -> Array:
    """Complex echoes of scatterers of an `amplitude` (...), blurred by a Gaussian pulse.

    Standard deviations in mm. Where the amplitude is constant the mean power stays its square, so
    that the envelope has the mean sqrt(pi) / 2 of it.
    """
    echoes = amplitude * _complex(rng, grid.shape)
    for axis, size_mm in enumerate((lateral, elevation, axial)):
        sigma = size_mm / grid.spacing_mm
        point = np.zeros(2 * int(4 * sigma + 1) + 1)
        point[len(point) // 2] = 1.0
        energy = np.sqrt((ndimage.gaussian_filter1d(point, sigma) ** 2).sum())
        parts = (echoes.real, echoes.imag)
        real, imaginary = (ndimage.gaussian_filter1d(p, sigma, axis=axis) for p in parts)
        echoes = (real + 1j * imaginary) / energy
    return echoes


def _complex(rng: Rng, shape: tuple[int, ...]) -> Array:
    """Complex white noise of unit power."""
    both = rng.standard_normal((2, *shape)) / np.sqrt(2.0)
    return both[0] + 1j * both[1]
