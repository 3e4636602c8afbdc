"""What is detail in 3D? The wavelet transform of volumes, and keeping some of its bands.

`transform` follows PyWavelets in names, modes and values. `energies` measures some bands over
several levels, with the gradient. On a CPU in float32 volumes are filtered by compiled code
(`compiled`, filterbank.c); elsewhere `contraction` multiplies the axes of many volumes by matrices:
once for all levels where a basis is orthonormal (`diagonal`), or else there and back through the
bands themselves (`bandpass`). `banks` describes the filters of one axis, `levels` how far a grid
can be split.
"""

from dcd_core.wavelet.energies import energy
from dcd_core.wavelet.levels import Convention, Selection, usable_levels, voxels
from dcd_core.wavelet.transform import (
    BANDS,
    Pyramid,
    Wavelet,
    axis_names,
    dwt3,
    idwt3,
    max_level,
    taps,
    wavedec3,
    waverec3,
)

__all__ = [
    "BANDS",
    "Convention",
    "Pyramid",
    "Selection",
    "Wavelet",
    "axis_names",
    "dwt3",
    "energy",
    "idwt3",
    "max_level",
    "taps",
    "usable_levels",
    "voxels",
    "wavedec3",
    "waverec3",
]
