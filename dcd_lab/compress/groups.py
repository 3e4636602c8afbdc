"""Channel groups: which weights belong to a channel, all over the network.

A channel is written by one layer or, through a residual sum, by several; norms scale it, skip
connections carry it on, and others read it. All these weights go, or stay, together.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dcd_core.errors import require
from dcd_core.models import Segmenter
from dcd_core.models.channels import channel_axis
from dcd_core.types import ContractError, Volume

_LAYERS = (nn.Conv3d, nn.ConvTranspose3d, nn.InstanceNorm3d, nn.BatchNorm3d)


class Slice(NamedTuple):
    """What one layer holds of a group: channel i of the group is its channel `at[i]`.

    `side`: "out" where the layer writes (or normalises) the channels, "in" where it reads them.
    """

    layer: str
    side: Literal["in", "out"]
    at: tuple[int, ...]


class Group(NamedTuple):
    """Channels that are removed alike: their number, and the layers that hold something of them."""

    size: int
    slices: tuple[Slice, ...]


def channel_groups(model: Segmenter, example: Volume) -> list[Group]:
    """The groups of channels that may be removed; those of image and logits are none.

    `example` (1, c, d, h, w): any patch the network takes. Raises ContractError where a group
    reaches a layer that cannot be cut, and without the extra [compress].

    Source: Fang et al., DepGraph, CVPR 2023 (the dependency graph, by Torch-Pruning).
    """
    require("compress", "torch_pruning")
    import torch_pruning

    # Frozen weights leave no trace, and the heads of deep supervision are silent outside training.
    network = copy.deepcopy(model.network).train().requires_grad_(True)
    heads = _heads(network, example)
    # Operations in place would overwrite the traces that norms and convolutions leave.
    handles = [
        layer.register_forward_hook(lambda layer, inputs, output: output.clone())
        for layer in network.modules()
        if not list(layer.children())
    ]
    with torch.enable_grad():
        graph = torch_pruning.DependencyGraph().build_dependency(
            network, example, forward_fn=lambda network, patch: network.train()(patch)
        )
    for handle in handles:
        handle.remove()
    names = {layer: name for name, layer in network.named_modules()}
    groups = []
    for found in graph.get_all_groups(ignored_layers=heads):
        size = len(found[0].idxs)
        slices = []
        for dependency, index in found:
            layer = dependency.target.module
            if layer not in names:
                continue  # an operation without weights
            side: Literal["in", "out"] = (
                "in"
                if graph.is_in_channel_pruning_fn(dependency.handler)
                and not isinstance(layer, (nn.InstanceNorm3d, nn.BatchNorm3d))
                else "out"
            )
            _check(names[layer], layer, len(index), size)
            slices.append(Slice(names[layer], side, tuple(map(int, index))))
        groups.append(Group(size, tuple(slices)))
    return groups


def squared_norms(model: Segmenter, group: Group) -> Float[Tensor, " n"]:
    """Squared norm of all weights of each of the n channels of a group; differentiable."""
    total = next(model.parameters()).new_zeros(group.size, dtype=torch.float32)
    for name, side, at in group.slices:
        layer = model.network.get_submodule(name)
        for weight in layer.parameters(recurse=False):
            axis = channel_axis(layer, weight, side)
            if axis is not None:
                rows = weight.float().movedim(axis, 0)
                squares = rows.reshape(len(rows), -1).square().sum(1)
                total = total + squares[torch.tensor(at, device=squares.device)]
    return total


def _heads(network: nn.Module, example: Volume) -> Sequence[nn.Module]:
    """The convolutions that write logits: their channels are classes."""
    written: dict[int, nn.Module] = {}
    kept = []  # a tensor that is freed may leave its id to another

    def note(layer: nn.Module, inputs: object, output: Tensor) -> None:
        written[id(output)] = layer
        kept.append(output)

    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv3d)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        result = network(example)
    for handle in handles:
        handle.remove()
    logits = [result] if isinstance(result, Tensor) else list(result)
    if not all(id(each) in written for each in logits):
        raise ContractError(
            "logits of the network",
            "something no Conv3d wrote",
            "a convolution as the last layer of every head",
            "a convolutional network, from dynunet or resenc say",
        )
    return [written[id(each)] for each in logits]


def _check(name: str, layer: nn.Module, found: int, size: int) -> None:
    if not isinstance(layer, _LAYERS) or getattr(layer, "groups", 1) != 1 or found != size:
        raise ContractError(
            f"layer {name}",
            f"{type(layer).__name__} with {found} channels in a group of {size}",
            "an ungrouped Conv3d, ConvTranspose3d, InstanceNorm3d or BatchNorm3d",
            "a convolutional network, from dynunet or resenc say",
        )
