"""Pruning: the least channels go until the network has the size that was asked for."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import torch

from dcd_core import models
from dcd_core.models import Segmenter
from dcd_core.types import ContractError, Volume
from dcd_lab.compress.groups import Group, channel_groups, squared_norms


def prune(
    model: Segmenter,
    example: Volume,
    *,
    parameters: int,
    divisor: int = 8,
    tolerance: float = 0.05,
) -> Segmenter:
    """The model without its least channels, with about so many `parameters`; the model stays whole.

    Channels go in blocks of `divisor`, so that what is left is a multiple of it (a remainder goes
    first); every group keeps a block. A channel counts by the squared norm of all its weights over
    the mean of its group, which makes layers comparable. `example` (1, c, d, h, w): any patch the
    network takes. Raises ContractError when the size cannot be met within `tolerance`, a share of
    `parameters`, for a model without `spec`, and without the extra [compress].

    Source: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017 (magnitude); Fang et al.,
    DepGraph, CVPR 2023 (coupled groups, normalised by their mean).
    """
    if model.spec is None:
        raise ContractError(
            "model to prune", "a Segmenter without spec", "one from models.build", "build(...)"
        )
    if divisor < 1:
        raise ContractError("divisor", divisor, "at least 1", "8")
    groups = channel_groups(model, example)
    left = [list(range(group.size)) for group in groups]
    size = models.parameters(model)
    closed: set[int] = set()
    for which, block in _blocks(model, groups, divisor):
        if size <= parameters:
            break
        rest = [channel for channel in left[which] if channel not in block]
        smaller = _parameters(model, groups, [*left[:which], rest, *left[which + 1 :]])
        if which in closed or smaller < (1 - tolerance) * parameters:
            closed.add(which)  # too large for what is missing; more important ones may not go first
        else:
            left[which], size = rest, smaller
    if abs(size - parameters) > tolerance * parameters:
        raise ContractError(
            "parameters of the pruned network",
            f"{size} of {models.parameters(model)}",
            f"{parameters} within {tolerance:.0%}",
            f"a divisor below {divisor}, or another size",
        )
    return _cut(model, _kept(groups, left), example)


def _blocks(
    model: Segmenter, groups: Sequence[Group], divisor: int
) -> Iterator[tuple[int, set[int]]]:
    """Blocks of channels and the group they are of, the least important first."""
    found: list[tuple[float, int, int, set[int]]] = []
    for which, group in enumerate(groups):
        with torch.no_grad():
            norms = squared_norms(model, group)
        score = (norms / norms.mean().clamp_min(torch.finfo(norms.dtype).tiny)).cpu()
        order = score.argsort(stable=True).tolist()
        # The first block takes the remainder, the last one stays.
        edges = range(group.size % divisor, group.size - divisor + 1, divisor)
        starts = [0, *edges] if group.size % divisor else [*edges]
        for start, stop in pairwise(starts):
            channels = order[start:stop]
            found.append((score[channels].mean().item(), which, start, set(channels)))
    found.sort(key=lambda each: each[:3])
    for _, which, _, block in found:
        yield which, block


def _kept(
    groups: Sequence[Group], left: Sequence[Sequence[int]]
) -> dict[str, dict[str, list[int]]]:
    """The indices that every layer keeps on its two sides; whole sides are not mentioned."""
    gone: dict[tuple[str, str], set[int]] = {}
    whole: dict[tuple[str, str], set[int]] = {}
    for group, channels in zip(groups, left, strict=True):
        missing = set(range(group.size)) - set(channels)
        for layer, side, at in group.slices:
            # A layer behind a concatenation reads several groups on one side.
            gone.setdefault((layer, side), set()).update(at[channel] for channel in missing)
            whole.setdefault((layer, side), set()).update(at)
    kept: dict[str, dict[str, list[int]]] = {}
    for place, removed in gone.items():
        if removed:
            kept.setdefault(place[0], {})[place[1]] = sorted(whole[place] - removed)
    return kept


def _parameters(model: Segmenter, groups: Sequence[Group], left: Sequence[Sequence[int]]) -> int:
    """Parameters of the network if only these channels were left."""
    kept = _kept(groups, left)
    total = models.parameters(model)
    for name, sides in kept.items():
        layer = model.network.get_submodule(name)
        for weight in layer.parameters(recurse=False):
            shape = list(weight.shape)
            for side, indices in sides.items():
                axis = models.channel_axis(layer, weight, side)
                if axis is not None:
                    shape[axis] = len(indices)
            total += torch.Size(shape).numel() - weight.numel()
    return total


def _cut(
    model: Segmenter, kept: Mapping[str, Mapping[str, Sequence[int]]], example: Volume
) -> Segmenter:
    """The network that `models.pruned` builds, with the weights that are left."""
    assert model.spec is not None
    base = {
        key: value for key, value in model.spec.items() if key not in ("in_channels", "classes")
    }
    shape = {key: model.spec[key] for key in ("in_channels", "classes")}
    result = models.pruned(**shape, channels=model.channels, base=base, kept=kept)
    result.to(next(model.parameters()).device)
    source = copy.deepcopy(model)
    models.cut(source.network, kept)
    result.load_state_dict(source.state_dict())
    with torch.no_grad():
        result.channels = tuple(stage.shape[1] for stage in result.encode(example))
    assert result.spec is not None
    result.spec["channels"] = list(result.channels)
    return result.train(model.training)
