"""Mend the HTML that Sphinx and docutils write against the rules of HTML and ARIA.

A screen reader announces a list with so many items, and a term with its description. A long
signature is a list of descriptions without a term, and a bibliography a list without items: both
are written without these roles.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

_SIGNATURE = re.compile(r'(<span class="sig-paren">\(</span>\s*)<dl>(.*?)</dl>', re.DOTALL)
_ROLES = re.compile(
    r'(<div) role="list"( class="citation-list")|(<div [^>]*?) role="doc-biblioentry"'
)


def mended(body: str) -> str:
    """Return the HTML of a page without roles that announce what is not there."""
    return _ROLES.sub(r"\1\2\3", _SIGNATURE.sub(_lines, body))


def _lines(signature: re.Match[str]) -> str:
    parameters = signature[2].replace("<dd>", '<span class="dcd-parameter">')
    return f"{signature[1]}{parameters.replace('</dd>', '</span>')}"


def _mend(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    if "body" in context:
        context["body"] = mended(context["body"])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register for every page."""
    app.connect("html-page-context", _mend)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
