"""Volumes of patients: slices of a case, cases side by side, and predictions over them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from dcd_core.errors import one_of
from dcd_core.types import Case, ContractError
from dcd_lab.plots import page
from dcd_lab.plots.page import Page, styled
from dcd_lab.tasks import Task

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
    """A case cut into n slices along one plane, rows upwards, at display scale.

    On the left lies the patient's right, or the front (sagittal). `image` (c, n, rows, columns) is
    between 0 (black) and 1; `label` and `brain`, where anything is seen, are (n, rows, columns).
    """

    image: Float[np.ndarray, "c n y x"]
    label: Int[np.ndarray, "n y x"]
    brain: Bool[np.ndarray, "n y x"]
    edges: Edges
    letter: str

    def largest(self) -> int:
        """The slice where the labels are largest, or the brain where there is none."""
        seen = self.label > 0 if (self.label > 0).any() else self.brain
        return int(seen.sum(axis=(1, 2)).argmax())

    def box(self) -> Edges:
        """The edges of the brain, in any slice."""
        return _box(np.any(self.brain, axis=0), self.edges)


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
    views, rows = _views(case, *PLANES), _channels(task, channels)
    boxes = [view.box() for view in views]
    widths = [right - left for left, right, _, _ in boxes]
    tallest = max(high - low for _, _, low, high in boxes)
    figure = _page(len(rows) * tallest, sum(widths), title)
    grid = figure.subplots(len(rows), 3, squeeze=False, width_ratios=widths)
    for (name, channel), row in zip(rows.items(), grid, strict=True):
        for plane, view, box, axes in zip(PLANES, views, boxes, row, strict=True):
            index = view.largest() if center is None else _turned(center, case, plane)
            words = f"{name}  {plane}" if plane == "axial" else plane
            _show(axes, view, channel, index, _sized(box, tall=tallest), words)
            _labels(axes, view.label[index], view.edges)
    _legend(figure, task, [views[0].label])
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
    views, columns = [_views(case, plane)[0] for case in cases], _channels(task, channels)
    titles = [case.id for case in cases] if titles is None else titles
    boxes, wide, tall = _boxes(views)
    figure = _page(len(views) * tall, len(columns) * wide, title)
    grid = figure.subplots(len(views), len(columns), squeeze=False)
    for view, name, box, row in zip(views, titles, boxes, grid, strict=True):
        index = view.largest()
        for (channel_name, channel), axes in zip(columns.items(), row, strict=True):
            _show(axes, view, channel, index, _sized(box, wide, tall), channel_name)
            _labels(axes, view.label[index], view.edges)
        row[0].set_ylabel(name)
    _legend(figure, task, [view.label for view in views])
    return figure


@styled
def cohort(
    cases: Sequence[Case], task: Task, *, channel: str | None = None, columns: int = 4
) -> Page:
    """One axial slice of every case with its id, `columns` in a row, all at one scale in mm.

    Each is the slice where the labels of the case are largest. The channel is the first of the
    task if none is named. Raises ContractError for an unknown channel.
    """
    views = [_views(case, "axial")[0] for case in cases]
    picked = next(iter(_channels(task, None if channel is None else [channel]).values()))
    boxes, wide, tall = _boxes(views)
    figure = _page(-(-len(views) // columns) * tall, columns * wide, None)
    panels = page.panels(figure, len(views), columns)
    for axes, case, view, box in zip(panels, cases, views, boxes, strict=True):
        index = view.largest()
        _show(axes, view, picked, index, _sized(box, wide, tall), case.id)
        _labels(axes, view.label[index], view.edges)
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
        if prediction.shape != (shape := case.image.shape[1:]):
            what = f"shape of prediction {name}"
            raise ContractError(what, prediction.shape, shape, "resample it")
    (view,) = _views(case, plane)
    picked = next(iter(_channels(task, None if channel is None else [channel]).values()))
    at = view.largest() if index is None else _turned((index,) * 3, case, plane)
    volumes = {"truth": view.label}
    volumes |= {name: _cut(each.astype(int), case, plane) for name, each in predictions.items()}
    seen = np.any([volume[at] > 0 for volume in volumes.values()], axis=0)
    box = _box(seen, view.edges) if zoom else view.box()
    if zoom and seen.any():  # a square, so that panels do not change shape by case
        side = max(box[1] - box[0], box[3] - box[2])
        box = _sized(box, side, side)
    columns = min(len(volumes), 3 if len(volumes) in (5, 6) else 4)
    rows = -(-len(volumes) // columns)
    figure = _page(rows * (box[3] - box[2]), columns * (box[1] - box[0]), title, 0.25 * rows)
    grid = page.panels(figure, len(volumes), columns)
    for axes, (name, volume) in zip(grid, volumes.items(), strict=True):
        _show(axes, view, picked, at, box)
        if name != "truth" and view.label[at].any():
            line = {"linewidths": 1.3, "linestyles": [DOTS]}
            drawn = page.outline(axes, view.label[at] > 0, view.edges, "white", **line)
            drawn.set_path_effects([withStroke(linewidth=2.0, foreground="black")])
        _labels(axes, volume[at], view.edges)
        axes.set_title(name)
    halo = BRIGHT["path_effects"]
    truth = Line2D([], [], color="white", linestyle=DOTS, label="truth", path_effects=halo)
    _legend(figure, task, volumes.values(), truth)
    return figure


def _views(case: Case, *planes: str) -> list[View]:
    # Skull-stripped images are exactly 0 outside the brain, in every channel.
    brain = (case.image != 0).any(axis=0)
    image = [_window(channel.astype(np.float64), brain) for channel in case.image]
    label = np.zeros(brain.shape, int) if case.label is None else case.label.astype(int)
    views = []
    for plane in planes:
        cut = _cut(brain, case, plane)
        spacing_mm = np.array(case.spacing_mm)[np.argsort(_turn(case)[:, 0])]
        wide, tall = np.delete(spacing_mm, PLANES[plane]) * (cut.shape[2], cut.shape[1]) / 2
        edges, letter = (-wide, wide, -tall, tall), "A" if plane == "sagittal" else "R"
        channels = np.stack([_cut(channel, case, plane) for channel in image])
        views.append(View(channels, _cut(label, case, plane), cut, edges, letter))
    return views


def _turn(case: Case) -> np.ndarray:
    """The axis to the patient's right, front and top of every axis of a case, and its direction."""
    from nibabel.orientations import io_orientation

    return io_orientation(case.affine)


def _cut(volume: np.ndarray, case: Case, plane: str) -> np.ndarray:
    """The slices of a volume on the grid of a case."""
    from nibabel.orientations import apply_orientation

    one_of("plane", plane, *PLANES)
    turned = apply_orientation(volume, _turn(case))
    return np.moveaxis(turned, PLANES[plane], 0).transpose(0, 2, 1)[:, :, ::-1]


def _turned(center: Sequence[int], case: Case, plane: str) -> int:
    """The slice through a voxel of the case."""
    turn = _turn(case)
    axis = int(np.flatnonzero(turn[:, 0] == PLANES[plane])[0])
    forward = turn[axis, 1] > 0
    return center[axis] if forward else case.image.shape[1 + axis] - 1 - center[axis]


def _window(channel: np.ndarray, brain: np.ndarray) -> np.ndarray:
    low, middle, high = np.percentile(channel[brain], [1, 50, 99.7]) if brain.any() else (0, 0, 1)
    low = min(low, 0)  # black is no signal, or the lowest value where normalisation made some < 0
    # Fluid in T2w and ADC is so bright that tissue would turn black: let it saturate instead.
    high = min(high, low + 3 * (middle - low)) if middle > low else high
    scaled = np.clip((channel - low) / (high - low if high > low else 1), 0, 1)
    return np.where(brain, scaled, 0)


def _channels(task: Task, names: Sequence[str] | None) -> dict[str, int]:
    names = task.channels if names is None else names
    return {n: task.channels.index(one_of("channel", n, *task.channels)) for n in names}


def _show(axes: Axes, view: View, channel: int, index: int, box: Edges, words: str = "") -> None:
    """A slice with the letter of its left side, and words in the upper corner."""
    smooth = {"interpolation": "bilinear", "interpolation_stage": "data"}
    plate = view.image[channel, index]
    page.picture(axes, plate, cmap="gray", vmin=0, vmax=1, extent=view.edges, **smooth)
    axes.set(xlim=box[:2], ylim=box[2:], facecolor="black")
    axes.text(0.02, 0.5, view.letter, transform=axes.transAxes, va="center", **BRIGHT)
    axes.text(0.02, 0.97, words, transform=axes.transAxes, va="top", **BRIGHT)


def _labels(axes: Axes, plate: np.ndarray, edges: Edges) -> None:
    for value in np.unique(plate[plate > 0]):
        page.outline(axes, plate == value, edges, _color(int(value)))


def _box(seen: np.ndarray, edges: Edges) -> Edges:
    """Edges 5 mm around everything that is marked."""
    if not seen.any():
        return edges
    (top, bottom), (first, last) = (np.flatnonzero(seen.any(axis=a))[[0, -1]] for a in (1, 0))
    dy, dx = (edges[3] - edges[2]) / seen.shape[0], (edges[1] - edges[0]) / seen.shape[1]
    left, right = edges[0] + dx * first - 5.0, edges[0] + dx * (last + 1) + 5.0
    return left, right, edges[2] + dy * top - 5.0, edges[2] + dy * (bottom + 1) + 5.0


def _boxes(views: Sequence[View]) -> tuple[list[Edges], float, float]:
    """The box of every view, and the width and height in mm that hold any of them."""
    boxes = [view.box() for view in views]
    lefts, rights, lows, highs = np.transpose(boxes)
    return boxes, float(max(rights - lefts)), float(max(highs - lows))


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
