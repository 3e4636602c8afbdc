"""Keep the book self-contained: nothing that a page loads lies outside the book.

MathJax comes out of a package and is cut down to the files that pages use, the scripts for live
kernels are dropped, and every remote address that a page or style sheet would load is a warning,
hence an error under `-W`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

KEPT_OF_MATHJAX = ("tex-chtml.js", "output/chtml/fonts", "input/tex/extensions")
_LOADING = {"src", "poster", "data", "srcset"}
_LOADING_RELATIONS = {"stylesheet", "icon", "preload", "modulepreload", "manifest", "import"}
_REMOTE = re.compile(r"^\s*(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
_REMOTE_CSS = re.compile(
    r"""(?:@import\s+(?:url\()?|url\()\s*["']?((?:https?:)?//[^"')\s]+)""", re.IGNORECASE
)


class _Loads(HTMLParser):
    """Collects the remote addresses that a browser fetches by itself when it opens a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        self._in_style = tag == "style"
        loaded = [named[name] for name in _LOADING & named.keys()]
        if tag == "link" and _LOADING_RELATIONS & set(named.get("rel", "").split()):
            loaded.append(named.get("href", ""))
        self.addresses += [address for address in loaded if _REMOTE.match(address)]
        self.addresses += _REMOTE_CSS.findall(named.get("style", ""))

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.addresses += _REMOTE_CSS.findall(data)

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False


def remote_loads(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield (file, address) for each remote address that the HTML and CSS below `folder` load."""
    for page in sorted(folder.rglob("*.html")):
        parser = _Loads()
        parser.feed(page.read_text("utf-8"))
        yield from ((page, address) for address in parser.addresses)
    for sheet in sorted(folder.rglob("*.css")):
        addresses = _REMOTE_CSS.findall(sheet.read_text("utf-8"))
        yield from ((sheet, address) for address in addresses)


def _drop_live_kernels(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object
) -> None:
    # sphinx-thebe declares one constant twice on every page, a SyntaxError, and names a remote
    # script; no page of this book starts a kernel.
    context["script_files"] = [
        script
        for script in context.get("script_files", [])
        if "thebe" not in f"{script}{getattr(script, 'attributes', '')}".lower()
    ]


def _prune_mathjax(folder: Path) -> None:
    kept = [folder / name for name in KEPT_OF_MATHJAX]
    for file in [path for path in folder.rglob("*") if path.is_file()]:
        if not any(file == keep or keep in file.parents for keep in kept):
            file.unlink()
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _finish(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.format != "html":
        return
    out = Path(app.outdir)
    _prune_mathjax(out / "_static" / "mathjax")
    for file, address in remote_loads(out):
        logger.warning(
            "%s loads %s; the book must work offline", file.relative_to(out), address, type="dcd"
        )


def setup(app: Sphinx) -> dict[str, bool]:
    """Register after the extensions whose files are cut down and whose scripts are dropped."""
    app.connect("html-page-context", _drop_live_kernels, priority=900)
    app.connect("build-finished", _finish, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
