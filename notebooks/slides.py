"""Slides of a lesson: an executed page of the book, one slide for each heading, by nbconvert.

    python notebooks/slides.py        page 01, into book/_build/html/slides
    python notebooks/slides.py 02

Code and figures lie below the slide that they belong to, and so do the solutions of exercises. The
answer in the box of a page is left out. Slides use fonts, formulas and reveal.js of the built book
beside them, and no network.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import SlidesExporter
from nbformat import NotebookNode

# The modules that are read are those of this checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import worksheets

from dcd_core.types import ContractError
from dcd_lab import records
from dcd_lab.records.places import write_text
from runner import sources

SITE = "book/_build/html"
# The frame of nbconvert, with scripts of the book in place of those that it loads from the network.
FRAME = """{% extends "reveal/index.html.j2" %}
{% block html_head_js %}{% endblock %}
{% block html_head_js_mathjax %}<script>
MathJax = {tex: {inlineMath: [["$", "$"]]}};
</script><script src="../_static/mathjax/tex-chtml.js" defer></script>{% endblock %}
{% block footer_js %}<script src="../_static/reveal/dist/reveal.js"></script><script>
Reveal.initialize({hash: true, slideNumber: true, transition: "none", center: false, width: 1200});
</script>{% endblock %}"""


def slides(page: NotebookNode) -> NotebookNode:
    """Return an executed page as nbconvert wants it: cells with the kind of slide that they begin.

    Cells that the page hides are left out, and so is the code that it folds.
    """
    cells, solution = [], False
    for cell in page.cells:
        text, tags = cell.source, set(sources.tags(cell))
        if text.startswith(":::{solution-"):
            solution = text.startswith(":::{solution-start}")
        elif cell.cell_type == "markdown":
            cells += [_slide(part, solution) for part in _parts(worksheets.plain(text))]
        elif not tags & {"remove-cell", "injected-parameters"} and not _imports(text):
            cells.append(_code(cell, folded=bool(tags & {"hide-input", "remove-input"})))
    return nbformat.v4.new_notebook(cells=cells, metadata=page.metadata)


def _imports(code: str) -> bool:
    return bool(re.match(r"(import|from) ", code))


def _parts(text: str) -> list[str]:
    """Return a text in pieces that begin with a heading each, without headings of nothing."""
    parts = re.split(r"^(?=#+ )", text, flags=re.MULTILINE)
    return [part.strip() for part in parts if re.search(r"^(?!#)\S|^# ", part, flags=re.MULTILINE)]


def _slide(text: str, solution: bool) -> NotebookNode:
    kind = "subslide" if solution else "slide" if text.startswith("#") else "-"
    return nbformat.v4.new_markdown_cell(text, metadata={"slideshow": {"slide_type": kind}})


def _code(cell: NotebookNode, *, folded: bool) -> NotebookNode:
    metadata: dict[str, object] = {"slideshow": {"slide_type": "-" if folded else "subslide"}}
    if folded:
        metadata["transient"] = {"remove_source": True}
    # What a cell kept for the text of the page has no picture of its own.
    shown = [out for out in cell.outputs if not any("papermill" in k for k in out.get("data", ()))]
    return nbformat.v4.new_code_cell(cell.source, outputs=shown, metadata=metadata)


def write(name: str, site: Path) -> Path:
    """Write the slides of a page beside the built book. ContractError: no book, or no such page."""
    page = records.root() / "book" / "notebooks" / f"{name}.ipynb"
    for needed, attempt in ((page, "make study"), (site / "_static" / "reveal", "make book")):
        if not needed.exists():
            raise ContractError("slides", f"no {needed.name}", "a page of a built book", attempt)
    exporter = SlidesExporter(
        raw_template=FRAME,
        reveal_url_prefix="../_static/reveal",
        reveal_theme="dcd",  # book/_assets/reveal/dist/theme
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    made, _ = exporter.from_notebook_node(slides(nbformat.read(page, 4)))
    path = site / "slides" / f"{name}.html"
    write_text(path, made)
    return path


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("notebook", nargs="?", default="01", help="number or name of a page")
    known = sources.discover(records.root() / "notebooks")
    try:
        for name in sources.select(known, [parser.parse_args().notebook]):
            print(write(name, records.root() / SITE))
    except ContractError as error:
        sys.exit(f"slides.py: {error}")


if __name__ == "__main__":
    main()
