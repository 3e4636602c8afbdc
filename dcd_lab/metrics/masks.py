"""Masks: the check that every score makes of its arguments, and boxes around what is marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import SupportsFloat, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

from dcd_core.errors import not_negative, within
from dcd_core.types import ContractError

Mask: TypeAlias = Bool[np.ndarray, "i j k"]
Numbers: TypeAlias = Int[np.ndarray, "i j k"]
"""Lesions by number, from 1; 0 is background."""

Triple: TypeAlias = Float[np.ndarray, "3"]
# Loose on purpose: a wrong spacing must reach the check, because its message says what to do.
Spacing: TypeAlias = Sequence[SupportsFloat] | np.ndarray
Box: TypeAlias = tuple[slice, ...]

# 3 voxels of 0.9 mm are 2.7000000000000002 mm: rounding must not decide a tie with a tolerance.
ROUNDING_MM = 1e-6
CONNECT_26 = np.ones((3, 3, 3), dtype=bool)
BINARY = ("background", "foreground")
UNIT_MM = (1.0, 1.0, 1.0)


def checked(
    spacing_mm: Spacing, *, labels: Sequence[str] = BINARY, **volumes: np.ndarray
) -> tuple[np.ndarray, ...]:
    """The volumes, named in errors as they are here, then the spacing as an array of three.

    Volumes are integer 3D arrays of one shape whose values are indices of `labels`; masks come back
    as booleans.
    """
    arrays = [_volume(array, name, labels) for name, array in volumes.items()]
    shapes = [array.shape for array in arrays]
    if len(set(shapes)) > 1:
        raise ContractError(
            f"shapes of {', '.join(volumes)}", shapes, "one", "resample to one grid"
        )
    try:
        spacing = np.asarray(spacing_mm, dtype=np.float64)
    except (TypeError, ValueError):
        spacing = np.empty(0)
    if spacing.shape != (3,) or not np.all((spacing > 1e-6) & (spacing < 1e6)):
        raise ContractError(
            "spacing_mm",
            spacing_mm,
            "three positive numbers, mm along (i, j, k)",
            "case.spacing_mm",
        )
    return *arrays, spacing


def as_distance(distance_mm: SupportsFloat) -> float:
    """A distance in mm, which is a finite number >= 0."""
    return not_negative("distance in mm", as_number("distance in mm", distance_mm))


def as_number(what: str, value: SupportsFloat) -> float:
    """A number, infinity perhaps; ContractError for NaN, which no volume is above or below."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ContractError(what, repr(value), "a number", f"the default of `{what}`") from None
    return within(what, number, not math.isnan(number), "a number")


def as_limit(what: str, value: SupportsFloat) -> float:
    """A number, infinity perhaps, of 0 or more."""
    number = as_number(what, value)
    return within(what, number, number >= 0, "0 or more")


def number_name(value: SupportsFloat) -> str:
    """A number in the name of a column: 1 and 1.5 as they are, 0.5 as 05.

    No two numbers share a name, because only those below 1 start with 0.
    """
    text = repr(as_number("distance in mm", value)).removesuffix(".0")
    return text.replace(".", "") if text.startswith("0.") else text


def box_of(mask: Mask) -> Box:
    """The smallest box that holds a mask; one voxel where the mask is empty."""
    plane = np.any(mask, axis=2)  # read twice, in place of the mask
    spans = [np.flatnonzero(x) for x in (plane.any(1), plane.any(0), mask.any(axis=(0, 1)))]
    if not len(spans[0]):
        return (slice(0, 1),) * 3
    return tuple(slice(int(span[0]), int(span[-1]) + 1) for span in spans)


def border(mask: Mask) -> Mask:
    """Foreground voxels with a background voxel among their six face neighbours.

    Beyond the volume everything is background.
    """
    inside = mask.copy()
    for axis in range(3):
        source, target = np.moveaxis(mask, axis, 0), np.moveaxis(inside, axis, 0)
        target[1:] &= source[:-1]
        target[:-1] &= source[1:]
        target[:1] = target[-1:] = False
    return mask & ~inside


def numbered(mask: Mask) -> tuple[Numbers, int]:
    """The 26-connected components of a mask by number, and how many there are."""
    box, numbers = box_of(mask), np.zeros(mask.shape, np.int32)
    numbers[box], count = ndimage.label(mask[box], CONNECT_26)
    return numbers, count


def grown(box: Box, voxels: Sequence[int] | np.ndarray) -> Box:
    """A box with so many voxels more on either side along each axis, cut off at index 0.

    Beyond the end of an array, slicing stops by itself.
    """
    return tuple(
        slice(max(side.start - int(more), 0), side.stop + int(more))
        for side, more in zip(box, voxels, strict=True)
    )


def _volume(array: np.ndarray, name: str, labels: Sequence[str]) -> np.ndarray:
    volume, last = np.asarray(array), len(labels) - 1
    if volume.ndim != 3:
        raise ContractError(
            f"shape of {name}", volume.shape, "three axes (i, j, k)", "index away batch and channel"
        )
    if not volume.size:
        raise ContractError(f"shape of {name}", volume.shape, "voxels along all axes", "the case")
    if volume.dtype != bool and not np.issubdtype(volume.dtype, np.integer):
        raise ContractError(
            f"dtype of {name}", volume.dtype, "bool or integer", "threshold or argmax it first"
        )
    if volume.dtype != bool and (volume.min() < 0 or volume.max() > last):
        raise ContractError(
            f"values of {name}",
            f"{volume.min()} to {volume.max()}",
            f"0 to {last} ({', '.join(labels)})",
            "check the task and the edition of the data set; numpy.isin(label, values) is a mask",
        )
    return volume.astype(bool, copy=False) if labels == BINARY else volume
