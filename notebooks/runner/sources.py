"""The source notebooks: what each declares and needs, and which were asked for."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from dcd_core.errors import nearest
from dcd_core.types import ContractError


@dataclass(frozen=True)
class Notebook:
    """A source notebook: its declared parameters with their defaults, and the ones it needs.

    It is `recorded` unless the record lacks some of the training runs that its page shows.
    """

    name: str
    path: Path
    document: NotebookNode
    declared: dict[str, Any]
    needs: tuple[str, ...]
    recorded: bool = True

    def needing(self, names: Collection[str]) -> Notebook:
        """Return the same notebook, which needs none but these."""
        return replace(self, needs=tuple(need for need in self.needs if need in names))


def refuse(name: str, known: Iterable[str], what: str) -> None:
    """Raise ContractError, with the nearest known name, unless `name` is known."""
    if name not in (known := list(known)):
        raise ContractError(what, repr(name), "a declared name", nearest(str(name), known))


def discover(folder: Path) -> dict[str, Notebook]:
    """Return the notebooks NN-topic.ipynb of a folder by name, in the order of their numbers.

    Raises ContractError when a notebook needs one that does not come before it.
    """
    known: dict[str, Notebook] = {}
    for path in sorted(folder.glob("[0-9][0-9]-*.ipynb")):
        notebook = read(path)
        for need in notebook.needs:
            refuse(need, known, f"dcd.needs of {path.stem}")
        known[path.stem] = notebook
    if not known:
        raise ContractError("notebooks", "none", f"NN-topic.ipynb in {folder.name}/", "a checkout")
    return known


def read(path: Path) -> Notebook:
    """Return one source notebook. ContractError: broken JSON, or code that is not Python."""
    try:
        document = nbformat.read(path, 4)
        ast.parse(code(document))
        facts = document.metadata.get("dcd", {})
        needs, recorded = tuple(facts.get("needs", ())), bool(facts.get("recorded", True))
        return Notebook(path.stem, path, document, declared(document), needs, recorded)
    except (ValueError, SyntaxError, KeyError, AttributeError) as error:
        fault = f"{type(error).__name__}: {str(error)[:80]}"
        raise ContractError(path.name, fault, "a notebook of Python cells", "repair it") from None


def tags(cell: NotebookNode) -> list[str]:
    """Return the tags of a cell."""
    return list(cell.metadata.get("tags", ()))


def code(document: NotebookNode, tag: str = "") -> str:
    """Return the text of all code cells, or of those with a tag."""
    cells = [cell for cell in document.cells if cell.cell_type == "code"]
    return "\n".join(cell.source for cell in cells if not tag or tag in tags(cell))


def declared(document: NotebookNode) -> dict[str, Any]:
    """Return the names assigned in the cell tagged `parameters`, with their literal defaults."""
    return {
        target.id: ast.literal_eval(node.value)
        for node in ast.parse(code(document, "parameters")).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def select(known: Mapping[str, Notebook], given: Sequence[str]) -> list[str]:
    """Return the notebooks that were asked for by number, name or beginning; all when none was."""
    chosen: set[str] = set()
    for stem in (Path(word).stem for word in given):
        match = {n for n in known if n.startswith(stem) or n.split("-", 1)[1] == stem}
        if not match:
            refuse(stem, [*known, *(name.split("-", 1)[1] for name in known)], "notebook")
        chosen |= match
    return sorted(chosen or known)


def with_needs(known: Mapping[str, Notebook], chosen: Iterable[str]) -> list[str]:
    """Return `chosen` and everything they need, in the order of their numbers."""
    names, pending = set[str](), list(chosen)
    while pending:
        names.add(name := pending.pop())
        pending += known[name].needs
    return sorted(names)


def chunk(chosen: Sequence[str], part: str) -> list[str]:
    """Return the i-th of n parts, given as "i/n" and counted from one; parts cover every item."""
    number, _, of = part.partition("/")
    if not (number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise ContractError("--chunk", repr(part), "i/n with 1 <= i <= n", "--chunk 1/4")
    return list(chosen[int(number) - 1 :: int(of)])
