"""Comparisons: methods beside methods, by seed, lesion size, cost, or in a small matrix."""

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
from dcd_lab.plots import page
from dcd_lab.plots.page import Page, styled
from dcd_lab.records.text import interval
from dcd_lab.stats import Comparison, require


@styled
def seeds(
    table: pd.DataFrame, metric: str, by: str = "method", *, title: str | None = None
) -> Page:
    """Every training run as a dot, the mean of each row as a bar, runs of one seed joined.

    Several rows of one run (its cases) are averaged first, so give one region at a time. Raises
    ContractError for a missing column.
    """
    require(table, metric, by, "seed")
    wide = table.groupby([by, "seed"], sort=False)[metric].mean().unstack("seed")
    wide = wide.loc[list(dict.fromkeys(table[by]))]
    tones = page.colors(wide.index)
    note = "Dot: one training run. Bar: mean. Grey line: same seed."
    figure = page.blank(1.35 + 0.48 * len(wide), title, note)
    axes = figure.subplots()
    rows = np.arange(len(wide))
    for _, values in wide.items():
        axes.plot(values, rows, color="#BDBDBD", linewidth=0.9, zorder=1)
    for row, tone, (_, values) in zip(rows, tones.values(), wide.iterrows(), strict=True):
        axes.scatter(values, np.full(len(values), row), s=46, color=tone, zorder=3)
        axes.vlines(values.mean(), row - 0.3, row + 0.3, color=tone, linewidth=3, zorder=2)
    axes.set(xlabel=page.axis_label(metric), yticks=rows, yticklabels=[str(x) for x in wide.index])
    _rows_downward(axes, len(wide))
    return figure


@styled
def forest(comparisons: Sequence[Comparison], *, title: str | None = None) -> Page:
    """Differences with their intervals, and grey bars as wide as the smallest detectable one.

    All comparisons must be on one metric. Those with one seed are drawn hollow and dashed: their
    interval covers cases only and is no evidence for the method. Raises ContractError for none, or
    for several metrics.
    """
    metrics = sorted({each.metric for each in comparisons})
    if len(metrics) != 1:
        raise ContractError("comparisons", metrics or "none", "one metric", "one figure per metric")
    figure = page.blank(1.75 + 0.52 * len(comparisons), title)
    axes = figure.subplots()
    axes.axvline(0, color=page.INK, linewidth=1, zorder=2)
    for row, each in enumerate(comparisons):
        _comparison(axes, row, each)
    names = [f"{each.method} − {each.baseline}" for each in comparisons]
    label = f"difference in {page.axis_label(metrics[0])}"
    axes.set(xlabel=label, yticks=range(len(names)), yticklabels=names)
    _rows_downward(axes, len(names))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    handles = [Patch(color="#DADADA", label="true differences found with less than 80 % power")]
    if not all(each.seed_is_random for each in comparisons):
        words = "one seed: cases only, no evidence"
        handles.append(Patch(facecolor="white", edgecolor=page.GREY, linestyle="--", label=words))
    page.legend(figure, handles, columns=2)
    return figure


@styled
def doses(
    panels: Mapping[str, Mapping[str, Comparison | None]], *, title: str | None = None
) -> Page:
    """Differences to one baseline with their intervals, a panel for each factor, dose after dose.

    `panels` names a factor and its doses in order; None is the baseline itself, at 0. Raises
    ContractError unless all comparisons are with one baseline on one metric.
    """
    shown = [each for doses in panels.values() for each in doses.values() if each is not None]
    if len({(each.metric, each.baseline) for each in shown}) != 1:
        got = sorted({f"{each.metric} against {each.baseline}" for each in shown}) or "none"
        attempt = "one figure for each metric and baseline"
        raise ContractError("comparisons", got, "one metric and one baseline", attempt)
    figure = page.blank(3.2, title)
    grids = page.panels(figure, len(panels), len(panels), sharey=True)
    for axes, (factor, doses) in zip(grids, panels.items(), strict=True):
        axes.axhline(0, color=page.INK, linewidth=1, zorder=1)
        for position, each in enumerate(doses.values()):
            if each is None:
                axes.plot(position, 0, "D", color=page.INK, markersize=7, zorder=3)
                continue
            axes.vlines(position, each.low, each.high, color=page.BLUE, zorder=2)
            axes.plot(position, each.difference, "o", color=page.BLUE, markersize=8, zorder=3)
        axes.set(xlabel=factor, xticks=range(len(doses)), xticklabels=list(doses))
        axes.margins(x=0.12)
        page.grid(axes, "y")
    metric = page.axis_label(shown[0].metric)
    figure.supylabel(f"arm − {shown[0].baseline}, {metric}", fontsize=11)
    return figure


def _comparison(axes: Axes, row: int, shown: Comparison) -> None:
    random, low, high = shown.seed_is_random, shown.low, shown.high
    if np.isfinite(shown.detectable) and random:
        corner = (-shown.detectable, row - 0.36)
        axes.add_patch(Rectangle(corner, 2 * shown.detectable, 0.72, color="#DADADA", zorder=1))
        axes.update_datalim([(-shown.detectable, row), (shown.detectable, row)])
    color, dash = (page.PALETTE[0], "-") if random else (page.GREY, (0, (3, 2)))
    fill = color if random else "white"
    axes.plot([low, high], [row, row], color=color, linestyle=dash, zorder=3)
    axes.plot(shown.difference, row, "o", color=color, markerfacecolor=fill, markersize=8, zorder=4)
    text = interval(shown.difference, low, high, 3)
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

    Rows are lesions (of `metrics.lesions`) or cases; volumes of 0 ml do not fit a log axis and
    are left out. Raises ContractError for a missing column.
    """
    require(table, x, y, by)
    rows = table[table[x] > 0]
    tones = page.colors(table[by])
    columns = 2 if len(tones) == 4 else min(len(tones), 3)
    figure = page.blank(0.75 + 2.3 * -(-len(tones) // columns), title)
    grids = page.panels(figure, len(tones), columns, sharex=True, sharey=True)
    for axes, (name, tone) in zip(grids, tones.items(), strict=True):
        own = rows[by].astype(str) == name
        axes.scatter(rows[x][~own], rows[y][~own], s=8, color=page.FAINT, linewidths=0)
        axes.scatter(rows[x][own], rows[y][own], s=16, color=tone, alpha=0.7, linewidths=0)
        axes.set(xscale="log", title=name)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.tick_params(which="minor", length=0)
        page.grid(axes)
    for axes in grids[-columns:]:
        axes.tick_params(labelbottom=True)
    figure.supxlabel(page.axis_label(x), fontsize=11)
    figure.supylabel(page.axis_label(y), fontsize=11)
    return figure


@styled
def histogram(
    table: pd.DataFrame,
    x: str,
    *,
    edges: Sequence[SupportsFloat] | np.ndarray,
    marks: Mapping[str, SupportsFloat] | None = None,
    title: str | None = None,
) -> Page:
    """How many rows have a value of column `x` between two `edges`, on a log axis.

    The lowest edge is part of its bin; `marks` names values by vertical lines. Raises
    ContractError for a missing column, and for a value outside the edges: a bar would miss it.
    """
    require(table, x)
    bounds = np.asarray(edges, float)
    lost = table[x][~table[x].between(bounds[0], bounds[-1])]
    if len(lost):
        expected = f"values of {x} from {bounds[0]:g} to {bounds[-1]:g}"
        raise ContractError("histogram", lost.iloc[0], expected, "move the outer edges")
    figure = page.blank(2.6, title)
    axes = figure.subplots()
    axes.hist(table[x], bins=bounds.tolist(), color=page.BLUE, edgecolor="white", linewidth=0.8)
    page.named_marks(axes, marks or {})
    axes.set(xscale="log", xlim=(bounds[0], bounds[-1]), xlabel=page.axis_label(x))
    axes.set_ylabel("count")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    page.grid(axes, "y")
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
    require(table, x, y, by, variant)
    figure = page.blank(4.0, title)
    axes = figure.subplots()
    tones, kinds = page.colors(table[by]), list(dict.fromkeys(table[variant]))
    rows = table.dropna(subset=[x, y])
    for name, tone in tones.items():
        own = rows[rows[by].astype(str) == name]
        axes.plot(own[x], own[y], color=tone, linewidth=0.9, alpha=0.5, zorder=1)
        for kind, marker in zip(kinds, page.MARKERS, strict=False):
            dots = own[own[variant] == kind]
            axes.plot(dots[x], dots[y], marker, color=tone, markersize=8, zorder=2)
    handles = [Line2D([], [], color=tone, linewidth=4, label=name) for name, tone in tones.items()]
    handles += [
        Line2D([], [], color=page.GREY, marker=marker, markersize=7, linestyle="", label=str(kind))
        for kind, marker in zip(kinds, page.MARKERS, strict=False)
    ]
    axes.set(xscale="log", xlabel=page.axis_label(x), ylabel=page.axis_label(y))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    page.grid(axes)
    page.legend(figure, handles, columns=3)
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
    figure = page.blank(1.1 + 0.42 * len(rows), title)
    axes = figure.subplots()
    low, high = _limits(values, diverging)
    drawn = axes.imshow(
        values, cmap="RdBu_r" if diverging else "cividis", aspect="auto", vmin=low, vmax=high
    )
    axes.set_facecolor(page.FAINT)
    for (i, j), value in np.ndenumerate(values):
        text = number.format(value).replace("-", "−") if np.isfinite(value) else "–"
        ink = _ink(drawn.to_rgba(np.array([value]))[0]) if np.isfinite(value) else page.GREY
        axes.text(j, i, text, ha="center", va="center", color=ink, fontsize=10)
    axes.set_xticks(range(len(columns)), list(columns))
    axes.set_yticks(range(len(rows)), list(rows))
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    page.color_bar(figure, drawn, axes, label, aspect=18)
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
    page.grid(axes, "x")
    axes.spines["left"].set_visible(False)
