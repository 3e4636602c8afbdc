"""What is detail in 3D? The wavelet transform of volumes, and the loss that is made of its bands.

`transform` follows PyWavelets in names, modes and values. `energy` is the loss of one stage as the
book defines it. `fast` computes that loss and its gradient faster.
"""

from dcd_core.wavelet.energy import Convention, LevelWeighting, Selection
from dcd_core.wavelet.transform import (
    BANDS,
    Pyramid,
    Wavelet,
    dwt3,
    idwt3,
    max_level,
    wavedec3,
    waverec3,
)

__all__ = ["BANDS", "Convention", "LevelWeighting", "Pyramid", "Selection", "Wavelet", "dwt3"]
__all__ += ["idwt3", "max_level", "wavedec3", "waverec3"]
