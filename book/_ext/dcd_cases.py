"""The directive `cases`: what the page on cases says of the three that it shows.

`cases scores` is a paragraph and a table for each, `cases size` says what the viewer loads, `cases
provenance` which runs are shown. All is read from the scripts that the page loads, when the book is
built.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from case_files import FOLDER, RANKS, WORDS, read, script, small
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from dcd_lab import claims
from dcd_lab.plots import tables

LIBRARY = FOLDER.parent / "niivue" / "niivue.js"


def scores() -> str:
    """Return the cases in words and numbers, as Markdown."""
    return "\n".join(_case(read(rank)) for rank in RANKS)


def _case(case: dict[str, Any]) -> str:
    below = small(case)
    larger = len(case["lesions"]) - len(below)
    found = {name: sum(lesion["dice"][name] > 0 for lesion in below) for name in WORDS}
    touched = [f"{WORDS[name]} {found[name]}" for name in WORDS]
    head = ["network", *map(tables.head, claims.plan().endpoints)]
    lines = [head, ["---"] * len(head)]
    lines += [
        [WORDS[name], *(tables.cell(column, value) for column, value in row.items())]
        for name, row in case["scores"].items()
    ]
    rank, place = case["rank"].capitalize(), f"number {case['place']} of {case['of']}"
    more = f" and {larger} of {case['small_ml']:g} ml or more" if larger else ""
    return (
        f"**{rank}: `{case['id']}`**, {place}. It has {_counted(len(below))} below "
        f"{case['small_ml']:g} ml{more}. Lesions below {case['small_ml']:g} ml that a prediction "
        f"touches: {', '.join(touched)}.\n\n"
        + "".join(f"| {' | '.join(line)} |\n" for line in lines)
    )


def _counted(count: int) -> str:
    return f"{count} lesion{'' if count == 1 else 's'}"


def size() -> str:
    """Return the sentence on what is loaded, in megabytes."""
    files = [script(rank).stat().st_size / 1e6 for rank in RANKS]
    library = LIBRARY.stat().st_size / 1e6
    return (
        "The 3D view needs JavaScript and WebGL 2. It is loaded when you press the button: "
        f"{library:.1f} MB for the viewer, and {min(files):.1f} to {max(files):.1f} MB for each "
        "case that you open."
    )


def provenance() -> str:
    """Return the sentence on the runs, their thresholds and what made the volumes."""
    case = read(RANKS[0])
    runs = [f"`{run['entry']}` (threshold {run['threshold']:g})" for run in case["runs"].values()]
    return f"Recorded runs {', '.join(runs)}; volumes by `{case['command']}`."


SHOWN: dict[str, Callable[[], str]] = {
    "scores": scores,
    "size": size,
    "provenance": provenance,
}


class Cases(SphinxDirective):
    """What its argument says: `scores`, `size` or `provenance`."""

    required_arguments: ClassVar[int] = 1

    def run(self) -> list[nodes.Node]:
        """Return what is shown; another argument is an error of the build."""
        self.env.note_reread()  # the cases change while the page does not
        name = self.arguments[0]
        if name not in SHOWN:
            raise self.error(f"cases: got {name!r}, expected one of {[*SHOWN]}")
        shown = nodes.Element()
        text = SHOWN[name]().splitlines()
        self.state.nested_parse(StringList(text, ""), self.content_offset, shown)
        return shown.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("cases", Cases)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
