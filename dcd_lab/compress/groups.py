"""Channel groups: which weights belong to a channel, all over the network.

A channel is written by one layer or, through a residual sum, by several; norms scale it, skip
connections carry it on, and others read it. All these weights go, or stay, together.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dcd_core.errors import require
from dcd_core.models import Segmenter
from dcd_core.types import ContractError, Volume
from dcd_lab.compress.channels import channel_axis

_NORMS = (nn.InstanceNorm3d, nn.BatchNorm3d)
_LAYERS = (nn.Conv3d, nn.ConvTranspose3d, *_NORMS)
_CONVOLUTIONAL = "a convolutional network, from dynunet or resenc say"


class Slice(NamedTuple):
    """What one layer holds of a group: channel i of the group is its channel `at[i]`."""

    layer: str
    side: str  # "out": the layer writes or normalises them; "in": it reads them
    at: tuple[int, ...]


class Group(NamedTuple):
    """Channels that are removed alike: their number, and the layers that hold something of them."""

    size: int
    slices: tuple[Slice, ...]


def channel_groups(model: Segmenter, example: Volume) -> list[Group]:
    """The groups of channels that may be removed; those of image and logits are not among them.

    `example` (1, c, d, h, w): any patch the network takes. Raises ContractError where a group
    reaches a layer that cannot be cut, and without the extra [compress].

    Source: Fang et al., DepGraph, CVPR 2023 (the dependency graph, by Torch-Pruning).
    """
    require("compress", "torch_pruning")
    import torch_pruning

    # Frozen weights leave no trace, and the heads of deep supervision are silent outside training.
    network = copy.deepcopy(model.network).train().requires_grad_(True)
    names = {layer: name for name, layer in network.named_modules()}
    writers: dict[int, tuple[nn.Module, Tensor]] = {}
    logits: list[Tensor] = []

    def note(layer: nn.Module, inputs: object, output: Tensor) -> Tensor:
        # Operations in place would overwrite the traces that norms and convolutions leave.
        output = output.clone()
        writers[id(output)] = layer, output  # a tensor that is freed may leave its id to another
        return output

    def run(network: nn.Module, patch: Tensor) -> Tensor | list[Tensor]:
        result = network.train()(patch)
        logits[:] = [result] if isinstance(result, Tensor) else result
        return result

    for layer in network.modules():
        if not list(layer.children()):
            layer.register_forward_hook(note)
    with torch.enable_grad():
        graph = torch_pruning.DependencyGraph().build_dependency(network, example, forward_fn=run)
    heads = [writers[id(each)][0] for each in logits if id(each) in writers]
    if len(heads) < len(logits) or not all(isinstance(head, nn.Conv3d) for head in heads):
        got, expected = "something no Conv3d wrote", "a convolution as the last layer of every head"
        raise ContractError("logits of the network", got, expected, _CONVOLUTIONAL)
    groups = []
    for coupled in graph.get_all_groups(ignored_layers=heads):
        size, slices = len(coupled[0].idxs), []
        for dependency, at in coupled:
            layer = dependency.target.module
            if layer not in names:
                continue  # an operation without weights
            _check(names[layer], layer, len(at), size)
            reads = graph.is_in_channel_pruning_fn(dependency.handler)
            side = "in" if reads and not isinstance(layer, _NORMS) else "out"
            slices.append(Slice(names[layer], side, tuple(map(int, at))))
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
                squares = weight.float().movedim(axis, 0).unsqueeze(-1).flatten(1).square().sum(1)
                total = total + squares[torch.tensor(at, device=squares.device)]
    return total


def _check(name: str, layer: nn.Module, channels: int, size: int) -> None:
    if not isinstance(layer, _LAYERS) or getattr(layer, "groups", 1) != 1 or channels != size:
        got = f"{type(layer).__name__} with {channels} channels in a group of {size}"
        expected = "an ungrouped Conv3d, ConvTranspose3d, InstanceNorm3d or BatchNorm3d"
        raise ContractError(f"layer {name}", got, expected, _CONVOLUTIONAL)
