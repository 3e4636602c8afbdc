"""Keep some bands of a volume and go back: what a loss and its gradient are made of in general.

y = sum_(b in bands) S_b A_b x,    A_b analysis and S_b synthesis of band b.

The synthesis need not invert the analysis, nor be its transpose. Where all axes are orthonormal,
`diagonal` is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from dcd_core.wavelet.contraction import AXES, ORDER, Filter
from dcd_core.wavelet.transform import BANDS


class Axis(NamedTuple):
    """One axis: `n` samples, and what builds its matrices for the letters "a", "d" or "ad".

    `analysis(n, name, letters)` and `synthesis(n, name, letters)` are matrices (m, samples), low
    rows first; `letters` that the axis has: one too short to be split has no "d".
    """

    analysis: Callable[[int, str, str], np.ndarray]
    synthesis: Callable[[int, str, str], np.ndarray]
    n: int
    name: str
    letters: str = "ad"


def bandpass(
    x: Tensor,
    axes: Sequence[Axis],
    bands: Sequence[str],
    *,
    at_coarse: Callable[[Tensor], Tensor | None] | None = None,
    at_bands: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """The selected bands of `x`, brought back.

    `x` (c, d, h, w), contiguous -> (c, d', h', w'); `axes` those of D, H and W. `at_coarse` is
    given the coefficients of `aaa` (c, d, h, w), selected or not, and returns what is added to
    them before they go back, or None; `at_bands` sees the selected coefficients without that. `x`
    is used up: what comes back may lie in its memory.
    """
    plan = _plan(tuple(axes), tuple(bands), at_coarse is not None, x.dtype, x.device)
    if plan is None:
        sizes = [axis.synthesis(axis.n, axis.name, "a").shape[1] for axis in axes]
        return x.new_zeros(len(x), *sizes)
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
    for axis in reversed(AXES):
        _, rows, samples = plan.synthesis[axis].shape
        count = y.numel() // rows * samples
        last = axis == AXES[0] and x.numel() == count
        out = x if last else y.new_empty(count)
        plan.synthesis[axis].synthesise(y, out, len(x))
        y = out
    return y.view(len(x), *(filter_.shape[2] for filter_ in plan.synthesis))


Block: TypeAlias = tuple[slice, ...]
"""Where the coefficients (d, h, w) of one band are."""


class Plan(NamedTuple):
    """Filters of D, H and W there and back, where `aaa` is, and what is reached but not selected.

    Each axis has the letters of any band that is selected, and of `aaa` if somebody awaits it.
    """

    analysis: tuple[Filter, ...]
    synthesis: tuple[Filter, ...]
    coarse: Block
    unselected: tuple[Block, ...]


@lru_cache(maxsize=1024)
def _plan(
    axes: tuple[Axis, ...],
    bands: tuple[str, ...],
    awaited: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> Plan | None:
    """How to keep `bands`, and reach `aaa` if it is `awaited`; None where no band is left."""
    every = ["".join(band) for band in product(*(axis.letters for axis in axes))]
    kept = {band for band in every if band in bands}
    reached = kept | {BANDS[0]} if awaited else kept
    if not reached:
        return None
    analysis, synthesis, sides = [], [], []
    for i, axis in enumerate(axes):
        letters = "".join(sorted({band[i] for band in reached}))
        there = axis.analysis(axis.n, axis.name, letters)
        back = axis.synthesis(axis.n, axis.name, letters)
        analysis.append(Filter.of(there[None], i, dtype, device))
        synthesis.append(Filter.of(back[None], i, dtype, device))
        half = len(there) // len(letters)
        sides.append({x: slice(j * half, (j + 1) * half) for j, x in enumerate(letters)})
    blocks = {
        band: tuple(side[x] for side, x in zip(sides, band, strict=True))
        for band in map("".join, product(*sides))
    }
    return Plan(
        tuple(analysis),
        tuple(synthesis),
        blocks.get(BANDS[0], ()),
        tuple(block for band, block in blocks.items() if band not in kept),
    )
