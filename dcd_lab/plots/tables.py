"""Tables seen: training curves, seeds, comparisons, lesion sizes, schedules and small matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import SupportsFloat

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from dcd_core.types import ContractError
from dcd_lab.plots.page import (
    DASHES,
    FAINT,
    GREY,
    INK,
    MARKERS,
    PALETTE,
    Page,
    axis_label,
    colors,
    grid,
    page,
    styled,
)
from dcd_lab.stats import Comparison


@styled
def curves(
    table: pd.DataFrame,
    x: str,
    y: str,
    by: str = "method",
    *,
    log_y: bool = False,
    title: str | None = None,
) -> Page:
    """Column `y` against column `x`, one colour per value of `by`, one line per seed if there are.

    Rows without a value are skipped, so that a validation score measured every tenth epoch still
    makes a line. Raises ContractError for a missing column.
    """
    _require(table, x, y, by)
    figure = page(3.6 + (0.35 if title else 0), title)
    axes = figure.subplots()
    tones = colors(table[by])
    split = [by, "seed"] if "seed" in table and by != "seed" else [by]
    named: set[str] = set()
    for keys, rows in table.dropna(subset=[x, y]).groupby(split, sort=False):
        name = str(keys[0])
        place = list(tones).index(name)
        rows = rows.sort_values(x)
        axes.plot(
            rows[x],
            rows[y],
            color=tones[name],
            linestyle=DASHES[place // len(PALETTE) % len(DASHES)],
            marker=MARKERS[place % len(MARKERS)] if len(rows) <= 25 else None,
            markersize=4.5,
            linewidth=1.2 if "seed" in split else 1.8,
            alpha=0.85,
            label=None if name in named else name,
        )
        named.add(name)
    axes.set(xlabel=axis_label(x), ylabel=axis_label(y), yscale="log" if log_y else "linear")
    axes.margins(x=0.02)
    grid(axes)
    _legend(figure, axes)
    return figure


@styled
def seeds(
    table: pd.DataFrame, metric: str, by: str = "method", *, title: str | None = None
) -> Page:
    """Every training run as a dot, the mean of each row as a bar, runs of one seed joined.

    Several rows of one run (its cases) are averaged first, so give one region at a time. Raises
    ContractError for a missing column.
    """
    _require(table, metric, by, "seed")
    wide = table.groupby([by, "seed"], sort=False)[metric].mean().unstack("seed")
    wide = wide.loc[list(dict.fromkeys(table[by]))]
    tones = colors(wide.index)
    height = 1.35 + 0.48 * len(wide) + (0.35 if title else 0)
    figure = page(height, title, "Dot: one training run. Bar: mean. Grey line: same seed.")
    axes = figure.subplots()
    rows = np.arange(len(wide))
    for _, values in wide.items():
        axes.plot(values, rows, color="#BDBDBD", linewidth=0.9, zorder=1)
    for row, (name, values) in zip(rows, wide.iterrows(), strict=True):
        axes.scatter(values, np.full(len(values), row), s=46, color=tones[str(name)], zorder=3)
        axes.vlines(
            values.mean(), row - 0.3, row + 0.3, color=tones[str(name)], linewidth=3, zorder=2
        )
    axes.set(xlabel=axis_label(metric), yticks=rows, yticklabels=[str(x) for x in wide.index])
    _rows_downward(axes, len(wide))
    return figure


@styled
def forest(comparisons: Sequence[Comparison], *, title: str | None = None) -> Page:
    """Differences with their intervals, and grey bars as wide as the smallest detectable one.

    All comparisons must be on one metric. Those with one seed are drawn hollow and dashed: their
    interval covers cases only and is no evidence for the method. Raises ContractError for none, or
    for several metrics.
    """
    metrics = sorted({found.metric for found in comparisons})
    if len(metrics) != 1:
        raise ContractError("comparisons", metrics or "none", "one metric", "one figure per metric")
    figure = page(1.75 + 0.52 * len(comparisons) + (0.35 if title else 0), title)
    axes = figure.subplots()
    axes.axvline(0, color=INK, linewidth=1, zorder=2)
    for row, found in enumerate(comparisons):
        _comparison(axes, row, found)
    names = [f"{found.method} − {found.baseline}" for found in comparisons]
    axes.set(
        xlabel=f"difference in {axis_label(metrics[0])}",
        yticks=range(len(names)),
        yticklabels=names,
    )
    _rows_downward(axes, len(names))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    handles = [Patch(color="#DADADA", label="too small to detect (80 % power)")]
    if not all(found.seed_is_random for found in comparisons):
        handles.append(
            Patch(
                facecolor="white",
                edgecolor=GREY,
                linestyle="--",
                label="one seed: cases only, no evidence",
            )
        )
    figure.legend(handles=handles, loc="outside lower left", ncols=2)
    return figure


def _comparison(axes: Axes, row: int, found: Comparison) -> None:
    if np.isfinite(found.detectable) and found.seed_is_random:
        corner = (-found.detectable, row - 0.36)
        axes.add_patch(Rectangle(corner, 2 * found.detectable, 0.72, color="#DADADA", zorder=1))
        axes.update_datalim([(-found.detectable, row), (found.detectable, row)])
    color = PALETTE[0] if found.seed_is_random else GREY
    dash = "-" if found.seed_is_random else (0, (3, 2))
    axes.plot([found.low, found.high], [row, row], color=color, linestyle=dash, zorder=3)
    fill = color if found.seed_is_random else "white"
    axes.plot(found.difference, row, "o", color=color, markerfacecolor=fill, markersize=8, zorder=4)
    text = f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]".replace("-", "−")
    axes.annotate(text, (1.01, row), xycoords=("axes fraction", "data"), va="center", fontsize=9.5)


@styled
def by_volume(
    table: pd.DataFrame,
    y: str = "dice",
    x: str = "volume_ml",
    by: str = "method",
    *,
    title: str | None = None,
) -> Page:
    """A score against lesion volume on a log axis, one panel per value of `by`, all others in grey.

    Rows are lesions (of `metrics.lesions`) or cases; volumes of 0 ml have no place on a log axis
    and are left out. Raises ContractError for a missing column.
    """
    _require(table, x, y, by)
    rows = table[table[x] > 0]
    tones = colors(table[by])
    columns = 2 if len(tones) == 4 else min(len(tones), 3)
    lines = -(-len(tones) // columns)
    figure = page(0.75 + 2.3 * lines + (0.35 if title else 0), title)
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, (name, tone) in zip(panels, tones.items(), strict=False):
        own = rows[by].astype(str) == name
        axes.scatter(rows[x][~own], rows[y][~own], s=8, color=FAINT, linewidths=0)
        axes.scatter(rows[x][own], rows[y][own], s=16, color=tone, alpha=0.7, linewidths=0)
        axes.set(xscale="log", title=name)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.tick_params(which="minor", length=0)
        grid(axes)
    for axes in panels[len(tones) :]:
        axes.set_visible(False)
    for axes in panels[max(len(tones) - columns, 0) : len(tones)]:
        axes.tick_params(labelbottom=True)
    figure.supxlabel(axis_label(x), fontsize=11)
    figure.supylabel(axis_label(y), fontsize=11)
    return figure


@styled
def tradeoff(
    table: pd.DataFrame,
    x: str,
    y: str,
    by: str = "method",
    variant: str = "precision",
    *,
    title: str | None = None,
) -> Page:
    """What is gained (`y`) against what it costs (`x`, log axis), one dot per row.

    Colour tells `by`, the marker tells `variant`; the variants of one `by` are joined. Rows without
    a value are left out. Raises ContractError for a missing column.
    """
    _require(table, x, y, by, variant)
    figure = page(4.0 + (0.35 if title else 0), title)
    axes = figure.subplots()
    tones, kinds = colors(table[by]), list(dict.fromkeys(table[variant]))
    rows = table.dropna(subset=[x, y])
    for name, tone in tones.items():
        own = rows[rows[by].astype(str) == name]
        axes.plot(own[x], own[y], color=tone, linewidth=0.9, alpha=0.5, zorder=1)
        for kind, marker in zip(kinds, MARKERS, strict=False):
            dots = own[own[variant] == kind]
            axes.plot(dots[x], dots[y], marker, color=tone, markersize=8, zorder=2)
    handles = [Line2D([], [], color=tone, linewidth=4, label=name) for name, tone in tones.items()]
    handles += [
        Line2D([], [], color=GREY, marker=marker, markersize=7, linestyle="", label=str(kind))
        for kind, marker in zip(kinds, MARKERS, strict=False)
    ]
    axes.set(xscale="log", xlabel=axis_label(x), ylabel=axis_label(y))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    grid(axes)
    figure.legend(handles=handles, loc="outside lower left", ncols=3)
    return figure


@styled
def schedule(
    weights: Mapping[str, Sequence[SupportsFloat] | np.ndarray],
    *,
    marks: Mapping[str, SupportsFloat] | None = None,
    x: str = "epoch",
    title: str | None = None,
) -> Page:
    """The weight of the distillation loss at every epoch from 0, with named vertical marks.

    `weights` has one sequence per schedule; `marks` names epochs: the end of the warm-up, say.
    """
    figure = page(3.2 + (0.35 if title else 0), title)
    axes = figure.subplots()
    for tone, dash, (name, values) in zip(PALETTE * 3, DASHES * 8, weights.items(), strict=False):
        axes.plot(
            np.arange(len(values)),
            np.asarray(values, float),
            color=tone,
            linestyle=dash,
            label=name,
        )
    for name, mark in (marks or {}).items():
        epoch = float(mark)
        axes.axvline(epoch, color=GREY, linestyle=":", linewidth=1.3)
        axes.annotate(
            name, (epoch, 0.97), xycoords=("data", "axes fraction"), xytext=(3, 0),
            textcoords="offset points", rotation=90, va="top", fontsize=9.5, color=GREY,
        )  # fmt: skip
    axes.set(xlabel=axis_label(x), ylabel=axis_label("weight"))
    axes.margins(x=0.01)
    grid(axes)
    _legend(figure, axes)
    return figure


@styled
def matrix(
    array: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    label: str,
    number: str = "{:.2f}",
    diverging: bool = False,
    title: str | None = None,
) -> Page:
    """A small heat map (rows, columns) with its numbers written in; NaN is a grey dash.

    `label` names the value with its unit. `diverging` centres the colours at 0. Raises
    ContractError when the names do not fit the array.
    """
    values = np.asarray(array, dtype=np.float64)
    if values.shape != (len(rows), len(columns)):
        raise ContractError(
            "array", values.shape, f"({len(rows)}, {len(columns)})", "one name per row and column"
        )
    figure = page(1.1 + 0.42 * len(rows) + (0.35 if title else 0), title)
    axes = figure.subplots()
    low, high = _limits(values, diverging)
    drawn = axes.imshow(
        values, cmap="RdBu_r" if diverging else "cividis", aspect="auto", vmin=low, vmax=high
    )
    axes.set_facecolor(FAINT)
    for (i, j), value in np.ndenumerate(values):
        text = number.format(value).replace("-", "−") if np.isfinite(value) else "–"
        ink = _ink(drawn.to_rgba(np.array([value]))[0]) if np.isfinite(value) else GREY
        axes.text(j, i, text, ha="center", va="center", color=ink, fontsize=10)
    axes.set_xticks(range(len(columns)), list(columns))
    axes.set_yticks(range(len(rows)), list(rows))
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(drawn, ax=axes, aspect=18, pad=0.02)
    bar.set_label(label)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def _limits(values: np.ndarray, diverging: bool) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0, 1.0
    top = float(np.abs(known).max()) or 1.0
    return (-top, top) if diverging else (float(known.min()), float(known.max()))


def _ink(color: np.ndarray) -> str:
    red, green, blue = color[:3]
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def _rows_downward(axes: Axes, count: int) -> None:
    """First row on top, as in a table, and vertical lines alone to read values by."""
    axes.set_ylim(count - 0.4, -0.6)
    grid(axes, "x")
    axes.spines["left"].set_visible(False)


def _legend(figure: Page, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    if len(names) > 1:
        figure.legend(handles, names, loc="outside lower left", ncols=min(len(names), 4))


def _require(table: pd.DataFrame, *columns: str) -> None:
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise ContractError(
            "columns of the table", f"no {missing}", f"some of {list(table.columns)}", "rename them"
        )
