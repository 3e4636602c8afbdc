"""One wrapper around any U-Net, so that every method sees the same thing.

Hooks on named submodules collect the encoder stages, for the length of one forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from dcd_core.types import ContractError, Output, Stages, Volume


class Segmenter(nn.Module):
    """Any U-Net, made to return an `Output`.

    `network`: maps (b, c, d, h, w) to logits, or to a list of logits, finest first, under deep
    supervision. `stages`: names of the submodules whose outputs are the encoder stages, finest
    first. `channels`: channels of each stage. `spec`: what `load` needs to build the network again.
    `regions`: whether the logits are those of overlapping regions, a sigmoid each, as nnU-Net can
    train them, and not those of classes.
    """

    def __init__(
        self,
        network: nn.Module,
        stages: Sequence[str],
        channels: Sequence[int],
        spec: dict[str, Any] | None = None,
        *,
        regions: bool = False,
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
        self.regions = regions

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


def spec_of(
    architecture: str, in_channels: int, classes: int, channels: Sequence[int], **options: Any
) -> dict[str, Any]:
    """The `spec` of a segmenter: the arguments of `build`, in words that JSON has."""
    return {
        "architecture": architecture,
        "in_channels": in_channels,
        "classes": classes,
        "channels": list(channels),
        **options,
    }


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


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within, the model is in eval mode; afterwards, come what may, in the mode it had."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def parameters(model: nn.Module) -> int:
    """Number of parameters of a module."""
    return sum(p.numel() for p in model.parameters())
