"""All methods of distillation: one class per paper, called alike, none tuned more than another.

`METHODS` has them by name, DCD too; `build` makes one. What all share is in `dcd_core.method`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dcd_core.dcd import DCD
from dcd_core.errors import nearest
from dcd_core.method import Method, StageMethod
from dcd_core.methods import controls, features, frequency, logits, masks, regions, relations
from dcd_core.methods.logits import LogitMethod
from dcd_core.methods.sum import Sum, parts_of
from dcd_core.types import ContractError

METHODS: Mapping[str, Callable[..., Method]] = {
    "dcd": DCD,
    "dcd-released": DCD.released,
    "logits": logits.LogitsKD,
    "dist": logits.DIST,
    "wavelet-outputs": logits.WaveletOutputs,
    "cwd-logits": logits.ChannelWiseLogits,
    "feature-mse": features.FeatureMSE,
    "fitnets": features.FitNets,
    "at": features.AttentionTransfer,
    "cwd-features": features.ChannelWiseFeatures,
    "skd": relations.PairwiseAffinity,
    "rkd": relations.RelationalKD,
    "cirkd": relations.CrossImage,
    "ifvd": regions.IFVD,
    "reco": regions.ReCo,
    "reco-released": regions.ReCo.released,
    "freekd": frequency.FreeKD,
    "freekd-prompt-free": frequency.PromptFreeFreeKD,
    "acam": masks.ACAMKD,
    "aaa-only": controls.CoarseBand,
    "ddd-only": controls.FinestBand,
    "random-bands": controls.RandomBands,
    "gaussian-highpass": controls.GaussianHighPass,
    "fourier-highpass": controls.FourierHighPass,
}
"""Methods by name; "none" is no method."""


def build(
    name: str, student_channels: Sequence[int], teacher_channels: Sequence[int], **options: Any
) -> Method:
    """The method called `name` for networks of these channels, finest stage first.

    A name such as "logits + dcd" is a `Sum` of methods; `options` then has those of each part under
    its name: `dcd={"levels": 2}`.
    Raises ContractError, with the nearest known one, for an unknown name or option.
    """
    channels = student_channels, teacher_channels
    if isinstance(name, str) and "+" in name:
        parts = parts_of(name, METHODS, options)
        return Sum([build(part, *channels, **own) for part, own in parts.items()])
    if not isinstance(name, str) or name not in METHODS:
        attempt = nearest(str(name), METHODS)
        raise ContractError("method", repr(name), "a name out of METHODS", attempt)
    known = options_of(name)
    for option in {*options} - {*known}:
        attempt = nearest(option, known) if known else "no options"
        raise ContractError(f"option of {name}", repr(option), f"one of {known}", attempt)
    return METHODS[name](*channels, **options)


def options_of(name: str) -> list[str]:
    """The options of a method, with those of its bases that it does not decide itself."""
    made = METHODS[name]  # a `released` one, a function, decides all
    return made.options() if isinstance(made, type) and issubclass(made, Method) else []


def adapter_option(name: str) -> str | None:
    """The option that says how a method's adapters are made; None where there is none."""
    made = METHODS[name]
    return made.adapter_option if isinstance(made, type) and issubclass(made, Method) else None


__all__ = ["METHODS", "LogitMethod", "Method", "StageMethod", "Sum"]
__all__ += ["adapter_option", "build", "options_of"]
