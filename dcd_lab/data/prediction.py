"""From a case to its label: prepared as in training, predicted, and back on its own grid."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32, UInt8

from dcd_core.infer import decide, predict
from dcd_core.models import Segmenter
from dcd_core.types import Case, ContractError, Precision, Size3
from dcd_lab.data.prepare import prepare, resample
from dcd_lab.tasks import Task


def predict_case(
    model: Segmenter,
    case: Case,
    task: Task,
    *,
    patch: Size3,
    threshold: float = 0.5,
    spacing_mm: float | tuple[float, float, float] | None = None,
    overlap: float = 0.5,
    mirror: bool = False,
    precision: Precision = "auto",
) -> UInt8[np.ndarray, "i j k"]:
    """Label volume of an unprepared case, on the case's own grid.

    The case is prepared as in training (`data.prepare`, resampled to `spacing_mm` if given) and
    predicted; the probabilities return to the native grid before the threshold. Raises
    ContractError when the case has other channels than the task, or the network other classes.
    """
    prepared = prepare(case, spacing_mm=spacing_mm, task=task)
    probabilities = predict(
        model, prepared.image, patch=patch, overlap=overlap, mirror=mirror, precision=precision
    )
    if len(probabilities) != len(task.labels):
        got, expected = f"{len(probabilities)} classes", f"{len(task.labels)}, those of {task.name}"
        raise ContractError("network", got, expected, "one that was trained on this task")
    return decide(to_native(probabilities.cpu().numpy(), prepared, case), threshold)


def to_native(
    probabilities: Float[np.ndarray, "k _ _ _"], prepared: Case, case: Case
) -> Float32[np.ndarray, "k i j l"]:
    """Probabilities on the grid of `prepared`, moved to the grid of `case` by the two affines.

    (k, d, h, w) -> (k, i, j, l). Outside the prepared grid the background is certain. A pure crop
    is copied voxel by voxel; another spacing is interpolated linearly.
    """
    i, j, k = case.image.shape[1:]
    native = np.zeros((len(probabilities), i, j, k), np.float32)
    native[0] = 1
    to_prepared = np.linalg.inv(prepared.affine) @ case.affine
    offset = np.rint(to_prepared[:3, 3]).astype(int)
    crop = np.eye(4)
    crop[:3, 3] = offset
    if np.allclose(to_prepared, crop, atol=1e-3):
        sizes = probabilities.shape[1:]
        box = tuple(slice(-o, -o + n) for o, n in zip(offset, sizes, strict=True))
        native[(slice(None), *box)] = probabilities
        return native
    for index, channel in enumerate(probabilities[1:].astype(np.float32), start=1):
        native[index] = resample(
            channel, prepared.affine, onto_affine=case.affine, onto_shape=(i, j, k)
        )
    native[0] -= native[1:].sum(0)
    return native
