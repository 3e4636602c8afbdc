"""Every page of the book, by axe-core: nothing shuts a reader out, in any light, at any width."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from book_pages import PAGES
from windows import DESKTOP, PHONE, barriers

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# The rules that ask for colours and places; all others ask for the HTML alone, which is the same in
# every window.
OF_STYLE = ["color-contrast", "link-in-text-block", "scrollable-region-focusable", "target-size"]
FORMULAS = ["mjx-container"]
WIDE = {**DESKTOP, "width": 1200}
# Light, width, rules (all if none are named), and what is not looked at again: formulas have the
# colour of the text. Between them both lights and both widths are seen.
WINDOWS: list[tuple[Literal["light", "dark"], Any, list[str], list[list[str]]]] = [
    ("light", WIDE, [], []),
    ("dark", PHONE, OF_STYLE, [FORMULAS]),
]


def test_signatures_and_bibliographies_have_no_roles_of_lists() -> None:
    from dcd_accessible import mended

    signature = '<dt><span class="sig-paren">(</span>\n<dl>\n<dd><em>a</em>,</dd>\n</dl>\n)</dt>'
    inner = '<span class="dcd-parameter"><em>a</em>,</span>'
    assert mended(signature) == f'<dt><span class="sig-paren">(</span>\n\n{inner}\n\n)</dt>'
    books = '<div role="list" class="citation-list"><div class="citation" role="doc-biblioentry">'
    assert mended(books) == '<div class="citation-list"><div class="citation">'
    other = '<dl><dt>a</dt><dd>b</dd></dl><ul role="list"></ul>'
    assert mended(other) == other


@pytest.mark.slow
@pytest.mark.browser
def test_no_page_shuts_a_reader_out(site: Path, browser: Browser) -> None:
    # Without motion colours change at once.
    page = browser.new_context(reduced_motion="reduce").new_page()
    complaints: dict[str, list[str]] = {}
    for name, (light, size, rules, without) in itertools.product(PAGES, WINDOWS):
        page.emulate_media(color_scheme=light)
        page.set_viewport_size(size)
        # The theme makes what scrolls focusable when a page is loaded, and only later elsewhere.
        page.goto((site / f"{name}.html").as_uri(), wait_until="load")
        page.evaluate("async () => { await window.MathJax?.startup?.promise; }")
        page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
        if found := barriers(page, rules, without):
            complaints[f"{name}, {light}, {size['width']}"] = found[:5]
    page.context.close()
    assert complaints == {}
