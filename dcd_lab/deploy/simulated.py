"""What 8 bits do to accuracy, simulated in float: any machine can say so, none is made faster."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from dcd_core.models import Segmenter
from dcd_core.models.channels import channel_axis
from dcd_core.types import ContractError
from dcd_lab.deploy.int8 import layers_of


def simulate_int8(
    model: Segmenter,
    patches: Iterable[Tensor],
    *,
    percentile: float = 99.99,
    keep_float: Sequence[str] = (),
) -> Segmenter:
    """The model as int8 would have it, every convolution with rounded weights and inputs.

    Weights: 255 symmetric steps per output channel, the largest weight exact. Inputs: 256 steps
    per tensor, from the percentile 100 - `percentile` to `percentile`, 0 exact, the rest clipped;
    the two are means over `patches`, batches (b, c, d, h, w) of training cases, some thirty.
    Biases, norms and the layers in `keep_float` (names in the network, or what these begin with)
    stay as they are. The result is a simulation: it has no `spec` and is not saved. Raises
    ContractError for no patches, an unknown name, or a percentile outside (50, 100].

    Source: Krishnamoorthi, Quantizing Deep Convolutional Networks for Efficient Inference, arXiv
    1806.08342, 2018; Wu et al., Integer Quantization, arXiv 2004.09602, 2020 (percentiles).
    """
    if not 50 < percentile <= 100:
        raise ContractError("percentile", percentile, "in (50, 100]", "99.99")
    rounded = Segmenter(copy.deepcopy(model.network), model.stages, model.channels).eval()
    layers = {
        name: layer
        for name, layer in rounded.network.named_modules()
        if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d)
    }
    kept = layers_of(layers, keep_float)
    chosen = [layer for name, layer in layers.items() if name not in kept]
    ranges = _ranges(rounded, chosen, patches, percentile)
    for layer, (low, high) in ranges.items():
        _round_weights(layer)
        layer.register_forward_pre_hook(partial(_round_input, low=low, high=high))
    return rounded


def rounded_weights(weight: Float[Tensor, "_ _ _ _ _"], axis: int) -> Float[Tensor, "_ _ _ _ _"]:
    """Weights on 255 symmetric steps, one scale per channel along `axis`."""
    others = [other for other in range(weight.ndim) if other != axis]
    scale = weight.abs().amax(others, keepdim=True) / 127
    steps = (weight / scale.clamp_min(torch.finfo(weight.dtype).tiny)).round()
    return steps * scale


def rounded_values(
    x: Float[Tensor, "_ _ _ _ _"], low: float, high: float
) -> Float[Tensor, "_ _ _ _ _"]:
    """Values on 256 steps from `low` to `high`, which hold 0, moved so that 0 is one of them."""
    if low == high:
        return torch.zeros_like(x)
    scale = (high - low) / 255
    zero = round(-low / scale)
    return (x / scale).round().clamp(-zero, 255 - zero) * scale


def _ranges(
    model: Segmenter, layers: Sequence[nn.Module], patches: Iterable[Tensor], percentile: float
) -> dict[nn.Module, tuple[float, float]]:
    """Lowest and highest input of every layer, 0 among them."""
    seen: dict[nn.Module, list[tuple[float, float]]] = {layer: [] for layer in layers}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].float().cpu().numpy()
        low, high = np.percentile(values, [100 - percentile, percentile]).tolist()
        seen[layer].append((low, high))

    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    device = next(model.parameters()).device
    batches = 0
    with torch.inference_mode():
        for patch in patches:
            model(patch.to(device))
            batches += 1
    for handle in handles:
        handle.remove()
    if batches == 0:
        raise ContractError(
            "calibration patches", "none", "batches of training cases", "32 patches"
        )
    # The heads of deep supervision see nothing outside training.
    means = {layer: np.mean(pairs, axis=0).tolist() for layer, pairs in seen.items() if pairs}
    return {layer: (min(low, 0.0), max(high, 0.0)) for layer, (low, high) in means.items()}


@torch.no_grad()
def _round_weights(layer: nn.Module) -> None:
    assert isinstance(layer.weight, Tensor)
    axis = channel_axis(layer, layer.weight, "out")
    assert axis is not None
    layer.weight.copy_(rounded_weights(layer.weight, axis))


def _round_input(
    layer: nn.Module, inputs: tuple[Tensor, ...], *, low: float, high: float
) -> tuple[Tensor, ...]:
    return (rounded_values(inputs[0], low, high),)
