"""Segmenters by name: what a params file or a saved network says is built here.

A pruned network is the one of another architecture, cut; that is why it is defined beside `build`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dcd_core.models.channels import cut
from dcd_core.models.nnunet import planned
from dcd_core.models.segmenter import Segmenter, spec_of
from dcd_core.models.unets import dynunet, resenc, swin
from dcd_core.types import ContractError


def pruned(
    in_channels: int,
    classes: int,
    *,
    channels: Sequence[int],
    base: Mapping[str, Any],
    kept: Mapping[str, Mapping[str, Sequence[int]]],
) -> Segmenter:
    """A segmenter of which only some channels are left, as `compress.prune` makes them.

    `base`: what `build` needs for the whole network, its channel counts of the task apart; `kept`:
    for every layer that lost channels the indices left on its sides "in" and "out"; `channels`: of
    the encoder stages that result, finest first.
    """
    whole = build(in_channels=in_channels, classes=classes, **base)
    cut(whole.network, kept)
    plain = {name: {side: list(i) for side, i in sides.items()} for name, sides in kept.items()}
    spec = spec_of("pruned", in_channels, classes, channels, base=dict(base), kept=plain)
    return Segmenter(whole.network, whole.stages, channels, spec, regions=whole.regions)


ARCHITECTURES: dict[str, Callable[..., Segmenter]] = {
    "dynunet": dynunet,
    "resenc": resenc,
    "swin": swin,
    "planned": planned,
    "pruned": pruned,
}
"""Architectures by name; each takes the channel counts of the task, then its options."""


def build(architecture: str, in_channels: int, classes: int, **options: Any) -> Segmenter:
    """A segmenter by the name of its architecture, as written in params files and checkpoints."""
    if architecture not in ARCHITECTURES:
        raise ContractError(
            "architecture", repr(architecture), f"one of {sorted(ARCHITECTURES)}", "'dynunet'"
        )
    return ARCHITECTURES[architecture](in_channels, classes, **options)
