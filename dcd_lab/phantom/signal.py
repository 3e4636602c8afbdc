"""MR signals from tissue parameters: the sequence equations, and how tissues mix in a voxel.

Signals are computed per tissue and then mixed: a voxel half cortex and half fluid shows the mean of
two signals, not the signal of a mean tissue.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from dcd_lab.phantom.anatomy import Anatomy
from dcd_lab.phantom.fields import Array, Rng


class Tissue(NamedTuple):
    """Proton density (0-1), relaxation times in ms and ADC in 1e-3 mm2/s; scalars or arrays."""

    density: float | Array
    t1_ms: float | Array
    t2_ms: float | Array
    adc: float | Array = 0.8


Tissues: TypeAlias = dict[str, Tissue]
# Medians at 3 T, set so that contrasts relative to white matter agree with real T1, T2, FLAIR and
# DWI (Stanisz et al., MRM, 2005; Lesjak et al., Neuroinformatics, 2017; ISLES 2022 case 0009).
TISSUES: Tissues = {
    "white": Tissue(0.70, 880.0, 75.0, 0.76),
    "cortex": Tissue(0.80, 1350.0, 92.0, 0.82),
    "deep": Tissue(0.78, 1150.0, 76.0, 0.74),
    "csf": Tissue(1.00, 4200.0, 560.0, 2.95),
    "iron": Tissue(0.74, 1000.0, 58.0, 0.72),
    "gliosis": Tissue(0.80, 1250.0, 125.0, 1.10),
    "chronic": Tissue(0.95, 2300.0, 260.0, 2.10),
}

Value: TypeAlias = float | Array
Layer: TypeAlias = tuple[Array, Tissue]
"""A share (0-1) per voxel, and the tissue it is of."""
Pulse: TypeAlias = Callable[[Tissue], Value]
"""A pulse sequence with its settings: tissue in, signal out."""


def spin_echo(tissue: Tissue, *, tr_ms: float, te_ms: float) -> Value:
    """Spin echo: PD (1 - exp(-TR/T1)) exp(-TE/T2)."""
    recovered = 1.0 - np.exp(-tr_ms / tissue.t1_ms)
    return tissue.density * recovered * np.exp(-te_ms / tissue.t2_ms)


def inversion_recovery(tissue: Tissue, *, tr_ms: float, ti_ms: float, te_ms: float) -> Value:
    """Inversion recovery (FLAIR, MPRAGE): PD |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2)."""
    recovered = 1.0 - 2.0 * np.exp(-ti_ms / tissue.t1_ms) + np.exp(-tr_ms / tissue.t1_ms)
    return tissue.density * np.abs(recovered) * np.exp(-te_ms / tissue.t2_ms)


def spoiled_gradient_echo(tissue: Tissue, *, tr_ms: float, flip_deg: float) -> Value:
    """Ideally spoiled gradient echo at short TE: PD sin a (1 - E1) / (1 - E1 cos a)."""
    flip, e1 = np.deg2rad(flip_deg), np.exp(-tr_ms / tissue.t1_ms)
    return tissue.density * np.sin(flip) * (1.0 - e1) / (1.0 - e1 * np.cos(flip))


def inflowing(tissue: Tissue, *, tr_ms: float, flip_deg: float, pulses: float | Array) -> Value:
    """Spoiled gradient echo of what has flown in and seen some `pulses`: bright, then saturated.

    PD sin a (M + (1 - M) (E1 cos a)^pulses), where M is what many pulses leave.
    Source: the approach to the steady state after Haenicke, Merboldt, Frahm, Journal of Magnetic
    Resonance, 1988; time of flight after Miyazaki, Lee, Radiology, 2008.
    """
    flip, e1 = np.deg2rad(flip_deg), np.exp(-tr_ms / tissue.t1_ms)
    left = (1.0 - e1) / (1.0 - e1 * np.cos(flip))
    fresh = (e1 * np.cos(flip)) ** pulses
    return tissue.density * np.sin(flip) * (left + (1.0 - left) * fresh)


def diffusion_weighted(tissue: Tissue, *, tr_ms: float, te_ms: float, b: float) -> Value:
    """Spin echo times exp(-b ADC); b in s/mm2."""
    return spin_echo(tissue, tr_ms=tr_ms, te_ms=te_ms) * np.exp(-b * 1e-3 * tissue.adc)


def apparent_diffusion(signal_0: Array, signal_b: Array, b: float) -> Array:
    """ADC in 1e-3 mm2/s from two magnitude images: 1000 ln(S0 / Sb) / b."""
    tiny = 1e-6
    return 1e3 * np.log(np.maximum(signal_0, tiny) / np.maximum(signal_b, tiny)) / b


def null_inversion_ms(t1_ms: float, tr_ms: float) -> float:
    """Inversion time at which inversion recovery of a tissue vanishes."""
    return float(-t1_ms * np.log((1.0 + np.exp(-tr_ms / t1_ms)) / 2.0))


def with_contrast_agent(tissue: Tissue, concentration_mm: Value) -> Tissue:
    """Relaxation after gadolinium, 1/T' = 1/T + r C: r 4.5 (T1) or 5.5 (T2) 1/(s mM), C in mM."""
    t1_ms = 1.0 / (1.0 / tissue.t1_ms + 1e-3 * 4.5 * concentration_mm)
    t2_ms = 1.0 / (1.0 / tissue.t2_ms + 1e-3 * 5.5 * concentration_mm)
    return tissue._replace(t1_ms=t1_ms, t2_ms=t2_ms)


class Patient(NamedTuple):
    """What is scanned: healthy tissues, and the layers painted over them, one after another."""

    anatomy: Anatomy
    tissues: Tissues
    over: dict[str, Layer]

    def signal(self, pulse: Pulse) -> Array:
        """Signal per voxel."""
        signal = np.zeros_like(self.anatomy.white)
        for name in ("white", "cortex", "deep", "csf"):
            signal = signal + getattr(self.anatomy, name) * pulse(self.tissues[name])
        for share, tissue in self.over.values():
            signal = signal + share * (pulse(tissue) - signal)
        return signal

    def white(self, pulse: Pulse) -> float:
        """Signal of white matter, to which noise and gain refer."""
        return float(pulse(self.tissues["white"]))


def draw_tissues(rng: Rng) -> Tissues:
    """This subject's tissues: every parameter of `TISSUES` varied by some percent."""
    spread = Tissue(0.015, 0.05, 0.035, 0.03)
    return {name: varied(rng, tissue, spread) for name, tissue in TISSUES.items()}


def varied(rng: Rng, tissue: Tissue, spread: Tissue) -> Tissue:
    """A tissue with every parameter multiplied by a log-normal factor of the given spread."""
    factors = np.exp(np.array(spread) * rng.standard_normal(4))
    return Tissue(*(value * factor for value, factor in zip(tissue, factors, strict=True)))
