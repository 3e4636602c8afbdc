"""Curves: a number against a step, an epoch, a stage of the network or the size of a volume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import SupportsFloat

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from dcd_lab.plots import page
from dcd_lab.plots.page import Page, styled
from dcd_lab.stats import require


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
    require(table, x, y, by)
    figure = page.blank(3.6, title)
    axes = figure.subplots()
    tones = page.colors(table[by])
    split = [by, "seed"] if "seed" in table and by != "seed" else [by]
    named: set[str] = set()
    for keys, rows in table.dropna(subset=[x, y]).groupby(split, sort=False):
        name, rows = str(keys[0]), rows.sort_values(x)
        number = list(tones).index(name)
        axes.plot(
            rows[x],
            rows[y],
            color=tones[name],
            linestyle=page.DASHES[number // len(page.PALETTE) % len(page.DASHES)],
            marker=page.marker(number) if len(rows) <= 25 else None,
            markersize=4.5,
            linewidth=1.2 if "seed" in split else 1.8,
            alpha=0.85,
            label=None if name in named else name,
        )
        named.add(name)
    page.labelled(axes, x, y)
    axes.set_yscale("log" if log_y else "linear")
    axes.margins(x=0.02)
    _names_of_lines(figure, axes)
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
    figure = page.blank(3.2, title)
    axes = figure.subplots()
    for number, (name, values) in enumerate(weights.items()):
        tone, dash = page.PALETTE[number % 8], page.DASHES[number % 3]
        axes.plot(np.asarray(values, float), color=tone, linestyle=dash, label=name)
    page.named_marks(axes, marks or {})
    page.labelled(axes, x, "weight")
    axes.margins(x=0.01)
    _names_of_lines(figure, axes)
    return figure


@styled
def growth(
    sizes: pd.DataFrame, levels: pd.DataFrame, *, by: str = "loss", title: str | None = None
) -> Page:
    """Time against voxels on log axes beside time against levels, one colour per value of `by`.

    Columns `voxels` (of `sizes`) or `levels` (of `levels`), `time_ms`, `low_ms`, `high_ms` and
    `by`; the shade goes from low to high. Dotted: linear growth through the largest volume of each.
    Raises ContractError for a missing column.
    """
    figure = page.blank(3.5, title)
    left, right = figure.subplots(1, 2)
    tones = page.colors([*sizes.get(by, []), *levels.get(by, [])])
    _times(left, sizes, "voxels", by, tones)
    _times(right, levels, "levels", by, tones)
    for name, rows in sizes.groupby(by, sort=False):
        rows = rows.sort_values("voxels")
        voxels, last = rows["voxels"], rows.iloc[-1]
        linear = last["time_ms"] * voxels / last["voxels"]
        label = "linear" if name == sizes[by].iloc[0] else None
        left.plot(voxels, linear, ":", linewidth=1.3, color=page.GREY, label=label, zorder=1)
    left.set(xscale="log", yscale="log")
    left.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    left.tick_params(which="minor", length=0, labelbottom=False, labelleft=False)
    right.set_ylim(bottom=0)
    right.set_xticks(sorted(levels["levels"].unique()))
    page.legend(figure, left.get_legend_handles_labels()[0], columns=4)
    return figure


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
    require(table, "stage", y, by, *([] if panel is None else [panel]))
    table = table.dropna(subset=[y])
    names = [None] if panel is None else list(dict.fromkeys(table[panel]))
    columns = len(names) if len(names) <= 3 else 2
    figure = page.blank(0.9 + 2.5 * -(-len(names) // columns), title, _SPREAD_NOTE)
    tones = page.colors(table[by])
    for axes, name in zip(page.panels(figure, len(names), columns), names, strict=True):
        rows = table if panel is None else table[table[panel] == name]
        _series(axes, rows, y, by, tones)
        axes.set(title="" if name is None else str(name), yscale="log" if log_y else "linear")
        axes.set(xlabel="encoder stage", xlim=(-0.5, table["stage"].max() + 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        page.grid(axes, "y")
    figure.supylabel(label, fontsize=11)
    handles = [
        Line2D([], [], color=tone, marker=page.marker(number), linewidth=0.8, label=name)
        for number, (name, tone) in enumerate(tones.items())
    ]
    page.legend(
        figure, handles, columns=4 if sum(map(len, tones)) <= 60 else 2, loc="outside upper left"
    )
    return figure


_SPREAD_NOTE = (
    "Marker: mean over patches and seeds. Bar: 10th to 90th percentile. Stage 0 is the finest."
)


def _series(axes: Axes, rows: pd.DataFrame, y: str, by: str, tones: Mapping[str, str]) -> None:
    for number, (name, tone) in enumerate(tones.items()):
        stages = rows[rows[by].astype(str) == name].groupby("stage")[y]
        if not len(stages):
            continue
        middle, low, high = stages.mean(), stages.quantile(0.1), stages.quantile(0.9)
        x = middle.index.to_numpy(float) + 0.13 * (number - (len(tones) - 1) / 2)
        axes.vlines(x, low, high, color=tone, linewidth=2.2, alpha=0.55)
        axes.plot(x, middle, color=tone, linewidth=0.8, alpha=0.6)
        axes.plot(x, middle, page.marker(number), color=tone, markersize=6)


def _times(axes: Axes, table: pd.DataFrame, x: str, by: str, tones: Mapping[str, str]) -> None:
    require(table, x, "time_ms", "low_ms", "high_ms", by)
    for name, rows in table.groupby(by, sort=False):
        rows, tone = rows.sort_values(x), tones[str(name)]
        marker = page.marker(list(tones).index(str(name)))
        low, high = rows["low_ms"], rows["high_ms"]
        axes.fill_between(rows[x], low, high, color=tone, alpha=0.2, linewidth=0)
        axes.plot(
            rows[x], rows["time_ms"], color=tone, marker=marker, markersize=4.5, label=str(name)
        )
    page.labelled(axes, x, "time_ms")


def _names_of_lines(figure: Page, axes: Axes) -> None:
    """A legend where there are several lines."""
    handles, names = axes.get_legend_handles_labels()
    if len(names) > 1:
        page.legend(figure, handles, columns=4)
