"""Matrices of one axis, applied as one product over all voxels.

Every axis is contracted as the last one and comes out in front, so that three contractions restore
the order and each of them is one matrix product, without a transposed copy. Long axes have banded
matrices: these are kept as the windows in which they are not zero, so that the work per voxel does
not grow with the volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

WINDOW = 16
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

    @classmethod
    def of(cls, matrix: np.ndarray, dtype: torch.dtype, device: torch.device) -> Filter:
        """The filter with this matrix (coefficients, samples)."""

        def held(part: np.ndarray) -> Tensor:
            # A tensor born under inference_mode could never take part in a later backward pass.
            with torch.inference_mode(False):
                return torch.from_numpy(np.ascontiguousarray(part)).to(device, dtype)

        long = matrix.shape[1] > LONG
        rows = _runs(matrix, WINDOW if long else len(matrix))
        columns = _runs(matrix.T, 2 * WINDOW if long else matrix.shape[1])
        return cls(
            (len(matrix), matrix.shape[1]),
            tuple((run, tuple((p, held(matrix[run, p])) for p in parts)) for run, parts in rows),
            tuple((run, tuple((p, held(matrix[p, run])) for p in parts)) for run, parts in columns),
        )

    def analyse(self, x: Tensor) -> Tensor:
        """Samples (..., n) -> coefficients (m, ...): the contracted axis comes to the front."""
        coefficients, samples = self.shape
        columns = x.view(-1, samples).T
        result = x.new_empty(coefficients, columns.shape[1])
        for run, parts in self.rows:
            _products(result[run], [(matrix, columns[part]) for part, matrix in parts])
        return result.view(coefficients, *x.shape[:-1])

    def synthesise(self, y: Tensor, out: Tensor, *, add: bool = False) -> Tensor:
        """Coefficients (m, ...) -> samples (..., n), written to `out` or added to it."""
        coefficients, samples = self.shape
        y, flat = y.reshape(coefficients, -1), out.view(-1, samples)
        for run, parts in self.columns:
            _products(flat[:, run], [(y[part].T, matrix) for part, matrix in parts], add=add)
        return out


def _products(out: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], *, add: bool = False) -> None:
    if not pairs and not add:
        out.zero_()
    for left, right in pairs:
        if add:
            torch.addmm(out, left, right, out=out)
        else:
            torch.mm(left, right, out=out)
        add = True


def _runs(matrix: np.ndarray, step: int) -> list[tuple[slice, list[slice]]]:
    """Runs of `step` rows, each with the parts of the columns in which any of them is not zero."""
    ends = range(0, len(matrix), max(step, 1))
    runs = [slice(i, min(i + step, len(matrix))) for i in ends]
    return [(run, _nonzero(matrix[run])) for run in runs]


def _nonzero(rows: np.ndarray) -> list[slice]:
    """The runs of columns in which any of the rows is not zero; short gaps are bridged."""
    used = np.flatnonzero(np.abs(rows).max(axis=0, initial=0))
    if not len(used):
        return []
    runs = np.split(used, np.flatnonzero(np.diff(used) > WINDOW // 2) + 1)
    return [slice(int(run[0]), int(run[-1]) + 1) for run in runs]
