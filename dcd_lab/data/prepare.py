"""Preparation: crop to the brain, normalise, resample; every voxel keeps its position in mm.

Every function that moves voxels moves the affine with them. So the affines alone bring a prediction
back to the scan it was made for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from scipy import ndimage

from dcd_core.errors import positive, within
from dcd_core.types import Case, ContractError, Size3, checked_case
from dcd_lab.tasks import TASKS, Task, checked_task

MARGIN = 2
"""Voxels kept around the brain, so that its surface is never the edge of the volume."""
ADC_RANGE = (0.0, 4.0)
"""Apparent diffusion coefficients that tissue and fluid can have, in 1e-3 mm2/s."""
Z_RANGE = (-5.0, 10.0)
"""Normalised intensities are clipped to this: vessels, fat and reconstruction errors lie beyond and
would dominate a feature distance. Enhancing tumour and acute infarcts stay well inside."""
MOST_VOXELS = 10**9
"""Of a resampled channel: with more, the spacing is in another unit than mm."""
THICK = 3.0
"""Slices thicker than this many times the in-plane spacing are not interpolated across."""


def resample(
    volume: Float32[np.ndarray, "_ _ _"],
    affine: Float[np.ndarray, "4 4"],
    *,
    onto_affine: Float[np.ndarray, "4 4"],
    onto_shape: Size3,
    order: int = 1,
    mode: str = "constant",
) -> Float32[np.ndarray, "_ _ _"]:
    """Sample a volume at the voxels of another grid by the two affines alone.

    (i, j, k) in, `onto_shape` out; spline `order` 1 is trilinear, 0 nearest neighbour. Outside the
    volume the result is 0 (`mode="constant"`) or its nearest voxel (`"nearest"`).
    """
    matrix = np.linalg.inv(affine) @ onto_affine
    # Rounding keeps a shared voxel shared: -1e-16 would already be outside the volume.
    matrix = np.round(matrix, 9)
    linear, offset = matrix[:3, :3], matrix[:3, 3]
    if not (linear - np.diag(np.diag(linear))).any():
        linear = np.diag(linear)  # scipy's separable path, several times as fast
    return ndimage.affine_transform(
        volume, linear, offset, output_shape=onto_shape, order=order, mode=mode
    )


def prepare(
    case: Case,
    *,
    spacing_mm: float | tuple[float, float, float] | None = None,
    task: Task | None = None,
) -> Case:
    """Crop a case to its brain, normalise every channel, then resample it to `spacing_mm`.

    The brain is every voxel at which some channel is not zero, holes filled. Each channel becomes
    z-scores over that one mask on the native grid, clipped to `Z_RANGE`; outside is 0. The ADC is
    clipped to `ADC_RANGE` first. `task` says which channel that is; by default it is the task with
    as many channels.
    Images are resampled by cubic splines, labels by the largest linearly resampled indicator. An
    axis whose spacing, before or after, is more than `THICK` times the others takes the nearest
    slice. The affine of the result gives its position in the original scan.
    Raises ContractError when the image is empty or not finite, for another number of channels than
    the task has, for a label or an affine that is not that of the image, or a spacing not positive.
    Source: Isensee et al., nnU-Net, Nature Methods, 2021 (order of the steps, shared mask, thick
    slices); unlike there, what a spline leaves outside the resampled brain is put to 0 again.
    """
    case = checked_case(case)
    brain = (case.image != 0).any(axis=0)
    if not brain.any():
        raise ContractError(f"case {case.id}", "only zeros", "a brain", "look at the source files")
    if wrong := int(case.image.size - np.isfinite(case.image).sum()):
        got, attempt = f"{wrong} voxels that are not finite", "dcd audit, which names the file"
        raise ContractError(f"case {case.id}", got, "finite intensities", attempt)
    box = _box(brain)
    brain = ndimage.binary_fill_holes(brain[box])
    image = case.image[(slice(None), *box)].copy()
    _normalise(image, brain, _adc_channel(case, task))
    label = None if case.label is None else case.label[box].copy()
    affine = case.affine.copy()
    affine[:3, 3] += case.affine[:3, :3] @ [edge.start for edge in box]
    cropped = Case(case.id, image, label, case.spacing_mm, affine)
    return cropped if spacing_mm is None else _respaced(cropped, spacing_mm)


def _box(brain: Bool[np.ndarray, "i j k"]) -> tuple[slice, slice, slice]:
    """Return the slices that hold the brain and a margin, within the volume."""
    edges = []
    for axis, size in enumerate(brain.shape):
        inside = np.flatnonzero(brain.any(axis=tuple({0, 1, 2} - {axis})))
        start, stop = int(inside[0]) - MARGIN, int(inside[-1]) + 1 + MARGIN
        edges.append(slice(max(start, 0), min(stop, size)))
    return edges[0], edges[1], edges[2]


def _adc_channel(case: Case, task: Task | None) -> int | None:
    channels = len(case.image)
    if task is None:
        task = next((task for task in TASKS.values() if len(task.channels) == channels), None)
    elif len(checked_task(task).channels) != channels:
        expected = ", ".join(task.channels)
        what, attempt = f"channels of {case.id}", "name the task of this case"
        raise ContractError(what, channels, expected, attempt)
    return task.channels.index("adc") if task and "adc" in task.channels else None


def _normalise(
    image: Float32[np.ndarray, "c i j k"], brain: Bool[np.ndarray, "i j k"], adc: int | None
) -> None:
    """Turn each channel, in place, into z-scores over the brain and zeros around it."""
    if adc is not None:
        np.clip(image[adc], *ADC_RANGE, out=image[adc])
    for channel in image:
        inside = channel[brain]
        mean, std = float(inside.mean(dtype=np.float64)), float(inside.std(dtype=np.float64))
        channel[:] = 0
        channel[brain] = np.clip((inside - mean) / max(std, 1e-8), *Z_RANGE)


def _respaced(case: Case, spacing_mm: float | tuple[float, float, float]) -> Case:
    """Resample a case about the centre of its field of view; equal spacing returns it untouched."""
    given: Any = spacing_mm
    sizes = (given,) * 3 if np.ndim(given) == 0 else (*given,)
    within("spacing_mm", spacing_mm, len(sizes) == 3, "one number or three, in mm")
    target = np.array([positive("spacing_mm", size) for size in sizes])
    step = target / case.spacing_mm
    if np.allclose(step, 1, rtol=0, atol=1e-3):
        return case
    old = np.array(case.image.shape[1:])
    new = np.maximum(np.round(old / step), 1)
    within(
        "spacing_mm", spacing_mm, bool(new.prod() <= MOST_VOXELS), f"at most {MOST_VOXELS} voxels"
    )
    new = new.astype(int)
    start = ((old - 1) - (new - 1) * step) / 2
    index = np.diag([*step, 1.0])
    index[:3, 3] = start
    thick = _thick_axis(case.spacing_mm)
    thick = _thick_axis(target) if thick is None else thick

    def moved(volume: Float32[np.ndarray, "i j k"], order: int) -> Float32[np.ndarray, "_ _ _"]:
        matrix, shape = index.copy(), new.copy()
        if thick is not None:  # first within the slices, then whole slices
            matrix[thick] = np.eye(4)[thick]
            shape[thick] = old[thick]
        # The outermost new voxels can lie half a voxel beyond the old ones, hence "nearest".
        result = resample(
            volume,
            np.eye(4),
            onto_affine=matrix,
            onto_shape=(int(shape[0]), int(shape[1]), int(shape[2])),
            order=order,
            mode="nearest",
        )
        if thick is None:
            return result
        slices = np.rint(start[thick] + step[thick] * np.arange(new[thick])).astype(int)
        return result.take(slices.clip(0, old[thick] - 1), axis=thick)

    brain = moved((case.image != 0).any(axis=0).astype(np.float32), 1) > 0.5
    image = np.stack([moved(channel, 3) * brain for channel in case.image])
    label = None if case.label is None else _vote(case.label, partial(moved, order=1))
    spacing = (float(target[0]), float(target[1]), float(target[2]))
    return Case(case.id, image, label, spacing, case.affine @ index)


def _thick_axis(spacing_mm: Sequence[float] | np.ndarray) -> int | None:
    """The one axis along which voxels are more than `THICK` times as long as along the others."""
    others, longest = np.sort(spacing_mm)[:2], int(np.argmax(spacing_mm))
    return longest if spacing_mm[longest] > THICK * others.max() else None


def _vote(label: UInt8[np.ndarray, "i j k"], moved: Callable) -> UInt8[np.ndarray, "_ _ _"]:
    """Resample labels: the one whose indicator, moved linearly, is largest wins each voxel."""
    values = np.unique(label)
    shares = np.stack([moved((label == value).astype(np.float32)) for value in values])
    return values[shares.argmax(axis=0)]
