"""From a trained segmenter to a label volume: sliding window, one threshold, the native grid.

A network sees patches; a case is larger. Overlapping windows are averaged under a Gaussian that
trusts window centres more than borders. The decision is one number: a voxel is foreground when its
foreground probability exceeds a threshold chosen on the tune split, and takes the most probable
foreground label.

Source: Isensee et al., nnU-Net, Nature Methods 18, 2021; window blending by MONAI.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from dcd_core.models import Segmenter, evaluating
from dcd_core.types import ContractError, Precision, Size3

THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 20))
"""Foreground probabilities that are tried on the tune split."""


@torch.inference_mode()
def predict(
    model: Segmenter,
    image: Float32[np.ndarray, "c d h w"],
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
    ContractError for an overlap out of range, or a network of overlapping regions.
    """
    from monai.inferers import sliding_window_inference

    if not 0 <= overlap < 1:
        raise ContractError("overlap", overlap, "a share in [0, 1)", "0.5")
    if model.regions:
        raise ContractError(
            "logits to predict with",
            "those of overlapping regions, a sigmoid each",
            "classes of which one is true",
            "nnU-Net's own prediction; as a teacher of features the network serves as it is",
        )
    device = next(model.parameters()).device
    mixed = in_bfloat16(device, precision)
    volume = torch.tensor(image, device=device)[None]  # a copy: images may be memory-mapped

    def probabilities(x: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
            logits = model(x).logits
        return logits.float().softmax(1)

    flips = _FLIPS if mirror else ((),)
    total = torch.zeros((), device=device)
    with evaluating(model):
        for axes in flips:
            result = sliding_window_inference(
                volume.flip(axes), patch, batch, probabilities, overlap=overlap, mode="gaussian"
            )
            total = total + torch.as_tensor(result).flip(axes)
    return total[0] / len(flips)


def in_bfloat16(device: torch.device, precision: Precision) -> bool:
    """Whether convolutions run in bfloat16: if asked to or, by "auto", where that is native."""
    return precision == "bf16-mixed" or (precision == "auto" and native_bfloat16(device))


_FLIPS = ((), (2,), (3,), (4,), (2, 3), (2, 4), (3, 4), (2, 3, 4))


def decide(
    probabilities: Float[np.ndarray, "k i j k2"], threshold: float
) -> UInt8[np.ndarray, "i j k2"]:
    """Label volume (d, h, w) from class probabilities (k, d, h, w).

    The most probable foreground label wherever the foreground probability exceeds `threshold`,
    elsewhere 0.
    """
    foreground = probabilities[1:].sum(0) > threshold
    label: UInt8[np.ndarray, "i j k2"] = np.where(
        foreground, probabilities[1:].argmax(0) + 1, 0
    ).astype(np.uint8)
    return label


def choose_threshold(
    probabilities: Sequence[Float[np.ndarray, "_ _ _ _"]],
    labels: Sequence[UInt8[np.ndarray, "_ _ _"]],
) -> tuple[float, float]:
    """The threshold with the best mean foreground Dice over the tune cases, and that Dice.

    `probabilities` (k, d, h, w) and `labels` (d, h, w), one of each per case. All labels count as
    one foreground, every case counts once; of equally good thresholds the lowest is taken.
    """
    pairs = [(p[1:].sum(0), y > 0) for p, y in zip(probabilities, labels, strict=True)]
    scores = [float(np.mean([_dice(p > t, y) for p, y in pairs])) for t in THRESHOLDS]
    best = int(np.argmax(scores))
    return THRESHOLDS[best], scores[best]


def _dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Dice of two masks; two empty ones agree."""
    total = int(prediction.sum()) + int(truth.sum())
    return 2 * int((prediction & truth).sum()) / total if total else 1.0


def native_bfloat16(device: torch.device) -> bool:
    """Return whether bfloat16 products are native; emulated ones are slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
