"""Keep some bands of a volume and go back: the operation behind the loss and its gradient.

y = sum_(b in bands) S_b A_b x,    A_b analysis and S_b synthesis of band b.

Every axis is contracted as the last one and comes out in front, so that three contractions restore
the order and each of them is one matrix product over all voxels, without a transposed copy. Bands
that share a filter share its product. Long axes have banded matrices: these are kept as the windows
in which they are not zero, so that the work per voxel does not grow with the volume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

WINDOW = 32
"""Coefficients that share a window: larger ones multiply more zeros, smaller ones are slow."""

LONG = 112
"""Samples beyond which matrices are kept in windows: on short axes they cost more than zeros."""

Window: TypeAlias = tuple[slice, Tensor]


@dataclass(frozen=True)
class Filter:
    """A matrix (coefficients, samples) of one axis, in windows.

    `rows` and `columns` list, for each run of rows or columns, the parts of the other axis where
    the matrix is not zero. Periodized filters wrap: two parts.
    """

    shape: tuple[int, int]
    rows: tuple[tuple[slice, tuple[Window, ...]], ...]
    columns: tuple[tuple[slice, tuple[Window, ...]], ...]

    def analyse(self, x: Tensor) -> Tensor:
        """Samples (..., n) -> coefficients (m, ...): the contracted axis comes to the front."""
        coefficients, samples = self.shape
        columns = x.view(-1, samples).T
        result = x.new_empty(coefficients, columns.shape[1])
        for run, parts in self.rows:
            _products(result[run], [(matrix, columns[part]) for part, matrix in parts])
        return result.view(coefficients, *x.shape[:-1])

    def synthesise(self, y: Tensor, out: Tensor, *, sign: int = 1, add: bool = False) -> Tensor:
        """Coefficients (m, ...) -> samples (..., n), written to `out`, or `sign` times added."""
        coefficients, samples = self.shape
        y, flat = y.reshape(coefficients, -1), out.view(-1, samples)
        for run, parts in self.columns:
            pairs = [(y[part].T, matrix) for part, matrix in parts]
            _products(flat[:, run], pairs, sign=sign, add=add)
        return out


def _products(
    out: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], *, sign: int = 1, add: bool = False
) -> None:
    if not pairs and not add:
        out.zero_()
    for left, right in pairs:
        if add:
            torch.addmm(out, left, right, alpha=sign, out=out)
        else:
            torch.mm(left, right, out=out)
        add = True


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


def _filter(dense: np.ndarray, dtype: torch.dtype, device: torch.device) -> Filter:
    """The filter with this matrix (coefficients, samples)."""
    long = dense.shape[1] > LONG

    def windows(matrix: np.ndarray, step: int) -> list[tuple[slice, list[slice]]]:
        step = step if long else max(len(matrix), 1)
        runs = [slice(i, min(i + step, len(matrix))) for i in range(0, len(matrix), step)]
        return [(run, _nonzero(matrix[run])) for run in runs]

    def held(part: np.ndarray) -> Tensor:
        # A tensor born under inference_mode could never take part in a later backward pass.
        with torch.inference_mode(False):
            return torch.from_numpy(np.ascontiguousarray(part)).to(device, dtype)

    by_rows, by_columns = windows(dense, WINDOW), windows(dense.T, 2 * WINDOW)
    return Filter(
        dense.shape,
        tuple((run, tuple((p, held(dense[run, p])) for p in parts)) for run, parts in by_rows),
        tuple((run, tuple((p, held(dense[p, run])) for p in parts)) for run, parts in by_columns),
    )


def _nonzero(rows: np.ndarray) -> list[slice]:
    """The runs of columns in which any of the rows is not zero; short gaps are bridged."""
    used = np.flatnonzero(np.abs(rows).max(axis=0, initial=0))
    if not len(used):
        return []
    runs = np.split(used, np.flatnonzero(np.diff(used) > WINDOW // 2) + 1)
    return [slice(int(run[0]), int(run[-1]) + 1) for run in runs]


def bandpass(
    x: Tensor,
    axes: Sequence[Axis],
    bands: Sequence[str],
    *,
    orthonormal: bool = False,
    at_coarse: Callable[[Tensor], Tensor | None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Energy of the selected bands of `x`, a scalar, and those bands brought back.

    `x` (c, d, h, w), contiguous -> (c, d', h', w'); `axes` those of D, H and W. The energy is the
    squared norm of the selected coefficients. `at_coarse` is given the coefficients of `aaa`,
    (c, d, h, w), and returns what is to be added to that band on the way back, or None; the energy
    is without it. Where filters are `orthonormal`, bands are taken away instead of added up if that
    needs fewer filters: the published six cost what the other two do. `x` is used up: what comes
    back may lie in its memory.
    """
    axes, coarse = tuple(axes), at_coarse is not None
    plan = _plan(axes, tuple(bands), orthonormal, coarse, x.dtype, x.device)
    norms: list[Tensor] = []
    back, _ = _keep(x, plan, norms, at_coarse, apart=False)
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

    `spare`: what comes back is taken away from what was there; the bands are those left out.
    """

    analysis: Filter | None
    halves: tuple[tuple[Filter, Split | Band], ...]
    spare: bool


@lru_cache(maxsize=1024)
def _plan(
    axes: tuple[Axis, ...],
    bands: tuple[str, ...],
    orthonormal: bool,
    coarse: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> Split | Band:
    """How to keep `bands`, a letter for each of `axes`; `coarse` on the way to an awaited `aaa`."""
    if not axes:
        return Band(bool(bands), coarse)

    def letters(of: Sequence[str]) -> str:
        return "".join(sorted({band[-1] for band in of} | set("a" * coarse)))

    every = ["".join(band) for band in product(*(axis.letters for axis in axes))]
    kept = [band for band in every if band in bands]
    others = [band for band in every if band not in bands]
    spare = orthonormal and len(letters(others)) < len(letters(kept))
    named = others if spare else kept
    axis, halves = axes[-1], []
    for letter in letters(named):
        inner = tuple(band[:-1] for band in named if band[-1] == letter)
        on_way = coarse and letter == "a"
        back = _filter(axis.synthesis(axis.n, axis.name, letter), dtype, device)
        halves.append((back, _plan(axes[:-1], inner, orthonormal, on_way, dtype, device)))
    if not halves:
        return Split(None, (), spare)
    there = _filter(axis.analysis(axis.n, axis.name, letters(named)), dtype, device)
    return Split(there, tuple(halves), spare)


# --- doing it -------------------------------------------------------------------------------------


def _keep(
    x: Tensor,
    plan: Split | Band,
    norms: list[Tensor],
    at_coarse: Callable[[Tensor], Tensor | None] | None,
    apart: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The selected bands of `x` and what is added to the coarse one, brought back to its axes.

    Their sum, and None, unless `apart`: then these bands are to be taken away, the addition is no
    part of them and their norms do not count. None stands for zero.
    """
    if isinstance(plan, Band):
        return _coefficients(x, plan, norms, at_coarse, apart)
    kept: Tensor | None = x if plan.spare else None
    addition: Tensor | None = None
    backs = [back for back, _ in plan.halves]
    if plan.analysis is not None:
        parts = plan.analysis.analyse(x).split([back.shape[0] for back in backs])
        within = [
            _keep(part, inner, norms, at_coarse, apart or plan.spare)
            for part, (_, inner) in zip(parts, plan.halves, strict=True)
        ]
        addition = within[0][1]  # the low half is the first
        for back, (found, _) in zip(backs, within, strict=True):
            if found is not None:
                kept = _back(back, found, onto=kept, room=x, sign=-1 if plan.spare else 1)
    if plan.spare and not apart:
        norms.append(_row_norms(x))
    if addition is None:
        return kept, None
    if apart:
        return kept, _back(backs[0], addition)
    return _back(backs[0], addition, onto=kept, room=x), None


def _coefficients(
    x: Tensor,
    band: Band,
    norms: list[Tensor],
    at_coarse: Callable[[Tensor], Tensor | None] | None,
    apart: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The same at the end of the way there: `x` (d, h, w, c) is one band."""
    if band.selected and not apart:
        norms.append(_row_norms(x))
    kept = x if band.selected else None
    if not (band.awaited and at_coarse):
        return kept, None
    added = at_coarse(x.movedim(-1, 0).clone(memory_format=torch.contiguous_format))
    if added is None:
        return kept, None
    added = added.movedim(0, -1)
    if apart:
        return kept, added
    return (added if kept is None else kept + added), None


def _back(
    back: Filter,
    y: Tensor,
    *,
    onto: Tensor | None = None,
    room: Tensor | None = None,
    sign: int = 1,
) -> Tensor:
    """Synthesis, added to `onto`, or else in the memory of `room` where the shape is the same."""
    if onto is not None:
        return back.synthesise(y, onto, sign=sign, add=True)
    shape = (*y.shape[1:], back.shape[1])
    fits = room is not None and room.shape == shape
    return back.synthesise(y, room if room is not None and fits else y.new_empty(shape))


def squared_norm(x: Tensor) -> Tensor:
    """Squared norm of a tensor, a scalar."""
    return _row_norms(x).square().sum()


def _row_norms(x: Tensor) -> Tensor:
    """Norms of the rows of a tensor: one running float32 sum over all would drift by 1e-5."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1)
