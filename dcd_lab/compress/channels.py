"""Channels of a layer: on which axis of a weight they lie, and how some of them are cut away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dcd_core.models import ARCHITECTURES, Segmenter, build
from dcd_core.models.segmenter import recorded


@recorded
def pruned(
    in_channels: int,
    classes: int,
    *,
    channels: Sequence[int],
    base: Mapping[str, Any],
    kept: Mapping[str, Mapping[str, Sequence[int]]],
) -> Segmenter:
    """A segmenter of which only some channels are left, as `prune` makes them.

    `base`: what `models.build` needs for the whole network, except `in_channels` and `classes`;
    `kept`: as in `cut`; `channels`: those left of the encoder stages, finest first.
    """
    whole = build(in_channels=in_channels, classes=classes, **base)
    cut(whole.network, kept)
    return Segmenter(whole.network, whole.stages, channels, regions=whole.regions)


ARCHITECTURES["pruned"] = pruned  # so that `models.load` reads what is saved


def cut(network: nn.Module, kept: Mapping[str, Mapping[str, Sequence[int]]]) -> None:
    """Keep of the named layers the channels with these indices, on the sides "in" and "out".

    Weights are cut in place, the order of the indices is that of the channels afterwards.
    """
    names = {"in": ("in_channels",), "out": ("out_channels", "num_features")}
    for name, sides in kept.items():
        layer = network.get_submodule(name)
        for side, indices in sides.items():
            for weight in [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]:
                axis = channel_axis(layer, weight, side)
                if axis is not None:
                    chosen = torch.tensor(indices, device=weight.device)
                    weight.data = weight.data.index_select(axis, chosen)
            for attribute in names[side]:
                if hasattr(layer, attribute):
                    setattr(layer, attribute, len(indices))


def channel_axis(layer: nn.Module, weight: Tensor, side: str) -> int | None:
    """The axis of a layer's weight that runs over its channels of a side; None where none does."""
    if weight.ndim < 2:  # a bias, what a norm holds of every channel, or a counter
        return 0 if side == "out" and weight.ndim else None
    # Transposed convolutions keep their weights as (in, out, ...), the others as (out, in, ...).
    return int((side == "in") != isinstance(layer, nn.ConvTranspose3d))
