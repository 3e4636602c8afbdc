"""Cost against size, on axes on which linear growth is a straight line of slope one."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from dcd_core.types import ContractError
from dcd_lab.plots.page import GREY, MARKERS, Page, axis_label, colors, grid, page, styled


@styled
def growth(
    sizes: pd.DataFrame,
    levels: pd.DataFrame,
    *,
    by: str = "loss",
    title: str | None = None,
) -> Page:
    """Time against voxels on log axes beside time against levels, one colour per value of `by`.

    Columns `voxels` (of `sizes`) or `levels` (of `levels`), `time_ms`, `low_ms`, `high_ms` and
    `by`; the shade goes from low to high. Dotted: linear growth through the largest volume of each.
    Raises ContractError for a missing column.
    """
    figure = page(3.5 + (0.35 if title else 0), title)
    left, right = figure.subplots(1, 2)
    tones = colors([*sizes.get(by, []), *levels.get(by, [])])
    _lines(left, sizes, "voxels", by, tones)
    _lines(right, levels, "levels", by, tones)
    for name, rows in sizes.groupby(by, sort=False):
        rows = rows.sort_values("voxels")
        last = rows.iloc[-1]
        left.plot(
            rows["voxels"],
            last["time_ms"] * rows["voxels"] / last["voxels"],
            linestyle=":",
            linewidth=1.3,
            color=GREY,
            label="linear" if name == sizes[by].iloc[0] else None,
            zorder=1,
        )
    left.set(xscale="log", yscale="log")
    left.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    left.tick_params(which="minor", length=0, labelbottom=False, labelleft=False)
    right.set_ylim(bottom=0)
    right.set_xticks(sorted(levels["levels"].unique()))
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower left", ncols=4)
    return figure


def _lines(axes: Axes, table: pd.DataFrame, x: str, by: str, tones: dict[str, str]) -> None:
    missing = [name for name in (x, "time_ms", "low_ms", "high_ms", by) if name not in table]
    if missing:
        raise ContractError(
            "columns of the table", f"no {missing}", f"some of {list(table.columns)}", "rename them"
        )
    for name, rows in table.groupby(by, sort=False):
        rows, tone = rows.sort_values(x), tones[str(name)]
        marker = MARKERS[list(tones).index(str(name)) % len(MARKERS)]
        axes.fill_between(
            rows[x], rows["low_ms"], rows["high_ms"], color=tone, alpha=0.2, linewidth=0
        )
        axes.plot(
            rows[x], rows["time_ms"], color=tone, marker=marker, markersize=4.5, label=str(name)
        )
    axes.set(xlabel=axis_label(x), ylabel=axis_label("time_ms"))
    grid(axes)
