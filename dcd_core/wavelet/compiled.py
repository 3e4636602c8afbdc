"""Filter banks on a CPU in float32, by the compiled code in `filterbank.c`.

It is built when the package is installed where a C compiler with OpenMP is at hand. Without it, in
other precisions and on other devices, `contraction` does the same by products of matrices.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcd_core.wavelet.banks import Bank, periodized
from dcd_core.wavelet.diagonal import HEAVIEST
from dcd_core.wavelet.levels import Selection, grids
from dcd_core.wavelet.transform import BANDS

_FLOATS, _INTS = ctypes.POINTER(ctypes.c_float), ctypes.POINTER(ctypes.c_int)


class _Axis(ctypes.Structure):
    """`Axis` of filterbank.c."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("samples", "coefficients", "taps", "step", "lead")),
        ("filters", _FLOATS * 2),
        ("source", _INTS),
    )


class _Level(ctypes.Structure):
    """`Level` of filterbank.c."""

    _fields_ = (
        ("axes", _Axis * 3),
        ("base", ctypes.c_int),
        ("coarse", ctypes.c_int),
        ("reached", ctypes.c_int * len(BANDS)),
        ("deeper", ctypes.c_double),
    )


@lru_cache
def _library() -> ctypes.CDLL | None:
    """The compiled code, or None where it was not built."""
    found = find_spec("dcd_core.wavelet._filterbank")
    if found is None or found.origin is None:
        return None
    # PyTorch has loaded its OpenMP runtime by now, so both share one pool of threads.
    library = ctypes.CDLL(found.origin)
    number, pointer, size = ctypes.c_int, ctypes.c_void_p, ctypes.c_ssize_t
    library.filter_volumes.argtypes = (pointer, size, pointer, pointer, number, number)
    library.energies.argtypes = (pointer, size, pointer, number, pointer, number)
    return library


def serves(x: Tensor) -> bool:
    """Whether these volumes can be filtered here."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and _library() is not None


def energy(x: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
    """Energy of a block of volumes (c, d, h, w), a scalar, and half its gradient in place of `x`.

    As `diagonal.energy`, and for the same grids; level by level, of which each keeps its bands'
    energy. Bands are added up, or the others taken away if they are fewer.
    """
    levels, _ = _levels(tuple(x.shape[1:]), selection)
    values = torch.empty(len(x), dtype=torch.float64)
    _call("energies", x, levels, len(levels), values.data_ptr())
    return values.sum().to(x.dtype), x


def split(x: Tensor, banks: Sequence[Bank], bands: Sequence[str]) -> Tensor:
    """Volumes (c, d, h, w), contiguous -> these bands of theirs (bands, c, d', h', w')."""
    found = x.new_empty(len(bands), len(x), *(bank.coefficients for bank in banks))
    _filter(x, found, banks, bands, back=False)
    return found


def join(found: Tensor, banks: Sequence[Bank], bands: Sequence[str], out: Tensor) -> None:
    """The transpose of `split`, written to `out` (c, d, h, w), contiguous."""
    _filter(out, found, banks, bands, back=True)


def _filter(
    x: Tensor, found: Tensor, banks: Sequence[Bank], bands: Sequence[str], *, back: bool
) -> None:
    axes = [_axis(bank) for bank in banks]  # held while the call reads what they point at
    where = dict(zip(bands, (band.data_ptr() for band in found), strict=True))
    addresses = (ctypes.c_void_p * len(BANDS))(*map(where.get, BANDS))
    _call("filter_volumes", x, (_Axis * len(axes))(*axes), addresses, int(back))


def _call(function: str, x: Tensor, *rest: Any) -> None:
    if getattr(_library(), function)(x.data_ptr(), len(x), *rest, torch.get_num_threads()):
        size = tuple(x.shape[1:])
        raise MemoryError(f"no room to filter volumes {size}; smaller patches need less")


@lru_cache(maxsize=256)
def _levels(
    size: tuple[int, ...], selection: Selection
) -> tuple[ctypes.Array[_Level], list[_Axis]]:
    """The levels of an energy, and the axes whose numbers they point at."""
    found, held = [], []
    every = grids(size, selection.names, selection.levels)
    for grid, coarser in pairwise(every):
        banks = [periodized(*named) for named in zip(grid, selection.names, strict=True)]
        held += [_axis(bank) for bank in banks]
        deeper = math.prod(grid) / math.prod(coarser)
        heaviest = math.prod(grid) / math.prod(every[-2])  # the last level beside this one
        if coarser is every[-1]:
            deeper = selection.coarse_weight
        there = {"".join(band) for band in product(*(bank.letters for bank in banks))}
        kept, awaited = there & {*selection.bands}, {BANDS[0]} if deeper else set()
        added, taken = kept | awaited, there - kept | awaited
        base = len(taken) < len(added) and heaviest * max(1, selection.coarse_weight) <= HEAVIEST
        reached = taken if base else added
        found.append(
            _Level(
                (_Axis * 3)(*held[-3:]),
                base,
                BANDS[0] in kept,
                (ctypes.c_int * len(BANDS))(*(band in reached for band in BANDS)),
                deeper,
            )
        )
    return (_Level * len(found))(*found), held


@lru_cache(maxsize=1024)
def _axis(bank: Bank) -> _Axis:
    filters = _rounded(bank.filters)
    source = np.ascontiguousarray(bank.source, np.intc)
    rows = [row.ctypes.data_as(_FLOATS) for row in filters]
    axis = _Axis(
        bank.samples,
        bank.coefficients,
        filters.shape[1],
        bank.step,
        bank.lead,
        (_FLOATS * 2)(*rows),
        source.ctypes.data_as(_INTS),
    )
    axis.kept = filters, source  # it only points at them
    return axis


def _rounded(filters: np.ndarray) -> np.ndarray:
    """In float32, with the sums over every second tap, by which a constant is told from detail.

    They are kept by the least tap, whose own digits are the finest.
    """
    single = filters.astype(np.float32)
    for half, exact in zip(single, filters, strict=True):
        for parity in (slice(0, None, 2), slice(1, None, 2)):
            taps = half[parity]
            if taps.any():
                least = np.abs(np.where(taps, taps, np.inf)).argmin()
                taps[least] += (exact[parity] - taps).sum()
    return single
