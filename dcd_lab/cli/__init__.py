"""The command line `dcd`: data, networks and scores from a terminal.

Exit codes of every command: 0 done; 1 done, but there are findings or checks failed; 2 the request
was wrong or cannot be met, and the message says what to try; 130 interrupted. Results go to stdout,
progress and errors to stderr. Files are written whole or not at all.

Nothing heavy is imported before a command runs, so that help and completion answer at once. That
is why even `dcd_core`, which brings PyTorch, is imported inside the functions.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from io import TextIOWrapper


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, by default that of this process, and return its exit code."""
    if isinstance(sys.stdout, TextIOWrapper):  # a file may have a name that is no text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        from dcd_lab.cli.commands import app

        app(arguments, prog_name="dcd")
    except SystemExit as end:
        return _failed("interrupted", 130) if end.code == 130 else int(end.code or 0)
    except Exception as error:
        return _failed(_message(error), 2)
    return 0


def _message(error: Exception) -> str:
    """What a user is told of an error: whoever cares for the data cannot use a traceback."""
    from dcd_core.errors import ContractError, install

    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed. Try: {install('lab')}"
    if isinstance(error, MemoryError) or re.search("llocate memory|out of memory", str(error)):
        return f"not enough memory ({error}). Try: a smaller patch or batch"
    if isinstance(error, ContractError | OSError):
        return str(error)
    return f"unexpected {type(error).__name__}: {error}. This is a defect: report it"


def _failed(message: str, code: int) -> int:
    from dcd_lab.records.text import printable

    print(f"error: {printable(message)}", file=sys.stderr)
    return code
