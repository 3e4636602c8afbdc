"""Volumes: one NIfTI file in memory, and each way in which it can be unfit.

Every `refuse_...` looks at one thing. `read` lets the first of them end the reading of a scan; the
audit collects what all of them say.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError
from scipy import ndimage

from dcd_core.types import ContractError
from dcd_lab.data.editions import numbering
from dcd_lab.data.grid import resample

GRID_TOLERANCE = 1e-3
"""Largest difference between two entries of the affines of one grid, in mm."""
LABEL_TOLERANCE = 1e-3
"""Largest distance of a stored label from a whole number."""
BROKEN = (OSError, EOFError, zlib.error, ValueError, TypeError, ImageFileError, HeaderDataError)
"""What nibabel raises at files that are cut short or no images."""


class Volume(NamedTuple):
    """The voxels of one file, 3-D, with the affine that nibabel takes from its header.

    That is the sform where its code is not 0, else the qform, else the voxel sizes alone. Where
    both are set and disagree, the sform counts; the audit reports it.
    """

    path: Path
    array: Float32[np.ndarray, "i j k"]
    affine: Float[np.ndarray, "4 4"]


def load(path: Path) -> Volume:
    """Read one file; ContractError when it is absent, unreadable, not 3-D, not finite."""
    stored = open_image(path)
    refuse_not_3d(path, stored)
    volume = voxels(path, stored)
    refuse_not_finite(volume)
    refuse_no_grid(volume)
    return volume


def open_image(path: Path) -> nib.Nifti1Pair:
    """Return a NIfTI image whose header has been read, its voxels not yet.

    Raises ContractError when the file is absent or something else.
    """
    if not path.is_file():
        raise ContractError(str(path), "no such file", "a NIfTI file", "fetch this scan again")
    try:
        stored = nib.load(path)
    except BROKEN as error:
        raise unreadable(path, error) from error
    if not isinstance(stored, nib.Nifti1Pair):
        raise unreadable(path, TypeError(f"a {type(stored).__name__}"))
    return stored


def refuse_not_3d(path: Path, stored: nib.Nifti1Pair) -> None:
    """Raise ContractError unless an image has three axes, trailing ones of length 1 aside."""
    if len(_extent(stored.shape)) != 3:
        attempt = "store one volume per file"
        raise ContractError(str(path), f"shape {stored.shape}", "3 axes", attempt)


def _extent(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def voxels(path: Path, stored: nib.Nifti1Pair) -> Volume:
    """Read the voxels of an opened 3-D image; ContractError when they cannot be read."""
    try:
        with np.errstate(over="ignore"):  # beyond float32 becomes inf, which is refused later
            array = np.asarray(stored.dataobj, dtype=np.float32)
    except BROKEN as error:
        raise unreadable(path, error) from error
    array = array.reshape(_extent(array.shape))
    return Volume(path, array, np.asarray(stored.affine, dtype=np.float64))


def unreadable(path: Path, error: Exception) -> ContractError:
    """Return the error of a file that is damaged, by what its decoder said."""
    attempt = "fetch this file again: it is damaged or cut short"
    got = f"{type(error).__name__} ({error})"
    return ContractError(str(path), got, "a readable NIfTI file", attempt)


def refuse_not_finite(volume: Volume) -> None:
    """Raise ContractError for NaN and infinite voxels."""
    if bad := int(volume.array.size - np.isfinite(volume.array).sum()):
        got, attempt = f"{bad} NaN or infinite voxels", "export it again, with 0 for no signal"
        raise ContractError(str(volume.path), got, "finite voxels", attempt)


def refuse_no_grid(volume: Volume) -> None:
    """Raise ContractError when the affine places no voxel anywhere."""
    affine = volume.affine
    if not (np.isfinite(affine).all() and abs(np.linalg.det(affine)) > 1e-9):
        got, attempt = "an affine that cannot be inverted", "restore the header's sform or qform"
        raise ContractError(str(volume.path), got, "a grid", attempt)


def refuse_zeros(volume: Volume) -> None:
    """Raise ContractError when there is no signal at all."""
    if not volume.array.any():
        expected = "signal within the grid of the first channel"
        attempt = "look at this file and its header, and fetch it again"
        raise ContractError(str(volume.path), "zeros throughout", expected, attempt)


def same_grid(volume: Volume, first: Volume) -> bool:
    """Tell whether voxel (i, j, k) of both is at the same place."""
    close = np.allclose(volume.affine, first.affine, rtol=0, atol=GRID_TOLERANCE)
    return volume.array.shape == first.array.shape and close


def refuse_other_grid(volume: Volume, first: Volume) -> None:
    """Raise ContractError unless both are on one grid."""
    if volume.array.shape != first.array.shape:
        got, expected = f"shape {volume.array.shape}", f"{first.array.shape}"
    elif not same_grid(volume, first):
        apart = np.abs(volume.affine - first.affine).max()
        got, expected = f"an affine {apart:.3g} mm off", f"within {GRID_TOLERANCE} mm"
    else:
        return
    attempt = "fetch both files again, or resample this one to the other's grid"
    raise ContractError(str(volume.path), got, f"{expected}, as {first.path.name}", attempt)


def turned_to(volume: Volume, first: Volume) -> Volume:
    """Return the volume with its axes in the order and direction of `first`: no value changes.

    Tools store one grid as LAS, LPS or RAS; the affine says which, and moves along.
    """
    if same_grid(volume, first):  # at a tilt of 45 degrees rounding decides on the order
        return volume
    orders = io_orientation(volume.affine), io_orientation(first.affine)
    stored = nib.Nifti1Image(volume.array, volume.affine)
    turned = stored.as_reoriented(ornt_transform(*orders))
    return Volume(volume.path, np.asarray(turned.dataobj), np.asarray(turned.affine, np.float64))


def onto(volume: Volume, first: Volume, *, order: int = 1) -> Volume:
    """Resample a volume to the grid of `first` by the headers, unless it is there.

    `order` 1 is linear, 0 takes the nearest voxel.
    """
    if same_grid(volume, first):
        return volume
    i, j, k = first.array.shape
    moved = resample(
        volume.array, volume.affine, onto_affine=first.affine, onto_shape=(i, j, k), order=order
    )
    return Volume(volume.path, moved, first.affine)


def brain_of(channels: list[Float32[np.ndarray, "i j k"]]) -> Bool[np.ndarray, "i j k"]:
    """Return where some channel is not zero, holes filled."""
    return ndimage.binary_fill_holes(np.any([channel != 0 for channel in channels], axis=0))


def is_micro(adc: Float32[np.ndarray, "i j k"], brain: Bool[np.ndarray, "i j k"]) -> bool:
    """Tell whether an ADC came in 1e-6 mm2/s: its median inside the brain is above 50 then."""
    inside = adc[brain & (adc != 0)]
    return bool(inside.size and np.median(inside) > 50)


def refuse_fractions(volume: Volume) -> None:
    """Raise ContractError when a label is not stored in whole numbers."""
    apart = np.abs(volume.array - np.round(volume.array))
    if apart.max() >= LABEL_TOLERANCE:
        worst = volume.array.flat[apart.argmax()]
        attempt = "resample labels by nearest neighbour"
        raise ContractError(str(volume.path), f"the value {worst:g}", "whole numbers", attempt)


def label_of(volume: Volume, task: str, edition: int) -> UInt8[np.ndarray, "i j k"]:
    """Return the label in the numbers of the task, whatever the edition called them.

    Raises ContractError for values that are not whole or that the edition does not have.
    """
    refuse_fractions(volume)
    numbers = numbering(task, edition)
    whole = np.round(volume.array)
    values, counts = np.unique(whole, return_counts=True)
    strange = ~np.isin(values, list(numbers))
    if strange.any():
        voxels_of = f"{counts[strange].sum()} voxels of {_listed(values[strange])}"
        expected = f"{_in_words(list(numbers))} ({task}, edition {edition})"
        attempt = "name the edition the labels come from, or correct these voxels"
        got = f"labels {_listed(values)} ({voxels_of})"
        raise ContractError(str(volume.path), got, expected, attempt)
    return _renumbered(whole, numbers)


def _listed(values: Float32[np.ndarray, " n"]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _renumbered(
    whole: Float32[np.ndarray, "i j k"], numbers: Mapping[int, int]
) -> UInt8[np.ndarray, "i j k"]:
    table = np.zeros(max(numbers) + 1, np.uint8)
    table[list(numbers)] = list(numbers.values())
    return table[whole.astype(np.uint8)]


def _in_words(values: list[int]) -> str:
    if values == list(range(len(values))):
        return f"whole numbers 0 to {values[-1]}"
    return "only " + ", ".join(map(str, values))
