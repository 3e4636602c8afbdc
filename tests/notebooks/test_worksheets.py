"""Worksheets: the questions of the notebooks, which run with and without their solutions."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import pytest
import worksheets
from nbformat import NotebookNode

from dcd_core.types import ContractError
from runner import sources

PROJECT = Path(__file__).resolve().parents[2]
NOTEBOOKS = {
    name: notebook.document
    for name, notebook in sources.discover(PROJECT / "notebooks").items()
    if worksheets.exercises(notebook.document)
}


def code(cells: list[NotebookNode]) -> list[tuple[str, str]]:
    return [(cell.id, cell.source) for cell in cells if cell.cell_type == "code"]


def names(cells: list[tuple[str, str]], kind: type[ast.expr_context]) -> set[str]:
    """Names of variables and functions that cells use (Load) or make (Store)."""
    nodes = [node for _, text in cells for node in ast.walk(ast.parse(text))]
    made = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, kind)}
    functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    return made | functions if kind is ast.Store else made


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_worksheet_runs_with_its_solutions_and_without(name: str) -> None:
    document = NOTEBOOKS[name]
    sheet = worksheets.worksheet(document)
    nbformat.validate(sheet)
    assert code(worksheets.solved(sheet, document).cells) == code(document.cells)  # which are run

    kept = code(sheet.cells)
    solutions = [cell for cell in code(document.cells) if cell not in kept]
    assert len(solutions) >= len(worksheets.exercises(document)) >= 2
    # Without the solutions nothing is missing.
    missing = names(solutions, ast.Store) - names(kept, ast.Store)
    assert missing & names(kept, ast.Load) == set()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_worksheet_has_the_questions_and_no_answers(name: str) -> None:
    document = NOTEBOOKS[name]
    sheet = worksheets.worksheet(document)
    text = "\n".join(cell.source for cell in sheet.cells if cell.cell_type == "markdown")
    assert re.findall(r":::|\{\w+(?::\w+)?\}`|\]\(\.\./", text) == []  # plain Markdown
    asked = re.findall(r":::\{exercise\} (.*)", "\n".join(c.source for c in document.cells))
    assert re.findall("### Exercise: (.*)", text) == asked
    prompts = [cell for cell in sheet.cells if cell.source == worksheets.PROMPT]
    assert len(prompts) == len(asked)
    assert not any(cell.get("outputs") for cell in sheet.cells)


def test_a_solution_without_an_end_is_refused() -> None:
    (document, *_) = NOTEBOOKS.values()
    cells = [cell for cell in document.cells if not cell.source.startswith(":::{solution-end}")]
    with pytest.raises(ContractError, match="without an end"):
        worksheets.worksheet(nbformat.v4.new_notebook(cells=cells, metadata=document.metadata))


def test_worksheets_are_written_where_asked(tmp_path: Path) -> None:
    written = worksheets.write(tmp_path / "class")
    assert [path.name for path in written] == [f"worksheet-{name}.ipynb" for name in NOTEBOOKS]
    assert all(nbformat.read(path, 4).cells for path in written)
