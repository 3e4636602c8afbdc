"""An acute stroke patient: diffusion-weighted image, ADC map and FLAIR with fresh infarcts."""

from __future__ import annotations

from functools import partial

import numpy as np

from dcd_lab.phantom import signal
from dcd_lab.phantom.anatomy import Anatomy, head, rotation, subject
from dcd_lab.phantom.artefacts import acquire, coil_shading, draw_acquisition
from dcd_lab.phantom.confounders import gliosis, pallidum, susceptibility
from dcd_lab.phantom.fields import Array, Grid, Rng, smooth, soft, uncrop, without_specks
from dcd_lab.phantom.infarct import infarcts
from dcd_lab.phantom.signal import Layer, Patient, Pulse, Tissue, Tissues, draw_tissues, varied

# An infarct by age: PD, T1 (ms), T2 (ms) and ADC of the core, and how common the age is.
_AGES: tuple[tuple[Tissue, float], ...] = (
    (Tissue(0.79, 1260.0, 86.0, 0.44), 0.20),  # under 6 hours: FLAIR still normal
    (Tissue(0.80, 1450.0, 108.0, 0.44), 0.50),  # 1 to 3 days
    (Tissue(0.81, 1580.0, 118.0, 0.52), 0.20),  # 4 to 7 days
    (Tissue(0.83, 1750.0, 128.0, 0.70), 0.10),  # 8 to 14 days: ADC nearly normal again
)


def head_grid(spacing_mm: float) -> Grid:
    """The DWI grid in head millimetres: 112 x 112 x 73 voxels at 2 mm, first axis right to left."""
    i, j, k = (round(extent / spacing_mm) for extent in (224.0, 224.0, 146.0))
    x = spacing_mm * ((i - 1) / 2 - np.arange(i))
    y = spacing_mm * (np.arange(j) - (j - 1) / 2) - 20.0
    z = spacing_mm * (np.arange(k) - (k - 1) / 2) + 9.0
    return Grid((x, y, z), spacing_mm)


def oblique_affine(seed: int, grid: Grid) -> Array:
    """Voxel index to scanner millimetres: slices tilted some degrees about the ear-to-ear axis."""
    rng = np.random.default_rng((seed, 1))
    turn = rotation(np.deg2rad(rng.normal((10.0, 0.0, 0.0), (5.0, 2.0, 2.5))))
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.0, 1.0, 1.0]) * grid.spacing_mm
    centre = (np.array(grid.shape) - 1) / 2
    affine[:3, 3] = rng.normal(0.0, 8.0, 3) - affine[:3, :3] @ centre
    return affine


def paint(seed: int, grid: Grid) -> tuple[Array, Array]:
    """Image (3, ...) float64 and label (...) of one patient on the whole grid."""
    rng = np.random.default_rng((seed, 0))
    shape, (box, grid, mni) = grid.shape, head(seed, grid, turn_deg=4.0, size=0.95)
    anatomy = subject(rng, grid, mni, atrophy=float(rng.beta(2.0, 2.0)))
    fresh_mm, old_mm = infarcts(rng, grid, anatomy)
    image = _scan(rng, grid, anatomy, fresh_mm, old_mm)
    drawn = fresh_mm + 0.5 * smooth(rng, grid, 4.0) > 0.0
    label = without_specks(drawn & (anatomy.csf < 0.55) & anatomy.brain, 2)
    return uncrop(image * anatomy.brain, shape, box), uncrop(label, shape, box)


def _layers(
    rng: Rng, grid: Grid, anatomy: Anatomy, fresh_mm: Array, old_mm: Array, tissues: Tissues
) -> dict[str, Layer]:
    """What is painted over healthy tissue: iron, gliosis, old infarcts, fresh infarcts."""
    solid = 1.0 - anatomy.csf
    inside = soft(fresh_mm, 3.0) * solid
    # Some lesions are pale and none is even: the core is worst, each region has its own damage.
    damage = rng.uniform(0.48, 0.93) + 0.05 * np.clip(fresh_mm - 1.0, 0.0, 4.0)
    damage = damage + 0.20 * smooth(rng, grid, 18.0) + 0.13 * smooth(rng, grid, 5.0)
    age = int(rng.choice(len(_AGES), p=[share for _, share in _AGES]))
    fresh = varied(rng, _AGES[age][0], Tissue(0.01, 0.05, 0.06, 0.10))
    old = soft(old_mm, 3.0) * solid * (1.0 - inside)
    return {
        "iron": (pallidum(rng, grid, anatomy), tissues["iron"]),
        "gliosis": (gliosis(rng, grid, anatomy, (1.5, 3.0)), tissues["gliosis"]),
        "old": (old, tissues["chronic"]),
        "fresh": (inside * np.clip(damage, 0.2, 1.0), fresh),
    }


def _scan(rng: Rng, grid: Grid, anatomy: Anatomy, fresh_mm: Array, old_mm: Array) -> Array:
    """DWI (in 1/16), ADC (in 1e-4 of its unit) and FLAIR (in 1/16) as acquired, quantised."""
    tissues = draw_tissues(rng)
    b = float(rng.choice((800.0, 1000.0)))
    tr_ms, te_ms = float(rng.uniform(5000, 10000)), float(rng.uniform(55, 95))
    plain = partial(signal.spin_echo, tr_ms=tr_ms, te_ms=te_ms)
    weighted = partial(signal.diffusion_weighted, tr_ms=tr_ms, te_ms=te_ms, b=b)
    tr_ms, te_ms = float(rng.uniform(8500, 12000)), float(rng.uniform(95, 135))
    # Scanners invert a little early or late, so fluid is dark but not black.
    null_ms = signal.null_inversion_ms(float(tissues["csf"].t1_ms), tr_ms)
    ti_ms = null_ms * float(rng.uniform(0.90, 1.0))
    inverted = partial(signal.inversion_recovery, tr_ms=tr_ms, ti_ms=ti_ms, te_ms=te_ms)
    over = _layers(rng, grid, anatomy, fresh_mm, old_mm, tissues)
    patient = Patient(anatomy, tissues, over)
    dwi, adc = _diffusion(rng, grid, patient, plain, weighted, b)
    flair = _flair(rng, grid, patient, inverted)
    gain, steps = rng.uniform(150.0, 400.0, 2), np.array([16, 1e4, 16])[:, None, None, None]
    return np.rint(np.stack([dwi * gain[0], adc, flair * gain[1]]) * steps) / steps


def _diffusion(
    rng: Rng, grid: Grid, patient: Patient, plain: Pulse, weighted: Pulse, b: float
) -> tuple[Array, Array]:
    """DWI relative to white matter, and the ADC map of the same noisy pair of images."""
    texture = 1.0 + 0.04 * smooth(rng, grid, 8.0) + 0.03 * smooth(rng, grid, 4.0)
    pile_up = susceptibility(rng, grid, patient.anatomy)
    shading = coil_shading(rng, grid, 0.12) * np.exp(pile_up) * texture
    # Water moves more freely in one place than in another: ADC varies within a tissue too.
    uneven = 0.08 * smooth(rng, grid, 6.0) + 0.05 * smooth(rng, grid, 15.0)
    solid = patient.anatomy.csf < 0.5
    pair = [
        patient.signal(plain) * shading,
        patient.signal(weighted) * shading * np.exp(-1e-3 * b * 0.8 * uneven * solid),
    ]
    slices = (2.0, 2.0) if rng.random() < 0.6 else (3.0, 5.0)
    setup = draw_acquisition(rng, (1.8, 2.2), slices, snr=(20.0, 44.0), shift_mm=0.0)
    s0, sb = acquire(pair, setup, rng, grid, reference=patient.white(plain))
    adc = np.clip(signal.apparent_diffusion(s0, sb, b), -0.4, 4.0)
    return sb / patient.white(weighted), adc


def _flair(rng: Rng, grid: Grid, patient: Patient, pulse: Pulse) -> Array:
    """FLAIR relative to white matter: thick slices, without the distortion of the DWI."""
    white = patient.white(pulse)
    texture = 1.0 + 0.03 * smooth(rng, grid, 8.0) + 0.03 * smooth(rng, grid, 4.0)
    setup = draw_acquisition(rng, (0.8, 1.3), (3.0, 6.5), snr=(18.0, 40.0), shift_mm=0.5)
    clean = patient.signal(pulse) * texture * coil_shading(rng, grid, 0.12)
    (flair,) = acquire([clean], setup, rng, grid, reference=white)
    return _undistorted(flair, rng, grid, patient.anatomy) / white


def _undistorted(flair: Array, rng: Rng, grid: Grid, anatomy: Anatomy) -> Array:
    """Shift along the phase-encoding axis, up to some mm at the skull base.

    The label lies in the distorted space of the DWI; so the FLAIR is moved.
    """
    base = soft(5.0 - anatomy.mni[2], 60.0)
    shift = (0.5 + 2.5 * base) * smooth(rng, grid, 32.0) / grid.spacing_mm
    last = flair.shape[1] - 1.001
    j = np.clip(np.arange(flair.shape[1])[None, :, None] + shift, 0.0, last)
    low = j.astype(int)
    near = np.take_along_axis(flair, low, axis=1)
    return near + (j - low) * (np.take_along_axis(flair, low + 1, axis=1) - near)
