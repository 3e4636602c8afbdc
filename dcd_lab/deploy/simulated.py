"""What 8 bits do to accuracy, simulated in float on any machine, without any gain in speed."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from dcd_core.models import Segmenter, channel_axis
from dcd_core.types import ContractError, Volume
from dcd_lab.deploy.int8 import calibration, layers_of

_Convolution: TypeAlias = nn.Conv3d | nn.ConvTranspose3d


def simulate_int8(
    model: Segmenter,
    patches: Iterable[Tensor],
    *,
    percentile: float = 99.99,
    keep_float: Sequence[str] = (),
) -> Segmenter:
    """A copy of the model in which every convolution has rounded weights and inputs, as in int8.

    Weights: 255 symmetric steps per output channel, the largest weight exact. Inputs: 256 steps
    per tensor, from the percentile 100 - `percentile` to `percentile`, 0 exact, the rest clipped;
    the two are means over `patches`, batches (b, c, d, h, w) of training cases, some thirty.
    Biases, norms and the layers in `keep_float` (names in the network, or what these begin with)
    stay as they are. The result has no `spec` and cannot be saved. Raises ContractError for no
    patches or one that is not finite, an unknown name, or a percentile outside (50, 100].

    Source: Krishnamoorthi, Quantizing Deep Convolutional Networks for Efficient Inference, arXiv
    1806.08342, 2018; Wu et al., Integer Quantization, arXiv 2004.09602, 2020 (percentiles).
    """
    if not 50 < percentile <= 100:
        raise ContractError("percentile", percentile, "in (50, 100]", "99.99")
    rounded = copy.deepcopy(model).eval()
    rounded.spec = None
    layers = {n: m for n, m in rounded.network.named_modules() if isinstance(m, _Convolution)}
    kept = layers_of(layers, keep_float)
    chosen = [layer for name, layer in layers.items() if name not in kept]
    for layer, (low, high) in _ranges(rounded, chosen, patches, percentile).items():
        axis = channel_axis(layer, layer.weight, "out") or 0
        layer.weight.data = rounded_weights(layer.weight.data, axis)
        layer.register_forward_pre_hook(partial(_round_input, low, high))
    return rounded


def rounded_weights(weight: Float[Tensor, "_ _ _ _ _"], axis: int) -> Float[Tensor, "_ _ _ _ _"]:
    """Weights on 255 symmetric steps, one scale per channel along `axis`."""
    others = [other for other in range(weight.ndim) if other != axis]
    scale = weight.abs().amax(others, keepdim=True) / 127
    steps = (weight / scale.clamp_min(torch.finfo(weight.dtype).tiny)).round()
    return steps * scale


def rounded_values(x: Volume, low: float, high: float) -> Volume:
    """Values on 256 steps from `low` to `high`, which hold 0, moved so that 0 is one of them."""
    if low == high:
        return torch.zeros_like(x)
    scale = (high - low) / 255
    zero = round(-low / scale)
    return (x / scale).round().clamp(-zero, 255 - zero) * scale


@torch.inference_mode()
def _ranges(
    model: Segmenter, layers: Sequence[_Convolution], patches: Iterable[Tensor], percentile: float
) -> dict[_Convolution, tuple[float, float]]:
    """Lowest and highest input of every layer, 0 among them."""
    seen: dict[nn.Module, list[list[float]]] = {layer: [] for layer in layers}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].float().cpu().numpy()
        seen[layer].append(np.percentile(values, [100 - percentile, percentile]).tolist())

    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    device = next(model.parameters()).device
    for patch in calibration(patches):
        model(patch.to(device))
    for handle in handles:
        handle.remove()
    # The heads of deep supervision see nothing outside training.
    means = {layer: np.mean(seen[layer], axis=0).tolist() for layer in layers if seen[layer]}
    return {layer: (min(low, 0.0), max(high, 0.0)) for layer, (low, high) in means.items()}


def _round_input(low: float, high: float, layer: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return rounded_values(inputs[0], low, high)
