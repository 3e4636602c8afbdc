"""The loss of `dcd_core.wavelet.energy` in less time and memory; the numbers are the same.

`gradient` works on a few channels at a time and writes down the gradient beside the loss. Where all
axes are orthonormal it has two ways: `filters`, compiled code (filterbank.c) for a CPU in float32,
and `matrices`, few large products, for GPUs, other precisions, or without a C compiler. Elsewhere
autograd differentiates the definition, in the released convention with compiled filters if it can.
"""

from dcd_core.wavelet.fast.gradient import distance

__all__ = ["distance"]
