"""Say under every notebook page which command, at which commit, made it.

The runner writes `metadata.dcd` into each executed notebook: profile, commit, dirty, versions and
hashes of source and parameters. This extension shows it: a short line under the title, the whole
under the page, and the directive `runs`, a table over all executed notebooks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)
PARAMETERS = Path(__file__).parents[2] / "notebooks" / "params"


def provenance(notebook: Path) -> dict[str, Any]:
    """Return `metadata.dcd` of an executed notebook, empty when the runner did not make it."""
    metadata = json.loads(notebook.read_text("utf-8")).get("metadata", {})
    return dict(metadata.get("dcd", {}))


def command(notebook: Path, made: dict[str, Any]) -> str:
    """Return the command that makes this page again."""
    number = notebook.stem.split("-")[0]
    return f"python notebooks/run.py --profile {made.get('profile', 'study')} {number}"


def commit(made: dict[str, Any]) -> str:
    """Return the short commit, with a plus sign when the code differed from it."""
    name = str(made.get("commit") or "")[:7] or "unrecorded"
    return f"{name}+" if made.get("dirty") else name


def _versions(made: dict[str, Any], names: tuple[str, ...]) -> str:
    versions = made.get("versions") or {}
    return ", ".join(f"{name} {versions[name]}" for name in names if versions.get(name))


def _line(css: str, *parts: str | nodes.Node) -> nodes.paragraph:
    children = [nodes.Text(part) if isinstance(part, str) else part for part in parts]
    return nodes.paragraph("", "", *children, classes=[css])


def _short(made: dict[str, Any]) -> nodes.paragraph:
    profile = nodes.inline("", f"profile {made.get('profile', '?')}", classes=["dcd-chip"])
    gone = not (PARAMETERS / f"{made.get('profile')}.yml").is_file()
    later = ["; an earlier, shorter experiment, whose profile is gone"] if gone else []
    return _line("dcd-run", profile, " commit ", nodes.literal("", commit(made)), *later)


def _whole(notebook: Path, made: dict[str, Any]) -> nodes.container:
    made_by = _line(
        "dcd-made-by",
        "Made by ",
        nodes.literal("", command(notebook, made)),
        " at commit ",
        nodes.literal("", commit(made)),
        "; the plus sign marks code that differed from it." if made.get("dirty") else ".",
    )
    hashes = [
        f"{label} {str(made[key])[:12]}"
        for label, key in (("source", "source_sha256"), ("parameters", "params_sha256"))
        if made.get(key)
    ]
    versions = _versions(made, ("python", "torch", "numpy", "monai", "pywavelets"))
    details = [text for text in (versions, *hashes) if text]
    below = [_line("dcd-made-with", "; ".join(details) + ".")] if details else []
    return nodes.container("", made_by, *below, classes=["dcd-provenance"])


def _show(app: Sphinx, doctree: nodes.document) -> None:
    file = Path(app.env.doc2path(app.env.docname))
    if file.suffix != ".ipynb":
        return
    section = next(iter(doctree.findall(nodes.section)), None)
    made = provenance(file)
    if section is None or not made:
        logger.warning("%s was not made by notebooks/run.py: run make study", file.name, type="dcd")
        return
    title = section.next_node(nodes.title)
    section.insert(section.index(title) + 1 if title in section.children else 0, _short(made))
    section.append(_whole(file, made))


def table(head: tuple[str, ...], rows: list[list[nodes.Node]]) -> nodes.table:
    def row(cells: list[nodes.Node]) -> nodes.row:
        return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", cell)) for cell in cells))

    group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in head), cols=len(head))
    group += nodes.thead("", row([nodes.Text(text) for text in head]))
    group += nodes.tbody("", *(row(cells) for cells in rows))
    return nodes.table("", group, classes=["dcd-runs"])


class Runs(SphinxDirective):
    """A table of all executed notebooks: profile, commit, versions and the command for each."""

    has_content: ClassVar[bool] = False

    def run(self) -> list[nodes.Node]:
        """Return the table, rows in the order of the notebooks' numbers."""
        self.env.note_reread()  # notebooks change while this page does not
        folder = Path(self.env.srcdir) / "notebooks"
        head = ("notebook", "profile", "commit", "torch", "made by")
        return [table(head, [self._row(file) for file in sorted(folder.glob("*.ipynb"))])]

    def _row(self, file: Path) -> list[nodes.Node]:
        made = provenance(file)
        return [
            nodes.Text(file.stem),
            nodes.Text(str(made.get("profile", "unknown"))),
            nodes.literal("", commit(made)),
            nodes.Text(str((made.get("versions") or {}).get("torch", "unknown"))),
            nodes.literal("", command(file, made)),
        ]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive and the lines under each notebook page."""
    app.add_directive("runs", Runs)
    app.connect("doctree-read", _show)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
