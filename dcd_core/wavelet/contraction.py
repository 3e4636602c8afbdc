"""Matrices of one axis, applied to a stack of volumes.

Every axis is contracted as the last one and comes out as the first after the stack's, so that three
contractions restore the order without a transposed copy. A volume of the stack is a matrix product
of its own: threads share them out, and none waits for what another has prepared. Long axes have
banded matrices: these are kept as the windows in which they are not zero, so that the work per
voxel does not grow with the volume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from dcd_core.wavelet.transform import constant

WINDOW = 16
"""Coefficients that share a window: larger ones multiply more zeros, smaller ones are slow."""

LONG = 88
"""Samples beyond which matrices are kept in windows: on short axes they cost more than zeros."""

Windows: TypeAlias = tuple[tuple[slice, tuple[tuple[slice, Tensor], ...]], ...]
"""For each run of rows or columns, the parts of the other axis where a matrix is not zero."""


@dataclass(frozen=True)
class Filter:
    """Matrices (g, coefficients, samples) of one axis: volume i of a stack meets matrix i mod g.

    `whole` holds them, or else `rows` and `columns` their windows, matrix by matrix. Periodized
    filters wrap: two parts in a window.
    """

    shape: tuple[int, int, int]
    whole: Tensor | None
    rows: tuple[Windows, ...]
    columns: tuple[Windows, ...]

    @classmethod
    def of(cls, matrices: np.ndarray, dtype: torch.dtype, device: torch.device) -> Filter:
        """The filter with these matrices (g, coefficients, samples)."""

        def held(part: np.ndarray) -> Tensor:
            return constant(part, dtype, device)

        groups, coefficients, samples = matrices.shape
        shape = (groups, coefficients, samples)
        if samples <= LONG:
            return cls(shape, held(matrices), (), ())
        rows = _windows(matrices, WINDOW, held)
        columns = _windows(matrices.transpose(0, 2, 1), 2 * WINDOW, lambda part: held(part.T))
        return cls(shape, None, rows, columns)

    def analyse(self, x: Tensor) -> Tensor:
        """Samples (b, ..., n) -> coefficients (b, m, ...): the contracted axis comes forward."""
        groups, coefficients, samples = self.shape
        columns = x.view(len(x), -1, samples).mT
        result = x.new_empty(len(x), coefficients, columns.shape[2])
        if self.whole is not None:
            torch.bmm(self._stack(len(x)), columns, out=result)
        for i, runs in enumerate(self.rows):
            these, those = result[i::groups], columns[i::groups]
            for run, parts in runs:
                _products(these[:, run], [(matrix, those[:, part]) for part, matrix in parts])
        return result.view(len(x), coefficients, *x.shape[1:-1])

    def synthesise(self, y: Tensor, out: Tensor, *, add: bool = False) -> Tensor:
        """Coefficients (b, m, ...) -> samples (b, ..., n), written to `out` or added to it."""
        groups, coefficients, samples = self.shape
        rows, flat = y.view(len(y), coefficients, -1).mT, out.view(len(y), -1, samples)
        if self.whole is not None:
            torch.baddbmm(flat, rows, self._stack(len(y)), beta=int(add), out=flat)
        for i, runs in enumerate(self.columns):
            these, those = flat[i::groups], rows[i::groups]
            for run, parts in runs:
                pairs = [(those[:, :, part], matrix) for part, matrix in parts]
                _products(these[:, :, run], pairs, add=add)
        return out

    def _stack(self, count: int) -> Tensor:
        """The matrices of a stack of `count` volumes (count, m, n)."""
        assert self.whole is not None
        return self.whole.expand(count // self.shape[0], *self.shape).flatten(0, 1)


def _products(out: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], *, add: bool = False) -> None:
    """The sum of products of stacks, where one side may be a single matrix for all."""
    if not pairs and not add:
        out.zero_()
    for left, right in pairs:
        one, other = (x.expand(len(out), *x.shape[-2:]) for x in (left, right))
        torch.baddbmm(out, one, other, beta=int(add), out=out)
        add = True


def _windows(
    matrices: np.ndarray, step: int, hold: Callable[[np.ndarray], Tensor]
) -> tuple[Windows, ...]:
    """Runs of `step` rows of each matrix, with the parts in which any of them is not zero."""

    def windows(matrix: np.ndarray) -> Windows:
        runs = [slice(i, min(i + step, len(matrix))) for i in range(0, len(matrix), step)]
        return tuple(
            (run, tuple((part, hold(matrix[run, part])) for part in _nonzero(matrix[run])))
            for run in runs
        )

    return tuple(map(windows, matrices))


def _nonzero(rows: np.ndarray) -> list[slice]:
    """The runs of columns in which any of the rows is not zero; short gaps are bridged."""
    used = np.flatnonzero(np.abs(rows).max(axis=0, initial=0))
    if not len(used):
        return []
    runs = np.split(used, np.flatnonzero(np.diff(used) > WINDOW // 2) + 1)
    return [slice(int(run[0]), int(run[-1]) + 1) for run in runs]
