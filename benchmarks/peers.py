"""What the loss is timed against: plain MSE, a general wavelet library, and the loss in dense form.

Every function takes student and teacher features (b, c, d, h, w) of equal shape and returns a
scalar; gradients go to the student alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import pywt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcd_core.dcd import DCD, PUBLISHED
from dcd_core.types import Output
from dcd_core.wavelet import BANDS

Layout = Literal["batch", "grouped"]
Mode = Literal["zero", "periodic"]


def plain_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the features themselves: the simplest feature distillation.

    Source: Romero et al., FitNets, ICLR 2015.
    """
    return F.mse_loss(student, teacher)


def ptwt_distance(
    student: Tensor,
    teacher: Tensor,
    *,
    wavelet: str = "db4",
    levels: int = 3,
    bands: Sequence[str] = PUBLISHED,
    mode: Mode = "zero",
) -> Tensor:
    """The coefficient form through `ptwt.wavedec3` of the difference; `bands` without `aaa`.

    ptwt has no periodization. Its other modes keep more coefficients at the borders than there are
    voxels, so this is a peer in cost; where no filter crosses a border (Haar, sizes that halve
    evenly) its values are the orthonormal ones too. Mode "zero" is its default and its fastest.

    Source: Wolter et al., ptwt - The PyTorch Wavelet Toolbox, JMLR 25, 2024.
    """
    import ptwt

    difference = student - teacher
    _, *details = ptwt.wavedec3(difference, wavelet, mode=mode, level=levels)
    total = difference.new_zeros(())
    size = difference.numel()
    for level in reversed(details):  # ptwt lists the coarsest level first
        energy = torch.stack([level[band].square().sum() for band in bands]).sum()
        total = total + energy / size
        size = level["ddd"].numel()
    return total / levels


def dense_distance(
    student: Tensor,
    teacher: Tensor,
    *,
    wavelet: str = "db4",
    levels: int = 3,
    bands: Sequence[str] = PUBLISHED,
    layout: Layout = "batch",
) -> Tensor:
    """The released loss, written straight from its description with dense K x K x K filters.

    Student and teacher take separate branches, the teacher's without a graph, as in training. Per
    level: correlation with the eight outer products of the analysis taps, stride 2, K - 1 zeros on
    both sides; a mask over the bands; transposed correlation with the synthesis taps, cropped; mean
    squared difference of the two reconstructions. The next level starts from the unmasked coarse
    band. Channels do not mix: they are moved into the batch, or are the groups of the convolution.

    Source: commit 7cf0ca6 of the authors' release, as `book/method.md` describes it.
    """
    found = _reconstructions(student, wavelet, levels, bands, layout)
    with torch.no_grad():
        wanted = _reconstructions(teacher, wavelet, levels, bands, layout)
    return torch.stack([F.mse_loss(a, b) for a, b in zip(found, wanted, strict=True)]).mean()


class DenseDCD(nn.Module):
    """`DCD.released` with the dense loss inside: the method of a training step."""

    def __init__(self, student_channels: Sequence[int], teacher_channels: Sequence[int]) -> None:
        super().__init__()
        self.adapters = DCD.released(student_channels, teacher_channels).adapters

    def forward(self, student: Output, teacher: Output, target: Tensor | None = None) -> Tensor:
        """The loss of a batch, stages summed."""
        triples = zip(self.adapters, student.stages, teacher.stages, strict=True)
        return torch.stack([dense_distance(p(s), t) for p, s, t in triples]).sum()


def _reconstructions(
    x: Tensor, wavelet: str, levels: int, bands: Sequence[str], layout: Layout
) -> list[Tensor]:
    if layout == "batch":
        x = x.reshape(-1, 1, *x.shape[2:])
    channels = x.shape[1]
    down, up = _kernels(wavelet, channels, x.dtype, x.device)
    padding = down.shape[-1] - 1
    keep = torch.tensor([float(band in bands) for band in BANDS], dtype=x.dtype, device=x.device)
    mask = keep.repeat(channels)[:, None, None, None]
    found = []
    for _ in range(levels):
        d, h, w = x.shape[2:]
        coefficients = F.conv3d(x, down, stride=2, padding=padding, groups=channels)
        back = F.conv_transpose3d(
            coefficients * mask, up, stride=2, padding=padding, groups=channels
        )
        found.append(back[:, :, :d, :h, :w])
        x = coefficients[:, ::8]
    return found


@lru_cache
def _kernels(
    wavelet: str, channels: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Dense analysis and synthesis filters, (8 * channels, 1, K, K, K) each."""
    # The release rounds its taps, not their products: in float64 the difference shows.
    taps = np.asarray(pywt.Wavelet(wavelet).filter_bank, dtype=np.float32).astype(np.float64)
    low, high, rec_low, rec_high = taps
    found = []
    for pair in ({"a": low, "d": high}, {"a": rec_low, "d": rec_high}):
        bank = [np.einsum("i,j,k->ijk", *(pair[letter] for letter in band)) for band in BANDS]
        dense = torch.from_numpy(np.stack(bank))[:, None].to(device, dtype)
        found.append(dense.repeat(channels, 1, 1, 1, 1))
    return found[0], found[1]
