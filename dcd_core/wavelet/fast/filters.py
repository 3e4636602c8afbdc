"""The loss by filters on a CPU in float32: `filterbank.c`, compiled where there is a C compiler."""

import ctypes
from collections.abc import Collection, Sequence
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcd_core.wavelet.energy import Selection, fits, grids, ratio, released_filters, voxels
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
        *((name, ctypes.c_int) for name in ("base", "coarse")),
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


def _call(function: str, x: Tensor, *arguments: Any) -> None:
    if getattr(_library(), function)(x.data_ptr(), len(x), *arguments, torch.get_num_threads()):
        size = tuple(x.shape[-3:])
        raise MemoryError(f"no memory to filter volumes {size}; smaller patches need less")


def energy(x: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
    """As `matrices.energy`, for the same grids; the gradient takes the place of `x`."""
    steps = levels(tuple(x.shape[1:]), selection)
    values = torch.empty(len(x), dtype=torch.float64)
    _call("energies", x, steps, len(steps), values.data_ptr())
    return values.sum().to(x.dtype), x


@lru_cache(maxsize=256)
def levels(size: tuple[int, ...], selection: Selection) -> ctypes.Array[Level]:
    """The levels of the loss. Each adds up its bands, or subtracts the others if fewer."""
    result = []
    every = grids(size, selection.names, selection.levels)
    # The weight of the last level beside that of the first.
    heaviest = ratio(size, every[-2], selection) * max(1, selection.coarse_weight)
    for grid, coarser in pairwise(every):
        axes = [axis(n, name) for n, name in zip(grid, selection.names, strict=True)]
        last = coarser is every[-1]
        deeper = selection.coarse_weight if last else ratio(grid, coarser, selection)
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


def released(x: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
    """As `gradient.energy` in the released convention; the transposed filters make the gradient."""
    value, steps, size = x.new_zeros(()), [], x.shape[1:]
    compared = {*selection.bands}
    for _ in range(selection.levels):
        grid = x.shape[1:]
        analysis, synthesis = (_released(grid, selection.names, back) for back in (False, True))
        bands = _split(x, analysis, {"aaa", *compared})
        x = bands[0]
        rebuilt = _join(bands, synthesis, compared)
        weight = voxels(size, selection) / voxels(grid, selection)
        value += weight * rebuilt.square().sum()
        steps.append((analysis, _split(rebuilt.mul_(weight), synthesis, compared)))
    analysis, bands = steps.pop()
    gradient = _join(bands, analysis, compared)
    for analysis, bands in reversed(steps):
        bands[0] = bands[0] + gradient if "aaa" in compared else gradient
        gradient = _join(bands, analysis, {"aaa", *compared})
    return value, gradient


def _split(x: Tensor, axes: Sequence[Axis], names: Collection[str]) -> Tensor:
    """Volumes (c, d, h, w) to their bands (8, c, d', h', w'), those of other names undefined."""
    bands = x.new_empty(len(BANDS), len(x), *(axis.coefficients for axis in axes))
    _filter(x, bands, axes, names, False)
    return bands


def _join(bands: Tensor, axes: Sequence[Axis], names: Collection[str]) -> Tensor:
    """The transpose of `_split`."""
    x = bands.new_empty(bands.shape[1], *(axis.samples for axis in axes))
    _filter(x, bands, axes, names, True)
    return x


def _filter(
    x: Tensor, bands: Tensor, axes: Sequence[Axis], names: Collection[str], back: bool
) -> None:
    named = zip(BANDS, bands, strict=True)
    pointers = (band.data_ptr() if name in names else None for name, band in named)
    addresses = (ctypes.c_void_p * len(BANDS))(*pointers)
    _call("filter_volumes", x, (Axis * 3)(*axes), addresses, back)


@lru_cache(maxsize=256)
def _released(size: Sequence[int], names: Sequence[str], synthesis: bool) -> tuple[Axis, ...]:
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
