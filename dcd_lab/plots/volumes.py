"""Volumes of patients: slices of a case, cases side by side, and predictions over them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from dcd_core.types import Case, ContractError, Task
from dcd_lab.plots import page
from dcd_lab.plots.page import Page, styled

# The axis a plane is cut along, in (right, anterior, superior) order.
PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}
RADIOLOGICAL = "Radiological view: R is the patient's right, A is anterior."
DOTS = (0, (1, 1.3))
BRIGHT: dict[str, Any] = {
    "color": "white",
    "fontsize": 10,
    "path_effects": [withStroke(linewidth=2.6, foreground="black")],
}

Edges: TypeAlias = tuple[float, ...]
"""Left, right, bottom and top in mm, from the centre of the volume."""


class View(NamedTuple):
    """A case turned so that its axes run to the patient's right, front and top, at display scale.

    `image` (c, x, y, z) between 0 (black) and 1; `label` (x, y, z); `brain` where anything is seen;
    `turn` as in nibabel.
    """

    image: Float[np.ndarray, "c x y z"]
    label: Int[np.ndarray, "x y z"]
    brain: Bool[np.ndarray, "x y z"]
    spacing_mm: tuple[float, ...]
    turn: np.ndarray


@styled
def slices(
    case: Case,
    task: Task,
    *,
    channels: Sequence[str] | None = None,
    center: tuple[int, int, int] | None = None,
    title: str | None = None,
) -> Page:
    """Every channel of a case (rows) in three planes (columns), with label contours.

    The slices are those where the labels are largest, or the brain where there is none; `center`
    (i, j, k), voxel indices of the case, overrides them. Raises ContractError for a channel that
    the task does not have.
    """
    view, rows = _view(case), _channels(task, channels)
    boxes = {plane: _box([view.brain], view, plane) for plane in PLANES}
    widths = [right - left for left, right, _, _ in boxes.values()]
    tallest = max(high - low for _, _, low, high in boxes.values())
    figure = _page(len(rows) * tallest, sum(widths), title)
    grid = figure.subplots(len(rows), 3, squeeze=False, width_ratios=widths)
    for (name, channel), row in zip(rows.items(), grid, strict=True):
        for (plane, box), axes in zip(boxes.items(), row, strict=True):
            index = _largest(view, plane) if center is None else _turned(center, plane, view)
            words = f"{name}  {plane}" if plane == "axial" else plane
            _show(axes, view, channel, plane, index, _sized(box, tall=tallest), words)
            _labels(axes, view, view.label, plane, index)
    _legend(figure, task, [view.label])
    return figure


@styled
def compare_cases(
    cases: Sequence[Case],
    task: Task,
    *,
    titles: Sequence[str] | None = None,
    channels: Sequence[str] | None = None,
    plane: str = "axial",
    title: str | None = None,
) -> Page:
    """Cases of one task, one per row, in one plane: a phantom above a real case, say.

    Columns are channels. `titles` default to the ids of the cases. All are drawn at one scale in
    mm, each at the slice where its labels are largest. Raises ContractError for an unknown plane
    or channel.
    """
    views, columns = [_view(case) for case in cases], _channels(task, channels)
    titles = [case.id for case in cases] if titles is None else titles
    boxes = [_box([view.brain], view, plane) for view in views]
    wide = max(right - left for left, right, _, _ in boxes)
    tall = max(high - low for _, _, low, high in boxes)
    figure = _page(len(views) * tall, len(columns) * wide, title)
    grid = figure.subplots(len(views), len(columns), squeeze=False)
    for view, name, box, row in zip(views, titles, boxes, grid, strict=True):
        for (channel_name, channel), axes in zip(columns.items(), row, strict=True):
            index = _largest(view, plane)
            _show(axes, view, channel, plane, index, _sized(box, wide, tall), channel_name)
            _labels(axes, view, view.label, plane, index)
        row[0].set_ylabel(name)
    _legend(figure, task, [view.label for view in views])
    return figure


@styled
def segmentation(
    case: Case,
    predictions: Mapping[str, np.ndarray],
    task: Task,
    *,
    channel: str | None = None,
    plane: str = "axial",
    index: int | None = None,
    zoom: bool = False,
    title: str | None = None,
) -> Page:
    """One slice with the true contours, then one panel per prediction, the truth dotted in white.

    `predictions` are integer label volumes (i, j, k) on the grid of the case. `index` counts voxels
    of the case along the axis of the plane; the default is the slice with the largest true labels.
    `zoom` cuts to what is labelled there. Raises ContractError for another grid, an unknown plane
    or channel.
    """
    for name, prediction in predictions.items():
        if prediction.shape != case.image.shape[1:]:
            raise ContractError(
                f"shape of prediction {name}", prediction.shape, case.image.shape[1:], "resample it"
            )
    view = _view(case)
    picked = next(iter(_channels(task, None if channel is None else [channel]).values()))
    at = _largest(view, plane) if index is None else _turned((index,) * 3, plane, view)
    volumes = {"truth": view.label}
    volumes |= {name: _oriented(each.astype(int), view.turn) for name, each in predictions.items()}
    box = _box(volumes.values(), view, plane, at) if zoom else _box([view.brain], view, plane)
    columns = min(len(volumes), 3 if len(volumes) in (5, 6) else 4)
    rows = -(-len(volumes) // columns)
    figure = _page(rows * (box[3] - box[2]), columns * (box[1] - box[0]), title, 0.25 * rows)
    for axes, (name, volume) in zip(
        page.panels(figure, len(volumes), columns), volumes.items(), strict=True
    ):
        _show(axes, view, picked, plane, at, box)
        if name != "truth":
            _labels(axes, view, view.label, plane, at, dotted=True)
        _labels(axes, view, volume, plane, at)
        axes.set_title(name)
    halo = BRIGHT["path_effects"]
    truth = Line2D([], [], color="white", linestyle=DOTS, label="truth", path_effects=halo)
    _legend(figure, task, volumes.values(), truth)
    return figure


def _view(case: Case) -> View:
    from nibabel.orientations import io_orientation

    turn = io_orientation(case.affine)
    image = np.stack([_oriented(channel, turn) for channel in case.image]).astype(np.float64)
    label = np.zeros(image.shape[1:], int) if case.label is None else _oriented(case.label, turn)
    spacing = tuple(float(case.spacing_mm[i]) for i in np.argsort(turn[:, 0]))
    # Skull-stripped images are exactly 0 outside the brain, in every channel.
    brain = (image != 0).any(axis=0)
    window = np.stack([_window(channel, brain) for channel in image])
    return View(window, label.astype(int), brain, spacing, turn)


def _oriented(volume: np.ndarray, turn: np.ndarray) -> np.ndarray:
    from nibabel.orientations import apply_orientation

    return apply_orientation(volume, turn)


def _turned(center: Sequence[int], plane: str, view: View) -> int:
    """The slice of a view through a voxel of its case."""
    axis = _axis(plane)
    source = int(np.flatnonzero(view.turn[:, 0] == axis)[0])
    forward = view.turn[source, 1] > 0
    return center[source] if forward else view.brain.shape[axis] - 1 - center[source]


def _window(channel: np.ndarray, brain: np.ndarray) -> np.ndarray:
    low, middle, high = np.percentile(channel[brain], [1, 50, 99.7]) if brain.any() else (0, 0, 1)
    low = min(low, 0)  # black is no signal, or the lowest value where normalisation made some < 0
    # Fluid in T2w and ADC is so bright that tissue would turn black: let it saturate instead.
    high = min(high, low + 3 * (middle - low)) if middle > low else high
    scaled = np.clip((channel - low) / (high - low if high > low else 1), 0, 1)
    return np.where(brain, scaled, 0)


def _largest(view: View, plane: str) -> int:
    """The slice where the labels are largest, or the brain where there is none."""
    seen = view.label > 0 if (view.label > 0).any() else view.brain
    return int(np.moveaxis(seen, _axis(plane), 0).sum(axis=(1, 2)).argmax())


def _axis(plane: str) -> int:
    if plane not in PLANES:
        raise ContractError("plane", repr(plane), f"one of {list(PLANES)}", "plane='axial'")
    return PLANES[plane]


def _channels(task: Task, names: Sequence[str] | None) -> dict[str, int]:
    names = task.channels if names is None else names
    for name in names:
        if name not in task.channels:
            raise ContractError("channel", repr(name), f"one of {task.channels}", "check the task")
    return {name: task.channels.index(name) for name in names}


def _plate(volume: np.ndarray, plane: str, index: int) -> np.ndarray:
    """A slice as an image with rows upwards: right to left, or anterior to posterior."""
    return np.take(volume, index, axis=_axis(plane)).T[:, ::-1]


def _edges(view: View, plane: str) -> Edges:
    wide, tall = np.delete(np.multiply(view.brain.shape, view.spacing_mm), _axis(plane)) / 2
    return -wide, wide, -tall, tall


def _show(
    axes: Axes, view: View, channel: int, plane: str, index: int, box: Edges, words: str = ""
) -> None:
    """A slice with the letter of its left side, and words in the upper corner."""
    smooth = {"interpolation": "bilinear", "interpolation_stage": "data"}
    plate, extent = _plate(view.image[channel], plane, index), _edges(view, plane)
    page.picture(axes, plate, cmap="gray", vmin=0, vmax=1, extent=extent, **smooth)
    axes.set(xlim=box[:2], ylim=box[2:], facecolor="black")
    letter = "A" if plane == "sagittal" else "R"
    axes.text(0.02, 0.5, letter, transform=axes.transAxes, va="center", **BRIGHT)
    axes.text(0.02, 0.97, words, transform=axes.transAxes, va="top", **BRIGHT)


def _labels(
    axes: Axes, view: View, volume: np.ndarray, plane: str, index: int, *, dotted: bool = False
) -> None:
    """The contours of every label of a slice, or dotted in white that of all labels together."""
    plate, edges = _plate(volume, plane, index), _edges(view, plane)
    if dotted:
        if plate.any():
            line = page.outline(axes, plate > 0, edges, "white", linewidths=1.3, linestyles=[DOTS])
            line.set_path_effects([withStroke(linewidth=2.0, foreground="black")])
        return
    for value in np.unique(plate[plate > 0]):
        page.outline(axes, plate == value, edges, _color(int(value)))


def _box(volumes: Iterable[np.ndarray], view: View, plane: str, index: int | None = None) -> Edges:
    """Edges 5 mm around everything nonzero: in any slice, or, as a square, in slice `index`."""
    axis, edges = _axis(plane), _edges(view, plane)
    flat = [(v > 0).max(axis, keepdims=True) if index is None else v > 0 for v in volumes]
    seen = np.any([_plate(volume, plane, index or 0) for volume in flat], axis=0)
    if not seen.any():
        return edges
    sides = []
    for across, start, stop in ((0, *edges[:2]), (1, *edges[2:])):
        marked = np.flatnonzero(seen.any(axis=across))
        step = (stop - start) / seen.shape[1 - across]
        sides += [start + step * marked[0] - 5.0, start + step * (marked[-1] + 1) + 5.0]
    if index is None:
        return tuple(sides)
    side = max(sides[1] - sides[0], sides[3] - sides[2])  # panels do not change shape by case
    return _sized(sides, side, side)


def _sized(box: Sequence[float], wide: float = 0.0, tall: float = 0.0) -> Edges:
    """The box grown to a size in mm around its own centre."""
    left, right, low, high = box
    x, y = max(wide - (right - left), 0) / 2, max(tall - (high - low), 0) / 2
    return left - x, right + x, low - y, high + y


def _page(tall_mm: float, wide_mm: float, title: str | None, more_in: float = 0.0) -> Page:
    height = float(page.WIDTH_IN * tall_mm / wide_mm + 0.35 + more_in)
    return page.blank(height, title, RADIOLOGICAL, of_slices=True)


def _color(value: int) -> str:
    return page.LABEL_COLORS[(value - 1) % len(page.LABEL_COLORS)]


def _legend(figure: Page, task: Task, volumes: Iterable[np.ndarray], *more: Line2D) -> None:
    values = sorted({int(x) for volume in volumes for x in np.unique(volume) if x > 0})
    names = {v: task.labels[v] if v < len(task.labels) else f"label {v}" for v in values}
    lines = [Line2D([], [], color=_color(v), label=names[v], linewidth=3) for v in values]
    if lines or more:
        handles = [*lines, *more]
        figure.legend(handles=handles, loc="outside upper right", ncols=len(handles))
