"""What the transform and the loss are held to: PyWavelets, and the released convolution."""

import numpy as np
import pywt
import torch
import torch.nn.functional as F

from dcd_core.wavelet import BANDS

DISCRETE = pywt.wavelist(kind="discrete")
EIGHT = ["haar", "db2", "db4", "sym5", "coif1", "bior2.2", "bior3.5", "rbio2.4"]
"""Short and long, orthogonal and not; all wavelets are swept once, in tests marked slow."""


def taps(name):
    """Length of the filters of a wavelet."""
    return pywt.Wavelet(name).dec_len


def per_axis(wavelet):
    """A name for each axis (D, H, W)."""
    return (wavelet,) * 3 if isinstance(wavelet, str) else tuple(wavelet)


def relative(found, expected):
    """Largest difference over the largest expected value."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-300)


def pywt_bands(x, wavelet, mode):
    """(b, c, 8, d', h', w') from pywt, bands in the order of BANDS."""
    bands = pywt.dwtn(x.double().numpy(), wavelet, mode=mode, axes=(2, 3, 4))
    return np.stack([bands[band] for band in BANDS], axis=2)


def pywt_volume(bands, wavelet, mode):
    """(b, c, d, h, w) from pywt, the inverse of `pywt_bands`."""
    there = {band: bands[:, :, i] for i, band in enumerate(BANDS)}
    return pywt.idwtn(there, wavelet, mode=mode, axes=(2, 3, 4))


def orthonormal_loss(x, wavelet, levels, bands, coarse_weight=0.0, level_weighting="resolution"):
    """The loss of a difference by PyWavelets alone, and the levels it took.

    An axis shorter than its filter is left as it is: bands that are high along it do not exist.
    """
    names, x, total, used = per_axis(wavelet), x.numpy(), 0.0, 0
    whole = x.size
    while used < levels:
        axes = [axis for axis in range(3) if x.shape[2 + axis] >= taps(names[axis])]
        if not axes:
            break
        parts = pywt.dwtn(
            x, [names[axis] for axis in axes], "periodization", [2 + axis for axis in axes]
        )
        for band in bands:
            if all(band[axis] == "a" for axis in range(3) if axis not in axes):
                squares = parts["".join(band[axis] for axis in axes)] ** 2
                total += squares.sum() / (x.size if level_weighting == "resolution" else whole)
        size, x, used = x.size, parts["a" * len(axes)], used + 1
    if used:
        total += coarse_weight * (x**2).sum() / (size if level_weighting == "resolution" else whole)
    return total / (max(used, 1) if level_weighting == "resolution" else 1), used


def released_level(x, wavelet, bands):
    """One level of commit 7cf0ca6 by dense filters: reconstruction of `bands`, and coarse band.

    conv3d with the outer products of the analysis taps, stride 2, K - 1 zeros on both sides; masked
    bands back through conv_transpose3d with the synthesis taps, cropped to the first n samples.
    `x` (b, c, d, h, w) -> (b c, 1, d, h, w) and (b c, 1, d', h', w'). Taps are rounded to float32.
    """
    banks = [torch.tensor(np.float32(pywt.Wavelet(n).filter_bank)).to(x) for n in per_axis(wavelet)]

    def kernels(first):
        chosen = [
            [bank[first + "ad".index(letter)] for bank, letter in zip(banks, band, strict=True)]
            for band in BANDS
        ]
        return torch.stack([torch.einsum("i,j,k->ijk", *axes) for axes in chosen])[:, None]

    padding = [bank.shape[1] - 1 for bank in banks]
    keep = torch.tensor([band in bands for band in BANDS])[:, None, None, None]
    d, h, w = x.shape[2:]
    coefficients = F.conv3d(x.reshape(-1, 1, d, h, w), kernels(0), stride=2, padding=padding)
    back = F.conv_transpose3d(coefficients * keep, kernels(2), stride=2, padding=padding)
    return back[:, :, :d, :h, :w], coefficients[:, :1]


def released_loss(x, wavelet, levels, bands):
    """The released loss of a difference: the mean over levels of mean squares."""
    total = 0.0
    for _ in range(levels):
        back, x = released_level(x, wavelet, bands)
        total = total + back.square().mean()
    return total / levels
