"""Feature maps and sub-bands: slices of volumes on the grid they are stored on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer
from matplotlib.axes import Axes

from dcd_core.types import ContractError
from dcd_core.wavelet import BANDS
from dcd_lab.plots import page
from dcd_lab.plots.page import Page, styled

LEFT_IN = 0.3
"""Width of the names of the rows, inches."""

_BANDS_NOTE = "a: approximation, d: detail, along (D, H, W). Percentages: share of the energy."


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
        shapes = [stage.shape for stage in stages]
        if shapes != grids:
            raise ContractError(f"stages of {name}", shapes, grids, "networks of equal strides")
    rows = {"image": [_averaged(image, grid) for grid in grids], **maps}
    tall = (page.WIDTH_IN - LEFT_IN) / len(grids) * image.shape[1] / image.shape[0]
    note = "One grey scale per column. Outline: lesion. Axes as stored."
    figure = page.blank(len(rows) * tall + 0.6, title, note, of_slices=True)
    axes = figure.subplots(len(rows), len(grids), squeeze=False)
    for column, grid in enumerate(grids):
        index = _index(image, label) * grid[2] // image.shape[2]
        plates = [stages[column][:, :, index] for stages in rows.values()]
        for row, plate in enumerate(plates):
            _plate(axes[row, column], plate, plates[min(row, 1)], image, label)
        size = f"{grid[0]}³" if len(set(grid)) == 1 else "×".join(map(str, grid))
        axes[0, column].set_title(f"stage {column}: {size}")
    for panel, name in zip(axes[:, 0], rows, strict=True):
        panel.set_ylabel(name)
    return figure


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
    volumes = {"image": image, **maps}
    tall = page.WIDTH_IN / columns * image.shape[1] / image.shape[0] + 0.3
    note = "Each panel has its own grey scale. Outline: lesion. Axes as stored."
    figure = page.blank(-(-len(volumes) // columns) * tall + 0.4, title, note, of_slices=True)
    for axes, (name, volume) in zip(
        page.panels(figure, len(volumes), columns), volumes.items(), strict=True
    ):
        plate = volume[:, :, _index(image, label)]
        _plate(axes, plate, plate, image, label)
        axes.set_title(name, fontsize="small")
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
    cut = np.take(values, _most_detail(values, plane) if index is None else index, axis=plane + 1)
    top = _top(cut)
    tall = cut.shape[2] / cut.shape[1] * (page.WIDTH_IN - 1.05) / 4
    figure = page.blank(2 * tall + 0.85, title, _BANDS_NOTE)
    axes = page.panels(figure, 8, 4)
    for panel, name, plate, share in zip(axes, BANDS, cut, _shares(values), strict=True):
        scale = (
            {"cmap": "gray"} if name == BANDS[0] else {"cmap": "RdBu_r", "vmin": -top, "vmax": top}
        )
        drawn = page.picture(panel, plate.T, interpolation="nearest", **scale)
        percent = f"{100 * share:.1f} %" if share >= 0.001 else f"{100 * share:.1g} %"
        panel.set_title(f"{name}   {percent}", weight="bold" if name in marked else "normal")
        _mark(panel, name in marked, 2.5)
    page.color_bar(figure, drawn, axes, "detail coefficient", shrink=0.6, aspect=24)
    return figure


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
    index = _most_detail(first, 2)
    top = _top(first[:, :, :, index])
    coarse = np.quantile(first[0, :, :, index], [0.01, 0.99])
    tall = (page.WIDTH_IN - LEFT_IN) / 8 * first.shape[2] / first.shape[1] + 0.25
    figure = page.blank(len(volumes) * tall + 0.65, title, _BANDS_NOTE)
    axes = figure.subplots(len(volumes), 8, squeeze=False)
    for (name, values), row in zip(volumes.items(), axes, strict=True):
        for band, plate, share, panel in zip(BANDS, values, _shares(values), row, strict=True):
            low, high = coarse if band == BANDS[0] else (-top, top)
            tones = "gray" if band == BANDS[0] else "RdBu_r"
            page.picture(panel, plate[:, :, index].T, cmap=tones, vmin=low, vmax=high)
            panel.set_xlabel(f"{100 * share:.3g} %", fontsize=9.5)
            _mark(panel, band in marked, 2)
        row[0].set_ylabel(name)
    for panel, band in zip(axes[0], BANDS, strict=True):
        panel.set_title(band, weight="bold" if band in marked else "normal", loc="center")
    return figure


def _index(image: np.ndarray, label: np.ndarray | None) -> int:
    if label is None:
        return image.shape[2] // 2
    return int(label.astype(bool).sum((0, 1)).argmax())


def _averaged(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The image on a coarser grid, every voxel the mean of those it covers."""
    if any(n % m for n, m in zip(image.shape, shape, strict=True)):
        raise ContractError(
            "grid of a stage", shape, f"a divisor of {image.shape}", "its own patch"
        )
    (d, h, w), factors = shape, [n // m for n, m in zip(image.shape, shape, strict=True)]
    blocks = image.reshape(d, factors[0], h, factors[1], w, factors[2])
    return blocks.mean(axis=(1, 3, 5))


def _plate(
    axes: Axes, plate: np.ndarray, scaled_by: np.ndarray, image: np.ndarray, label: Any
) -> None:
    """A grey slice at the size of the image, with the outline of the label."""
    low, high = np.quantile(scaled_by, [0.01, 0.99])
    edges = (0, image.shape[0], 0, image.shape[1])
    top = high if high > low else low + 1
    page.picture(
        axes, plate.T, cmap="gray", vmin=low, vmax=top, extent=edges, interpolation="nearest"
    )
    if label is not None:
        mask = label[:, :, _index(image, label)].astype(bool)
        page.outline(axes, mask.T, edges, page.LABEL_COLORS[0])


def _bands(volume_bands: Any) -> Float[np.ndarray, "8 d h w"]:
    array = volume_bands.detach().cpu() if hasattr(volume_bands, "detach") else volume_bands
    values = np.asarray(array, dtype=np.float64)
    if values.ndim < 4 or values.shape[-4] != 8 or values.size != np.prod(values.shape[-4:]):
        raise ContractError(
            "bands", values.shape, "(8, d, h, w)", "pick one volume and channel: bands[0, 3]"
        )
    return values.reshape(values.shape[-4:])


def _most_detail(values: np.ndarray, plane: int) -> int:
    axes = tuple(axis for axis in range(4) if axis != plane + 1)
    return int(np.square(values[1:]).sum(axis=axes).argmax())


def _top(cut: np.ndarray) -> float:
    """The end of the colour scale of the seven details."""
    return float(np.quantile(np.abs(cut[1:]), 0.998)) or 1.0


def _shares(values: np.ndarray) -> np.ndarray:
    """Share of the energy in every band."""
    energy = np.square(values).sum(axis=(1, 2, 3))
    return energy / (energy.sum() or 1)


def _mark(axes: Axes, marked: bool, width: float) -> None:
    """A frame, coloured and of this width where it is marked."""
    color = page.PALETTE[1] if marked else page.FAINT
    axes.spines[:].set(visible=True, color=color, linewidth=width if marked else 0.8)
