"""Detail Consistent Distillation, reproduced, explained and extended.

`import dcd_core` pulls in torch and PyWavelets only; open `dcd_core.dcd` first.
"""

from dcd_core import dcd, types, wavelet

__version__ = "0.1.0"
__all__ = ["__version__", "dcd", "types", "wavelet"]
