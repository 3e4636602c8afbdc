"""The built book: it needs nothing but itself, and in a browser it reads as it should."""

from __future__ import annotations

import inspect
import io
import os
import re
import subprocess
import sys
from html import unescape
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pytest
from book_pages import BOOK, NOTEBOOKS, PAGES
from windows import MODES, watch

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

pytestmark = pytest.mark.slow


def test_every_page_is_built_and_loads_nothing_remote(site: Path) -> None:
    from dcd_offline import remote_loads

    assert [page for page in PAGES if not (site / f"{page}.html").is_file()] == []
    assert list(remote_loads(site)) == []


def test_the_font_of_icons_has_what_the_style_sheets_show(site: Path) -> None:
    from dcd_icons import glyphs
    from fontTools.ttLib import TTFont

    def points(file: str) -> set[int]:
        (font,) = site.rglob(file)
        return {*TTFont(font).getBestCmap()}

    sheets = [sheet.read_text("utf-8") for sheet in (site / "_static").rglob("*.css")]
    shown = glyphs(sheets) & points("fa-solid-900.ttf")  # others are marks of firms, not shown
    assert len(shown) > 20
    assert shown <= points("fa-solid-900.woff")


def test_links_between_pages_lead_somewhere(site: Path) -> None:
    pages = {page: (site / f"{page}.html").resolve() for page in PAGES}
    texts = {file: file.read_text("utf-8") for file in pages.values()}
    anchors = {file: {*re.findall(r'\bid="([^"]+)"', text)} for file, text in texts.items()}
    lost = []
    for file, text in texts.items():
        for address in re.findall(r'<a\b[^>]*\bhref="([^"]+)"', text):
            link = urlsplit(unescape(address))
            goal = (file.parent / unquote(link.path)).resolve() if link.path else file
            widget = "=" in link.fragment  # the setting of a widget, which is no place
            known = widget or not link.fragment or unquote(link.fragment) in anchors.get(goal, ())
            if not link.scheme and not (goal.is_file() and (known or goal not in anchors)):
                lost.append(f"{file.stem}: {address}")
    assert lost == []


def test_the_reference_has_every_public_name(site: Path) -> None:
    shown = (site / "api.html").read_text("utf-8")
    modules = re.findall(r"automodule:: (\S+)", (BOOK / "api.md").read_text("utf-8"))
    assert {"dcd_core.dcd", "dcd_core.methods", "dcd_lab.data"} <= {*modules}
    members = [(m, n) for m in modules for n in getattr(import_module(m), "__all__", ())]
    named = [(m, n, getattr(import_module(m), n)) for m, n in members]
    # Aliases of types and tables of names have no entry of their own.
    names = [f"{m}.{n}" for m, n, x in named if inspect.isclass(x) or inspect.isroutine(x)]
    names += ["dcd_core.dcd.DCD.released", "dcd_core.types.Output", "dcd_lab.stats.compare"]
    assert [name for name in names if f'id="{name}"' not in shown] == []


def test_buttons_lead_where_the_citation_says(tmp_path: Path) -> None:
    """And there are none while it names no repository."""
    import nbformat

    (tmp_path / "notebooks").mkdir()
    (tmp_path / "index.md").write_text("# Page\n\n```{toctree}\nnotebooks/01\n```\n", "utf-8")
    cells = [nbformat.v4.new_markdown_cell("# Notebook")]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, tmp_path / "notebooks" / "01.ipynb")
    (tmp_path / "conf.py").write_text(
        f"""import pathlib, sys
sys.path.insert(0, {str(BOOK / "_ext")!r})
import dcd_repository
dcd_repository.CITATION = pathlib.Path({str(tmp_path / "CITATION.cff")!r})
extensions = ["myst_nb", "dcd_repository"]
html_theme, nb_execution_mode = "sphinx_book_theme", "off"
""",
        "utf-8",
    )
    repository = "https://github.com/someone/dcd"
    expected = {
        "index": [f"{repository}/edit/main/book/index.md"],
        "notebooks/01": [
            f"{repository}/edit/main/notebooks/01.ipynb",
            "https://mybinder.org/v2/gh/someone/dcd/main?urlpath=lab/tree/notebooks/01.ipynb",
        ],
    }
    for line in ("", f"repository-code: {repository}\n"):
        (tmp_path / "CITATION.cff").write_text(f"title: x\n{line}", "utf-8")
        out = tmp_path / f"out{len(line)}"
        call = [sys.executable, "-m", "sphinx", "-q", "-E", "-b", "html", str(tmp_path), str(out)]
        built = subprocess.run(call, capture_output=True, text=True)
        assert built.returncode == 0, built.stderr
        for page, links in expected.items():
            text = (out / f"{page}.html").read_text("utf-8")
            assert [f'href="{link}"' in text for link in links] == [bool(line)] * len(links)


def test_pages_say_which_command_and_commit_made_them(site: Path) -> None:
    from dcd_provenance import command, commit, provenance

    def text(page: str) -> str:
        return re.sub(r"<[^>]+>", "", (site / f"{page}.html").read_text("utf-8"))

    for page in NOTEBOOKS:
        file = BOOK / f"{page}.ipynb"
        made = provenance(file)
        for shown in (text(page), text("status")):
            assert command(file, made) in shown
            assert commit(made) in shown


MIB = 2**20
# What a reader sees: luminances, the least contrast of text to its ground, formulas, width.
LOOK = """async () => {
  if (window.MathJax?.startup?.promise) await window.MathJax.startup.promise;
  const rgb = text => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = rgb(getComputedStyle(e).backgroundColor);
      if (colour.length < 4 || colour[3] > 0.5) return light(colour);
    }
    return light(rgb(getComputedStyle(document.body).backgroundColor));
  };
  let least = {contrast: 21, text: ""};
  for (const e of document.querySelectorAll(
      "article :is(p, li, td, th, h1, h2, h3, figcaption, figcaption span, a, code, summary)")) {
    if (!e.textContent.trim() || !e.checkVisibility()) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), ground(e)];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < least.contrast) least = {contrast, text: e.textContent.trim().slice(0, 60)};
  }
  return {
    ground: ground(document.querySelector("article")),
    least,
    formulas: document.querySelectorAll("article .math").length,
    rendered: document.querySelectorAll("article .math mjx-container").length,
    wrong: [...document.querySelectorAll("mjx-merror")].map(e => e.textContent),
    broken: [...document.images].filter(e => e.complete && !e.naturalWidth).map(e => e.src),
    pictures: document.querySelectorAll("article :is(img, svg, canvas)").length,
    icons: [...document.querySelectorAll("i[class*=fa-]")].filter(e =>
      getComputedStyle(e, "::before").content.length !== 3).map(e => e.className),
    overflow: document.documentElement.scrollWidth - window.innerWidth,
  };
}"""


@pytest.mark.browser
@pytest.mark.parametrize(("context", "mode"), [(m, m) for m in MODES], indirect=["context"])
def test_pages_in_a_browser(site: Path, context: BrowserContext, mode: str) -> None:
    complaints: dict[str, object] = {}
    formulas = 0
    page = context.new_page()
    seen = watch(page)
    for name in PAGES:
        for what in (seen.foreign, seen.errors, seen.files):
            what.clear()
        page.goto((site / f"{name}.html").as_uri(), wait_until="load")
        look = page.evaluate(LOOK)
        formulas += look["rendered"]
        plain = not look["formulas"] + look["pictures"] and name != "api"  # hundreds of signatures
        limit = MIB if plain else 4 * MIB
        wrong = {
            "requests to other hosts": list(seen.foreign),
            "page errors": list(seen.errors),
            "formulas in error": look["wrong"],
            "formulas not rendered": look["formulas"] - look["rendered"],
            "broken images": look["broken"],
            "icons not drawn": look["icons"],
            "bytes too many": max(0, sum(os.path.getsize(file) for file in seen.files) - limit),
            "pixels beyond the width": max(0, look["overflow"]),
            "wrong ground": look["ground"] > 0.05 if mode == "dark" else look["ground"] < 0.8,
            "text hard to read": look["least"] if look["least"]["contrast"] < 4.5 else None,
        }
        if found := {what: value for what, value in wrong.items() if value}:
            complaints[name] = found
    assert complaints == {}
    assert formulas > 0


# What is cut on paper: beyond the right edge, or in a box that would have to be scrolled.
CUT = """() => [...document.querySelectorAll("article *")].filter(e => e.checkVisibility()
  && !e.closest("mjx-container, svg") && (e.getBoundingClientRect().right > innerWidth + 1
    || getComputedStyle(e).overflowX !== "visible" && e.scrollWidth > e.clientWidth + 1))
  .map(e => `${e.tagName}: ${e.textContent.trim().slice(0, 60)}`)"""
PAPER_PX = 658  # an A4 page without its margins


@pytest.mark.browser
def test_nothing_is_cut_on_paper(site: Path, context: BrowserContext) -> None:
    from pypdf import PdfReader

    page = context.new_page()
    page.set_viewport_size({"width": PAPER_PX, "height": 900})
    page.emulate_media(media="print")
    cut = {}
    for name in PAGES:
        page.goto((site / f"{name}.html").as_uri(), wait_until="load")
        page.evaluate("async () => { await window.MathJax?.startup?.promise; }")
        sidebar = page.locator(".bd-sidebar-primary").is_visible()
        cut[name] = page.evaluate(CUT) + ["the sidebar"] * sidebar
    assert {name: what for name, what in cut.items() if what} == {}
    page.goto((site / "summary.html").as_uri(), wait_until="load")
    printed = PdfReader(io.BytesIO(page.pdf(prefer_css_page_size=True)))
    assert len(printed.pages) == 1  # as the lesson plans say


@pytest.mark.browser
def test_search_works_from_a_folder(site: Path, context: BrowserContext) -> None:
    page = context.new_page()
    seen = watch(page)
    page.goto((site / "search.html").as_uri() + "?q=periodization")
    page.wait_for_selector("ul.search li a", timeout=20_000)
    found = page.eval_on_selector_all("ul.search li a", "all => all.map(a => a.href)")
    assert any("glossary" in link for link in found)
    assert seen.foreign == []
    # A browser refuses to read other files from a folder, so results come without an excerpt.
    assert set(seen.errors) <= {"Failed to fetch"}


def _losses(student: str, channel: int, stage: int, **options: Any) -> list[float]:
    """The losses by dcd_core, of the numbers that the page holds: channel, stage, all stages."""
    from explorer_still import pairs, read

    from dcd_core.dcd import detail_distance

    stages = pairs(read(), *student.split("-"))
    one = [maps[:, [channel]] for maps in stages[stage]]
    whole = [float(detail_distance(*pair, **options)) for pair in stages]
    return [float(detail_distance(*one, **options)), whole[stage], sum(whole) / len(whole)]


@pytest.mark.browser
@pytest.mark.parametrize("context", ["light", "phone"], indirect=True)
def test_the_explorer_computes_the_loss_of_dcd_core(site: Path, context: BrowserContext) -> None:
    page = context.new_page()
    seen = watch(page)
    address = (site / "explorer.html").as_uri()
    page.goto(address)
    widget = page.locator("#dcd-explorer[data-state=ready]")

    def shown() -> list[float]:
        widget.wait_for(timeout=60_000)
        names = ("channel-loss", "stage-loss", "network-loss")
        return [float(widget.get_attribute(f"data-{name}") or "nan") for name in names]

    opened = shown()
    channel = int(page.input_value("#dcd-channel"))
    assert opened == pytest.approx(_losses("DCD-fitted", channel, 0), rel=1e-6)  # as published
    page.goto(address + "#student=DCD-trained&stage=1&channel=5&wavelet=bior2.2&weighting=energy")
    expected = _losses("DCD-trained", 5, 1, wavelet="bior2.2", level_weighting="energy")
    assert shown() == pytest.approx(expected, rel=1e-6)
    assert "2 of 3 levels" in page.inner_text(".dcd-live-told")

    page.focus("#dcd-aaa")
    page.keyboard.press("Space")  # by keyboard: the coarse band counts
    options = {"wavelet": "bior2.2", "level_weighting": "energy", "coarse_weight": 1.0}
    assert shown() == pytest.approx(_losses("DCD-trained", 5, 1, **options), rel=1e-6)
    assert "bands=127" in page.url
    page.get_by_text("undistilled, fitted").click()
    page.get_by_role("button", name="published setting").click()
    page.select_option("#dcd-levels", "1")
    assert shown() == pytest.approx(_losses("undistilled-fitted", 5, 1, levels=1), rel=1e-6)
    assert "With 1 level of db4 and 6 bands" in page.inner_text(".dcd-live-told")

    picture = page.locator("[aria-label='teacher, axial slice']")
    box = picture.bounding_box() or {}
    corner = {"x": 0.99 * box["width"], "y": 0.01 * box["height"]}
    touch = page.evaluate("navigator.maxTouchPoints > 0")
    (picture.tap if touch else picture.click)(position=corner)
    shown()
    first = _corner()
    assert f"i={first[0] + 31}&j={first[1] + 31}" in page.url  # far right, far up
    page.focus("#dcd-axial")
    page.keyboard.press("Home")
    assert f"k={first[2]}" in page.url
    targets = page.eval_on_selector_all(
        "#dcd-explorer :is(select, button, input)",
        "all => all.map(e => Math.min(e.offsetWidth, e.offsetHeight))",
    )
    assert min(targets) >= 24
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert seen.foreign == []
    assert seen.errors == []


def _corner() -> list[int]:
    from explorer_still import read

    return list(read()["patch"]["start"])


@pytest.mark.browser
@pytest.mark.parametrize("context", ["dark", "phone"], indirect=True)
def test_the_toy_shows_what_the_loss_sees(site: Path, context: BrowserContext) -> None:
    page = context.new_page()
    seen = watch(page)
    address = (site / "boundary.html").as_uri()
    page.goto(address + "#brighten=0.3&along=brighten&move=0")
    widget = page.locator("#dcd-toy[data-state=ready]")
    widget.wait_for(timeout=20_000)

    def value(name: str) -> float:
        return float(widget.get_attribute(f"data-{name}") or "nan")

    assert value("seen") == pytest.approx(0, abs=1e-9) == value("resolution")
    assert value("coarse") > 0.5
    bars = page.eval_on_selector_all(".dcd-parts", "all => all.map(e => e.ariaLabel)")
    assert len(bars) == 7
    assert re.match(r"seen: [5-9]\d %; coarse, free: \d\d %", bars[0])  # a move, at a usual amount
    page.focus("#dcd-blur")
    for _ in range(5):
        page.keyboard.press("ArrowRight")  # by keyboard: half a voxel
    assert "blur=0.5" in page.url
    assert "along=blur" in page.url
    assert value("resolution") > 0.001
    assert "Student: blurred, brighter everywhere." in page.inner_text(".dcd-live-told")
    page.evaluate("location.hash = 'questions'")  # a heading: the setting stays
    assert "blurred" in page.inner_text(".dcd-live-told")
    page.get_by_role("button", name="no change").click()
    assert value("dice") == 1
    assert value("mse") == 0
    targets = page.eval_on_selector_all(
        "#dcd-toy :is(select, button, input)",
        "all => all.map(e => Math.min(e.offsetWidth, e.offsetHeight))",
    )
    assert min(targets) >= 24
    assert seen.foreign == []
    assert seen.errors == []
