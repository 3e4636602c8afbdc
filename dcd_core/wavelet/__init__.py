"""What is detail in 3D? The wavelet transform of volumes, and keeping some of its bands.

`transform` follows PyWavelets in names, modes and values; `bandpass` keeps some bands and goes
back; `energy` makes a loss of that, with its gradient, over several levels.
"""

from dcd_core.wavelet.energy import Convention, Selection, energy, usable_levels, voxels
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
