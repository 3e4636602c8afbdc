"""The API reference: docstrings here are plain text with `code` in it, not reStructuredText."""

from __future__ import annotations

import re

from sphinx.application import Sphinx

_CODE = re.compile(r"`([^`]+)`")
_MARKUP = re.compile(r"[*|\\]|_(?=\W|$)")


def _plain(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Mark code as code; keep stars, bars, underscores and indents from being read as markup."""
    paragraphs = "\n".join(lines).split("\n\n")
    flat = [text if "\n- " in text else re.sub("(?m)^ +", "", text) for text in paragraphs]
    parts = _CODE.split("\n\n".join(flat))
    text = [_MARKUP.sub(r"\\\g<0>", part) for part in parts[::2]]
    code = [*(f"``{part}``" for part in parts[1::2]), ""]
    lines[:] = "".join(a + b for a, b in zip(text, code, strict=True)).split("\n")


def _skip(
    app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object
) -> bool | None:
    """Leave out the fields of named tuples, whose docstrings are "Alias for field number 0"."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Read docstrings with autodoc."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", _plain)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
