"""The notebooks there are, what each declares and needs, and which were asked for."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcd_core.errors import nearest
from dcd_core.types import ContractError


@dataclass(frozen=True)
class Notebook:
    """A source notebook: its declared parameters with their defaults, and what it needs."""

    name: str
    path: Path
    document: dict[str, Any]
    declared: dict[str, Any]
    needs: tuple[str, ...]


def discover(folder: Path) -> dict[str, Notebook]:
    """Return the notebooks NN-topic.ipynb of a folder by name, in the order of their numbers."""
    paths = sorted(folder.glob("[0-9][0-9]-*.ipynb"))
    if not paths:
        raise ContractError("notebooks", "none", f"NN-topic.ipynb in {folder.name}/", "a checkout")
    return {path.stem: read(path) for path in paths}


def read(path: Path) -> Notebook:
    """Return one source notebook; ContractError when it is not valid JSON."""
    try:
        document = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ContractError(
            path.name, f"broken JSON ({error})", "a notebook", "repair it"
        ) from None
    needs = document.get("metadata", {}).get("dcd", {}).get("needs", ())
    return Notebook(path.stem, path, document, declared(document), tuple(needs))


def source(cell: Mapping[str, Any]) -> str:
    """Return the text of a cell, which the format keeps as a string or as a list of lines."""
    return "".join(cell.get("source", ""))


def tags(cell: Mapping[str, Any]) -> list[str]:
    """Return the tags of a cell."""
    return list(cell.get("metadata", {}).get("tags", ()))


def declared(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the names assigned in the cell tagged `parameters`, with their literal defaults."""
    found: dict[str, Any] = {}
    for cell in document.get("cells", ()):
        if "parameters" not in tags(cell):
            continue
        for node in ast.parse(source(cell)).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", 0)]
            value = getattr(node, "value", None)
            for target in targets:
                if isinstance(target, ast.Name) and value is not None:
                    found[target.id] = _literal(value)
    return found


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def select(known: Mapping[str, Notebook], given: Sequence[str]) -> list[str]:
    """Return the notebooks that were asked for by number, name or beginning; all when none was."""
    chosen: set[str] = set()
    for word in given:
        stem = Path(word).stem
        match = {n for n in known if n.startswith(stem) or n.split("-", 1)[1] == stem}
        if not match:
            names = [*known, *(name.split("-", 1)[1] for name in known)]
            raise ContractError("notebook", repr(word), "a number or name", nearest(stem, names))
        chosen |= match
    return sorted(chosen or known)


def with_needs(known: Mapping[str, Notebook], chosen: Iterable[str]) -> list[str]:
    """Return `chosen` and everything they need, needed ones first."""
    order: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise ContractError(
                "dcd.needs", " -> ".join((*path, name)), "no circle", "remove one of these needs"
            )
        if name not in known:
            raise ContractError(
                f"dcd.needs of {path[-1]}", repr(name), "a notebook", nearest(name, known)
            )
        for need in known[name].needs:
            visit(need, (*path, name))
        if name not in order:
            order.append(name)

    for name in sorted(chosen):
        visit(name, ())
    return order


def chunk(chosen: Sequence[str], part: str) -> list[str]:
    """Return the i-th of n parts, given as "i/n" and counted from one; parts cover every item."""
    number, _, of = part.partition("/")
    if not (number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise ContractError("--chunk", repr(part), "i/n with 1 <= i <= n", "--chunk 1/4")
    return list(chosen[int(number) - 1 :: int(of)])
