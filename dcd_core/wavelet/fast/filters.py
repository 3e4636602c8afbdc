"""The loss by filters on a CPU in float32: `filterbank.c`, compiled where there is a C compiler."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise, product
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from dcd_core.wavelet.energy import Selection, fits, grids, released_filters
from dcd_core.wavelet.fast.matrices import HEAVIEST
from dcd_core.wavelet.transform import BANDS, discrete, taps

_FLOATS = ctypes.POINTER(ctypes.c_float)


class Axis(ctypes.Structure):
    """`Axis` of filterbank.c: the low and the high filter of one axis."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("samples", "coefficients", "taps", "step", "lead")),
        ("periodic", ctypes.c_int),
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
    library.filter_volumes.argtypes = (pointer, size, pointer, pointer, number, number)
    return library


def serves(x: Tensor) -> bool:
    """Whether compiled code can filter these volumes."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and _library() is not None


def _call(function: str, x: Tensor, volumes: int, *arguments: Any) -> None:
    if getattr(_library(), function)(x.data_ptr(), volumes, *arguments, torch.get_num_threads()):
        size = tuple(x.shape[-3:])
        raise MemoryError(f"no memory to filter volumes {size}; smaller patches need less")


# --- orthonormal axes: all levels at once ---------------------------------------------------------


def energy(x: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
    """As `matrices.energy`, for the same grids; the gradient takes the place of `x`."""
    steps = levels(tuple(x.shape[1:]), selection)
    values = torch.empty(len(x), dtype=torch.float64)
    _call("energies", x, len(x), steps, len(steps), values.data_ptr())
    return values.sum().to(x.dtype), x


@lru_cache(maxsize=256)
def levels(size: tuple[int, ...], selection: Selection) -> ctypes.Array[Level]:
    """The levels of the loss. Each adds up its bands, or subtracts the others if fewer."""
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
    if not fits(n, name):
        return _axis(np.ones((1, 1)), n, n, 1, 0, 1)
    filters = np.array(discrete(name).filter_bank[:2])[:, ::-1]
    return _axis(filters, n, n // 2, 2, taps(name) // 2 - 1, 1)


# --- the released convention: one level, there or back --------------------------------------------


def split(x: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
    """As `split` of the definition, for `join` alone: bands that are not selected are undefined."""
    axes = _released(x.shape[2:], selection.names, synthesis=False)
    return _Split.apply(x, (axes, selection.bands))


def join(bands: Tensor, size: Sequence[int], selection: Selection) -> Tensor:
    """As `join` of the definition. Bands that are not selected are not read."""
    axes = _released(size, selection.names, synthesis=True)
    return _Join.apply(bands, None, (axes, selection.bands))


Bank: TypeAlias = tuple[Sequence[Axis], Sequence[str]]
"""The axes that filter, and the names of the bands in use."""


class _Split(torch.autograd.Function):
    """Volumes (b, c, d, h, w) to their bands (b, c, 8, d', h', w') in use, and to `aaa`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bank: Bank) -> tuple[Tensor, Tensor]:
        ctx.bank = axes, names = bank
        bands = x.new_empty(len(BANDS), *x.shape[:2], *(axis.coefficients for axis in axes))
        coarse = torch.empty_like(bands[0])
        _filter(x.contiguous(), bands, coarse, bank, back=False)
        if "aaa" in names:
            bands[0] = coarse
        return bands.movedim(0, 2), coarse

    @staticmethod
    def backward(ctx: Any, bands: Tensor, coarse: Tensor) -> tuple[Tensor, None]:
        return _Join.apply(bands, coarse, ctx.bank), None


class _Join(torch.autograd.Function):
    """The transpose of `_Split`."""

    @staticmethod
    def forward(ctx: Any, bands: Tensor, coarse: Tensor | None, bank: Bank) -> Tensor:
        ctx.bank = axes, names = bank
        bands = bands.movedim(2, 0).contiguous()
        if coarse is not None:
            coarse = coarse + bands[0] if "aaa" in names else coarse.contiguous()
        x = bands.new_empty(*bands.shape[1:3], *(axis.samples for axis in axes))
        _filter(x, bands, coarse, bank, back=True)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        bands, coarse = _Split.apply(gradient, ctx.bank)
        return bands, coarse if ctx.needs_input_grad[1] else None, None


def _filter(x: Tensor, bands: Tensor, coarse: Tensor | None, bank: Bank, *, back: bool) -> None:
    axes, names = bank
    pairs = zip(BANDS, bands, strict=True)
    pointers = [band.data_ptr() if name in names else None for name, band in pairs]
    if coarse is not None:
        pointers[0] = coarse.data_ptr()
    addresses = (ctypes.c_void_p * len(BANDS))(*pointers)
    count = x.shape[0] * x.shape[1]
    _call("filter_volumes", x, count, (Axis * 3)(*axes), addresses, back)


@lru_cache(maxsize=256)
def _released(size: Sequence[int], names: Sequence[str], *, synthesis: bool) -> tuple[Axis, ...]:
    """The axes of the released analysis, or of its synthesis, transposed: between zeros."""
    axes = []
    for n, name in zip(size, names, strict=True):
        k, samples = taps(name), n - n % 2 if synthesis else n
        filters = np.split(released_filters(name), 2)[synthesis]
        axes.append(_axis(filters, samples, (n + k - 2) // 2 + 1, 2, k - 1, 0))
    return tuple(axes)


def _axis(filters: np.ndarray, samples: int, coefficients: int, *rest: int) -> Axis:
    rounded = _rounded(filters)
    rows = (_FLOATS * 2)(*(row.ctypes.data_as(_FLOATS) for row in rounded))
    result = Axis(samples, coefficients, filters.shape[1], *rest, rows)
    result.kept = rounded  # the structure only points at it
    return result


def _rounded(filters: np.ndarray) -> np.ndarray:
    """In float32, with the sums over every second tap, by which a constant differs from detail."""
    single = filters.astype(np.float32)
    for half, exact in zip(single, filters, strict=True):
        for parity in (slice(0, None, 2), slice(1, None, 2)):
            row = half[parity]
            if row.any():  # the smallest tap is corrected: its own digits are the finest
                least = np.abs(np.where(row, row, np.inf)).argmin()
                row[least] += (exact[parity] - row).sum()
    return single
