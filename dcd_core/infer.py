"""From a trained segmenter to a label volume: sliding window, one threshold, the native grid.

Overlapping windows are averaged with Gaussian weights. The threshold is chosen on the val split.

Source: Isensee et al., nnU-Net, Nature Methods 18, 2021; window blending by MONAI.
"""

import math
from collections.abc import Iterable
from itertools import combinations
from typing import get_args

import numpy as np
import torch
from jaxtyping import Float, Float32, Real, UInt8
from torch import Tensor

from dcd_core.errors import at_least, finite, flag, one_of, share, whole
from dcd_core.models import Segmenter, evaluating
from dcd_core.types import Case, ContractError, Precision, Size3, checked_case, dense

THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 20))
"""Foreground probabilities that are tried on the val split."""


@torch.inference_mode()
def predict(
    model: Segmenter,
    image: Real[np.ndarray, "c d h w"],
    *,
    patch: Size3,
    overlap: float = 0.5,
    mirror: bool = False,
    batch: int = 4,
    precision: Precision = "auto",
) -> Float[Tensor, "k d h w"]:
    """Class probabilities (k, d, h, w) of one prepared image (c, d, h, w), on the model's device.

    `overlap` is the share of a window that the next one covers again, in [0, 1); `mirror` averages
    the eight flips as well (eight times the cost); `precision` is that of `train.Recipe`. Raises
    ContractError for an overlap or a patch out of range, a network of overlapping regions, and for
    voxels or probabilities that are not finite.
    """
    from monai.inferers import sliding_window_inference

    window = whole("patch", patch, count=3)
    share("overlap", overlap)
    flag("mirror", mirror)
    at_least("batch", batch, 1)
    voxels = real(image)
    if voxels.ndim != 4 or not voxels.size:
        expected, attempt = "(c, d, h, w), voxels along all axes", "a prepared image"
        raise ContractError("image", voxels.shape, expected, attempt)
    if getattr(model, "regions", None) is None:  # a compiled Segmenter is none by its type
        got, attempt = type(model).__name__, "models.Segmenter(...), or its `module`"
        raise ContractError("model", got, "a Segmenter", attempt)
    if model.regions:
        got, expected = "overlapping regions, a sigmoid each", "classes of which one is true"
        raise ContractError("logits to predict with", got, expected, "nnU-Net's own prediction")
    device = next(model.parameters()).device
    mixed = in_bfloat16(device, precision)
    # A copy, since images may be memory-mapped; float32 whatever their type and byte order.
    volume = torch.tensor(voxels, device=device)[None]
    _refuse_not_finite("image to predict", volume, "the file it came from; data.audit names voxels")

    def probabilities(x: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
            logits = model(x).logits
        if logits.shape[1] < 2:  # a softmax of one class is 1 everywhere
            raise ContractError("classes of the network", 1, "at least two", "classes=2")
        return logits.float().softmax(1)

    flips = [axes for n in range(4 if mirror else 1) for axes in combinations((2, 3, 4), n)]
    total = torch.zeros((), device=device)
    with evaluating(model):
        for axes in flips:
            try:
                result = sliding_window_inference(
                    volume.flip(axes),
                    window,
                    batch,
                    probabilities,
                    overlap=overlap,
                    mode="gaussian",
                )
            except (RuntimeError, MemoryError) as error:  # windows that no memory holds
                got = f"{window} ({str(error).splitlines()[0]})"
                raise ContractError(
                    "patch", got, "windows that fit in memory", "64 64 64"
                ) from error
            total = total + torch.as_tensor(result).flip(axes)
    if total.shape[2:] != volume.shape[2:]:
        expected = f"that of the image, {tuple(volume.shape[2:])}"
        attempt = "a network that returns to its grid"
        raise ContractError("grid of the logits", tuple(total.shape[2:]), expected, attempt)
    _refuse_not_finite("probabilities", total, "precision='32-true', or another network")
    return total[0] / len(flips)


def real(image: np.ndarray) -> Float32[np.ndarray, "..."]:
    """The numbers of an image in float32; ContractError where some would be lost."""
    if isinstance(image, Tensor):
        return dense("image", image, "c d h w").detach().float().cpu().numpy()
    try:
        array = np.asarray(image)
    except (TypeError, ValueError):  # lists of unequal lengths
        array = np.empty(0, object)
    if array.dtype.kind not in "fiub":
        attempt = "the magnitude of a complex image, numbers for text"
        raise ContractError("voxels", array.dtype, "real numbers", attempt)
    with np.errstate(over="ignore"):  # beyond float32 becomes inf
        return array.astype(np.float32)


def _refuse_not_finite(what: str, volume: Tensor, attempt: str) -> None:
    if wrong := int(volume.numel() - volume.isfinite().sum()):
        got = f"{wrong} of {volume.numel()} values not finite"
        raise ContractError(what, got, "finite values, or all would be background", attempt)


def in_bfloat16(device: torch.device, precision: Precision) -> bool:
    """Whether convolutions run in bfloat16: if asked to or, by "auto", where that is native."""
    one_of("precision", precision, *get_args(Precision))
    return precision == "bf16-mixed" or (precision == "auto" and native_bfloat16(device))


def native_bfloat16(device: torch.device) -> bool:
    """Return whether bfloat16 products are native, and right; emulated ones are slow.

    On processors with AVX-512 alone, gradients of convolutions on grids of 2^3 voxels hold whatever
    was in memory before (PyTorch 2.13, seen on an AMD EPYC). On CPUs that leaves AMX.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_amx_tile_supported()


def decide(
    probabilities: Float[np.ndarray, "k i j k2"], threshold: float
) -> UInt8[np.ndarray, "i j k2"]:
    """Label volume (d, h, w) from class probabilities (k, d, h, w).

    The most probable foreground label where all of them together exceed `threshold`, else 0. Raises
    ContractError for numbers that would all be background: NaN, or a threshold outside 0 to 1.
    """
    finite("threshold", threshold, lambda x: 0 <= x <= 1, "a probability, 0 to 1")
    array = isinstance(probabilities, np.ndarray) and probabilities.dtype.kind == "f"
    if not array or probabilities.ndim != 4 or not 1 < len(probabilities) <= 256:
        got = f"{getattr(probabilities, 'shape', '')} of {type(probabilities).__name__}"
        expected = "a NumPy array (k, d, h, w) of floats, 2 to 256 classes"
        raise ContractError("probabilities", got, expected, "those of predict, .cpu().numpy()")
    low, high = probabilities.min(initial=0), probabilities.max(initial=0)
    if not -1e-3 < low <= high < 1.001:  # NaN among them
        raise ContractError("probabilities", f"{low} to {high}", "0 to 1", "a softmax of logits")
    label = (probabilities[1:].sum(0) > threshold).astype(np.uint8)
    if len(probabilities) > 2:  # argmax of one channel is 0, and takes longest of all
        label *= (probabilities[1:].argmax(0) + 1).astype(np.uint8)
    return label


def choose_threshold(
    model: Segmenter,
    cases: Iterable[Case],
    *,
    patch: Size3,
    overlap: float = 0.5,
    precision: Precision = "auto",
) -> tuple[float, float]:
    """The threshold with the best mean foreground Dice over prepared val cases, and that Dice.

    All labels are one foreground; unlabelled cases are left out. Of equally good thresholds the
    lowest is chosen, but 0.5 where all have a Dice of 0, and (0.5, NaN) without labelled cases.
    """
    scores = []
    for case in map(checked_case, cases):
        if case.label is not None:
            p = predict(model, case.image, patch=patch, overlap=overlap, precision=precision)
            foreground, truth = p.cpu().numpy()[1:].sum(0), case.label > 0
            scores.append([_dice(foreground > t, truth) for t in THRESHOLDS])
    if not scores:
        return 0.5, math.nan
    means = np.mean(scores, axis=0)
    best = int(np.argmax(means))
    return (THRESHOLDS[best] if means[best] > 0 else 0.5), float(means[best])


def _dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Dice of two masks; 1 for two empty ones."""
    total = np.count_nonzero(prediction) + np.count_nonzero(truth)
    return 2 * np.count_nonzero(prediction & truth) / total if total else 1.0
