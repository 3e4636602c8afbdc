"""Link each term of the glossary where a page first uses it in running text.

Pages are written without markup for it, and a term that is added is linked everywhere. A term that
is an everyday word as well is linked where a page says `{term}` alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

GLOSSARY = "glossary"
EVERYDAY = {"case", "level", "record", "convention", "test", "train", "approximation", "profile"}
WITHOUT = {GLOSSARY, "api", "references"}
_NOT_IN = (nodes.reference, nodes.literal, nodes.title, nodes.term, nodes.math, nodes.raw)
_NOT_IN += (addnodes.pending_xref, addnodes.download_reference, nodes.citation)


def link(document: nodes.document, addresses: Mapping[str, str]) -> None:
    """Turn the first use of each term in a paragraph into a link to its address."""
    left = {term: address for term, address in addresses.items() if term not in EVERYDAY}
    for text in [*document.findall(nodes.Text)]:
        if left and _is_running(text):
            text.parent.replace(text, _linked(str(text), left))


def _is_running(text: nodes.Text) -> bool:
    """Whether a text lies in a paragraph, and in nothing that is a link, code or a title."""
    above, node = list[nodes.Node](), text.parent
    while node is not None:
        above.append(node)
        node = node.parent
    in_paragraph = any(isinstance(node, nodes.paragraph) for node in above)
    return in_paragraph and not any(isinstance(node, _NOT_IN) for node in above)


def _linked(text: str, left: dict[str, str]) -> list[nodes.Node]:
    """Return a text in pieces, with links; take from `left` the terms that are linked."""
    made, start = list[nodes.Node](), 0
    while left and (found := _pattern(left.keys()).search(text, start)):
        term = next(term for term in left if _is_use(found[1], term))
        made += [nodes.Text(text[start : found.start()]), _reference(found[0], left.pop(term))]
        start = found.end()
    return [*made, nodes.Text(text[start:])]


def _pattern(terms: Set[str]) -> re.Pattern[str]:
    """Any of the terms as a whole word, the longest first, in the plural or at a beginning too."""
    words = sorted(terms, key=len, reverse=True)
    either = (f"[{w[0].upper()}{w[0]}]{re.escape(w[1:])}" for w in words)
    # The name of the method is no use of its words.
    return re.compile(rf"(?<![\w-])(?<!Consistent )({'|'.join(either)})s?(?![\w-]| Consistent)")


def _is_use(word: str, term: str) -> bool:
    return word[1:] == term[1:] and word[0].lower() == term[0].lower()


def _reference(text: str, address: str) -> nodes.reference:
    made = nodes.reference("", "", internal=True, refuri=address, classes=["dcd-term"])
    made += nodes.inline("", text)
    return made


def _link(app: Sphinx, document: nodes.document, page: str) -> None:
    if page in WITHOUT or app.builder.format != "html":
        return
    known = app.env.get_domain("std").objects  # type: ignore[attr-defined]
    start = app.builder.get_relative_uri(page, GLOSSARY)
    link(
        document,
        {name: f"{start}#{at}" for (kind, name), (_, at) in known.items() if kind == "term"},
    )


def _outdated(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> set[str]:
    """Other terms are other links, on every page."""
    return env.found_docs if GLOSSARY in added | changed else set()


def setup(app: Sphinx) -> dict[str, bool]:
    """Link when references are resolved, so that links that are there already are seen."""
    app.connect("doctree-resolved", _link, priority=900)
    app.connect("env-get-outdated", _outdated)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
