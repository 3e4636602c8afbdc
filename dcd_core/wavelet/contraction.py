"""Matrices of one axis, applied to a stack of volumes.

D is contracted first and stays where it is, the first axis: the fastest of matrix products. W, the
last one, comes forward by its contraction, which makes H the last; there it stays. So no copy need
be transposed, and coefficients lie in the order (w, d, h), `ORDER`. A volume of the stack is a
matrix product of its own: threads share them out, and none waits for what another has prepared.
Matrices of long axes are mostly zero: they are multiplied in the windows in which they are not, so
that the work per voxel does not grow with the volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from dcd_core.wavelet.transform import constant

AXES = (0, 2, 1)
"""The axes of a volume (d, h, w) in the order in which they are contracted."""

ORDER = (2, 0, 1)
"""The axes (d, h, w) in the order in which the coefficients then lie."""

WINDOW = 16
"""Coefficients that share a window: larger ones multiply more zeros, smaller ones are slow."""

SPARSE = 0.4
"""Share of a matrix below which its windows are multiplied in its place: calls cost the rest."""

Windows: TypeAlias = tuple[tuple[slice, tuple[tuple[slice, Tensor], ...]], ...]
"""For each run of rows, the parts in which a matrix is not zero: where they are, and they."""


class Place(NamedTuple):
    """Whether an axis is the first of its volume or the last, as samples and as coefficients."""

    samples_first: bool
    coefficients_first: bool


PLACES = (Place(True, True), Place(False, False), Place(False, True))
"""Of D, H and W."""


@dataclass(frozen=True)
class Filter:
    """Matrices (g, coefficients, samples) of one axis: volume i of a stack meets matrix i mod g.

    `rows` and `columns` are windows of each matrix and of its transpose, empty where the `matrices`
    are used as a whole. Periodized filters wrap: two parts in a window. `stacks` keeps what was
    repeated before.
    """

    place: Place
    shape: tuple[int, int, int]
    matrices: Tensor
    rows: tuple[Windows, ...]
    columns: tuple[Windows, ...]
    stacks: dict[int, Tensor]

    @classmethod
    def of(cls, values: np.ndarray, axis: int, dtype: torch.dtype, device: torch.device) -> Filter:
        """The filter with these matrices (g, coefficients, samples), for an axis of (d, h, w)."""
        matrices = constant(values, dtype, device)
        rows = _windows(values, matrices, WINDOW)
        columns = _windows(values.transpose(0, 2, 1), matrices.mT, 2 * WINDOW)
        used = sum(
            part.numel() for runs in rows + columns for _, parts in runs for _, part in parts
        )
        if used > SPARSE * 2 * values.size:
            rows = columns = ()
        groups, coefficients, samples = values.shape
        return cls(PLACES[axis], (groups, coefficients, samples), matrices, rows, columns, {})

    def analyse(self, x: Tensor, channels: int) -> Tensor:
        """Samples of `channels` times g volumes, contiguous -> their coefficients, in a row."""
        _, coefficients, samples = self.shape
        y = x.new_empty(x.numel() // samples * coefficients)
        self._multiply(self._coefficients(y, channels), self._samples(x, channels), back=False)
        return y

    def synthesise(self, y: Tensor, out: Tensor, channels: int, *, add: bool = False) -> None:
        """Coefficients -> samples, written to `out`, contiguous, or added to it."""
        rows = self._coefficients(y, channels)
        self._multiply(self._samples(out, channels), rows, back=True, add=add)

    def _multiply(self, out: Tensor, x: Tensor, *, back: bool, add: bool = False) -> None:
        """Each matrix, or its transpose on the way back, times its columns (channels g, ., k)."""
        windows = self.columns if back else self.rows
        if not windows:
            stack = self._stack(len(x))
            _product(out, stack.mT if back else stack, x, add=add)
        for i, runs in enumerate(windows):
            these, those = (columns[i :: len(windows)] for columns in (out, x))
            for run, parts in runs:
                pairs = [(matrix, those[:, part]) for part, matrix in parts]
                _products(these[:, run], pairs, add=add)

    def _samples(self, x: Tensor, channels: int) -> Tensor:
        groups, _, samples = self.shape
        return _columns(x, channels * groups, samples, first=self.place.samples_first)

    def _coefficients(self, y: Tensor, channels: int) -> Tensor:
        groups, coefficients, _ = self.shape
        return _columns(y, channels * groups, coefficients, first=self.place.coefficients_first)

    def _stack(self, count: int) -> Tensor:
        """The matrices of a stack of as many volumes (count, m, n)."""
        if count not in self.stacks:
            with torch.inference_mode(False):  # as for all constants
                self.stacks[count] = self.matrices.repeat(count // len(self.matrices), 1, 1)
        return self.stacks[count]


def _columns(x: Tensor, count: int, size: int, *, first: bool) -> Tensor:
    """Volumes with an axis of this size, first or last, as matrices (count, size, columns)."""
    return x.view(count, size, -1) if first else x.view(count, -1, size).mT


def _products(out: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], *, add: bool = False) -> None:
    """The sum of a matrix times a stack, of each pair."""
    if not pairs and not add:
        out.zero_()
    for matrix, right in pairs:
        _product(out, matrix.expand(len(out), *matrix.shape), right, add=add)
        add = True


def _product(out: Tensor, left: Tensor, right: Tensor, *, add: bool) -> None:
    """The product of two stacks, written to `out` or added to it."""
    if out.stride(2) == 1:
        torch.baddbmm(out, left, right, beta=int(add), out=out)
    else:  # PyTorch is fast only where a result has its rows in memory: AB = (B'A')'
        torch.baddbmm(out.mT, right.mT, left.mT, beta=int(add), out=out.mT)


def _windows(values: np.ndarray, matrices: Tensor, step: int) -> tuple[Windows, ...]:
    """Runs of `step` rows of each matrix, with the parts in which any of them is not zero."""

    def windows(these: np.ndarray, matrix: Tensor) -> Windows:
        runs = [slice(i, min(i + step, len(these))) for i in range(0, len(these), step)]
        return tuple(
            (run, tuple((part, matrix[run, part]) for part in _nonzero(these[run]))) for run in runs
        )

    return tuple(map(windows, values, matrices))


def _nonzero(rows: np.ndarray) -> list[slice]:
    """The runs of columns in which any of the rows is not zero; short gaps are bridged."""
    used = np.flatnonzero(np.abs(rows).max(axis=0, initial=0))
    if not len(used):
        return []
    runs = np.split(used, np.flatnonzero(np.diff(used) > WINDOW // 2) + 1)
    return [slice(int(run[0]), int(run[-1]) + 1) for run in runs]
