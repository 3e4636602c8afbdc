"""The filter banks of one axis: as filters with a border, for `compiled`, and as matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from dcd_core.wavelet.levels import fits
from dcd_core.wavelet.transform import discrete, taps

LETTERS = "ad"
"""Low and high half of an axis, in the order in which they lie."""


@dataclass(frozen=True, eq=False)
class Bank:
    """A low and a high filter of one axis, and how the axis goes on beyond its ends.

    Coefficient k of a half is  sum_j filters[half, j] * extended[step * k + j], j < taps.  Entry i
    of the extended axis is sample `source[i]`, or 0 where that is negative; from entry `lead` on it
    is the axis itself. `filters` (halves, taps), float64; a bank without a high filter has one
    half.
    """

    filters: np.ndarray
    source: np.ndarray
    samples: int
    lead: int
    step: int = 2

    @property
    def letters(self) -> str:
        """The halves it has."""
        return LETTERS[: len(self.filters)]

    @property
    def coefficients(self) -> int:
        """Coefficients of one half."""
        return (len(self.source) - self.filters.shape[1]) // self.step + 1

    def matrix(self, letters: str) -> np.ndarray:
        """The halves of these letters as a matrix (coefficients of all, samples)."""
        chosen = self.filters[[LETTERS.index(letter) for letter in letters]]
        # Entries that are zero go to a column of their own, the last.
        whole = np.zeros((len(chosen), self.coefficients, self.samples + 1))
        for row in range(self.coefficients):
            entries = self.source[self.step * row :][: chosen.shape[1]]
            for factors, entry in zip(chosen.T, entries, strict=True):
                whole[:, row, entry] += factors
        return whole[..., :-1].reshape(-1, self.samples)

    @cached_property
    def orthonormal(self) -> bool:
        """Whether it keeps energy: measured, as odd sizes and dmey do not."""
        whole = self.matrix(self.letters)
        return whole.shape == (self.samples,) * 2 and np.allclose(
            whole.T @ whole, np.eye(self.samples), rtol=0, atol=1e-10
        )


@lru_cache(maxsize=512)
def periodized(n: int, name: str) -> Bank:
    """Analysis of one axis as in PyWavelets' mode "periodization"; its transpose the synthesis.

    An axis too short for its filter passes through untouched, without a high half, so that thick
    slices keep their in-plane detail.
    """
    if not fits(n, name):
        return Bank(np.ones((1, 1)), np.arange(n), n, lead=0, step=1)
    filters = np.array(discrete(name).filter_bank[:2])[:, ::-1]
    period, lead = n + n % 2, taps(name) // 2 - 1
    entries = np.arange(period - 2 + taps(name)) - lead
    return Bank(filters, np.minimum(entries % period, n - 1), n, lead)  # odd: the last one twice


@lru_cache(maxsize=512)
def correlation(n: int, name: str) -> Bank:
    """Analysis of one axis by commit 7cf0ca6: K - 1 zeros on both sides, filters not flipped."""
    return _between_zeros(n, name, discrete(name).filter_bank[:2], n)


@lru_cache(maxsize=512)
def expansion(n: int, name: str) -> Bank:
    """Its synthesis, transposed: cropped to the first n samples, and odd n come back one short."""
    return _between_zeros(n, name, discrete(name).filter_bank[2:], n - n % 2)


def _between_zeros(n: int, name: str, pair: Sequence[Sequence[float]], samples: int) -> Bank:
    lead = taps(name) - 1
    coefficients = (n + taps(name) - 2) // 2 + 1
    entries = np.arange(2 * (coefficients - 1) + taps(name)) - lead
    source = np.where((entries >= 0) & (entries < samples), entries, -1)
    return Bank(np.asarray(pair, np.float32).astype(float), source, samples, lead)  # float32 taps
