"""Teacher and student: one wrapper around any U-Net, so that every method sees the same thing.

Distillation needs the features of each encoder stage, finest first, and nothing else about a
network. `Segmenter` collects them from named submodules during the forward pass; `encode` stops as
soon as the deepest one is there, because a teacher's decoder teaches nothing to a feature loss.

Source: Isensee et al., nnU-Net, Nature Methods 18, 2021 (plain U-Net); Isensee et al., nnU-Net
Revisited, MICCAI 2024, arXiv 2404.09556 (residual encoder); blocks from Cardoso et al., MONAI,
arXiv 2211.02701.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcd_core.records import atomic
from dcd_core.types import ContractError, Output, Stages, Volume

BLOCKS = (1, 3, 4, 6, 6, 6)
"""Residual blocks per encoder stage in nnU-Net's ResEnc presets."""


class Segmenter(nn.Module):
    """Any U-Net, made to return an `Output`.

    `network`: maps (b, c, d, h, w) to logits, or to a list of logits, finest first, under deep
    supervision. `stages`: names of the submodules whose outputs are the encoder stages, finest
    first. `channels`: channels of each stage. `spec`: what `load` needs to build the network again.
    """

    def __init__(
        self,
        network: nn.Module,
        stages: Sequence[str],
        channels: Sequence[int],
        spec: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if len(stages) != len(channels):
            raise ContractError(
                "channels",
                tuple(channels),
                f"one number per stage {tuple(stages)}",
                "equal lengths",
            )
        known = dict(network.named_modules())
        missing = [name for name in stages if name not in known]
        if missing:
            raise ContractError(
                "encoder stages", missing, "names of submodules", "network.named_modules()"
            )
        self.network = network
        self.stages = tuple(stages)
        self.channels = tuple(channels)
        self.spec = spec

    def forward(self, x: Volume) -> Output:
        """Logits, encoder stages and deep-supervision logits of a batch (b, c, d, h, w)."""
        with _Collector(self.network, self.stages, stop=False) as found:
            result = self.network(x)
        logits, *deep = (result,) if isinstance(result, Tensor) else result
        return Output(logits, found.features, tuple(deep))

    def encode(self, x: Volume) -> Stages:
        """Encoder stages alone; the decoder does not run."""
        with _Collector(self.network, self.stages, stop=True) as found:
            self.network(x)
        return found.features


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within, the model is in eval mode; afterwards, come what may, in the mode it had."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class _Encoded(Exception):
    """Raised inside a forward pass once the deepest stage is known."""


class _Collector:
    # Hooks live for one forward pass only: nothing is left on the network to be copied by EMA,
    # pickled, or kept alive through sliding-window inference.
    def __init__(self, network: nn.Module, stages: tuple[str, ...], *, stop: bool) -> None:
        self._network, self._stages, self._stop = network, stages, stop
        self._found: dict[str, Tensor] = {}

    def __enter__(self) -> _Collector:
        self._handles = [
            self._network.get_submodule(name).register_forward_hook(self._keep(name))
            for name in self._stages
        ]
        return self

    def _keep(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._found[name] = output
            if self._stop and len(self._found) == len(self._stages):
                raise _Encoded

        return hook

    def __exit__(self, kind: type | None, error: object, trace: object) -> bool:
        for handle in self._handles:
            handle.remove()
        return kind is _Encoded

    @property
    def features(self) -> Stages:
        return tuple(self._found[name] for name in self._stages)


def dynunet(
    in_channels: int,
    classes: int,
    *,
    channels: Sequence[int] = (16, 32, 64, 128),
    residual: bool = True,
) -> Segmenter:
    """MONAI's DynUNet, the plain (or one-block residual) nnU-Net.

    `channels` per stage, finest first; every stage after the first halves the grid, so the patch
    must be divisible by 2 ** (stages - 1).
    """
    from monai.networks.nets import DynUNet

    _check_channels(channels, at_least=3)
    depth = len(channels)
    network = DynUNet(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=classes,
        kernel_size=[3] * depth,
        strides=[1] + [2] * (depth - 1),
        upsample_kernel_size=[2] * (depth - 1),
        filters=list(channels),
        res_block=residual,
    )
    stages = [
        "input_block",
        *(f"downsamples.{i}" for i in range(depth - 2)),
        "bottleneck",
    ]
    return Segmenter(
        network,
        stages,
        channels,
        _spec("dynunet", in_channels, classes, channels, residual=residual),
    )


def resenc(
    in_channels: int,
    classes: int,
    *,
    channels: Sequence[int] = (32, 64, 128, 256),
    blocks: Sequence[int] | None = None,
    deep_supervision: bool = False,
) -> Segmenter:
    """The residual-encoder U-Net of nnU-Net's ResEnc presets, from MONAI's residual blocks.

    `blocks`: residual blocks per stage, `BLOCKS` by default. The stem is not a stage, as in the
    release of DCD. With `deep_supervision` the decoder stages return logits while training.
    """
    _check_channels(channels)
    counts = tuple(BLOCKS[: len(channels)] if blocks is None else blocks)
    if len(counts) != len(channels):
        raise ContractError(
            "blocks", counts, f"one count per stage {tuple(channels)}", "blocks=None"
        )
    network = _ResidualEncoderUNet(in_channels, classes, tuple(channels), counts, deep_supervision)
    stages = [f"encoder.{i}" for i in range(len(channels))]
    spec = _spec(
        "resenc",
        in_channels,
        classes,
        channels,
        blocks=list(counts),
        deep_supervision=deep_supervision,
    )
    return Segmenter(network, stages, channels, spec)


class _ResidualEncoderUNet(nn.Module):
    def __init__(
        self,
        in_channels: int,
        classes: int,
        channels: tuple[int, ...],
        blocks: tuple[int, ...],
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        from monai.networks.blocks.dynunet_block import UnetResBlock, get_conv_layer

        norm = ("instance", {"affine": True})
        act = ("leakyrelu", {"inplace": True, "negative_slope": 0.01})
        self.deep_supervision = deep_supervision
        self.stem = get_conv_layer(
            3, in_channels, channels[0], act=act, norm=norm, conv_only=False, bias=True
        )
        self.encoder = nn.ModuleList(
            nn.Sequential(
                *(
                    UnetResBlock(
                        3,
                        channels[max(i - 1, 0)] if first else channels[i],
                        channels[i],
                        kernel_size=3,
                        stride=2 if first and i else 1,
                        norm_name=norm,
                        act_name=act,
                    )
                    for first in [True] + [False] * (blocks[i] - 1)
                )
            )
            for i in range(len(channels))
        )
        pairs = list(pairwise(channels))
        self.up = nn.ModuleList(nn.ConvTranspose3d(deep, fine, 2, 2) for fine, deep in pairs)
        self.decoder = nn.ModuleList(
            get_conv_layer(3, 2 * fine, fine, act=act, norm=norm, conv_only=False, bias=True)
            for fine, _ in pairs
        )
        heads = channels[:-1] if deep_supervision else channels[:1]
        self.heads = nn.ModuleList(nn.Conv3d(fine, classes, 1) for fine in heads)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        x = self.stem(x)
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        logits = []
        for i in reversed(range(len(self.decoder))):
            x = self.decoder[i](torch.cat([self.up[i](x), skips[i]], dim=1))
            if i == 0 or (self.deep_supervision and self.training):
                logits.append(self.heads[i](x))
        return logits[::-1] if len(logits) > 1 else logits[0]


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
    spec = _spec("pruned", in_channels, classes, channels, base=dict(base), kept=plain)
    return Segmenter(whole.network, whole.stages, channels, spec)


def cut(network: nn.Module, kept: Mapping[str, Mapping[str, Sequence[int]]]) -> None:
    """Keep of the named layers the channels with these indices, on the sides "in" and "out".

    Weights are cut in place, the order of the indices is that of the channels afterwards.
    """
    names = {"in": ("in_channels",), "out": ("out_channels", "num_features")}
    for name, sides in kept.items():
        layer = network.get_submodule(name)
        held: list[tuple[str, Tensor]] = [*layer.named_parameters(recurse=False)]
        held += [(key, b) for key, b in layer.named_buffers(recurse=False) if b.ndim]
        for key, old in held:
            new = old.detach()
            for side, indices in sides.items():
                axis = channel_axis(layer, new, side)
                if axis is not None:
                    new = new.index_select(axis, torch.tensor(indices, device=new.device))
            if isinstance(old, nn.Parameter):
                setattr(layer, key, nn.Parameter(new.clone(), requires_grad=old.requires_grad))
            else:
                setattr(layer, key, new.clone())
        for side, indices in sides.items():
            for attribute in names[side]:
                if hasattr(layer, attribute):
                    setattr(layer, attribute, len(indices))


def channel_axis(layer: nn.Module, weight: Tensor, side: str) -> int | None:
    """The axis of a layer's weight that runs over its channels of a side; None where none does."""
    if weight.ndim == 1:  # a bias, or what a norm holds of every channel
        return 0 if side == "out" else None
    # Transposed convolutions keep their weights as (in, out, ...), the others as (out, in, ...).
    return int((side == "in") != isinstance(layer, nn.ConvTranspose3d))


ARCHITECTURES: dict[str, Callable[..., Segmenter]] = {
    "dynunet": dynunet,
    "resenc": resenc,
    "pruned": pruned,
}


def build(architecture: str, in_channels: int, classes: int, **options: Any) -> Segmenter:
    """A segmenter by the name of its architecture, as written in params files and checkpoints."""
    if architecture not in ARCHITECTURES:
        raise ContractError(
            "architecture", repr(architecture), f"one of {sorted(ARCHITECTURES)}", "'dynunet'"
        )
    return ARCHITECTURES[architecture](in_channels, classes, **options)


def shrink(channels: Sequence[int], factor: int, floor: int = 8) -> tuple[int, ...]:
    """Channels of the student: the teacher's divided by `factor`, never below `floor`."""
    if factor < 1 or floor < 1:
        raise ContractError(
            "factor, floor", (factor, floor), "integers >= 1", "shrink(channels, 4)"
        )
    return tuple(max(floor, width // factor) for width in channels)


def parameters(model: nn.Module) -> int:
    """Number of parameters of a module."""
    return sum(p.numel() for p in model.parameters())


def save(model: Segmenter, path: str | Path) -> Path:
    """Write weights (safetensors) with the architecture in the file's own header; atomic.

    Raises ContractError for a segmenter without `spec`, which could not be built again.
    """
    from safetensors.torch import save_model

    if model.spec is None:
        raise ContractError(
            "model to save", "a Segmenter without spec", "one from dynunet or resenc", "build(...)"
        )
    # safetensors refuses channels_last weights; the model at hand keeps its layout.
    plain = copy.deepcopy(model)
    plain.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    with atomic(path) as temporary:
        # save_model knows that DynUNet lists its blocks under two names.
        save_model(plain, str(temporary), metadata={"spec": json.dumps(model.spec)})
    return Path(path)


def load(path: str | Path) -> Segmenter:
    """Read what `save` wrote; every weight must match.

    Raises ContractError when the file is missing, cut short, or of another architecture.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_model

    if not Path(path).is_file():
        raise ContractError(
            "model file", f"nothing at {path}", "a file written by save", "train first"
        )
    try:
        with safe_open(path, framework="pt") as file:
            spec = json.loads((file.metadata() or {})["spec"])
        model = build(**spec)
        load_model(model, path, strict=True)
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError, RuntimeError) as error:
        raise ContractError(
            "model file",
            f"{path}, unreadable ({error})",
            "a whole file written by save",
            "deleting it",
        ) from None
    return model.eval()


def _spec(
    architecture: str, in_channels: int, classes: int, channels: Sequence[int], **options: Any
) -> dict[str, Any]:
    return {
        "architecture": architecture,
        "in_channels": in_channels,
        "classes": classes,
        "channels": list(channels),
        **options,
    }


def _check_channels(channels: Sequence[int], at_least: int = 2) -> None:
    if len(channels) < at_least or any(width < 1 for width in channels):
        raise ContractError(
            "channels", tuple(channels), f"at least {at_least} positive widths", "(16, 32, 64, 128)"
        )
