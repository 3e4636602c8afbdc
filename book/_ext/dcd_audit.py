"""The directive `audit`: a table of what differs in the release, where, and which test holds it.

Findings and figures come from results/study/02-loss-findings.csv, which page 02 writes; files,
lines and tests come from book/audit.yml. Both must have the same findings.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, ClassVar

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]
FINDINGS, PLACES = ROOT / "results/study/02-loss-findings.csv", ROOT / "book/audit.yml"
HEAD = ("finding", "measured here", "in the release", "held by")
WIDTHS = (22, 27, 26, 25)


def findings() -> list[dict[str, Any]]:
    """Return the findings in their order: id, finding, measured_here, read, near and tests."""
    with FINDINGS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    places = yaml.safe_load(PLACES.read_text("utf-8"))
    if [row["id"] for row in rows] != list(places):
        raise ValueError(f"{PLACES.name} has {list(places)}, {FINDINGS.name} has others")
    return [{"read": {}, "near": {}, **row, **places[row["id"]]} for row in rows]


def _places(found: dict[str, Any]) -> list[nodes.Node]:
    marked = [(*place, "") for place in found["read"].items()]
    marked += [(*place, " †") for place in found["near"].items()]
    cells: list[nodes.Node] = []
    for file, lines, mark in marked:
        # A name that ends in brackets is a function; all else is lines, or words.
        named = lines.endswith("()")
        where = nodes.literal("", lines) if named else nodes.Text(lines.replace("-", "–"))
        cells.append(nodes.paragraph("", "", nodes.literal("", file), nodes.Text(" ")))
        cells[-1] += [where, nodes.Text(mark)]
    return cells


def _tests(found: dict[str, Any]) -> list[nodes.Node]:
    names = [test.partition("::")[2] for test in found["tests"]]
    return [nodes.paragraph("", "", nodes.literal("", name)) for name in names]


def _row(*cells: list[nodes.Node]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", *cell) for cell in cells))


class Audit(SphinxDirective):
    """A table of all findings: what, as measured by page 02, file and line, test."""

    has_content: ClassVar[bool] = False

    def run(self) -> list[nodes.Node]:
        """Return the table, one row for each finding."""
        for file in (FINDINGS, PLACES):
            self.env.note_dependency(str(file))
        group = nodes.tgroup("", *(nodes.colspec(colwidth=w) for w in WIDTHS), cols=len(HEAD))
        group += nodes.thead("", _row(*([nodes.paragraph("", text)] for text in HEAD)))
        body = nodes.tbody()
        for found in findings():
            what = nodes.paragraph("", "", nodes.strong("", found["id"]))
            what += nodes.Text(f" {found['finding']}")
            measured = nodes.paragraph("", found["measured_here"])
            body += _row([what], [measured], _places(found), _tests(found))
        group += body
        return [nodes.table("", group, classes=["dcd-audit"])]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("audit", Audit)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
