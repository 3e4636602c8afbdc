"""The pages of the book as its tests read them."""

import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
sys.path.insert(0, str(BOOK / "_ext"))


def _entries(node: Any) -> list[str]:
    """Return the pages that a part of the table of contents lists, in order."""
    if isinstance(node, list):
        return [page for item in node for page in _entries(item)]
    pages = []
    for key, value in node.items():
        if key in ("root", "file"):
            pages.append(str(value).removesuffix(".md").removesuffix(".ipynb"))
        elif isinstance(value, list):
            pages += _entries(value)
    return pages


FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language in a Markdown text."""
    return [body for name, body in FENCE.findall(text) if name == language]


PAGES = _entries(yaml.safe_load((BOOK / "_toc.yml").read_text("utf-8")))
NOTEBOOKS = [page for page in PAGES if page.startswith("notebooks/")]


def prose(page: str) -> str:
    """Return the Markdown of a page, of a notebook the Markdown of its cells."""
    if page not in NOTEBOOKS:
        return (BOOK / f"{page}.md").read_text("utf-8")
    cells = nbformat.read(BOOK / f"{page}.ipynb", 4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
