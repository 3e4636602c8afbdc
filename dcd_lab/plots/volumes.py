"""Volumes seen: slices of a case, predictions over them, and the bands of a wavelet transform."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import AbstractPathEffect, withStroke

from dcd_core.types import Case, ContractError, Task
from dcd_core.wavelet import BANDS
from dcd_lab.plots.page import FAINT, LABEL_COLORS, PALETTE, WIDTH_IN, Page, page, styled

# The axis a plane is cut along, in (right, anterior, superior) order.
PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}
RADIOLOGICAL = "Radiological view: R is the patient's right, A is anterior."


class View(NamedTuple):
    """A case turned so that its axes run to the patient's right, front and top, at display scale.

    `image` (c, x, y, z) between 0 (black) and 1; `label` (x, y, z); `brain` where anything is seen.
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
    at = _best(view) if center is None else _turned_index(center, case, view)
    boxes = {plane: _box([view.brain], view, axis) for plane, axis in PLANES.items()}
    widths = [right - left for left, right, _, _ in boxes.values()]
    tallest = max(high - low for _, _, low, high in boxes.values())
    shown = _labels_shown(task, [view.label])
    figure = page(_height(len(rows) * tallest, sum(widths), title), title, RADIOLOGICAL)
    figure.of_slices = True
    panels = figure.subplots(len(rows), 3, squeeze=False, width_ratios=widths)
    for (name, channel), row in zip(rows.items(), panels, strict=True):
        for (plane, box), axes in zip(boxes.items(), row, strict=True):
            index = at[PLANES[plane]]
            _show(axes, view, channel, plane, index, _sized(box, tall=tallest))
            _outline(axes, view, view.label, plane, index)
            _corner(axes, f"{name}  {plane}" if plane == "axial" else plane)
    _legend(figure, shown)
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
    axis = _axis(plane)
    boxes = [_box([view.brain], view, axis) for view in views]
    wide = max(right - left for left, right, _, _ in boxes)
    tall = max(high - low for _, _, low, high in boxes)
    shown = _labels_shown(task, [view.label for view in views])
    figure = page(_height(len(views) * tall, len(columns) * wide, title), title, RADIOLOGICAL)
    figure.of_slices = True
    panels = figure.subplots(len(views), len(columns), squeeze=False)
    for view, name, box, row in zip(views, titles, boxes, panels, strict=True):
        index = _best(view)[axis]
        for (channel_name, channel), axes in zip(columns.items(), row, strict=True):
            _show(axes, view, channel, plane, index, _sized(box, wide, tall))
            _outline(axes, view, view.label, plane, index)
            _corner(axes, channel_name)
        row[0].set_ylabel(name)
    _legend(figure, shown)
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
    view, axis = _view(case), _axis(plane)
    picked = next(iter(_channels(task, None if channel is None else [channel]).values()))
    at = _best(view)[axis] if index is None else _turned_slice(index, axis, case, view)
    volumes = {"truth": view.label}
    volumes |= {name: _turn(array.astype(int), view.turn) for name, array in predictions.items()}
    box = _box(volumes.values(), view, axis, at) if zoom else _box([view.brain], view, axis)
    columns = min(len(volumes), 3 if len(volumes) in (5, 6) else 4)
    rows = -(-len(volumes) // columns)
    shown = _labels_shown(task, volumes.values())
    width, tall = box[1] - box[0], box[3] - box[2]
    height = _height(rows * tall, columns * width, title) + 0.25 * rows
    figure = page(height, title, RADIOLOGICAL)
    figure.of_slices = True
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, volume) in zip(panels, volumes.items(), strict=False):
        _show(axes, view, picked, plane, at, box)
        if name != "truth":
            _outline(axes, view, view.label > 0, plane, at, dotted=True)
        _outline(axes, view, volume, plane, at)
        axes.set_title(name)
    for axes in panels[len(volumes) :]:
        axes.set_visible(False)
    truth = Line2D([], [], color="white", linestyle=_DOTS, label="truth", path_effects=_halo())
    _legend(figure, [*shown, truth])
    return figure


@styled
def bands(
    volume_bands: Any,
    *,
    plane: int = 2,
    index: int | None = None,
    marked: Sequence[str] = (),
    title: str | None = None,
) -> Page:
    """The eight sub-bands of one volume, (8, d, h, w), with the share of energy each holds.

    Array or tensor; leading axes of length 1 are dropped. `plane` is the axis cut along, `index`
    the slice (default: the one with the most detail). The seven details share one colour scale.
    `marked` bands get a frame: those a loss uses, say. Raises ContractError for other shapes.
    """
    values = _bands(volume_bands)
    energy = (values**2).sum(axis=(1, 2, 3))
    share = energy / energy.sum() if energy.sum() > 0 else energy
    detail = (values[1:] ** 2).sum(axis=(0, *(a + 1 for a in range(3) if a != plane)))
    cut = np.take(values, int(detail.argmax()) if index is None else index, axis=plane + 1)
    top = float(np.quantile(np.abs(cut[1:]), 0.998)) or 1.0
    tall = cut.shape[2] / cut.shape[1] * (WIDTH_IN - 1.05) / 4
    figure = page(2 * tall + 0.85 + (0.3 if title else 0), title, _BANDS_NOTE)
    panels = figure.subplots(2, 4).ravel()
    for axes, name, plate, part in zip(panels, BANDS, cut, share, strict=True):
        scale = (
            {"cmap": "gray"} if name == BANDS[0] else {"cmap": "RdBu_r", "vmin": -top, "vmax": top}
        )
        drawn = axes.imshow(plate.T, origin="lower", interpolation="nearest", **scale)
        axes.set_title(f"{name}   {_percent(part)}", weight="bold" if name in marked else "normal")
        _frame(axes, PALETTE[1] if name in marked else FAINT, 2.5 if name in marked else 0.8)
    bar = figure.colorbar(drawn, ax=panels, shrink=0.6, aspect=24, pad=0.02)
    bar.set_label("detail coefficient")
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


_BANDS_NOTE = "a: approximation, d: detail, along (D, H, W). Percentages: share of the energy."


def _bands(volume_bands: Any) -> Float[np.ndarray, "8 d h w"]:
    array = volume_bands.detach().cpu() if hasattr(volume_bands, "detach") else volume_bands
    values = np.asarray(array, dtype=np.float64)
    if values.ndim < 4 or values.shape[-4] != 8 or values.size != np.prod(values.shape[-4:]):
        raise ContractError(
            "bands", values.shape, "(8, d, h, w)", "pick one volume and channel: bands[0, 3]"
        )
    return values.reshape(values.shape[-4:])


def _percent(part: float) -> str:
    return f"{100 * part:.1f} %" if part >= 0.001 else f"{100 * part:.1g} %"


def _view(case: Case) -> View:
    from nibabel.orientations import io_orientation

    turn = io_orientation(case.affine)
    image = np.stack([_turn(channel, turn) for channel in case.image]).astype(np.float64)
    label = np.zeros(image.shape[1:], int) if case.label is None else _turn(case.label, turn)
    spacing = tuple(float(case.spacing_mm[i]) for i in np.argsort(turn[:, 0]))
    # Skull-stripped images are exactly 0 outside the brain, in every channel.
    brain = (image != 0).any(axis=0)
    window = np.stack([_window(channel, brain) for channel in image])
    return View(window, label.astype(int), brain, spacing, turn)


def _turn(volume: np.ndarray, turn: np.ndarray) -> np.ndarray:
    from nibabel.orientations import apply_orientation

    return apply_orientation(volume, turn)


def _turned_index(index: Sequence[int], case: Case, view: View) -> tuple[int, int, int]:
    order = np.argsort(view.turn[:, 0])
    x, y, z = (_turned_slice(index[order[axis]], axis, case, view) for axis in range(3))
    return x, y, z


def _turned_slice(index: int, axis: int, case: Case, view: View) -> int:
    source = int(np.flatnonzero(view.turn[:, 0] == axis)[0])
    return index if view.turn[source, 1] > 0 else case.image.shape[1 + source] - 1 - index


def _window(channel: np.ndarray, brain: np.ndarray) -> np.ndarray:
    low, middle, high = np.percentile(channel[brain], [1, 50, 99.7]) if brain.any() else (0, 0, 1)
    low = min(low, 0)  # black is no signal, or the lowest value where normalisation made some < 0
    # Fluid in T2w and ADC is so bright that tissue would turn black: let it saturate instead.
    high = min(high, low + 3 * (middle - low)) if middle > low else high
    scaled = np.clip((channel - low) / (high - low if high > low else 1), 0, 1)
    return np.where(brain, scaled, 0)


def _best(view: View) -> tuple[int, int, int]:
    seen = view.label > 0 if (view.label > 0).any() else view.brain
    first, second, third = (
        int(seen.sum(axis=tuple(a for a in range(3) if a != axis)).argmax()) for axis in range(3)
    )
    return first, second, third


def _extent_mm(view: View) -> np.ndarray:
    return np.array(view.brain.shape) * view.spacing_mm


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


def _edges_mm(view: View, plane: str) -> tuple[float, float, float, float]:
    wide, tall = np.delete(_extent_mm(view), _axis(plane)) / 2
    return -wide, wide, -tall, tall


def _show(
    axes: Axes, view: View, channel: int, plane: str, index: int, box: Sequence[float]
) -> None:
    plate = _plate(view.image[channel], plane, index)
    axes.imshow(
        plate,
        cmap="gray",
        vmin=0,
        vmax=1,
        origin="lower",
        extent=_edges_mm(view, plane),
        interpolation="bilinear",
        interpolation_stage="data",
    )
    left, right, low, high = box
    axes.set(xlim=(left, right), ylim=(low, high), xticks=[], yticks=[], facecolor="black")
    axes.spines[:].set_visible(False)
    letter = "A" if plane == "sagittal" else "R"
    axes.text(0.02, 0.5, letter, transform=axes.transAxes, va="center", **_BRIGHT)


def _outline(
    axes: Axes, view: View, volume: np.ndarray, plane: str, index: int, *, dotted: bool = False
) -> None:
    plate = _plate(volume.astype(int), plane, index)
    for value in np.unique(plate[plate > 0]):
        color = "white" if dotted else LABEL_COLORS[(value - 1) % len(LABEL_COLORS)]
        # A margin of zeros closes the contours of labels that touch the edge of the volume.
        drawn = axes.contour(
            np.pad(plate == value, 1).astype(float),
            levels=[0.5],
            colors=[color],
            linewidths=1.3 if dotted else 1.5,
            linestyles=[_DOTS if dotted else "-"],
            origin="lower",
            extent=_padded(_edges_mm(view, plane), plate.shape),
        )
        if dotted:
            drawn.set_path_effects(_halo(2.0))


def _padded(
    edges: tuple[float, float, float, float], shape: tuple[int, ...]
) -> tuple[float, float, float, float]:
    left, right, low, high = edges
    dx, dy = (right - left) / shape[1], (high - low) / shape[0]
    return left - dx, right + dx, low - dy, high + dy


def _box(
    volumes: Any, view: View, axis: int, index: int | None = None, margin_mm: float = 5.0
) -> tuple[float, float, float, float]:
    """Edges in mm around everything nonzero: in slice `index`, or in any slice."""
    plane = next(name for name, value in PLANES.items() if value == axis)
    flats = [(v > 0).any(axis=axis, keepdims=True) if index is None else v > 0 for v in volumes]
    seen = np.any([_plate(flat, plane, index or 0) for flat in flats], axis=0)
    edges = _edges_mm(view, plane)
    if not seen.any():
        return edges
    rows, columns = (np.flatnonzero(seen.any(axis=a)) for a in (1, 0))
    dx, dy = (edges[1] - edges[0]) / seen.shape[1], (edges[3] - edges[2]) / seen.shape[0]
    x0, x1 = edges[0] + dx * columns[0] - margin_mm, edges[0] + dx * (columns[-1] + 1) + margin_mm
    y0, y1 = edges[2] + dy * rows[0] - margin_mm, edges[2] + dy * (rows[-1] + 1) + margin_mm
    if index is None:
        return x0, x1, y0, y1
    half = max(x1 - x0, y1 - y0) / 2  # a square, so that panels do not change shape by case
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    return x - half, x + half, y - half, y + half


def _sized(box: Sequence[float], wide: float = 0.0, tall: float = 0.0) -> tuple[float, ...]:
    """The box grown to a size in mm around its own centre."""
    left, right, low, high = box
    x, y = max(wide - (right - left), 0) / 2, max(tall - (high - low), 0) / 2
    return left - x, right + x, low - y, high + y


def _halo(width: float = 2.6) -> list[AbstractPathEffect]:
    return [withStroke(linewidth=width, foreground="black")]


_DOTS = (0, (1, 1.3))
_BRIGHT: dict[str, Any] = {"color": "white", "fontsize": 10, "path_effects": _halo()}


def _corner(axes: Axes, text: str) -> None:
    axes.text(0.02, 0.97, text, transform=axes.transAxes, va="top", **_BRIGHT)


def _frame(axes: Axes, color: str, width: float) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=color, linewidth=width)


def _height(tall_mm: float, wide_mm: float, title: str | None) -> float:
    return float(WIDTH_IN * tall_mm / wide_mm + 0.35 + (0.3 if title else 0))


def _labels_shown(task: Task, volumes: Any) -> list[Line2D]:
    values = sorted({int(x) for volume in volumes for x in np.unique(volume) if x > 0})
    names = {v: task.labels[v] if v < len(task.labels) else f"label {v}" for v in values}
    return [
        Line2D([], [], color=LABEL_COLORS[(v - 1) % len(LABEL_COLORS)], label=names[v], linewidth=3)
        for v in values
    ]


def _legend(figure: Page, handles: Sequence[Line2D]) -> None:
    if handles:
        figure.legend(handles=list(handles), loc="outside upper right", ncols=len(handles))
