"""The loss by filters on a CPU in float32: the compiled code in `filterbank.c`.

It is built when the package is installed and a C compiler with OpenMP is found. Without it
`matrices` computes the same numbers.
"""

from __future__ import annotations

import ctypes
import math
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise, product

import numpy as np
import torch
from torch import Tensor

from dcd_core.wavelet.energy import Selection, fits, grids
from dcd_core.wavelet.fast.matrices import HEAVIEST
from dcd_core.wavelet.transform import BANDS, discrete, taps

_FLOATS = ctypes.POINTER(ctypes.c_float)


class Axis(ctypes.Structure):
    """`Axis` of filterbank.c: the low and the high filter of one axis."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("samples", "coefficients", "taps", "step", "lead")),
        ("filters", _FLOATS * 2),
    )


class Level(ctypes.Structure):
    """`Level` of filterbank.c: one level of the loss."""

    _fields_ = (
        ("axes", Axis * 3),
        ("base", ctypes.c_int),
        ("coarse", ctypes.c_int),
        ("reached", ctypes.c_int * len(BANDS)),
        ("deeper", ctypes.c_double),
    )


@lru_cache
def _library() -> ctypes.CDLL | None:
    """The compiled code, or None where it was not built."""
    spec = find_spec("dcd_core.wavelet.fast._filterbank")
    if spec is None or spec.origin is None:
        return None
    # PyTorch has loaded its OpenMP runtime by now, so both share one pool of threads.
    library = ctypes.CDLL(spec.origin)
    number, pointer, size = ctypes.c_int, ctypes.c_void_p, ctypes.c_ssize_t
    library.energies.argtypes = (pointer, size, pointer, number, pointer, number)
    return library


def serves(x: Tensor) -> bool:
    """Whether compiled code can filter these volumes."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and _library() is not None


def energy(x: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
    """As `matrices.energy`, for the same grids; the gradient takes the place of `x`."""
    size = tuple(x.shape[1:])
    steps = levels(size, selection)
    values = torch.empty(len(x), dtype=torch.float64)
    arguments = x.data_ptr(), len(x), steps, len(steps), values.data_ptr()
    library = _library()
    if library is None or library.energies(*arguments, torch.get_num_threads()):
        raise MemoryError(f"no memory to filter volumes {size}; smaller patches need less")
    return values.sum().to(x.dtype), x


@lru_cache(maxsize=256)
def levels(size: tuple[int, ...], selection: Selection) -> ctypes.Array[Level]:
    """The levels of the loss on a grid (D, H, W).

    A level adds up its bands, or takes the other bands away from the whole if those are fewer.
    """
    result = []
    every = grids(size, selection.names, selection.levels)
    # The weight of the last level beside that of the first.
    heaviest = math.prod(size) / math.prod(every[-2]) * max(1, selection.coarse_weight)
    for grid, coarser in pairwise(every):
        axes = [axis(n, name) for n, name in zip(grid, selection.names, strict=True)]
        last = coarser is every[-1]
        deeper = selection.coarse_weight if last else math.prod(grid) / math.prod(coarser)
        letters = ("ad" if one.filters[1] else "a" for one in axes)
        existing = {"".join(band) for band in product(*letters)}
        kept, coarse = existing & {*selection.bands}, {"aaa"} if deeper else set()
        added, removed = kept | coarse, existing - kept | coarse
        base = len(removed) < len(added) and heaviest <= HEAVIEST
        reached = [band in (removed if base else added) for band in BANDS]
        flags = (ctypes.c_int * len(BANDS))(*reached)
        result.append(Level((Axis * 3)(*axes), base, "aaa" in kept, flags, deeper))
    return (Level * len(result))(*result)


@lru_cache(maxsize=1024)
def axis(n: int, name: str) -> Axis:
    """A periodic axis of n samples; if it is too short, one filter lets it pass through."""
    if fits(n, name):
        filters, step, lead = (
            np.array(discrete(name).filter_bank[:2])[:, ::-1],
            2,
            taps(name) // 2 - 1,
        )
    else:
        filters, step, lead = np.ones((1, 1)), 1, 0
    rounded = _rounded(filters)
    rows = (_FLOATS * 2)(*(row.ctypes.data_as(_FLOATS) for row in rounded))
    result = Axis(n, n // step, filters.shape[1], step, lead, rows)
    result.kept = rounded  # the structure only points at it
    return result


def _rounded(filters: np.ndarray) -> np.ndarray:
    """In float32, with the sums over every second tap, by which a constant differs from detail.

    The smallest tap takes the correction, because its own digits are the finest.
    """
    single = filters.astype(np.float32)
    for half, exact in zip(single, filters, strict=True):
        for parity in (slice(0, None, 2), slice(1, None, 2)):
            row = half[parity]
            if row.any():
                least = np.abs(np.where(row, row, np.inf)).argmin()
                row[least] += (exact[parity] - row).sum()
    return single
