"""Print the built book: every page by Chromium, in the order of its contents, bound into one PDF.

Pages are numbered through, links between them lead to pages of the PDF, and parts, titles and
headings are its outline. Call: `python book/_ext/printed.py`, after the book is built.
"""

from __future__ import annotations

import io
import re
import shutil
import sys
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urldefrag, urlparse
from urllib.request import url2pathname

import yaml
from playwright.sync_api import Browser, sync_playwright
from pypdf import PdfReader, PdfWriter
from pypdf.generic import ArrayObject, DictionaryObject, Fit, NameObject, TextStringObject

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dcd_core.storage import atomic
from dcd_core.types import ContractError

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "book" / "_build" / "html"
TITLE = "Detail Consistent Distillation, reproduced"
NAME = "detail-consistent-distillation.pdf"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run")
# The first page of a chapter continues the count of the book; Chromium counts on from there.
NUMBERED = """
@page { @bottom-right { content: counter(page); font: 9pt sans-serif; color: #525b63; } }
@page:first { counter-increment: page FIRST; }
"""
CONTENTS = """
@page { size: A4; margin: 20mm 18mm; }
body { font: 10pt/1.3 "Source Serif 4", Georgia, serif; margin: 0; }
header { font-size: 22pt; font-weight: 600; margin-bottom: 1em; }
b { display: block; margin: 0.7em 0 0.2em; color: #525b63; }
p { display: flex; margin: 0; gap: 0.5em; } a { color: inherit; text-decoration: none; }
i { flex: 1; border-bottom: 1px dotted #999; margin-bottom: 0.3em; }
"""
PRINT = {"prefer_css_page_size": True, "outline": True, "tagged": True, "print_background": True}
READY = """async () => {
  for (const image of document.images) image.loading = "eager";
  for (const details of document.querySelectorAll("details.sd-dropdown")) details.open = true;
  if (window.MathJax?.startup?.promise) await window.MathJax.startup.promise;
  await document.fonts.ready;
  await Promise.all([...document.images].map(image => image.decode().catch(() => null)));
}"""


Place = tuple[int, float | None]
"""A page of the PDF, counted from 0, and a height on it in points from below, or its top."""


class Chapter(NamedTuple):
    """One page of the book, printed: part, title, file, print, first page, and its anchors."""

    part: str
    title: str
    file: Path
    print: PdfReader
    first: int
    anchors: dict[str, Place]


def listed(toc: Path) -> list[tuple[str, str]]:
    """Return (part, page) of every page that the table of contents lists, in order."""
    toc_pages = yaml.safe_load(toc.read_text("utf-8"))
    pages = [("", toc_pages["root"])]
    for part in toc_pages["parts"]:
        pages += [(part["caption"], chapter["file"]) for chapter in part["chapters"]]
    return pages


def browser(playwright: Any) -> Browser:
    """Start Chromium. ContractError when there is none."""
    program = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if program is None:
        attempt = "apt-get install chromium"
        raise ContractError("a browser that prints", "none", " or ".join(PROGRAMS), attempt)
    return playwright.chromium.launch(executable_path=program, args=FLAGS)


def prints(site: Path, pages: list[tuple[str, str]]) -> list[Chapter]:
    """Print a list of contents, on one page, and after it pages of the built book.

    Raises ContractError when a page is missing, or when there is no browser.
    """
    files = [site / f"{page}.html" for _, page in pages]
    for file in files:
        if not file.is_file():
            raise ContractError("the built book", f"no {file.name}", "every page", "make book")
    with sync_playwright() as playwright:
        tab = browser(playwright).new_page(color_scheme="light")
        chapters, first = list[Chapter](), 1  # after the contents
        for (part, _), file in zip(pages, files, strict=True):
            tab.goto(file.as_uri(), wait_until="load")
            tab.evaluate(READY)
            tab.add_style_tag(content=NUMBERED.replace("FIRST", str(first + 1)))
            title = tab.evaluate("document.querySelector('h1').firstChild.textContent")
            chapters.append(_chapter(part, title, file, tab.pdf(**PRINT), first))
            first += len(chapters[-1].print.pages)
        tab.set_content(contents(chapters))
        return [_chapter("", "", site / "contents", tab.pdf(**PRINT), 0), *chapters]


def _chapter(part: str, title: str, file: Path, made: bytes, first: int) -> Chapter:
    reader = PdfReader(io.BytesIO(made))
    anchors = {
        name.removeprefix("/"): _place(reader, first, destination)
        for name, destination in reader.named_destinations.items()
    }
    return Chapter(part, title, file, reader, first, anchors)


def contents(chapters: list[Chapter]) -> str:
    """Return the list of contents as HTML: parts, and titles with their page."""
    rows, part = list[str](), ""
    for chapter in chapters:
        if chapter.part != part:
            rows.append(f"<b>{escape(part := chapter.part)}</b>")
        link = f'<a href="{chapter.file.as_uri()}">{escape(chapter.title)}</a>'
        rows.append(f"<p>{link}<i></i><span>{chapter.first + 1}</span></p>")
    return (
        f"<title>Contents</title><style>{CONTENTS}</style><header>{TITLE}</header>{''.join(rows)}"
    )


def bound(chapters: list[Chapter]) -> PdfWriter:
    """Return one PDF of all chapters, with an outline and with links that stay inside it."""
    writer, part, parent = PdfWriter(), "", None
    for chapter in chapters:
        writer.append(chapter.print, import_outline=False)
    by_file = {chapter.file: chapter for chapter in chapters}
    for chapter in chapters:
        if chapter.part != part:
            part, parent = (
                chapter.part,
                writer.add_outline_item(title=chapter.part, page_number=chapter.first),
            )
        headings = chapter.print.outline
        for heading in headings[:1]:  # Chromium joins the lines of a long title without a space
            heading[NameObject("/Title")] = TextStringObject(chapter.title)
        _add_outline(writer, chapter, headings, parent)
        _lead_inside(writer, chapter, by_file)
    writer.root_object.pop("/Names", None)  # every link now names its place itself
    writer.add_metadata({"/Title": TITLE})
    writer.page_mode = "/UseOutlines"
    writer.compress_identical_objects()
    return writer


def _add_outline(writer: PdfWriter, chapter: Chapter, items: list[Any], parent: Any) -> None:
    """Add headings, each followed by the list of those below it, to the outline of the book."""
    last = parent
    for item in items:
        if isinstance(item, list):
            _add_outline(writer, chapter, item, last)
        else:
            number, top = _place(chapter.print, chapter.first, item)
            last = writer.add_outline_item(
                title=item.title, page_number=number, parent=parent, fit=Fit.xyz(top=top)
            )


def _lead_inside(writer: PdfWriter, chapter: Chapter, by_file: Mapping[Path, Chapter]) -> None:
    """Turn the links of a chapter to anchors and pages of the book into places of the PDF."""
    for page in writer.pages[chapter.first : chapter.first + len(chapter.print.pages)]:
        for annotation in page.get("/Annots", ()):
            link = annotation.get_object()
            file, anchor = _target(link, chapter.file)
            if file is None:
                continue
            link.pop("/A", None)  # a file of this machine is no place for a reader
            if start := by_file.get(file):
                number, top = start.anchors.get(anchor, (start.first, None))
                spot = Fit.xyz(top=top)
                goal = [writer.pages[number].indirect_reference, NameObject(spot.fit_type)]
                link[NameObject("/Dest")] = ArrayObject([*goal, *spot.fit_args])


def _target(link: DictionaryObject, file: Path) -> tuple[Path | None, str]:
    """Return the file and the anchor that a link leads to; no file where it leads elsewhere."""
    if "/Dest" in link:
        return file, str(link["/Dest"]).removeprefix("/")
    address, anchor = urldefrag(str(link.get("/A", {}).get("/URI", "")))
    local = urlparse(address)
    return (Path(url2pathname(local.path)) if local.scheme == "file" else None), unquote(anchor)


def _place(print: PdfReader, first: int, destination: Any) -> Place:
    return first + (print.get_destination_page_number(destination) or 0), destination.top


def offer(page: Path, pdf: Path) -> None:
    """Put a link to the PDF beside it where the page says that there is none yet."""
    link = f'<a href="{pdf.name}" download>{TITLE}</a> (PDF, {pdf.stat().st_size / 1e6:.1f} MB)'
    text, sentence = page.read_text("utf-8"), r'(<p class="dcd-pdf">).*?(</p>)'
    with atomic(page) as temporary:
        temporary.write_text(re.sub(sentence, rf"\g<1>{link}\g<2>", text, flags=re.DOTALL), "utf-8")


def main() -> None:
    """Run the command line."""
    try:
        chapters = prints(SITE, listed(ROOT / "book" / "_toc.yml"))
    except ContractError as error:
        sys.exit(f"printed.py: {error}")
    path = SITE / NAME
    with atomic(path) as temporary:
        bound(chapters).write(temporary)
    offer(SITE / "take-away.html", path)
    pages = sum(len(chapter.print.pages) for chapter in chapters)
    print(f"{path}: {pages} pages, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
