"""Ship the icons that pages show, not all of the theme's library.

The theme brings Font Awesome three times: as a script of 1.5 MB that every page loads, as a font
and as rules of its style sheet. The font is enough. When a build ends, the script goes, rules of
icons that no page names go, and the font is cut down to the glyphs that are left.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from sphinx.application import Sphinx

SCRIPT = re.compile(r'\s*<script\b[^>]*\bsrc="[^"]*/fontawesome\.js[^"]*"[^>]*></script>')
NAME = re.compile(r"\bfa-[a-z0-9-]+")
RULE = re.compile(r'(?:\.fa-[a-z0-9-]+:{1,2}before,?)+\{content:"[^"]*"\}')
GLYPH = re.compile(r"\\([ef][0-9a-f]{3})|([\ue000-\uf8ff])")
FONT = "../vendor/fontawesome/webfonts/fa-solid-900"
SOURCES = f'url({FONT}.woff2) format("woff2"),url({FONT}.ttf) format("truetype")'


def without_other_icons(sheet: str, names: set[str]) -> str:
    """A style sheet without the rules of icons that are not among `names`."""

    def kept(rule: re.Match[str]) -> str:
        return rule[0] if names & {*NAME.findall(rule[0])} else ""

    return RULE.sub(kept, sheet)


def glyphs(sheets: Iterable[str]) -> set[int]:
    """The code points of icons that style sheets show."""
    found = (GLYPH.findall(sheet) for sheet in sheets)
    return {int(code, 16) if code else ord(character) for each in found for code, character in each}


def cut_font(full: Path, points: set[int]) -> Path:
    """Write the font with these glyphs alone beside the full one; returns its path."""
    from fontTools import subset

    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it tells of each of its tables
    options = subset.Options(flavor="woff", layout_features=[], glyph_names=False)
    font = subset.load_font(str(full), options)
    cut = subset.Subsetter(options)
    cut.populate(unicodes=points)
    cut.subset(font)
    out = full.with_suffix(".woff")
    subset.save_font(font, str(out), options)
    return out


def _finish(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    theme = static / "styles" / "pydata-sphinx-theme.css"
    pages = {page: page.read_text("utf-8") for page in Path(app.outdir).rglob("*.html")}
    scripts = [path for path in static.rglob("*.js") if path.name != "fontawesome.js"]
    for page, text in pages.items():
        if SCRIPT.search(text):
            page.write_text(SCRIPT.sub("", text), "utf-8")
    for left in static.glob("scripts/fontawesome.js*"):
        left.unlink()
    named = [*pages.values(), *(path.read_text("utf-8") for path in scripts)]
    names = {name for text in named for name in NAME.findall(text)}
    sheet = without_other_icons(theme.read_text("utf-8"), names)
    others = [path.read_text("utf-8") for path in static.rglob("*.css") if path != theme]
    cut_font(theme.parent / f"{FONT}.ttf", glyphs([sheet, *others]))
    theme.write_text(sheet.replace(SOURCES, f'url({FONT}.woff) format("woff")'), "utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register after the extensions that write pages at the end of a build."""
    app.connect("build-finished", _finish, priority=950)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
