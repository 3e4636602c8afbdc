"""Matrices of one axis, applied to a stack of volumes.

D is contracted first and stays where it is, the first axis: the fastest of matrix products. W, the
last one, comes forward by its contraction, which makes H the last; there it stays. So no copy need
be transposed, and coefficients lie in the order (w, d, h), `ORDER`. A volume of the stack is a
matrix product of its own: threads share them out, and none waits for what another has prepared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dcd_core.wavelet.transform import constant

AXES = (0, 2, 1)
"""The axes of a volume (d, h, w) in the order in which they are contracted."""

ORDER = (2, 0, 1)
"""The axes (d, h, w) in the order in which the coefficients then lie."""


class Place(NamedTuple):
    """Whether an axis is the first of its volume or the last, before its product and after."""

    first_before: bool
    first_after: bool


PLACES = (Place(True, True), Place(False, False), Place(False, True))
"""Of D, H and W on the way to the coefficients."""


@dataclass(frozen=True)
class Filter:
    """Matrices (g, coefficients, samples) of one axis: volume i of a stack meets matrix i mod g.

    `stacks` keeps what was repeated before.
    """

    place: Place
    matrices: Tensor
    stacks: dict[int, Tensor]

    @classmethod
    def of(cls, values: np.ndarray, axis: int, dtype: torch.dtype, device: torch.device) -> Filter:
        """The filter with these matrices (g, coefficients, samples), for an axis of (d, h, w)."""
        return cls(PLACES[axis], constant(values, dtype, device), {})

    @property
    def shape(self) -> torch.Size:
        """Matrices, coefficients and samples."""
        return self.matrices.shape

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
        """Each matrix, or its transpose on the way back, times the columns of its volumes.

        With its axis last, the product is that of the transposes: PyTorch is fast only where a
        result has its rows in memory.
        """
        place = Place(*reversed(self.place)) if back else self.place
        left = self._stack(len(x)).mT if back else self._stack(len(x))
        if place.first_after:
            right = x if place.first_before else x.mT
        else:
            left, right = x.mT if place.first_before else x, left.mT
        torch.baddbmm(out, left, right, beta=int(add), out=out)

    def _stack(self, count: int) -> Tensor:
        """The matrices of a stack of as many volumes (count, m, n)."""
        if count not in self.stacks:
            with torch.inference_mode(False):  # as for all constants
                self.stacks[count] = self.matrices.repeat(count // len(self.matrices), 1, 1)
        return self.stacks[count]


def _stacked(count: int, size: int, columns: int, *, first: bool) -> tuple[int, int, int]:
    """The shape of volumes with an axis of this size, first or last."""
    return (count, size, columns) if first else (count, columns, size)
