"""Keep some bands of a volume and go back: what a loss and its gradient are made of in general.

y = sum_(b in bands) S_b A_b x,    A_b analysis and S_b synthesis of band b.

The synthesis need not invert the analysis, nor be its transpose. It is carried out by filtering
(`compiled`) or by products of matrices (`contraction`), whichever serves the volumes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from dcd_core.wavelet import compiled
from dcd_core.wavelet.banks import Bank
from dcd_core.wavelet.contraction import AXES, ORDER, Filter
from dcd_core.wavelet.transform import BANDS

COARSE = BANDS[0]


class Axis(NamedTuple):
    """One axis: its analysis, and its synthesis, transposed."""

    analysis: Bank
    synthesis: Bank


AtCoarse: TypeAlias = Callable[[Tensor], Tensor | None]
AtBands: TypeAlias = Callable[[Tensor], None]


def bandpass(
    x: Tensor,
    axes: Sequence[Axis],
    bands: Sequence[str],
    *,
    at_coarse: AtCoarse | None = None,
    at_bands: AtBands | None = None,
) -> Tensor:
    """The selected bands of `x`, brought back.

    `x` (c, d, h, w), contiguous -> (c, d', h', w'); `axes` those of D, H and W. `at_coarse` is
    given the coefficients of `aaa` (c, d, h, w), selected or not, and returns what is added to
    them before they go back, or None; `at_bands` sees the selected coefficients without that. `x`
    is used up: what comes back may lie in its memory.
    """
    route = _route(tuple(axes), tuple(bands), at_coarse is not None)
    if not route.reached:
        return x.new_zeros(len(x), *(axis.synthesis.samples for axis in axes))
    go = _filtered if compiled.serves(x) else _contracted
    return go(x, route, at_coarse, at_bands)


class Route(NamedTuple):
    """Bands that are selected and exist, and those that are reached: them, and `aaa` if awaited."""

    axes: tuple[Axis, ...]
    kept: tuple[str, ...]
    reached: tuple[str, ...]


@lru_cache(maxsize=1024)
def _route(axes: tuple[Axis, ...], bands: tuple[str, ...], awaited: bool) -> Route:
    every = ["".join(band) for band in product(*(axis.analysis.letters for axis in axes))]
    kept = [band for band in every if band in bands]
    reached = [band for band in every if band in kept or (awaited and band == COARSE)]
    return Route(axes, tuple(kept), tuple(reached))


# --- by filtering ---------------------------------------------------------------------------------


def _filtered(
    x: Tensor, route: Route, at_coarse: AtCoarse | None, at_bands: AtBands | None
) -> Tensor:
    """Split, and join."""
    there, back = zip(*route.axes, strict=True)
    found = compiled.split(x, there, route.reached)
    added = at_coarse(found[0].clone()) if at_coarse else None
    if COARSE not in route.kept and at_coarse:
        found[0].zero_()
    if at_bands:
        at_bands(found.flatten(0, 1))
    if added is not None:
        found[0] += added
    out = _room(x, route)
    compiled.join(found, back, route.reached, out)
    return out


def _room(x: Tensor, route: Route) -> Tensor:
    """Where the volumes that come back may lie."""
    size = [axis.synthesis.samples for axis in route.axes]
    return x if list(x.shape[1:]) == size else x.new_empty(len(x), *size)


# --- by products of matrices ----------------------------------------------------------------------


def _contracted(
    x: Tensor, route: Route, at_coarse: AtCoarse | None, at_bands: AtBands | None
) -> Tensor:
    """Every axis there, every axis back; what is reached and not selected is zeroed."""
    plan = _plan(route, x.dtype, x.device)
    y = x
    for axis in AXES:
        y = plan.analysis[axis].analyse(y, len(x))
    coefficients = y.view(len(x), *(plan.analysis[axis].shape[1] for axis in ORDER))
    natural = coefficients.movedim((1, 2, 3), [axis + 1 for axis in ORDER])
    coarse = natural[(slice(None), *plan.coarse)]
    added = at_coarse(coarse.clone(memory_format=torch.contiguous_format)) if at_coarse else None
    for block in plan.unselected:
        natural[(slice(None), *block)].zero_()
    if at_bands:
        at_bands(coefficients)
    if added is not None:
        coarse += added
    out = _room(x, route)
    for axis in reversed(AXES):
        _, rows, samples = plan.synthesis[axis].shape
        back = out if axis == AXES[0] else y.new_empty(y.numel() // rows * samples)
        plan.synthesis[axis].synthesise(y, back, len(x))
        y = back
    return out


Block: TypeAlias = tuple[slice, ...]
"""Where the coefficients (d, h, w) of one band are."""


class Plan(NamedTuple):
    """Filters of D, H and W there and back, where `aaa` is, and what is reached but not selected.

    Each axis has the letters of any band that is reached.
    """

    analysis: tuple[Filter, ...]
    synthesis: tuple[Filter, ...]
    coarse: Block
    unselected: tuple[Block, ...]


@lru_cache(maxsize=1024)
def _plan(route: Route, dtype: torch.dtype, device: torch.device) -> Plan:
    analysis, synthesis, sides = [], [], []
    for i, axis in enumerate(route.axes):
        letters = "".join(sorted({band[i] for band in route.reached}))
        there, back = axis.analysis.matrix(letters), axis.synthesis.matrix(letters)
        analysis.append(Filter.of(there[None], i, dtype, device))
        synthesis.append(Filter.of(back[None], i, dtype, device))
        half = axis.analysis.coefficients
        sides.append({x: slice(j * half, (j + 1) * half) for j, x in enumerate(letters)})
    blocks = {
        band: tuple(side[x] for side, x in zip(sides, band, strict=True))
        for band in map("".join, product(*sides))
    }
    return Plan(
        tuple(analysis),
        tuple(synthesis),
        blocks.get(COARSE, ()),
        tuple(block for band, block in blocks.items() if band not in route.kept),
    )
