"""Surface elements: the border of a mask as small triangles, each with an area in mm2.

Between eight neighbouring voxel centres, a cube, lies a piece of the border where some of them are
foreground and some are not. Marching cubes draws it through the midpoints of the cube's edges that
change side; its area is the weight of this cube's surface element, which sits at the cube's centre.
DeepMind's surface-distance, by which the BraTS challenge measures lesions, keeps the pieces of all
256 cubes in a table. Two rules of geometry give the same areas, so here they are computed:

- where a face of the cube can be cut in two ways, the fewer corners are cut off one by one;
- a piece that is not flat is folded into triangles so that its area is largest (on a unit cube).

Source: Nikolov et al., Journal of Medical Internet Research, 2021; Lorensen and Cline, SIGGRAPH,
    1987.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, UInt8

from dcd_lab.metrics.masks import Mask, Triple
from dcd_lab.metrics.surface import Distances, between

Corner: TypeAlias = tuple[int, ...]
Point: TypeAlias = tuple[float, ...]
Areas: TypeAlias = Float[np.ndarray, "256"]

CORNERS: tuple[Corner, ...] = tuple(itertools.product((0, 1), repeat=3))
"""Of a cube, in the order of the bits of its code, lowest first."""


def areas(spacing: Triple) -> Areas:
    """Area in mm2 of the surface element of every cube code, for voxels of this size."""
    return np.linalg.norm(_pieces() * (np.prod(spacing) / spacing), axis=2).sum(axis=1)


def codes(mask: Mask) -> UInt8[np.ndarray, "_ _ _"]:
    """Code of every cube of neighbouring voxels, one more than voxels along each axis.

    Bit b is set where corner b of the cube is foreground; beyond the volume all is background.
    """
    frame = np.pad(mask, 1).astype(np.uint8)
    i, j, k = (n + 1 for n in mask.shape)
    code = np.zeros((i, j, k), np.uint8)
    for bit, (a, b, c) in enumerate(CORNERS):
        code |= frame[a : a + i, b : b + j, c : c + k] << bit
    return code


def hd95_by_area(pred: Mask, true: Mask, spacing: Triple) -> float:
    """95 % Hausdorff distance in mm between surface elements weighted by area.

    The larger of the two directed percentiles, each the smallest distance that 95 % of the border's
    area do not exceed; infinite where one of the masks is empty.

    Source: Nikolov et al., Journal of Medical Internet Research, 2021.
    """
    area, code = areas(spacing), [codes(mask) for mask in (pred, true)]
    surface = [(each > 0) & (each < 255) for each in code]
    distances = between(surface[0], surface[1], spacing)
    return max(
        _percentile(mm, area[each[on]])
        for mm, each, on in zip(distances, code, surface, strict=True)
    )


def _percentile(distances_mm: Distances, area: Distances) -> float:
    if not len(distances_mm):
        return np.inf
    order = np.argsort(distances_mm)
    share = np.cumsum(area[order])
    # Nineteen of twenty equal elements are 95 %, whatever their sum is rounded to.
    last = np.searchsorted(share, (0.95 - 1e-12) * share[-1])
    return float(distances_mm[order[last]])


@cache
def _pieces() -> Float[np.ndarray, "256 4 3"]:
    """The up to four triangles of every code on the unit cube, as normals of that length."""
    pieces = np.zeros((256, 4, 3))
    for code in range(256):
        normals = [normal for loop in _loops(code) for normal in _folded(loop)]
        pieces[code, : len(normals)] = np.reshape(normals, (-1, 3))
    return pieces


def _loops(code: int) -> Iterator[Float[np.ndarray, "_ 3"]]:
    """The closed lines along which the border cuts the faces of a cube."""
    inside = {corner for bit, corner in enumerate(CORNERS) if code >> bit & 1}
    few = inside if len(inside) <= 4 else set(CORNERS) - inside
    beside: dict[Point, list[Point]] = {}
    for axis, side in itertools.product(range(3), (0, 1)):
        # The four corners of a face, in turn.
        ring = [(*c[:axis], side, *c[axis:]) for c in ((0, 0), (0, 1), (1, 1), (1, 0))]
        edges = [(ring[i - 1], ring[i]) for i in range(4)]
        cut = [edge for edge in edges if (edge[0] in few) != (edge[1] in few)]
        lines = [cut] if len(cut) == 2 else [[e for e in cut if c in e] for c in ring if c in few]
        for start, end in lines if cut else []:
            a, b = _midpoint(*start), _midpoint(*end)
            beside.setdefault(a, []).append(b)
            beside.setdefault(b, []).append(a)
    while beside:
        loop = [next(iter(beside))]
        while ahead := [point for point in beside.pop(loop[-1]) if point in beside]:
            loop.append(ahead[0])
        yield np.array(loop)


def _midpoint(a: Corner, b: Corner) -> Point:
    return tuple((x + y) / 2 for x, y in zip(a, b, strict=True))


def _folded(loop: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "_ 3"]:
    """The triangles, as normals, of the largest surface that a closed line can bound."""
    found = [
        np.array([np.cross(loop[b] - loop[a], loop[c] - loop[a]) / 2 for a, b, c in triangles])
        for triangles in _triangulations(0, len(loop) - 1)
    ]
    return max(found, key=lambda normals: round(float(np.linalg.norm(normals, axis=1).sum()), 9))


def _triangulations(first: int, last: int) -> list[list[tuple[int, int, int]]]:
    """Every way to cut the polygon of the corners first to last into triangles."""
    if last - first < 2:
        return [[]]
    return [
        [*before, (first, middle, last), *after]
        for middle in range(first + 1, last)
        for before in _triangulations(first, middle)
        for after in _triangulations(middle, last)
    ]
