"""What a reader takes away: the directive `takeaway`, and the files that it links.

`takeaway notebooks` is a table of all notebooks with their worksheets, which are written beside the
pages at the end of a build. `takeaway pdf` says how the book is printed; once it is,
`book/_ext/printed.py` puts the link there.
"""

from __future__ import annotations

import html
import shutil
import sys
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(Path(__file__).parents[2] / "notebooks"))

import worksheets

from runner import sources

ROOT = Path(__file__).parents[2]
FOLDER = "downloads"
PDF = '<p class="dcd-pdf">It is not printed yet: <code>make pdf</code> puts it here.</p>'
ROW = "<tr><td>{}</td><td>{}</td><td>{}</td></tr>"


def link(folder: str, file: str, text: str) -> str:
    """A link that saves a file of the book, relative to the pages at its root."""
    return f'<a href="{folder}/{html.escape(file)}" download>{html.escape(text)}</a>'


def table() -> str:
    """One row for each notebook: its title, the notebook, and its worksheet if it has exercises."""
    rows = []
    for name, notebook in sources.discover(ROOT / "notebooks").items():
        title = notebook.document.cells[0].source.splitlines()[0].removeprefix("# ")
        count = len(worksheets.exercises(notebook.document))
        sheet = link(FOLDER, worksheets.named(name), f"worksheet ({count} exercises)")
        file = link(FOLDER, notebook.path.name, notebook.path.name)
        rows.append(ROW.format(html.escape(title), file, sheet if count else "–"))
    head = "<tr><th>page</th><th>notebook</th><th>for a class</th></tr>"
    return f'<table class="table"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'


class Takeaway(SphinxDirective):
    """What its argument says: `notebooks` or `pdf`."""

    required_arguments: ClassVar[int] = 1

    def run(self) -> list[nodes.Node]:
        """Return the table or the sentence, as HTML."""
        self.env.note_reread()  # notebooks change while the page does not
        shown = {"notebooks": table, "pdf": lambda: PDF}
        if self.arguments[0] not in shown:
            raise self.error(f"takeaway: got {self.arguments[0]!r}, expected one of {[*shown]}")
        return [nodes.raw("", shown[self.arguments[0]](), format="html")]


def _write(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.format != "html":
        return
    folder = Path(app.outdir) / FOLDER
    worksheets.write(folder)
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]-*.ipynb")):
        shutil.copy(path, folder)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive, and write the files when the pages are written."""
    app.add_directive("takeaway", Takeaway)
    app.connect("build-finished", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
