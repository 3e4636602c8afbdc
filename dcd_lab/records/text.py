"""Text as it is shown: names from outside made harmless, numbers with their sign and interval."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from dcd_core.storage import atomic

if TYPE_CHECKING:
    from pandas import DataFrame


def printable(text: str) -> str:
    """Return a text with everything a terminal would act on, or cannot show, as escapes."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign and a true minus; what rounds to zero has no sign."""
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text[1:] if not float(f"{value:.{digits}f}") else text


def interval(difference: float, low: float, high: float, digits: int = 1, unit: str = "") -> str:
    """A difference with its unit and its interval: `+1.2 points [−0.3, +2.7]`."""
    value, low_end, high_end = (signed(x, digits) for x in (difference, low, high))
    return f"{value}{unit} [{low_end}, {high_end}]"


def write_table(path: str | os.PathLike[str], table: DataFrame) -> None:
    """Write a table as CSV, atomically; a text that a spreadsheet would compute begins with "'"."""
    with atomic(path) as temporary:
        table.map(_cell).to_csv(temporary, index=False, lineterminator="\n")


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
