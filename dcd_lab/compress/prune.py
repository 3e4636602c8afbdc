"""Pruning: the least important channels go until the network has the size that was asked for."""

from __future__ import annotations

import copy
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise

import torch

from dcd_core import models
from dcd_core.errors import at_least
from dcd_core.models import Segmenter
from dcd_core.types import ContractError, Volume
from dcd_lab.compress.channels import channel_axis, cut
from dcd_lab.compress.groups import Group, channel_groups, squared_norms


def prune(
    model: Segmenter, example: Volume, *, parameters: int, divisor: int = 8, tolerance: float = 0.05
) -> Segmenter:
    """A copy of the model without its least important channels, with about `parameters` parameters.

    Channels go in blocks of `divisor`, so that a multiple of it is left (a remainder goes first);
    every group keeps a block. The importance of a channel is the squared norm of all its weights
    over the mean of its group. `example` (1, c, d, h, w): any patch the network takes. Raises
    ContractError when the size cannot be met within `tolerance`, a share of `parameters`, for a
    model without `spec`, and as `channel_groups` does.

    Source: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017 (magnitude); Fang et al.,
    DepGraph, CVPR 2023 (coupled groups, normalised by their mean).
    """
    if model.spec is None:
        raise ContractError("model", "one without spec", "one from models.build", "build(...)")
    at_least("divisor", divisor, 1)
    groups = channel_groups(model, example)
    gone: list[set[int]] = [set() for _ in groups]
    size = models.parameters(model)
    closed: set[int] = set()
    for which, block in _blocks(model, groups, divisor):
        if size <= parameters:
            break
        more = [*gone[:which], gone[which] | block, *gone[which + 1 :]]
        smaller = _parameters(model, _kept(groups, more))
        if which in closed or smaller < (1 - tolerance) * parameters:
            closed.add(which)  # too large for what is missing; more important ones may not go first
        else:
            gone, size = more, smaller
    if abs(size - parameters) > tolerance * parameters:
        got, expected = (
            f"{size} of {models.parameters(model)}",
            f"{parameters} within {tolerance:.0%}",
        )
        attempt = f"a divisor below {divisor}, or another size"
        raise ContractError("parameters of the pruned network", got, expected, attempt)
    return _cut(model, _kept(groups, gone), example)


@torch.no_grad()
def _blocks(model: Segmenter, groups: Sequence[Group], divisor: int) -> list[tuple[int, set[int]]]:
    """Blocks of channels, each with the index of its group, the least important first."""
    blocks = []
    for which, group in enumerate(groups):
        norms = squared_norms(model, group)
        score = (norms / norms.mean().clamp_min(torch.finfo(norms.dtype).tiny)).cpu()
        order = score.argsort(stable=True).tolist()
        # The first block takes the remainder, the last one stays.
        starts = {0, *range(group.size % divisor, group.size - divisor + 1, divisor)}
        for start, stop in pairwise(sorted(starts)):
            channels = order[start:stop]
            blocks.append((score[channels].mean().item(), which, start, set(channels)))
    return [(which, block) for _, which, _, block in sorted(blocks)]


def _kept(groups: Sequence[Group], gone: Sequence[set[int]]) -> dict[str, dict[str, list[int]]]:
    """What `cut` takes: the indices that layers keep, for sides that lose some."""
    left: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    whole: Counter[tuple[str, str]] = Counter()
    for group, missing in zip(groups, gone, strict=True):
        for layer, side, at in group.slices:
            # A layer behind a concatenation reads several groups on one side.
            left[layer, side] += [i for channel, i in enumerate(at) if channel not in missing]
            whole[layer, side] += len(at)
    kept: dict[str, dict[str, list[int]]] = {}
    for (layer, side), indices in left.items():
        if len(indices) < whole[layer, side]:
            kept.setdefault(layer, {})[side] = sorted(indices)
    return kept


def _parameters(model: Segmenter, kept: dict[str, dict[str, list[int]]]) -> int:
    """Parameters of the network if only these channels were left."""
    total = models.parameters(model)
    for name, sides in kept.items():
        layer = model.network.get_submodule(name)
        for weight in layer.parameters(recurse=False):
            left = {channel_axis(layer, weight, side): len(i) for side, i in sides.items()}
            total += math.prod(left.get(a, n) for a, n in enumerate(weight.shape)) - weight.numel()
    return total


def _cut(model: Segmenter, kept: dict[str, dict[str, list[int]]], example: Volume) -> Segmenter:
    """The network that `pruned` builds, with the weights that are left."""
    small = copy.deepcopy(model).requires_grad_(True)
    cut(small.network, kept)
    with models.evaluating(small), torch.no_grad():
        small.channels = tuple(stage.shape[1] for stage in small.encode(example))
    base = small.spec or {}
    shape = {key: base.pop(key) for key in ("in_channels", "classes")}
    small.spec = {"architecture": "pruned", **shape, "base": base, "kept": kept}
    small.spec["channels"] = list(small.channels)
    return small
