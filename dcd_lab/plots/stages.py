"""Features seen: maps of several networks, their sub-bands, and numbers stage by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Integer
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from dcd_core.types import ContractError
from dcd_core.wavelet import BANDS
from dcd_lab.plots.page import (
    FAINT,
    LABEL_COLORS,
    MARKERS,
    PALETTE,
    WIDTH_IN,
    Page,
    colors,
    grid,
    page,
    styled,
)

LEFT_IN = 0.3
"""Room for the names of the rows, inches."""


@styled
def features(
    image: Float[np.ndarray, "d h w"],
    maps: Mapping[str, Sequence[Float[np.ndarray, "_ _ _"]]],
    *,
    label: Integer[np.ndarray, "d h w"] | None = None,
    title: str | None = None,
) -> Page:
    """One slice of a feature map per network (rows) and encoder stage (columns), image on top.

    `maps` has one volume (d_i, h_i, w_i) per stage, finest first; the image is averaged onto the
    same grids. The slice along w is where `label` is largest, or the middle one; the label is
    outlined. A column has one grey scale, that of the first network. Raises ContractError when a
    stage does not divide the patch, or networks differ in their stages.
    """
    grids = [stage.shape for stage in next(iter(maps.values()))]
    for name, stages in maps.items():
        if [stage.shape for stage in stages] != grids:
            shapes = [stage.shape for stage in stages]
            raise ContractError(f"stages of {name}", shapes, grids, "networks of equal strides")
    rows = {"image": [_averaged(image, grid) for grid in grids], **maps}
    index = image.shape[2] // 2 if label is None else int(label.astype(bool).sum((0, 1)).argmax())
    tall = (WIDTH_IN - LEFT_IN) / len(grids) * image.shape[1] / image.shape[0]
    figure = page(len(rows) * tall + 0.6 + (0.3 if title else 0), title, _FEATURES_NOTE)
    figure.of_slices = True
    panels = figure.subplots(len(rows), len(grids), squeeze=False)
    for column, shape in enumerate(grids):
        at = index * shape[2] // image.shape[2]
        plates = [stages[column][:, :, at] for stages in rows.values()]
        for row, (axes, plate) in enumerate(zip(panels[:, column], plates, strict=True)):
            _plate(axes, plate, scaled_by=plates[min(row, 1)], size=image.shape)
            if label is not None:
                _outline(axes, label[:, :, index])
        panels[0, column].set_title(f"stage {column}: {_size(shape)}")
    for axes, name in zip(panels[:, 0], rows, strict=True):
        axes.set_ylabel(name)
    return figure


_FEATURES_NOTE = "One grey scale per column. Outline: lesion. Axes as stored."


@styled
def gallery(
    image: Float[np.ndarray, "d h w"],
    maps: Mapping[str, Float[np.ndarray, "d h w"]],
    *,
    label: Integer[np.ndarray, "d h w"] | None = None,
    title: str | None = None,
    columns: int = 5,
) -> Page:
    """One slice of every map on the grid of the image, `columns` in a row, after the image itself.

    Maps are told apart by where they are bright, not by how much: each has its own grey scale. The
    slice along w is where `label` is largest, or the middle one; the label is outlined.
    """
    panels = {"image": image, **maps}
    index = image.shape[2] // 2 if label is None else int(label.astype(bool).sum((0, 1)).argmax())
    rows = -(-len(panels) // columns)
    tall = WIDTH_IN / columns * image.shape[1] / image.shape[0] + 0.3
    figure = page(rows * tall + 0.4 + (0.3 if title else 0), title, _GALLERY_NOTE)
    figure.of_slices = True
    places = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (name, volume) in zip(places, panels.items(), strict=False):
        plate = volume[:, :, index]
        _plate(axes, plate, scaled_by=plate, size=image.shape)
        if label is not None:
            _outline(axes, label[:, :, index])
        axes.set_title(name, fontsize="small")
    for axes in list(figure.axes)[len(panels) :]:
        axes.remove()
    return figure


_GALLERY_NOTE = "Each panel has its own grey scale. Outline: lesion. Axes as stored."


@styled
def subbands(
    volumes: Mapping[str, Float[np.ndarray, "8 d h w"]],
    *,
    marked: Sequence[str] = (),
    title: str | None = None,
) -> Page:
    """The eight sub-bands (columns) of one volume per network (rows), each with its energy's share.

    All rows share one slice, the one with the most detail in the first row, one grey scale for the
    coarse band and one colour scale for the details. `marked` bands get a frame: those a loss uses.
    """
    first = next(iter(volumes.values()))
    index = int(np.square(first[1:]).sum((0, 1, 2)).argmax())
    cuts = {name: values[:, :, :, index] for name, values in volumes.items()}
    top = float(np.quantile(np.abs(cuts[next(iter(cuts))][1:]), 0.998)) or 1.0
    coarse = np.quantile(first[0, :, :, index], [0.01, 0.99])
    tall = (WIDTH_IN - LEFT_IN) / 8 * first.shape[2] / first.shape[1] + 0.25
    figure = page(len(volumes) * tall + 0.65 + (0.3 if title else 0), title, _SUBBANDS_NOTE)
    panels = figure.subplots(len(volumes), 8, squeeze=False)
    for (name, plates), line in zip(cuts.items(), panels, strict=True):
        energy = np.square(volumes[name]).sum((1, 2, 3))
        for band, plate, part, axes in zip(BANDS, plates, energy / energy.sum(), line, strict=True):
            low, high = coarse if band == BANDS[0] else (-top, top)
            tones = "gray" if band == BANDS[0] else "RdBu_r"
            axes.imshow(plate.T, origin="lower", cmap=tones, vmin=low, vmax=high)
            axes.set_xlabel(f"{100 * part:.3g} %", fontsize=9.5)
            used = band in marked
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(
                visible=True, color=PALETTE[1] if used else FAINT, linewidth=2 if used else 0.8
            )
        line[0].set_ylabel(name)
    for axes, band in zip(panels[0], BANDS, strict=True):
        axes.set_title(band, weight="bold" if band in marked else "normal", loc="center")
    return figure


_SUBBANDS_NOTE = "a: approximation, d: detail, along (D, H, W). Percentages: share of the energy."


@styled
def by_stage(
    table: pd.DataFrame,
    y: str,
    by: str,
    panel: str | None = None,
    *,
    label: str,
    log_y: bool = False,
    title: str | None = None,
) -> Page:
    """Column `y` at every encoder stage, one colour and marker per value of `by`.

    Marker: mean of the rows (patches, seeds); bar: their 10th to 90th percentile. `panel` names a
    column whose values get a panel each, with axes of their own. `label` names the value with its
    unit. Rows without a value are skipped. Raises ContractError for a missing column.
    """
    missing = [c for c in ("stage", y, by, panel) if c is not None and c not in table.columns]
    if missing:
        raise ContractError("columns of the table", f"no {missing}", list(table.columns), "add it")
    table = table.dropna(subset=[y])
    names = [None] if panel is None else list(dict.fromkeys(table[panel]))
    columns = len(names) if len(names) <= 3 else 2
    lines = -(-len(names) // columns)
    figure = page(0.9 + 2.5 * lines + (0.3 if title else 0), title, _SPREAD_NOTE)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    tones = colors(table[by])
    for axes, name in zip(panels, names, strict=False):
        rows = table if panel is None else table[table[panel] == name]
        _series(axes, rows, y, by, tones)
        axes.set(title="" if name is None else str(name), yscale="log" if log_y else "linear")
        axes.set(xlabel="encoder stage", xlim=(-0.5, table["stage"].max() + 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        grid(axes, "y")
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    figure.supylabel(label, fontsize=11)
    handles = [
        Line2D([], [], color=tone, marker=MARKERS[place % len(MARKERS)], linewidth=0.8, label=name)
        for place, (name, tone) in enumerate(tones.items())
    ]
    fitting = 4 if sum(map(len, tones)) <= 60 else 2
    figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), fitting))
    return figure


_SPREAD_NOTE = (
    "Marker: mean over patches and seeds. Bar: 10th to 90th percentile. Stage 0 is the finest."
)


def _series(axes: Axes, rows: pd.DataFrame, y: str, by: str, tones: Mapping[str, str]) -> None:
    for place, (name, tone) in enumerate(tones.items()):
        found = rows[rows[by].astype(str) == name].groupby("stage")[y]
        if not len(found):
            continue
        middle, low, high = found.mean(), found.quantile(0.1), found.quantile(0.9)
        x = middle.index.to_numpy(float) + 0.13 * (place - (len(tones) - 1) / 2)
        axes.vlines(x, low, high, color=tone, linewidth=2.2, alpha=0.55)
        axes.plot(x, middle, color=tone, linewidth=0.8, alpha=0.6)
        mark = MARKERS[place % len(MARKERS)]
        axes.plot(x, middle, mark, color=tone, markersize=6)


def _averaged(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The image on a coarser grid, every voxel the mean of those it covers."""
    if any(n % m for n, m in zip(image.shape, shape, strict=True)):
        raise ContractError(
            "grid of a stage", shape, f"a divisor of {image.shape}", "its own patch"
        )
    (d, h, w), factors = shape, [n // m for n, m in zip(image.shape, shape, strict=True)]
    blocks = image.reshape(d, factors[0], h, factors[1], w, factors[2])
    return blocks.mean(axis=(1, 3, 5))


def _plate(axes: Axes, plate: np.ndarray, *, scaled_by: np.ndarray, size: Sequence[int]) -> None:
    low, high = np.quantile(scaled_by, [0.01, 0.99])
    axes.imshow(
        plate.T,
        origin="lower",
        cmap="gray",
        vmin=low,
        vmax=high if high > low else low + 1,
        extent=(0, size[0], 0, size[1]),
        interpolation="nearest",
    )
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _outline(axes: Axes, label: np.ndarray) -> None:
    # A margin of zeros closes the contours of labels that touch the edge of the patch.
    mask = np.pad(label.astype(bool), 1).T.astype(float)
    extent = (-1, label.shape[0] + 1, -1, label.shape[1] + 1)
    axes.contour(
        mask, levels=[0.5], colors=[LABEL_COLORS[0]], linewidths=1.5, origin="lower", extent=extent
    )


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]}³" if len(set(shape)) == 1 else "×".join(map(str, shape))
