"""Input of any kind, sound or not, and what came of it: a value, or an error in words."""

import math
import warnings
from collections import Counter

import numpy as np
import torch
from faults import MANY
from hypothesis import HealthCheck, Verbosity, given, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisWarning

from dcd_core.types import ContractError

REFUSED = object()
"""What `tried` returns for a ContractError."""

DTYPES = {
    "sound": [torch.float32, torch.float64, torch.float16, torch.bfloat16],
    "whole": [torch.int64, torch.uint8, torch.bool],
    "none": [torch.complex64, torch.quint8],
}
LAYOUTS = ("plain", "last", "sliced", "expanded", "turned", "inference", "leaf", "meta", "sparse")
"""The last two hold no values that could be compared; all others are sound."""
NUMBERS = st.one_of(
    st.integers(-3, 40),
    st.floats(-4, 4),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e300, 10**30, True, False]),
    st.sampled_from([np.float32(0.5), np.int64(3), np.array([1, 2]), torch.tensor(2)]),
)
ANYTHING = st.recursive(
    st.one_of(NUMBERS, st.none(), st.text(max_size=4), st.binary(max_size=3), st.just(object())),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=2),
    ),
    max_leaves=5,
)
"""What might stand where an argument is expected."""


def tried(function, *arguments, **options):
    """What a call returns, or `REFUSED`; any other error is one of the test."""
    try:
        return function(*arguments, **options)
    except ContractError:
        return REFUSED


def fuzzed(strategy, check, tally, *, short=20, long=500):
    """Give `check` many examples of a strategy and count them; it says whether one was refused."""
    outcomes = Counter()

    @settings(
        max_examples=long if MANY else short,
        deadline=None,
        database=None,
        derandomize=not MANY,
        print_blob=True,
        verbosity=Verbosity.quiet,
        suppress_health_check=[*HealthCheck],
    )
    @given(strategy)
    def run(example):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of the oracles
            found = check(example)
        outcomes["inputs refused" if found is REFUSED else "inputs answered"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", HypothesisWarning
        )  # of a long example, instead of its fault
        run()
    tally({**outcomes, "inputs": sum(outcomes.values())})


def mostly(good, odd=ANYTHING):
    """Now and then something odd in the place of something good."""
    return st.integers(0, 5).flatmap(lambda n: good if n else odd)


def options(known):
    """Some of the options in a mapping from names to good values, most of them good."""
    values = {name: mostly(st.sampled_from(good)) for name, good in known.items()}
    return st.fixed_dictionaries({}, optional=values)


@st.composite
def shapes(draw, axes=5, most=9):
    """A shape (b, c, ...) of few voxels; one in eight has another number of axes or is empty."""
    if draw(st.integers(0, 7)) == 0:
        return tuple(draw(st.lists(st.integers(0, 4), max_size=7)))
    small = st.integers(1, 2)
    return tuple(draw(small if i < 2 else st.integers(1, most)) for i in range(axes))


@st.composite
def tensors(draw, shape, *, sound=False):
    """Noise of a shape in some type and layout; `sound` excludes what has no real values."""
    kinds = ["sound"] * 6 + ([] if sound else ["whole", "none"])
    dtype = draw(st.sampled_from(DTYPES[draw(st.sampled_from(kinds))]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    x = torch.randn(shape, generator=generator)
    if dtype == torch.quint8:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch will not have them for long
            return torch.quantize_per_tensor(x, 0.1, 0, dtype)
    x = x.to(dtype)
    layout = draw(st.sampled_from(LAYOUTS[:7] if sound else LAYOUTS))
    return laid_out(x, layout)


VOLUMES = mostly(shapes().flatmap(tensors))
"""Volumes of features, some of them spoilt."""


def laid_out(x, layout):
    """The same values in another layout, where the tensor can have it."""
    if layout == "last" and x.ndim == 5:
        return x.contiguous(memory_format=torch.channels_last_3d)
    if layout == "sliced" and x.ndim:
        return torch.cat([x, x], -1)[..., : x.shape[-1]]
    if layout == "expanded" and x.ndim:
        return x[:1].expand(x.shape)
    if layout == "turned" and x.ndim > 1:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "inference":
        with torch.inference_mode():
            return x.clone()
    if layout == "leaf" and x.is_floating_point():
        return x.requires_grad_()
    if layout == "meta":
        return x.to("meta")
    return x.to_sparse() if layout == "sparse" and x.ndim else x


def is_real(x):
    """Whether these are numbers that can be compared."""
    return (
        isinstance(x, torch.Tensor)
        and x.layout == torch.strided
        and not (x.is_meta or x.is_complex() or x.is_quantized)
    )


def plain(x):
    """The same numbers in double precision, contiguous, without a past."""
    return torch.tensor(x.detach().double().numpy())
