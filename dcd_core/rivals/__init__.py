"""Every other way to distil: one class per paper, all called alike, none tuned more than another.

`METHODS` lists them by name and `build` makes one. DCD is among them, so that a comparison is a
loop over names. What all share is in `method`; each family has a file.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import nn

from dcd_core.dcd import DCD
from dcd_core.records import nearest
from dcd_core.rivals.attention import AttentionTransfer
from dcd_core.rivals.channelwise import ChannelWiseFeatures, ChannelWiseLogits
from dcd_core.rivals.controls import (
    FourierHighPass,
    GaussianHighPass,
    aaa_only,
    ddd_only,
    random_bands,
)
from dcd_core.rivals.features import FeatureMSE, FitNets
from dcd_core.rivals.logits import DIST, LogitsKD, WaveletOutputs
from dcd_core.rivals.method import LogitMethod, Method, StageMethod
from dcd_core.types import ContractError

METHODS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "dcd": DCD,
        "dcd-released": DCD.released,
        # outputs
        "logits": LogitsKD,
        "dist": DIST,
        "wavelet-outputs": WaveletOutputs,
        "cwd-logits": ChannelWiseLogits,
        # features
        "feature-mse": FeatureMSE,
        "fitnets": FitNets,
        "at": AttentionTransfer,
        "cwd-features": ChannelWiseFeatures,
        # controls
        "aaa-only": aaa_only,
        "ddd-only": ddd_only,
        "random-bands": random_bands,
        "gaussian-highpass": GaussianHighPass,
        "fourier-highpass": FourierHighPass,
    }
)
"""Methods by name; "none" is no method."""


def build(
    name: str, student_channels: Sequence[int], teacher_channels: Sequence[int], **options: Any
) -> nn.Module:
    """The method called `name` for networks of these channels, finest stage first.

    Raises ContractError, with the nearest known one, for an unknown name or option.
    """
    if name not in METHODS:
        raise ContractError("method", repr(name), "a name out of METHODS", nearest(name, METHODS))
    made = METHODS[name]
    fixed = getattr(made, "keywords", {})  # what a name already decides is no option of it
    known = [
        p
        for p in inspect.signature(made).parameters
        if not p.endswith("_channels") and p not in fixed
    ]
    for option in options:
        if option not in known:
            attempt = nearest(option, known) if known else "no options"
            raise ContractError(f"option of {name}", repr(option), f"one of {known}", attempt)
    return made(student_channels, teacher_channels, **options)


__all__ = ["METHODS", "LogitMethod", "Method", "StageMethod", "build"]
