"""Trees of vessels: tubes that wind, branch and thin out, with the age of the blood in them.

At a branching the cubes of the radii add up (Murray's law), so that blood slows down with the
radius. The longer it has been in the excited slab, the more pulses it has seen.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dcd_lab.phantom.fields import Array, Grid, Rng, length

STEP_MM = 0.8
THINNEST_MM = 0.45
SPEED = 75.0
"""Mean velocity in mm/s for each mm of radius; by Murray's law flow grows with its cube."""


class Point(NamedTuple):
    """A place on the centre line in mm, the radius there in mm, and the age of the blood in s."""

    place: Array
    radius: float
    age_s: float


class Vessels(NamedTuple):
    """Level in mm (positive inside), and how long the blood has been in the slab, in s."""

    level_mm: Array
    age_s: Array


def daughters(radius: float, share: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Radius and angle to the parent, in radians, of the branches that take `share` and the rest.

    The angles need the least work for these radii.
    Source: Murray, PNAS, 1926 (radii); Murray, Journal of General Physiology, 1926 (angles).
    """
    one, two = (radius * part ** (1 / 3) for part in (share, 1.0 - share))

    def angle(own: float, other: float) -> float:
        cosine = (radius**4 + own**4 - other**4) / (2 * radius**2 * own**2)
        return float(np.arccos(np.clip(cosine, -1.0, 1.0)))

    return (one, angle(one, two)), (two, angle(two, one))


def grow(rng: Rng, start: Array, heading: Array, radius: float, inside: Grid) -> list[Point]:
    """The points of a tree that enters at `start` (mm) along a unit vector, within a grid."""
    points: list[Point] = []
    tips = [(start, heading, radius, 0.0)]
    while tips:
        place, heading, radius, age = tips.pop()
        steps = int(radius * rng.uniform(5.0, 12.0) / STEP_MM) + 3
        course, heading = _course(rng, Point(place, radius, age), heading, steps)
        within = [_within(point.place, inside) for point in course]
        if not all(within):
            points += course[: within.index(False)]
            continue
        points += course
        side, last = _across(rng, heading), course[-1]
        one, two = daughters(radius, float(rng.uniform(0.15, 0.5)))
        for thin, angle in (one, (two[0], -two[1])):  # to opposite sides
            if thin >= THINNEST_MM:
                turned = np.cos(angle) * heading + np.sin(angle) * side
                tips.append((last.place, turned, thin, last.age_s))
    return points


def _course(rng: Rng, start: Point, heading: Array, steps: int) -> tuple[list[Point], Array]:
    """A winding segment: its points, and the direction at its end."""
    bend, (place, radius, age) = np.zeros(3), start
    course = []
    for _ in range(steps):
        bend = 0.7 * bend + 0.09 * rng.standard_normal(3)
        heading = heading + bend
        heading = heading / np.linalg.norm(heading)
        place = place + STEP_MM * heading
        age += STEP_MM / (SPEED * radius)
        course.append(Point(place, radius, age))
    return course, heading


def _across(rng: Rng, heading: Array) -> Array:
    """A unit vector across a direction."""
    side = np.cross(heading, rng.standard_normal(3))
    return np.asarray(side / (np.linalg.norm(side) + 1e-9))


def _within(place: Array, grid: Grid) -> bool:
    ends = zip(place, grid.axes, strict=True)
    return all(axis[0] - 2.0 < x < axis[-1] + 2.0 for x, axis in ends)


def draw(points: list[Point], grid: Grid) -> Vessels:
    """The tubes of a tree on a grid of equal spacing; blood is older at the wall, where it is slow.

    The flow is laminar: at the distance d from the axis its age is that on the axis of the tube
    over 2 (1 - (d / r)^2), the mean being 1.
    """
    level, age = np.full(grid.shape, -60.0), np.zeros(grid.shape)
    first = np.array([axis[0] for axis in grid.axes])
    for place, radius, age_s in points:
        reach = radius + 2.0 * grid.spacing_mm
        low = np.floor((place - reach - first) / grid.spacing_mm).astype(int).clip(0)
        high = np.ceil((place + reach - first) / grid.spacing_mm).astype(int).clip(0) + 1
        box = tuple(map(slice, low, high))
        inner = grid.crop(box)
        if 0 in inner.shape:
            continue
        away = length(inner.offsets(place))
        profile = 2.0 * np.clip(1.0 - (away / radius) ** 2, 0.1, 1.0)
        nearer = radius - away > level[box]
        level[box][nearer] = (radius - away)[nearer]
        age[box][nearer] = (age_s / profile)[nearer]
    return Vessels(level, age)
