"""Show what came out: claims, the primary table, a figure of its intervals and the findings.

The directive `claims` takes the name of what is shown: `findings`, `forest`, `primary`, or a group
of `book/claims.yml`. All is made from `results/study` by `dcd_lab.claims` when the book is built.
`python book/_ext/dcd_claims.py` writes findings and scores into the README.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from dcd_core.types import ContractError
from dcd_lab import claims
from dcd_lab.claims.endpoints import NOT_RUN
from dcd_lab.claims.findings import measured
from dcd_lab.plots import tables

README = Path(__file__).resolve().parents[2] / "README.md"
SHOWN = ["dice", "small_lesion_dice", "boundary_2mm_dice", "hd95_mm", "nsd_1mm"]


def findings() -> str:
    """Return the findings of the study as a Markdown list."""
    return "".join(f"- {sentence}\n" for sentence in claims.findings(*_tables()))


def primary() -> str:
    """Return the primary contrasts as a Markdown table, and the power of the study below it."""
    table, _, stated = _tables()
    shown = claims.shown(table, stated)
    head = [name[0].upper() + name[1:] for name in shown.columns]
    rows = [[*cells, _chip(verdict)] for *cells, verdict in shown.itertuples(index=False)]
    return f"{_table(head, rows, (18, 23, 21, 9, 14, 15))}\n{claims.power(table, stated)}\n"


def scores() -> str:
    """Return the mean test scores of the study as a Markdown table, one row for each model."""
    table = claims.scores()
    if table is None:
        return "Not run yet.\n"
    means = table.groupby("method", sort=False)[SHOWN].mean()
    heads = ["model", *map(tables.head, SHOWN)]
    lines = [heads, ["---"] * len(heads)]
    lines += [[arm, *(tables.cell(n, x) for n, x in row.items())] for arm, row in means.iterrows()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def group(name: str) -> str:
    """Return the claims of one group of `book/claims.yml` as a Markdown table."""
    head = ("Claim", "What settles it, and where", "Measured", "Verdict")
    rows = [
        [
            f"**{claim.id}** {claim.statement}",
            f"{claim.settled}\n\n{_link(claim.page)}",
            "\n\n".join(claim.measured) or "–",
            _chip(claim.verdict),
        ]
        for claim in claims.claims(name)
    ]
    return _table(head, rows, (28, 34, 25, 13))


def forest() -> str:
    """Return the intervals of the primary contrasts as HTML, in the colours of the page."""
    table, _, stated = _tables()
    ends = [abs(x) for x in (*table.low_points, *table.high_points) if pd.notna(x)]
    reach = 1.08 * max([*ends, 2 * stated.smallest_points])
    rows = []
    for baseline, contrasts in table.groupby("baseline", sort=False):
        words = html.escape(stated.baselines[baseline])
        head = f"{stated.method} − {html.escape(baseline)} <span>{words}</span>"
        rows.append(f'<p class="dcd-forest-head">{head}</p>')
        rows += [_interval(row, stated, reach) for row in contrasts.itertuples()]
    ticks = "".join(
        f'<span style="left:{_at(x, reach)}">{f"{x:+g}".replace("-", "−") if x else 0}</span>'
        for x in _ticks(reach)
    )
    return (
        f'<div class="dcd-forest">{"".join(rows)}<p class="dcd-forest-row">'
        f'<span></span><span class="dcd-forest-ticks">{ticks}</span><span></span></p></div>'
    )


def _interval(row: Any, stated: claims.Plan, reach: float) -> str:
    """One row: the endpoint, its interval over the band of no interest, and the numbers."""
    band = f"left:{_at(-stated.smallest_points, reach)};right:{_at(-stated.smallest_points, reach)}"
    marks, numbers = "", NOT_RUN
    if row.verdict != NOT_RUN:
        low, high = _at(row.low_points, reach), _at(-row.high_points, reach)
        middle = _at(row.difference_points, reach)
        marks = f'<i style="left:{low};right:{high}"></i><b style="left:{middle}"></b>'
        numbers = measured(row)
    kind = row.verdict.replace(" ", "-")
    return (
        f'<p class="dcd-forest-row dcd-{kind}"><span>{html.escape(stated.endpoints[row.endpoint])}'
        f'</span><span class="dcd-forest-track"><u style="{band}"></u>{marks}</span>'
        f"<span>{numbers}</span></p>"
    )


def _at(points: float, reach: float) -> str:
    """Where a difference lies on an axis from -reach to reach, in per cent from its left end."""
    return f"{50 * (1 + points / reach):.2f}%"


def _ticks(reach: float) -> list[float]:
    """Three round numbers that fit the axis."""
    step = next(x for x in (20, 10, 5, 2, 1, 0.5, 0) if x < reach)
    return [-step, 0, step]


# --- Markdown ------------------------------------------------------------------------------------


def _tables() -> tuple[pd.DataFrame, pd.DataFrame, claims.Plan]:
    stated, scores = claims.plan(), claims.scores()
    return claims.primary(scores, stated), claims.control(scores, stated), stated


def _chip(verdict: str) -> str:
    return f"[{verdict}]{{.dcd-verdict .dcd-{verdict.replace(' ', '-')}}}"


def _link(page: str) -> str:
    """A link whose text is the heading that it leads to, after the number of a notebook."""
    number = re.match(r"notebooks/(\d\d)-", page)
    return f"{f'Page {number[1]}: ' if number else ''}[](/{page})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int]) -> str:
    """A table whose rows become cards on a phone: every cell carries the name of its column."""
    lines = [":::{list-table}", ":header-rows: 1", ":class: dcd-cards"]
    lines += [f":widths: {' '.join(map(str, widths))}", ""]
    for row in [head, *rows]:
        for index, cell in enumerate(row):
            label = "" if row is head or not index else f"[{head[index]}]{{.dcd-label}} "
            first, *rest = f"{label}{cell}".split("\n")
            lines.append(f"{'* -' if index == 0 else '  -'} {first}")
            lines += [f"    {line}".rstrip() for line in rest]
    return "\n".join([*lines, ":::", ""])


# --- Sphinx --------------------------------------------------------------------------------------

MARKDOWN: dict[str, Callable[[], str]] = {"findings": findings, "primary": primary}


class Claims(SphinxDirective):
    """What came out, by name: `findings`, `forest`, `primary` or a group of claims."""

    required_arguments: ClassVar[int] = 1
    has_content: ClassVar[bool] = False

    def run(self) -> list[nodes.Node]:
        """Return what is shown; a query that does not fit its table is an error of the build."""
        self.env.note_reread()  # results change while this page does not
        name = self.arguments[0]
        try:
            if name == "forest":
                return [nodes.raw("", forest(), format="html")]
            text = MARKDOWN[name]() if name in MARKDOWN else group(name)
        except ContractError as error:
            raise self.error(str(error)) from error
        shown = nodes.Element()
        self.state.nested_parse(StringList(text.splitlines(), ""), self.content_offset, shown)
        return shown.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("claims", Claims)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def with_results(text: str) -> str:
    """Return a page with findings and scores between their markers; ContractError without these."""
    for name, made in {"findings": findings, "scores": scores}.items():
        block = re.compile(rf"(<!-- {name}: study -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        if not block.search(text):
            raise ContractError("page", "no markers", f"<!-- {name}: study -->", "git checkout")
        between = made()
        text = block.sub(lambda found, between=between: found[1] + between + found[2], text)
    return text


if __name__ == "__main__":
    README.write_text(with_results(README.read_text("utf-8")), "utf-8")
