"""Volumes: one NIfTI file in memory, and what can make a file unusable.

`read` stops at the first fault; the audit collects all of them.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from jaxtyping import Bool, Float, Float32
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError
from scipy import ndimage

from dcd_core.types import ContractError
from dcd_lab.data.prepare import resample

GRID_TOLERANCE = 1e-3
"""Largest difference between two entries of the affines of one grid, in mm."""
LABEL_TOLERANCE = 1e-3
"""Largest distance of a stored label from a whole number."""
_OF_VALUES = (ValueError, TypeError, OverflowError)
BROKEN = (OSError, EOFError, zlib.error, ImageFileError, HeaderDataError, *_OF_VALUES)
"""What nibabel raises at files that are cut short or no images, or have an offset without end."""
_GROWTH = {".gz": 1040, ".bz2": math.inf, ".zst": math.inf}  # bytes unpacked from one, at most
_CHUNK = 1 << 22
_OTHER_UNITS = {1: "metre", 3: "micron"}


class NiftiVolume(NamedTuple):
    """The voxels of one file, 3-D, with the affine (in mm) that nibabel takes from its header.

    That is the sform where its code is not 0, else the qform, else the voxel sizes alone.
    """

    path: Path
    array: Float32[np.ndarray, "i j k"]
    affine: Float[np.ndarray, "4 4"]


def load(path: Path) -> NiftiVolume:
    """Read one file; ContractError when it is absent, unreadable, not finite or its header bad."""
    stored = open_image(path)
    for _, error in header_faults(path, stored):
        raise error
    volume = voxels(path, stored)
    refuse_not_finite(volume)
    return volume


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what nibabel raises at a damaged file into a ContractError that names the file."""
    try:
        yield
    except ContractError:  # a ValueError, which has its own words
        raise
    except BROKEN as error:
        got, attempt = f"{type(error).__name__} ({error})", "fetch this file again: it is damaged"
        # The file came as it was written; "w2" is in what nibabel says of a quaternion beyond 1.
        if isinstance(error, HeaderDataError) or "w2 should be positive" in str(error):
            attempt = "correct its header: qform, sform and dimensions"
        raise ContractError(str(path), got, "a readable NIfTI file", attempt) from error


def open_image(path: Path) -> nib.Nifti1Pair:
    """Return a NIfTI image; ContractError when it is absent, damaged or no such.

    A compressed file is read to its checksum, which nibabel does not look at.
    """
    if not path.is_file():
        raise ContractError(str(path), "no such file", "a NIfTI file", "fetch this scan again")
    with reading(path):
        stored = nib.load(path)
        if not isinstance(stored, nib.Nifti1Pair):
            raise TypeError(f"a {type(stored).__name__}")
        _refuse_impossible(path, stored)
        if path.suffix.lower() == ".gz" and isinstance(stored, nib.Nifti1Image):
            return stored.from_bytes(_unpacked(path, _size(stored)))
        for place in _places(stored):  # the header and the voxels of a pair
            if place.suffix.lower() == ".gz":
                _unpacked(place, 0)
    return stored


def _places(stored: nib.Nifti1Pair) -> list[Path]:
    return [Path(holder.filename) for holder in stored.file_map.values() if holder.filename]


def _size(stored: nib.Nifti1Pair) -> int:
    """Bytes of a file whose header promises these voxels."""
    count = math.prod(map(int, stored.shape)) * stored.get_data_dtype().itemsize
    offset = int(stored.dataobj.offset)  # type: ignore[attr-defined]
    if not isinstance(stored, nib.Nifti1Image):  # of a pair, whose header has a file of its own
        return count + offset
    return count + max(offset, len(stored.header.binaryblock) + 4)  # and the flag of extensions


def _refuse_impossible(path: Path, stored: nib.Nifti1Pair) -> None:
    """Raise ContractError where the file cannot hold the voxels: no memory is taken for them."""
    places = _places(stored)
    size = max(place.stat().st_size for place in places)
    most = max(size * _GROWTH.get(place.suffix.lower(), 1) for place in places)
    if math.prod(map(int, stored.shape)) <= 0 or _size(stored) > most:
        got, attempt = f"shape {stored.shape} in {size} bytes", "correct its header, or fetch it"
        raise ContractError(str(path), got, "voxels, as many as the file holds", attempt)


def _unpacked(path: Path, size: int) -> bytes:
    """The first `size` bytes of a compressed file, which is read and checked to its end."""
    with gzip.open(path) as file:
        content = file.read(size)
        while file.read(_CHUNK):
            pass
    return content


def header_faults(path: Path, stored: nib.Nifti1Pair) -> Iterator[tuple[str, ContractError]]:
    """Yield what makes a header unusable, each with the name that the audit gives it."""
    shape, affine, kind = stored.shape, stored.affine, stored.get_data_dtype()
    unit = _OTHER_UNITS.get(int(stored.header["xyzt_units"]) & 7)
    if len(shape) < 3 or any(extent != 1 for extent in shape[3:]):
        fault = f"shape {shape}", "3 axes", "store one volume per file"
        yield "number of axes", ContractError(str(path), *fault)
    if kind.kind == "c":  # the imaginary part would be lost
        fault = f"{kind} voxels", "real voxels", "store the magnitude"
        yield "complex voxels", ContractError(str(path), *fault)
    if not (np.isfinite(affine).all() and abs(np.linalg.det(affine)) > 1e-9):
        fault = "an affine that cannot be inverted", "a grid", "restore the sform or qform"
        yield "unusable affine", ContractError(str(path), *fault)
    if unit:
        fault = f"lengths in {unit}", "mm", "store it in mm, or correct the unit in its header"
        yield "unit of length", ContractError(str(path), *fault)


def voxels(path: Path, stored: nib.Nifti1Pair) -> NiftiVolume:
    """Read the voxels of an opened 3-D image; ContractError when they cannot be read."""
    with reading(path), np.errstate(over="ignore"):  # beyond float32 becomes inf
        array = np.asarray(stored.dataobj, dtype=np.float32)
    return NiftiVolume(path, array.reshape(array.shape[:3]), np.asarray(stored.affine, np.float64))


def refuse_not_finite(volume: NiftiVolume) -> None:
    """Raise ContractError for NaN and infinite voxels."""
    if bad := int(volume.array.size - np.isfinite(volume.array).sum()):
        got, attempt = f"{bad} NaN or infinite voxels", "export it again, with 0 for no signal"
        raise ContractError(str(volume.path), got, "finite voxels", attempt)


def refuse_zeros(volume: NiftiVolume) -> None:
    """Raise ContractError when there is no signal at all."""
    if not volume.array.any():
        expected = "signal within the grid of the first channel"
        attempt = "look at this file and its header, and fetch it again"
        raise ContractError(str(volume.path), "zeros throughout", expected, attempt)


def refuse_fractions(label: NiftiVolume) -> None:
    """Raise ContractError when a label is not stored in whole numbers."""
    distance = np.abs(label.array - np.round(label.array))
    if distance.max() >= LABEL_TOLERANCE:
        worst = label.array.flat[distance.argmax()]
        attempt = "resample labels by nearest neighbour"
        raise ContractError(str(label.path), f"the value {worst:g}", "whole numbers", attempt)


def refuse_other_grid(volume: NiftiVolume, first: NiftiVolume) -> None:
    """Raise ContractError unless both are on one grid."""
    if same_grid(volume, first):
        return
    got, expected = f"shape {volume.array.shape}", f"{first.array.shape}"
    if volume.array.shape == first.array.shape:
        distance = np.abs(volume.affine - first.affine).max()
        got, expected = f"an affine {distance:.3g} mm off", f"within {GRID_TOLERANCE} mm"
    attempt = "fetch both files again, or resample this one to the other's grid"
    raise ContractError(str(volume.path), got, f"{expected}, as {first.path.name}", attempt)


def same_grid(volume: NiftiVolume, first: NiftiVolume) -> bool:
    """Tell whether voxel (i, j, k) of both has the same position."""
    close = np.allclose(volume.affine, first.affine, rtol=0, atol=GRID_TOLERANCE)
    return volume.array.shape == first.array.shape and close


def turned_to(volume: NiftiVolume, first: NiftiVolume) -> NiftiVolume:
    """Return the volume with its axes in the order and direction of `first`: no value changes."""
    if same_grid(volume, first):  # at a tilt of 45 degrees rounding decides on the order
        return volume
    orders = io_orientation(volume.affine), io_orientation(first.affine)
    stored = nib.Nifti1Image(volume.array, volume.affine)
    turned = stored.as_reoriented(ornt_transform(*orders))
    affine = np.asarray(turned.affine, np.float64)
    return NiftiVolume(volume.path, np.asarray(turned.dataobj), affine)


def onto(volume: NiftiVolume, first: NiftiVolume, *, order: int = 1) -> NiftiVolume:
    """Resample a volume to the grid of `first` by the headers; `order` as in `resample`."""
    if same_grid(volume, first):
        return volume
    i, j, k = first.array.shape
    moved = resample(
        volume.array, volume.affine, onto_affine=first.affine, onto_shape=(i, j, k), order=order
    )
    return NiftiVolume(volume.path, moved, first.affine)


def brain_of(channels: list[Float32[np.ndarray, "i j k"]]) -> Bool[np.ndarray, "i j k"]:
    """Return where some channel is not zero, holes filled."""
    return ndimage.binary_fill_holes(np.any([channel != 0 for channel in channels], axis=0))


def is_micro(adc: Float32[np.ndarray, "i j k"], brain: Bool[np.ndarray, "i j k"]) -> bool:
    """Tell whether an ADC is in 1e-6 mm2/s: its median inside the brain is above 50 then."""
    inside = adc[brain & (adc != 0)]
    return bool(inside.size and np.median(inside) > 50)
