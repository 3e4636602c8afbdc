"""Keep some bands of a volume and go back: what a loss and its gradient are made of in general.

y = sum_(b in bands) S_b A_b x,    A_b analysis and S_b synthesis of band b.

The synthesis need not invert the analysis, nor be its transpose. Bands that share a filter share
its product. Where all axes are orthonormal, `diagonal` is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from dcd_core.wavelet.contraction import Filter


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


AtCoarse: TypeAlias = Callable[[Tensor], Tensor | None]
"""Given the coefficients of `aaa` (c, d, h, w), returns what to add to them, or None."""


def bandpass(
    x: Tensor, axes: Sequence[Axis], bands: Sequence[str], *, at_coarse: AtCoarse | None = None
) -> tuple[Tensor, Tensor]:
    """Energy of the selected bands of `x`, a scalar, and those bands brought back.

    `x` (c, d, h, w), contiguous -> (c, d', h', w'); `axes` those of D, H and W. The energy is the
    squared norm of the selected coefficients, without what `at_coarse` adds. `x` is used up: what
    comes back may lie in its memory.
    """
    plan = _plan(tuple(axes), tuple(bands), at_coarse is not None, x.dtype, x.device)
    norms: list[Tensor] = []
    back = _keep(x, plan, norms, at_coarse)
    if back is None:
        sizes = [axis.synthesis(axis.n, axis.name, "a").shape[1] for axis in axes]
        back = x.new_zeros(len(x), *sizes)
    energy = torch.cat(norms).square().sum() if norms else x.new_zeros(())
    return energy, back


# --- what to do, decided once ---------------------------------------------------------------------


class Band(NamedTuple):
    """The end of the way there: is this band selected, and is it the coarse one somebody awaits?"""

    selected: bool
    awaited: bool


class Split(NamedTuple):
    """The last axis: its analysis, then for each half the synthesis and what to do with the rest.

    The low half is the first. Without an analysis no band is left on this way.
    """

    analysis: Filter | None
    halves: tuple[tuple[Filter, Split | Band], ...]


@lru_cache(maxsize=1024)
def _plan(
    axes: tuple[Axis, ...],
    bands: tuple[str, ...],
    coarse: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> Split | Band:
    """How to keep `bands`, a letter for each of `axes`; `coarse` on the way to an awaited `aaa`."""
    if not axes:
        return Band(bool(bands), coarse)
    every = ["".join(band) for band in product(*(axis.letters for axis in axes))]
    kept = [band for band in every if band in bands]
    letters = "".join(sorted({band[-1] for band in kept} | set("a" * coarse)))
    if not letters:
        return Split(None, ())
    axis, halves = axes[-1], []
    for letter in letters:
        inner = tuple(band[:-1] for band in kept if band[-1] == letter)
        back = Filter.of(axis.synthesis(axis.n, axis.name, letter), dtype, device)
        plan = _plan(axes[:-1], inner, coarse and letter == "a", dtype, device)
        halves.append((back, plan))
    there = Filter.of(axis.analysis(axis.n, axis.name, letters), dtype, device)
    return Split(there, tuple(halves))


# --- doing it -------------------------------------------------------------------------------------


def _keep(
    x: Tensor, plan: Split | Band, norms: list[Tensor], at_coarse: AtCoarse | None
) -> Tensor | None:
    """The selected bands of `x` and what is added to the coarse one, brought back to its axes.

    None stands for zero.
    """
    if isinstance(plan, Band):
        return _coefficients(x, plan, norms, at_coarse)
    if plan.analysis is None:
        return None
    kept: Tensor | None = None
    parts = plan.analysis.analyse(x).split([back.shape[0] for back, _ in plan.halves])
    for part, (back, inner) in zip(parts, plan.halves, strict=True):
        found = _keep(part, inner, norms, at_coarse)
        if found is not None:
            kept = _back(back, found, onto=kept, room=x)
    return kept


def _coefficients(
    x: Tensor, band: Band, norms: list[Tensor], at_coarse: AtCoarse | None
) -> Tensor | None:
    """The same at the end of the way there: `x` (d, h, w, c) is one band."""
    kept = None
    if band.selected:
        norms.append(torch.linalg.vector_norm(x.flatten(1), dim=1))
        kept = x
    if not (band.awaited and at_coarse):
        return kept
    added = at_coarse(x.movedim(-1, 0).clone(memory_format=torch.contiguous_format))
    if added is None:
        return kept
    added = added.movedim(0, -1)
    return added if kept is None else kept + added


def _back(back: Filter, y: Tensor, *, onto: Tensor | None, room: Tensor) -> Tensor:
    """Synthesis, added to `onto`, or else in the memory of `room` where the shape is the same."""
    if onto is not None:
        return back.synthesise(y, onto, add=True)
    shape = (*y.shape[1:], back.shape[1])
    return back.synthesise(y, room if room.shape == shape else y.new_empty(shape))
