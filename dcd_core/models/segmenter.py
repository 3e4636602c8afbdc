"""One wrapper around any U-Net: hooks on named submodules collect the encoder stages."""

import inspect
import json
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial, wraps
from pathlib import Path
from typing import Any, ParamSpec

import torch
from torch import Tensor, nn

from dcd_core.errors import flag, several, whole
from dcd_core.types import ContractError, Output, Stages, Volume, dense

_Arguments = ParamSpec("_Arguments")


class Segmenter(nn.Module):
    """Any U-Net, made to return an `Output`.

    `network`: maps (b, c, d, h, w) to logits, or under deep supervision to several, finest first,
    or one tensor (b, heads, k, d, h, w). `stages`: names of the submodules whose outputs are the
    encoder stages, finest first; `channels`: of each stage. `spec`: what `load` needs to build the
    network again. `regions`: the logits are those of overlapping regions, a sigmoid each. Raises
    ContractError for stages that do not exist or run, for other outputs, and for unfit images.
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
        if not isinstance(network, nn.Module):
            expected, attempt = "a torch.nn.Module", "one that maps images to logits"
            raise ContractError("network", type(network).__name__, expected, attempt)
        stages = several("stages", stages, "names of submodules")
        channels, known = whole("channels", channels), [*dict(network.named_modules())]
        if len(stages) != len(channels) or any(stage not in known for stage in stages):
            got = f"{stages}, {channels}"
            expected = "names of submodules, and one number of channels per stage"
            raise ContractError("stages, channels", got, expected, "network.named_modules()")
        self.network, self.spec, self.regions = network, spec, flag("regions", regions)
        self.stages, self.channels = stages, channels

    def forward(self, x: Volume) -> Output:
        """Logits, encoder stages and deep-supervision logits of a batch (b, c, d, h, w)."""
        result, stages = self._run(x, encoder_only=False)
        logits, *deep = _heads(result)
        return Output(logits, stages, tuple(deep))

    def encode(self, x: Volume) -> Stages:
        """Encoder stages alone; the decoder does not run."""
        return self._run(x, encoder_only=True)[1]

    @torch.no_grad()
    def observed(self, x: Volume, *, logits: bool) -> Output:
        """What a student is shown, without a graph: encoder stages, and `logits` if wanted."""
        return self(x) if logits else Output(x.new_empty((0,)), self.encode(x))

    def _run(self, x: Volume, *, encoder_only: bool) -> tuple[Any, Stages]:
        """What the network returns, or None if only the encoder runs; and the stages."""
        features: dict[str, Tensor] = {}

        def keep(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
            features[name] = output
            if encoder_only and len(features) == len(self.stages):
                raise _Encoded

        def spare(module: nn.Module, inputs: tuple[Any, ...]) -> Any:
            # An activation in place would overwrite the stage: it is given a copy.
            kept = any(x is feature for x in inputs[:1] for feature in features.values())
            return (inputs[0].clone(), *inputs[1:]) if kept else None

        modules, result = dict(self.network.named_modules()), None
        with ExitStack() as hooks, suppress(_Encoded):  # no copy or export may meet one later
            for name in self.stages:
                hooks.enter_context(modules[name].register_forward_hook(partial(keep, name)))
            for module in modules.values():
                if getattr(module, "inplace", False):
                    hooks.enter_context(module.register_forward_pre_hook(spare))
            try:
                result = self.network(dense("image", x))
            except ContractError:
                raise
            except (RuntimeError, ValueError) as error:  # those of PyTorch do not say what to do
                got = f"{tuple(x.shape)} ({str(error).splitlines()[0]})"
                expected = "its channels and type, a size that the strides of the network divide"
                raise ContractError("image", got, expected, "the patch of its training") from error
        absent = [name for name in self.stages if name not in features]
        if absent:
            raise ContractError("stages", f"{absent} did not run", "modules that run", "others")
        return result, tuple(features[name] for name in self.stages)


class _Encoded(Exception):
    """Ends a forward pass once all stages are known."""


def recorded(architecture: Callable[_Arguments, Segmenter]) -> Callable[_Arguments, Segmenter]:
    """The same architecture, whose segmenters keep its arguments as `spec`, in types of JSON."""

    @wraps(architecture)
    def built(*args: _Arguments.args, **options: _Arguments.kwargs) -> Segmenter:
        try:
            given = inspect.signature(architecture).bind(*args, **options)
            given.apply_defaults()
            model = architecture(*args, **options)
            named = {"architecture": architecture.__name__, **given.arguments}
            model.spec = json.loads(json.dumps(named, default=operator.index))
        except ContractError:
            raise
        except Exception as error:  # the packages that networks come from have errors of their own
            what, got = f"options of {architecture.__name__}", f"{type(error).__name__}: {error}"
            raise ContractError(what, got, "those it describes", "its defaults") from error
        return model

    return built


def _heads(result: Any) -> Sequence[Tensor]:
    """The logits in what a network returned, finest first."""
    if isinstance(result, Tensor) and result.ndim == 6:
        result = result.unbind(1)
    heads = result if isinstance(result, list | tuple) else [result]
    shapes = [tuple(getattr(z, "shape", ())) for z in heads]
    # A finer grid than the first, or another number of classes: that is no head.
    if not all(len(s) == 5 and s[:2] == shapes[0][:2] and s <= shapes[0] for s in shapes):
        got = f"{type(result).__name__} of shapes {shapes}"
        expected = "logits (b, k, d, h, w), or a list of them, finest first"
        raise ContractError("output of the network", got, expected, "a module that returns those")
    return heads


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within, the model is in eval mode; afterwards in the mode it had, even after an error."""
    was_training = model.training
    try:
        model.eval()
        yield
    finally:
        model.train(was_training)


def parameters(model: nn.Module) -> int:
    """Number of parameters of a module."""
    return sum(p.numel() for p in model.parameters())


def refuse_not_finite(model: nn.Module, path: str | Path) -> None:
    """Raise ContractError where a weight read from `path` is NaN or infinite."""
    wrong = [name for name, w in model.state_dict().items() if not w.isfinite().all()]
    if wrong:
        got = f"{path}, not finite in {wrong[0]}"
        raise ContractError("weights", got, "finite", "another file")
