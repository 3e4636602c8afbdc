"""Tables as a page shows them: heads in words, the better direction, digits that mean something."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from dcd_lab.plots.page import axis_label
from dcd_lab.records.text import interval

HIGHER_IS_BETTER = ("dice", "nsd", "f1")
LOWER_IS_BETTER = ("hd95", "avd", "diff")
DECIMALS = {"mm": 1, "ml": 2, "ms": 1, "diff": 1}
"""After the point, by the end of the name; other numbers that are not whole have three."""


def table(rows: pd.DataFrame) -> Styler:
    """The rows with an arrow in the head of every metric, upward where a higher value is better.

    The index is kept and its name left out. A value that is missing is a dash.
    """
    shown = rows.rename_axis(columns=None)
    shown.index = shown.index.set_names([None] * rows.index.nlevels)
    formats: dict[Any, Any] = {
        head(name): _format(name) if pd.api.types.is_float_dtype(rows[name]) else "{}"
        for name in rows.columns
    }
    shown.columns = pd.Index(list(formats))
    return shown.style.format(formats, na_rep="–")


def head(column: str) -> str:
    """A metric's name in words with its unit and an arrow: `hd95_mm` gives `HD95 (mm) ↓`."""
    words = axis_label(column).removesuffix(" (0–1)").removesuffix(" (no unit)")
    name = column.lower()
    if any(part in name for part in HIGHER_IS_BETTER):
        return f"{words} ↑"
    return f"{words} ↓" if any(part in name for part in LOWER_IS_BETTER) else words


def cell(column: str, value: float) -> str:
    """A value with as many digits as its column asks for; a dash where it is missing."""
    return "–" if math.isnan(value) else _format(column).format(value)


def measured(column: str, difference: float, low: float, high: float) -> str:
    """A difference with its sign and its interval: `+1.2 [−0.3, +2.7]`."""
    return interval(difference, low, high, _decimals(column))


def _format(column: str) -> str:
    return f"{{:.{_decimals(column)}f}}"


def _decimals(column: str) -> int:
    return DECIMALS.get(column.rpartition("_")[2], 3)
