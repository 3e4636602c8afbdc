"""How far a long computation has come."""

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

_shown_s = 0.0


def progress(label: str, done: int, total: int, note: str = "") -> None:
    """Tell that `done` of `total` steps of `label` are done, at most about twice a second.

    It goes as JSON to the file named by DCD_PROGRESS, if any; else to a line of a terminal.
    """
    global _shown_s
    file = os.environ.get("DCD_PROGRESS")
    now = time.monotonic()
    if not (file or sys.stderr.isatty()) or (now - _shown_s < 0.5 and done < total):
        return
    _shown_s = now
    if file:
        state = {"label": label, "done": done, "total": total, "note": note}
        with suppress(OSError):  # a full disk must not end a training run through its display
            temporary = Path(f"{file}.{os.getpid()}")
            temporary.write_text(json.dumps(state) + "\n", "utf-8")
            os.replace(temporary, file)
        return
    line = f"{label} {done}/{total} {note}".rstrip()[:100]
    sys.stderr.write(f"\r\x1b[K{line}" + ("\n" if done >= total else ""))
    sys.stderr.flush()
