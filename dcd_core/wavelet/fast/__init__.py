"""The loss of `dcd_core.wavelet.energy` in less time and memory; the numbers are the same.

`gradient` works on a few channels at a time and writes down the gradient beside the loss. What it
does to those channels depends on where they are. `filters`: compiled code (filterbank.c) for a CPU
in float32. `matrices`: few large products, for GPUs, other precisions, or without a C compiler.
Where neither serves, autograd differentiates the definition.
"""

from dcd_core.wavelet.fast.gradient import distance

__all__ = ["distance"]
