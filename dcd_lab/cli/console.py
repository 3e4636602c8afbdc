"""Console: what every command has in common, its options and how it shows a result."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from dcd_core.errors import ContractError
    from dcd_lab.tasks import Task

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for another program.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes that share the work.")]
TaskName = Annotated[str, typer.Option("--task", help="brats2024 or isles2022.")]
WIDTH = 200
"""Columns of a table that is not shown at a terminal: lines of files are not broken."""


def refusal(what: str, got: object, expected: object, attempt: str) -> ContractError:
    """The ContractError of a request that cannot be met, to be raised."""
    from dcd_core.errors import ContractError

    return ContractError(what, got, expected, attempt)


def to_write(out: Path, *suffixes: str, reads: Sequence[Path] = ()) -> Path:
    """A file to write; ContractError for another suffix, or where it is one that is read."""
    if not out.name.endswith(suffixes) or out.name in suffixes:
        expected, attempt = f"a name in {' or '.join(suffixes)}", f"{out.name}{suffixes[0]}"
        raise refusal("--out", out.name, expected, attempt)
    for file in reads:
        if out.exists() and file.exists() and out.samefile(file):
            raise refusal("--out", out, "another file than those that are read", "another name")
    return out


def task_of(name: str) -> Task:
    """The task of a name; ContractError, with the nearest name, for an unknown one."""
    from dcd_core.errors import nearest
    from dcd_lab.tasks import PUBLIC

    if name not in PUBLIC:
        raise refusal("task", repr(name), " or ".join(sorted(PUBLIC)), nearest(name, PUBLIC))
    return PUBLIC[name]


def print_json(value: object) -> None:
    """Print plain data as JSON; NaN and infinities, for which JSON has no word, are null."""
    from dcd_lab.records.identity import plain_data

    text = json.dumps(value, default=plain_data)
    print(json.dumps(_finite(json.loads(text)), indent=1, ensure_ascii=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(rows: Sequence[Mapping[Any, object]], title: str | None = None) -> None:
    """Print rows of equal keys as a table: numbers to four digits, right aligned; NaN is a dash."""
    table = Table(title=title, box=None, title_justify="left", header_style="bold")
    for name in rows[0] if rows else ():
        number = isinstance(rows[0][name], int | float)
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    width = None if sys.stdout.isatty() else WIDTH
    Console(width=width, highlight=False, markup=False).print(table)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "-"
    return str(value)


def waiting(message: str) -> AbstractContextManager[object]:
    """Within, a terminal shows that work of unknown length goes on; elsewhere nothing is shown."""
    return Console(stderr=True).status(message)
