"""The loss of `dcd_core.wavelet.energy` in less time and memory; the numbers are the same.

`gradient` works on a few channels at a time. Where all axes are orthonormal it has two ways:
`filters`, compiled code (filterbank.c) for a CPU in float32, and `matrices`, few large products,
for anything else. On other axes autograd differentiates the definition.
"""

from dcd_core.wavelet.fast.gradient import distance

__all__ = ["distance"]
