"""Matrices of one axis, applied to a stack of volumes.

D is contracted first and stays where it is, the first axis: the fastest of matrix products. W, the
last one, comes forward by its contraction, which makes H the last; there it stays. So no copy need
be transposed, and coefficients lie in the order (w, d, h), `ORDER`. A volume of the stack is a
matrix product of its own: threads share them out, and none waits for what another has prepared.
Matrices of long axes are mostly zero: on a CPU they are multiplied in the windows in which they are
not, so that the work per voxel does not grow with the volume.
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

SPARSE = {"cpu": 0.4}
"""Share of a matrix below which its windows are multiplied in its place: calls cost the rest.

On other devices never: there one product takes less than the many calls.
"""

Part: TypeAlias = tuple[slice, Tensor]
Windows: TypeAlias = tuple[tuple[slice, tuple[Part, ...]], ...]
"""For each run of rows, the parts in which a matrix is not zero: where they are, and they."""


class Place(NamedTuple):
    """Whether an axis is the first of its volume or the last, before its product and after."""

    first_before: bool
    first_after: bool


PLACES = (Place(True, True), Place(False, False), Place(False, True))
"""Of D, H and W on the way to the coefficients."""


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
        if used > SPARSE.get(device.type, 0.0) * 2 * values.size:
            rows = columns = ()
        groups, coefficients, samples = values.shape
        return cls(PLACES[axis], (groups, coefficients, samples), matrices, rows, columns, {})

    def analyse(self, x: Tensor, channels: int) -> Tensor:
        """Samples of `channels` times g volumes, contiguous -> their coefficients, contiguous."""
        groups, coefficients, samples = self.shape
        count, columns = channels * groups, x.numel() // (channels * groups * samples)
        x = x.view(_stacked(count, samples, columns, first=self.place.first_before))
        y = x.new_empty(_stacked(count, coefficients, columns, first=self.place.first_after))
        self._multiply(y, x, back=False, add=False)
        return y

    def synthesise(self, y: Tensor, out: Tensor, channels: int, *, add: bool = False) -> None:
        """Coefficients -> samples, written to `out`, contiguous, or added to it."""
        groups, coefficients, samples = self.shape
        count = channels * groups
        y = y.view(_stacked(count, coefficients, -1, first=self.place.first_after))
        out = out.view(_stacked(count, samples, -1, first=self.place.first_before))
        self._multiply(out, y, back=True, add=add)

    def _multiply(self, out: Tensor, x: Tensor, *, back: bool, add: bool) -> None:
        """Each matrix, or its transpose on the way back, times the columns of its volumes."""
        place = Place(*reversed(self.place)) if back else self.place
        windows = self.columns if back else self.rows
        if not windows:
            stack = self._stack(len(x))
            _product(place, out, stack.mT if back else stack, x, add=add)
        for i, runs in enumerate(windows):
            these, those = (tensor[i :: len(windows)] for tensor in (out, x))
            for run, parts in runs:
                _products(place, these, run, those, parts, add=add)

    def _stack(self, count: int) -> Tensor:
        """The matrices of a stack of as many volumes (count, m, n)."""
        if count not in self.stacks:
            with torch.inference_mode(False):  # as for all constants
                self.stacks[count] = self.matrices.repeat(count // len(self.matrices), 1, 1)
        return self.stacks[count]


def _stacked(count: int, size: int, columns: int, *, first: bool) -> tuple[int, int, int]:
    """The shape of volumes with an axis of this size, first or last."""
    return (count, size, columns) if first else (count, columns, size)


def _part(x: Tensor, part: slice, *, first: bool) -> Tensor:
    """A part of such an axis."""
    return x[:, part] if first else x[:, :, part]


def _products(
    place: Place, out: Tensor, run: slice, x: Tensor, parts: Sequence[Part], *, add: bool
) -> None:
    """The sum of the windows of a run of rows, each times its part of the columns."""
    rows = _part(out, run, first=place.first_after)
    if not parts and not add:
        rows.zero_()
    for part, matrix in parts:
        stack = matrix.expand(len(x), *matrix.shape)
        _product(place, rows, stack, _part(x, part, first=place.first_before), add=add)
        add = True


def _product(place: Place, out: Tensor, left: Tensor, x: Tensor, *, add: bool) -> None:
    """A stack of matrices times the columns of volumes, written to `out` or added to it.

    With its axis last, the product is that of the transposes: PyTorch is fast only where a result
    has its rows in memory.
    """
    if place.first_after:
        right = x if place.first_before else x.mT
    else:
        left, right = x.mT if place.first_before else x, left.mT
    torch.baddbmm(out, left, right, beta=int(add), out=out)


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
