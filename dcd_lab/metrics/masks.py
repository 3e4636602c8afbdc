"""Masks: what every score accepts, and the boxes and volumes they all need.

Public scores are typed loosely on purpose: a wrong shape or spacing must reach the checks below,
whose messages are written for people.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import SupportsFloat, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

from dcd_core.types import ContractError, Task

Mask: TypeAlias = Bool[np.ndarray, "i j k"]
Numbers: TypeAlias = Int[np.ndarray, "i j k"]
"""Lesions by number, from 1; 0 is background."""

Triple: TypeAlias = Float[np.ndarray, "3"]
Spacing: TypeAlias = Sequence[SupportsFloat] | np.ndarray
Box: TypeAlias = tuple[slice, slice, slice]

# 3 voxels of 0.9 mm are 2.7000000000000002 mm: rounding must not decide a tie with a tolerance.
ROUNDING_MM = 1e-6
CONNECT_26 = np.ones((3, 3, 3), dtype=bool)


def as_mask(array: np.ndarray, name: str) -> Mask:
    """Return a binary 3D array as booleans; ContractError for anything else."""
    volume = _volume(array, name)
    if volume.dtype != bool and volume.size and (volume.min() < 0 or volume.max() > 1):
        raise ContractError(
            f"values of {name}",
            f"{volume.min()} to {volume.max()}",
            "0 and 1",
            "numpy.isin(labels, region), or score() for whole label volumes",
        )
    return volume.astype(bool)


def as_masks(pred: np.ndarray, true: np.ndarray) -> tuple[Mask, Mask]:
    """Return two binary 3D arrays of one shape as booleans."""
    p, t = as_mask(pred, "pred"), as_mask(true, "true")
    _same_shape(p, t)
    return p, t


def as_labels(pred: np.ndarray, true: np.ndarray, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Return two integer 3D arrays of one shape whose values are labels of the task."""
    p, t = _label(pred, "pred", task), _label(true, "true", task)
    _same_shape(p, t)
    return p, t


def as_spacing(spacing_mm: Spacing) -> Triple:
    """Return three positive numbers, mm along (i, j, k)."""
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (3,) or not np.all(np.isfinite(spacing) & (spacing > 0)):
        raise ContractError(
            "spacing_mm",
            spacing_mm,
            "three positive numbers, mm along (i, j, k)",
            "case.spacing_mm",
        )
    return spacing


def as_distance(distance_mm: SupportsFloat) -> float:
    """Return a distance in mm, which is a number >= 0."""
    value = float(distance_mm)
    if not value >= 0:
        raise ContractError("distance in mm", value, "a number >= 0", "1.0 or the voxel size")
    return value


def count(mask: Mask) -> int:
    """Number of foreground voxels."""
    return int(np.count_nonzero(mask))


def voxel_ml(spacing: Triple) -> float:
    """Volume of a voxel in ml."""
    return float(np.prod(spacing)) / 1000


def box_of(mask: Mask) -> Box:
    """The smallest box that holds a mask, empty for an empty one."""
    spans = [np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    if not len(spans[0]):
        return slice(0, 0), slice(0, 0), slice(0, 0)
    i, j, k = (slice(int(span[0]), int(span[-1]) + 1) for span in spans)
    return i, j, k


def grown(box: Box, voxels: Sequence[int] | np.ndarray) -> Box:
    """A box with so many voxels more on either side along each axis, cut off at index 0.

    Beyond the end of an array, slicing stops by itself.
    """
    i, j, k = (
        slice(max(side.start - int(more), 0), side.stop + int(more))
        for side, more in zip(box, voxels, strict=True)
    )
    return i, j, k


def numbered(mask: Mask) -> tuple[Numbers, int]:
    """Number the 26-connected components of a mask in the order of their first voxels."""
    numbers, count = ndimage.label(mask, CONNECT_26)
    return numbers, int(count)


def _volume(array: np.ndarray, name: str) -> np.ndarray:
    volume = np.asarray(array)
    if volume.ndim != 3:
        raise ContractError(
            f"shape of {name}", volume.shape, "three axes (i, j, k)", "index away batch and channel"
        )
    if volume.dtype != bool and not np.issubdtype(volume.dtype, np.integer):
        raise ContractError(
            f"dtype of {name}", volume.dtype, "bool or integer", "threshold or argmax it first"
        )
    return volume


def _label(array: np.ndarray, name: str, task: Task) -> np.ndarray:
    volume, last = _volume(array, name), len(task.labels) - 1
    if volume.size and (volume.min() < 0 or volume.max() > last):
        raise ContractError(
            f"labels of {name}",
            f"{volume.min()} to {volume.max()}",
            f"0 to {last} ({', '.join(task.labels)})",
            "check the task and the edition of the data set",
        )
    return volume


def _same_shape(pred: np.ndarray, true: np.ndarray) -> None:
    if pred.shape != true.shape:
        raise ContractError(
            "shape of pred", pred.shape, f"the shape of true, {true.shape}", "resample to one grid"
        )
