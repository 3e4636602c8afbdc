"""Energy of the selected bands over several levels, with its gradient, in both conventions.

With x_0 = x and x_l the coarse band of x_(l-1), the energy of a block of volumes is

    sum_l  n_0 / n_(l-1)  ||bands of level l||^2,

n_l being the voxels of a volume at level l: a mean over voxels at every level, in units of the
first. Each function returns the energy and half its gradient. Where all axes are orthonormal at all
levels, `compiled` or `diagonal` do it at once. Elsewhere one level is called by the other: the
gradient of the deeper ones rides along when a level goes back from its bands.
"""

from __future__ import annotations

from torch import Tensor

from dcd_core.wavelet import compiled, diagonal
from dcd_core.wavelet.bandpass import Axis, bandpass
from dcd_core.wavelet.banks import correlation, expansion, periodized
from dcd_core.wavelet.diagonal import squared_norm
from dcd_core.wavelet.levels import Selection, voxels


def energy(x: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
    """Energy of a block of volumes (c, d, h, w), a scalar, and half its gradient, like `x`.

    `selection.levels` must be usable. `x` is used up: its memory may hold the gradient.
    """
    if selection.convention == "released":
        return _released(x, selection, selection.levels)
    if diagonal.is_diagonal(x.shape[1:], selection):
        return (compiled if compiled.serves(x) else diagonal).energy(x, selection)
    return _periodized(x, selection, selection.levels)


# --- convention "orthonormal" on axes that are not: biorthogonal, or odd --------------------------


def _periodized(x: Tensor, selection: Selection, levels: int) -> tuple[Tensor, Tensor]:
    banks = [periodized(n, name) for n, name in zip(x.shape[1:], selection.names, strict=True)]
    here, deeper = x.new_zeros(()), x.new_zeros(())

    def at_bands(kept: Tensor) -> None:
        nonlocal here
        here = squared_norm(kept)

    def at_coarse(coarse: Tensor) -> Tensor:
        nonlocal deeper
        if levels == 1:
            deeper = selection.coarse_weight * squared_norm(coarse)
            return selection.coarse_weight * coarse
        ratio = x.numel() / coarse.numel()
        value, gradient = _periodized(coarse, selection, levels - 1)
        deeper = ratio * value
        return gradient.mul_(ratio)

    awaited = at_coarse if levels > 1 or selection.coarse_weight else None
    axes = [Axis(bank, bank) for bank in banks]
    gradient = bandpass(x, axes, selection.bands, at_coarse=awaited, at_bands=at_bands)
    return here + deeper, gradient


# --- convention "released": masked reconstructions, as commit 7cf0ca6 computes them ---------------


def _released(x: Tensor, selection: Selection, levels: int) -> tuple[Tensor, Tensor]:
    named = list(zip(x.shape[1:], selection.names, strict=True))
    pairs = [(correlation(n, name), expansion(n, name)) for n, name in named]
    there = [Axis(down, up) for down, up in pairs]
    back = [Axis(up, down) for down, up in pairs]  # the adjoint
    coarse: list[Tensor] = []
    masked = bandpass(x, there, selection.bands, at_coarse=coarse.append if levels > 1 else None)
    here = squared_norm(masked)
    if levels == 1:
        return here, bandpass(masked, back, selection.bands)
    ratio = voxels(x.shape[1:], selection) / voxels(coarse[0].shape[1:], selection)
    value, gradient = _released(coarse[0], selection, levels - 1)
    gradient = bandpass(masked, back, selection.bands, at_coarse=lambda _: gradient.mul_(ratio))
    return here + ratio * value, gradient
