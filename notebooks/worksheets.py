"""Worksheets for a class: each notebook with its questions, and without answers and outputs.

    python notebooks/worksheets.py             into book/_build/worksheets
    python notebooks/worksheets.py FOLDER

A worksheet runs as it is, and its text is plain Markdown. Where a solution stood there is an empty
cell; `solved` puts the solutions back.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import nbformat
from nbformat import NotebookNode

# The modules that are read are those of this checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dcd_core.types import ContractError
from dcd_lab import records
from runner import pages, sources

FOLDER = "book/_build/worksheets"
ANSWER, PROMPT = "answer-", "# Your answer\n"
NOTE = "*A worksheet. Run the cells from the top, and answer in the cells that say so.*"
_START = re.compile(r":::\{solution-start\} (\S+)")
_PLAIN = (
    (r":::\{admonition\} The answer\n.*?\n:::\n*", ""),
    (r":::\{exercise\} ([^\n]+)\n(?::[^\n]+\n)*\n*(.*?)\n:::", r"### Exercise: \1\n\n\2"),
    (r"\{[a-z:]+\}`([^`<]+?)(?: <[^>`]*>)?`", r"\1"),  # a role: its text
    (r"\[([^\]]+)\]\(\.\./[^)]+\)", r"\1"),  # a link to a page of the book: its text
)


def exercises(document: NotebookNode) -> list[str]:
    """Return the labels of the exercises of a notebook that have a solution, in their order."""
    return [found[1] for cell in document.cells if (found := _START.match(cell.source))]


def worksheet(document: NotebookNode) -> NotebookNode:
    """Return the worksheet of a source notebook. ContractError: a solution without an end."""
    cells = []
    for label, region in _regions(document):
        cells += [_answer(label)] if label else [_question(cell) for cell in region]
    cells[0].source += f"\n\n{NOTE}"
    metadata = {"kernelspec": document.metadata.kernelspec, "language_info": {"name": "python"}}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def solved(sheet: NotebookNode, document: NotebookNode) -> NotebookNode:
    """Return a worksheet with the code of the notebook's solutions in place of its answers."""
    solutions = {
        f"{ANSWER}{label}": [cell for cell in region if cell.cell_type == "code"]
        for label, region in _regions(document)
    }
    cells = [kept for cell in sheet.cells for kept in solutions.get(cell.id, [cell])]
    return nbformat.v4.new_notebook(cells=deepcopy(cells), metadata=sheet.metadata)


def named(name: str) -> str:
    """Return the file name of the worksheet of a notebook, which the notebook itself never has."""
    return f"worksheet-{name}.ipynb"


def write(folder: Path) -> list[Path]:
    """Write the worksheet of every notebook that has exercises; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, notebook in sources.discover(records.root() / "notebooks").items():
        if exercises(notebook.document):
            written.append(folder / named(name))
            pages.write(worksheet(notebook.document), written[-1])
    return written


def plain(text: str) -> str:
    """Return the text of a cell as plain Markdown, without the answer in the box of the page."""
    for pattern, put in _PLAIN:
        text = re.sub(pattern, put, text, flags=re.DOTALL)
    return text.strip()


def _regions(document: NotebookNode) -> Iterator[tuple[str, list[NotebookNode]]]:
    """Yield the solutions of a notebook with their labels, and what lies between without one."""
    label, region = "", list[NotebookNode]()
    for cell in document.cells:
        if found := _START.match(cell.source):
            yield label, region
            label, region = found[1], []
        elif cell.source.startswith(":::{solution-end}"):
            yield label, region
            label, region = "", []
        else:
            region.append(cell)
    if label:
        attempt = "a cell with :::{solution-end}"
        raise ContractError("a solution", f"{label} without an end", attempt, "add the cell")
    yield label, region


def _answer(label: str) -> NotebookNode:
    return nbformat.v4.new_code_cell(PROMPT, id=f"{ANSWER}{label}")


def _question(cell: NotebookNode) -> NotebookNode:
    """Return a cell of the worksheet: text without directives, code that the page hides folded."""
    if cell.cell_type == "markdown":
        return nbformat.v4.new_markdown_cell(plain(cell.source), id=cell.id)
    hidden = any(tag.startswith(("hide-", "remove-")) for tag in sources.tags(cell))
    metadata = {"jupyter": {"source_hidden": True}} if hidden else {}
    return nbformat.v4.new_code_cell(cell.source, id=cell.id, metadata=metadata)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", default=records.root() / FOLDER, type=Path)
    for path in write(parser.parse_args().folder):
        print(path)


if __name__ == "__main__":
    main()
