"""Text from outside, names of files above all, as terminals and spreadsheets may be given it."""

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


def write_table(path: str | os.PathLike[str], table: DataFrame) -> None:
    """Write a table as CSV, atomically; a text that a spreadsheet would compute begins with "'"."""
    with atomic(path) as temporary:
        table.map(_cell).to_csv(temporary, index=False, lineterminator="\n")


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
