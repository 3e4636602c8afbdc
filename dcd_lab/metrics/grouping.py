"""What the BraTS challenge calls one lesion: pieces that lie close, or touch the same neighbour.

An annotator outlines one enhancing rim, and the voxel grid makes three pieces of it. The challenge
puts such pieces together again: once within a tissue, by growing the mask until near pieces meet,
and once across tissues, by joining the lesions that touch the same lesion of another tissue.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from dcd_lab.metrics.masks import Mask, Numbers, numbered

# The 18 neighbours of a voxel: those that share a face or an edge with it.
_NEIGHBOURS = np.argwhere(np.ones((3, 3, 3))) - 1
_NEIGHBOURS = _NEIGHBOURS[np.isin(np.abs(_NEIGHBOURS).sum(axis=1), (1, 2))]


def dilated(mask: Mask, steps: int) -> Mask:
    """A mask grown so many times by its 18 neighbours; beyond the volume nothing grows."""
    for _ in range(steps):
        # Sharing a face or an edge is lying in one plane: three squares of 3 x 3, side by side.
        i, j = _spread(mask, 0), _spread(mask, 1)
        mask = _spread(i, 1)
        mask |= _spread(i, 2)
        mask |= _spread(j, 2)
    return mask


def _spread(mask: Mask, axis: int) -> Mask:
    out = mask.copy()
    here, there = np.moveaxis(mask, axis, 0), np.moveaxis(out, axis, 0)
    there[1:] |= here[:-1]
    there[:-1] |= here[1:]
    return out


def gathered(mask: Mask, steps: int) -> Numbers:
    """Number the lesions of a mask; pieces that meet when grown `steps` times are one lesion."""
    return np.where(mask, numbered(dilated(mask, steps))[0], 0)


def without_small(numbers: Numbers, most_voxels: float) -> Numbers:
    """Lesions of more than so many voxels, numbered anew in the same order."""
    keep = np.bincount(numbers.ravel()) > most_voxels
    keep[0] = False
    return (np.cumsum(keep) * keep).astype(numbers.dtype)[numbers]


def joined(numbers: Numbers, others: Sequence[Numbers]) -> Numbers:
    """Give the lesions that touch the same lesion of another tissue one number.

    `others` take their turns, each with the lesions that came out of the turn before. A lesion that
    touches several lesions of one tissue goes with the first of them, and its other neighbours keep
    apart. (The official code asks for more than one touch; a single one joins nothing.)
    """
    group = np.arange(int(numbers.max(initial=0)) + 1)
    if len(group) < 3:
        return numbers
    for other in others:
        pairs = {(int(group[lesion]), int(met)) for lesion, met in _touching(numbers, other)}
        first: dict[int, int] = {}
        for lesion, met in sorted(pairs):
            first.setdefault(lesion, met)
        fresh = int(group.max())
        group = np.array([fresh + first[g] if g in first else g for g in group.tolist()])
    return np.unique(group, return_inverse=True)[1].astype(numbers.dtype)[numbers]


def _touching(numbers: Numbers, other: Numbers) -> Int[np.ndarray, "_ 2"]:
    """Every lesion beside every lesion of the other tissue that has a voxel next to it."""
    places = np.argwhere((numbers > 0) & dilated(other > 0, 1))
    # A frame, so that every voxel has its neighbours.
    frame = np.pad(other, 1)
    lesions, base = numbers[tuple(places.T)].astype(np.int64), int(other.max(initial=0)) + 1
    met = [frame[tuple((places + 1 + step).T)] for step in _NEIGHBOURS]
    pairs = np.unique([lesions * base + each for each in met])
    found = np.stack(np.divmod(pairs, base), axis=1)
    return found[found[:, 1] > 0]
