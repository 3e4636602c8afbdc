"""What is measured, and how far a grid can be split for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias

from dcd_core.wavelet.transform import taps

Convention: TypeAlias = Literal["orthonormal", "released"]


class Selection(NamedTuple):
    """Which bands are measured, and how: the hashable description of an energy."""

    names: tuple[str, str, str]
    levels: int
    bands: tuple[str, ...]
    coarse_weight: float
    convention: Convention


def fits(n: int, name: str) -> bool:
    """Whether an axis is long enough for one more level: the filter must not wrap onto itself."""
    return n >= taps(name)


@lru_cache(maxsize=512)
def grids(
    size: tuple[int, ...], names: tuple[str, ...], levels: int
) -> tuple[tuple[int, ...], ...]:
    """The grids (D, H, W) of the coarse bands of the levels that are usable, the first `size`.

    Splitting goes on while one axis is as long as its filter; an axis that is not stays as it is.
    """
    found = [size]
    while len(found) <= levels and any(map(fits, found[-1], names)):
        named = zip(found[-1], names, strict=True)
        found.append(tuple((n + 1) // 2 if fits(n, name) else n for n, name in named))
    return tuple(found)


def usable_levels(size: Sequence[int], selection: Selection) -> int:
    """How many of the wanted levels a grid (D, H, W) allows; in the released convention all."""
    if selection.convention == "released":
        return selection.levels
    return len(grids(tuple(size), selection.names, selection.levels)) - 1


def voxels(size: Sequence[int], selection: Selection) -> int:
    """Voxels of a volume (D, H, W) over which the first level is averaged."""
    if selection.convention == "released":
        size = [n - n % 2 for n in size]  # an odd axis comes back one short
    return math.prod(size)
