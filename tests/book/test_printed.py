"""The book as one PDF: its order, page numbers, outline and links, on a book of two pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from book_pages import PAGES, ROOT

from dcd_core.types import ContractError

pytestmark = [pytest.mark.slow, pytest.mark.browser]

HEAD = "<!doctype html><title>x</title><style>@page { margin: 20mm }</style>"
LONG = " ".join(["One"] * 40)  # several lines
ONE = f"""<h1>{LONG}</h1><p><a href="folder/two.html#deep">other</a> <a href="#here">own</a>
<a href="https://a.example/">out</a> <a href="some.ipynb">file</a></p>
<h2 id="here" style="break-before: page">Here</h2>"""
TWO = """<h1>Two</h1><p><a href="#deep">down</a></p>
<h2 id="deep" style="break-before: page">Deep</h2>"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    import printed

    if not any(map(printed.shutil.which, printed.PROGRAMS)):
        pytest.skip("no Chromium is installed to print the book")
    (tmp_path / "folder").mkdir()
    (tmp_path / "one.html").write_text(HEAD + ONE, "utf-8")
    (tmp_path / "folder" / "two.html").write_text(HEAD + TWO, "utf-8")
    return tmp_path


def titles(items: list[Any]) -> list[Any]:
    return [titles(item) if isinstance(item, list) else item.title for item in items]


def test_pages_are_bound_in_order_with_an_outline_and_links_inside(site: Path) -> None:
    from printed import bound, prints
    from pypdf import PdfReader

    bound(prints(site, [("", "one"), ("A part", "folder/two")])).write(site / "book.pdf")
    book = PdfReader(site / "book.pdf")
    texts = [page.extract_text().split() for page in book.pages]
    assert [text[0] for text in texts[1:]] == ["2", "3", "4", "5"]  # after the contents
    assert " ".join(texts[0]).endswith(f"{LONG} 2 A part Two 4")
    assert titles(book.outline) == [LONG, ["Here"], "A part", ["Two", ["Deep"]]]

    def goals(number: int) -> list[Any]:
        links = [link.get_object() for link in book.pages[number].get("/Annots", ())]
        return [
            link["/A"]["/URI"] if "/A" in link else book.get_page_number(link["/Dest"][0])
            for link in links
            if {"/A", "/Dest"} & {*link}
        ]

    assert goals(0) == [1, 3]  # of the contents
    assert goals(1) == [4, 2, "https://a.example/"]
    assert goals(3) == [4]
    assert str(site).encode() not in (site / "book.pdf").read_bytes()


def test_the_page_offers_the_pdf_that_lies_beside_it(site: Path) -> None:
    from dcd_takeaway import PDF
    from printed import offer

    page, pdf = site / "take-away.html", site / "book.pdf"
    page.write_text(f"before {PDF} after", "utf-8")
    for megabytes in (1, 2):  # again after another build
        pdf.write_bytes(bytes(megabytes * 10**6))
        offer(page, pdf)
        text = page.read_text("utf-8")
        assert 'href="book.pdf" download' in text
        assert f"{megabytes}.0 MB" in text
    assert (text.split()[0], text.split()[-1]) == ("before", "after")


def test_a_page_that_was_not_built_is_named(site: Path) -> None:
    from printed import listed, prints

    assert [page for _, page in listed(ROOT / "book" / "_toc.yml")] == PAGES
    with pytest.raises(ContractError, match=r"no three\.html"):
        prints(site, [("", "three")])
