"""A treated glioma patient: T1, T1 after contrast, T2 and FLAIR with five labels."""

from __future__ import annotations

from functools import partial

import numpy as np

from dcd_lab.phantom import signal
from dcd_lab.phantom.anatomy import Anatomy, head, head_to_mni, subject
from dcd_lab.phantom.artefacts import acquire, coil_shading, draw_acquisition
from dcd_lab.phantom.confounders import gliosis, pallidum, vessels
from dcd_lab.phantom.fields import Array, Grid, Rng, smooth, soft, uncrop
from dcd_lab.phantom.signal import Layer, Patient, Pulse, Tissue, Tissues, draw_tissues, varied
from dcd_lab.phantom.template import surface_depth, white_and_csf
from dcd_lab.phantom.tumour import Growth, Tumour, depth_inside, grow, lattice, push, tumour

_OEDEMA = Tissue(0.83, 1400.0, 132.0)
_ENHANCING = Tissue(0.83, 1500.0, 122.0)
_NECROSIS = Tissue(0.92, 2100.0, 200.0)
_BLOOD = Tissue(0.80, 1500.0, 90.0)
_CAVITY = Tissue(0.97, 3500.0, 420.0)


def head_grid(spacing_mm: float) -> Grid:
    """The BraTS 2024 grid: 182 x 218 x 182 voxels at 1 mm, first axis right to left."""
    i, j, k = (np.arange(round(extent / spacing_mm)) for extent in (182.0, 218.0, 182.0))
    axes = (90.0 - spacing_mm * i, -126.0 + spacing_mm * j, -72.0 + spacing_mm * k)
    return Grid(axes, spacing_mm)


def affine(spacing_mm: float) -> Array:
    """Voxel index to MNI millimetres (LAS), the FSL MNI152 convention of BraTS 2024."""
    s = spacing_mm
    return np.array([[-s, 0, 0, 90.0], [0, s, 0, -126.0], [0, 0, s, -72.0], [0, 0, 0, 1.0]])


def paint(seed: int, grid: Grid, *, mass_effect: bool = True) -> tuple[Array, Array, Anatomy]:
    """Image (4, ...) float64, label (...) on the whole grid, and the anatomy on its brain box.

    `mass_effect=False` keeps the same tumour but leaves the brain around it in place.
    """
    tumour_seed, brain_seed, scan_seed = np.random.SeedSequence(seed).spawn(3)
    rng, brain_rng = np.random.default_rng(tumour_seed), np.random.default_rng(brain_seed)
    shape, (box, grid, mni) = grid.shape, head(seed, grid, turn_deg=2.0, size=0.985)
    growth = _plant(rng, seed)
    strength = float(rng.uniform(0.3, 0.75)) * mass_effect
    moved = push(grid, growth, surface_depth(mni), strength)
    anatomy = subject(brain_rng, grid, mni + moved, atrophy=float(brain_rng.beta(2.0, 3.5)))
    lesion = tumour(rng, grid, anatomy, growth, moved)
    image = _scan(np.random.default_rng(scan_seed), grid, anatomy, lesion) * anatomy.brain
    return uncrop(image, shape, box), uncrop(lesion.label, shape, box), anatomy


def _plant(rng: Rng, seed: int) -> Growth:
    """Seed a tumour in cerebral white matter and let it grow on the subject's tissue."""
    side = rng.choice((-1.0, 1.0))
    centre = np.array([side * rng.uniform(18, 46), rng.uniform(-62, 48), rng.uniform(-14, 46)])
    mni = head_to_mni(seed, lattice(centre), turn_deg=2.0, size=0.985)
    white, csf = white_and_csf(mni)
    tissue = np.clip(1.0 - 2.0 * csf, 0.0, 1.0) * (surface_depth(mni) > 1.0)
    width, ratio = float(rng.uniform(2.6, 4.6)), float(rng.uniform(5.0, 10.0))
    target_ml = float(np.clip(15.0 * np.exp(0.9 * rng.standard_normal()), 2.5, 120.0))
    density = grow(white, tissue, target_ml=target_ml, ratio=ratio, width_mm=width)
    volume_mm3 = np.count_nonzero(density > 0.5) * lattice(centre).spacing_mm ** 3
    radius = float(max(volume_mm3, 500.0) / 4.19) ** (1 / 3)
    return Growth(depth_inside(density, width), centre, radius)


def _t1_pulse(rng: Rng) -> Pulse:
    """An inversion-prepared, a spoiled gradient-echo or a spin-echo T1 sequence."""
    pick = rng.random()
    if pick < 0.5:
        tr_ms, ti_ms = float(rng.uniform(1900, 2400)), float(rng.uniform(950, 1150))
        return partial(signal.inversion_recovery, tr_ms=tr_ms, ti_ms=ti_ms, te_ms=3.0)
    if pick < 0.8:
        tr_ms, flip_deg = float(rng.uniform(8, 25)), float(rng.uniform(20, 30))
        return partial(signal.spoiled_gradient_echo, tr_ms=tr_ms, flip_deg=flip_deg)
    tr_ms, te_ms = float(rng.uniform(450, 650)), float(rng.uniform(9, 14))
    return partial(signal.spin_echo, tr_ms=tr_ms, te_ms=te_ms)


def _pulses(rng: Rng, csf: Tissue) -> tuple[Pulse, Pulse, Pulse, Pulse]:
    """The session's sequences in channel order t1n, t1c, t2w, t2f."""
    t1n = _t1_pulse(rng)
    t1c = t1n if rng.random() < 0.7 else _t1_pulse(rng)
    tr_ms = float(rng.uniform(8500, 11000))
    ti_ms = signal.null_inversion_ms(float(csf.t1_ms), tr_ms) * float(rng.uniform(0.90, 1.0))
    t2_tr_ms, t2_te_ms = float(rng.uniform(3800, 6000)), float(rng.uniform(82, 105))
    te_ms = float(rng.uniform(95, 130))
    t2w = partial(signal.spin_echo, tr_ms=t2_tr_ms, te_ms=t2_te_ms)
    return t1n, t1c, t2w, partial(signal.inversion_recovery, tr_ms=tr_ms, ti_ms=ti_ms, te_ms=te_ms)


def _layers(
    rng: Rng, grid: Grid, anatomy: Anatomy, lesion: Tumour, tissues: Tissues
) -> dict[str, Layer]:
    """Iron, gliosis and the tumour's classes, painted in this order over healthy tissue."""
    uneven = np.clip(0.80 + 0.22 * smooth(rng, grid, 9.0), 0.25, 1.0)
    liquid = np.clip(0.85 + 0.20 * smooth(rng, grid, 6.0), 0.25, 1.0)
    wide, narrow = Tissue(0.02, 0.15, 0.18, 0.1), Tissue(0.02, 0.08, 0.12, 0.1)
    return {
        "iron": (pallidum(rng, grid, anatomy), tissues["iron"]),
        "gliosis": (gliosis(rng, grid, anatomy, (1.5, 2.5)), tissues["gliosis"]),
        "oedema": (lesion.shares["oedema"] * uneven, varied(rng, _OEDEMA, narrow)),
        "necrosis": (lesion.shares["necrosis"] * liquid, varied(rng, _NECROSIS, wide)),
        "enhancing": (lesion.shares["enhancing"], varied(rng, _ENHANCING, narrow)),
        "cavity": (lesion.shares["cavity"], varied(rng, _CAVITY, wide)),
    }


def _with_contrast(
    rng: Rng, grid: Grid, anatomy: Anatomy, lesion: Tumour, plain: dict[str, Layer]
) -> dict[str, Layer]:
    """The same layers with gadolinium in the enhancing part, vessels, dura and the cavity's rim."""
    uptake_mm = rng.uniform(0.08, 0.24) * np.exp(0.30 * smooth(rng, grid, 6.0))
    enhancing, tissue = plain["enhancing"]
    rim = soft(1.6 - np.abs(lesion.cavity_mm + 0.5), 2.0) * soft(smooth(rng, grid, 12.0), 1.0)
    blood = np.clip(vessels(rng, grid, anatomy) + 0.22 * rim, 0.0, 1.0)
    return {
        **plain,
        "enhancing": (enhancing, signal.with_contrast_agent(tissue, uptake_mm)),
        "blood": (blood, signal.with_contrast_agent(_BLOOD, 0.9)),
    }


def _scan(rng: Rng, grid: Grid, anatomy: Anatomy, lesion: Tumour) -> Array:
    """The four channels as acquired, in arbitrary units, quantised to 1/16."""
    tissues = draw_tissues(rng)
    plain = _layers(rng, grid, anatomy, lesion, tissues)
    contrast = _with_contrast(rng, grid, anatomy, lesion, plain)
    before, after = (Patient(anatomy, tissues, layers) for layers in (plain, contrast))
    texture = 1.0 + 0.03 * smooth(rng, grid, 7.0) + 0.02 * smooth(rng, grid, 3.5)
    channels = []
    for index, pulse in enumerate(_pulses(rng, tissues["csf"])):
        patient = after if index == 1 else before
        clean = patient.signal(pulse) * texture * coil_shading(rng, grid, 0.14)
        thick = (1.0, 1.4) if rng.random() < (0.8 if index < 2 else 0.4) else (2.5, 5.0)
        axis = int(rng.choice(3, p=(0.07, 0.08, 0.85)))
        setup = draw_acquisition(rng, (0.9, 1.2), thick, snr=(14.0, 32.0), shift_mm=0.3, axis=axis)
        white = patient.white(pulse)
        (acquired,) = acquire([clean], setup, rng, grid, reference=white)
        channels.append(np.rint(acquired * rng.uniform(250.0, 900.0) / white * 16.0) / 16.0)
    return np.stack(channels)
