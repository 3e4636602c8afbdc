"""The book builds without a warning, needs nothing but itself, and its promises hold."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
sys.path.insert(0, str(BOOK / "_ext"))


def _entries(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("root", "file"):
                yield str(value).removesuffix(".md").removesuffix(".ipynb")
            else:
                yield from _entries(value)
    elif isinstance(node, list):
        for item in node:
            yield from _entries(item)


PAGES = list(_entries(yaml.safe_load((BOOK / "_toc.yml").read_text("utf-8"))))
NOTEBOOKS = [page for page in PAGES if page.startswith("notebooks/")]


def _prose(page: str) -> str:
    """The Markdown of a page, of a notebook the Markdown of its cells."""
    if page not in NOTEBOOKS:
        return (BOOK / f"{page}.md").read_text("utf-8")
    notebook = json.loads((BOOK / f"{page}.ipynb").read_text("utf-8"))
    cells = (cell for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    return "\n\n".join("".join(cell["source"]) for cell in cells)


@pytest.fixture(scope="session")
def executed() -> None:
    missing = [page for page in NOTEBOOKS if not (BOOK / f"{page}.ipynb").is_file()]
    if missing:
        pytest.fail(f"never executed: {', '.join(missing)}; run `make demo`", pytrace=False)


@pytest.fixture(scope="session")
def site(executed: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The HTML of the book, built once and away from the checkout, warnings being errors."""
    out = tmp_path_factory.mktemp("book")
    program = Path(sys.executable).with_name("jupyter-book")
    command = [str(program), "build", "book", "--config", "_config.yml", "--path-output", str(out)]
    built = subprocess.run(
        [*command, "-W", "-n", "--keep-going"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore", "NO_COLOR": "1"},
    )
    if built.returncode:
        said = [line for line in built.stderr.splitlines() if line.strip()]
        pytest.fail("the book does not build:\n" + "\n".join(said[-30:]), pytrace=False)
    return out / "_build" / "html"


# --- sources ------------------------------------------------------------------------------------


def test_every_page_is_in_the_contents() -> None:
    written = {
        path.relative_to(BOOK).with_suffix("").as_posix()
        for path in [*BOOK.rglob("*.md"), *BOOK.rglob("*.ipynb")]
        if not {"_build", ".ipynb_checkpoints"} & set(path.parts)
    }
    assert sorted(written - set(PAGES)) == []
    assert len(PAGES) == len(set(PAGES))


def test_citations_and_bibliography_agree(executed: None) -> None:
    text = "\n".join(_prose(page) for page in PAGES)
    cited = {
        key.strip()
        for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text)
        for key in keys.split(",")
    }
    listed = re.findall(r"^@\w+\{([^,\s]+),", (BOOK / "references.bib").read_text("utf-8"), re.M)
    assert len(listed) == len(set(listed))
    assert cited == set(listed)


def test_make_targets_named_in_the_book_exist() -> None:
    text = "\n".join(_prose(page) for page in PAGES if page not in NOTEBOOKS)
    shells = "\n".join(body for language, body in FENCE.findall(text) if language == "bash")
    named = set(re.findall(r"^make (\w+)", shells, re.M)) | set(re.findall(r"`make (\w+)`", text))
    makefile = (ROOT / "Makefile").read_text("utf-8")
    rules = re.findall(r"^([a-z][a-z ]*):(?!=)", makefile, re.M)
    assert named
    assert named <= set(" ".join(rules).split())


def test_runner_options_named_in_the_book_exist() -> None:
    text = "\n".join(_prose(page) for page in PAGES if page not in NOTEBOOKS)
    named = {
        option
        for line in re.findall(r"^python notebooks/run\.py.*$", text, re.M)
        for option in re.findall(r"--\w+", line)
    }
    runner = [sys.executable, str(ROOT / "notebooks" / "run.py"), "--help"]
    answer = subprocess.run(runner, capture_output=True, text=True, check=True, cwd=ROOT)
    assert named
    assert named <= set(re.findall(r"--\w+", answer.stdout))


def test_names_of_the_library_in_the_book_exist(executed: None) -> None:
    text = "\n".join(_prose(page) for page in PAGES)
    named = set(re.findall(r"`(dcd_core(?:\.\w+)+)", text))
    assert named
    assert [name for name in sorted(named) if not _exists(name)] == []


def _exists(name: str) -> bool:
    parent, _, last = name.rpartition(".")
    try:
        return hasattr(importlib.import_module(parent), last) or bool(importlib.import_module(name))
    except ImportError:
        return False


def test_the_example_of_using_the_loss_runs(tmp_path: Path) -> None:
    import torch
    from nnunet import network_of, write
    from torch import nn

    fences = FENCE.findall(_prose("howto/use-the-loss"))
    blocks = [body for language, body in fences if language == "python"]
    training, wrapping, planning, pair = blocks
    torch.manual_seed(0)

    def network(*channels: int) -> nn.Module:
        sizes = [1, *channels]
        downs = {
            f"down{i + 1}": nn.Conv3d(a, b, 3, stride=1 + (i > 0), padding=1)
            for i, (a, b) in enumerate(pairwise(sizes))
        }
        up = {"up": nn.Upsample(scale_factor=4), "head": nn.Conv3d(sizes[-1], 2, 1)}
        return nn.Sequential(OrderedDict(downs | up))

    wrapped: dict[str, Any] = {"network": network(8, 16, 32)}
    exec(wrapping, wrapped)
    student = wrapped["student"]
    given: dict[str, Any] = {"network": network(32, 64, 128)}
    exec(wrapping.replace("(8, 16, 32)", "(32, 64, 128)"), given)
    teacher = given["student"].eval()
    before = [weight.detach().clone() for weight in student.parameters()]
    space: dict[str, Any] = {
        "student": student,
        "teacher": teacher,
        "epochs": 12,
        "batches": [(torch.randn(1, 1, 32, 32, 32), torch.randint(0, 2, (1, 32, 32, 32)))],
        "segmentation_loss": nn.functional.cross_entropy,
    }
    exec(training, space)
    assert space["weight"] > 0  # the last epochs did distil
    assert all(projection.grad is not None for projection in space["distil"].parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))

    made: dict[str, Any] = {"in_channels": 2, "classes": 3}
    made["folder"] = write(tmp_path / "run", network_of("ResidualEncoderUNet"))
    exec(planning, made)
    assert made["student"].channels == (8, 16, 32)
    stages = [made[name](torch.randn(1, 2, 16, 16, 16)).stages for name in ("teacher", "student")]
    assert all(t.shape[2:] == s.shape[2:] for t, s in zip(*stages, strict=True))

    features = {"student_features": torch.zeros(1, 2, 8, 8, 8)}
    features["teacher_features"] = torch.randn(1, 2, 8, 8, 8)
    exec(pair, features)
    assert float(features["distance"]) > 0


def test_the_example_of_adding_a_method_is_a_method() -> None:
    import numpy as np
    import torch

    from dcd_core.models import dynunet
    from dcd_core.train import Distiller
    from dcd_core.types import Output

    example, line, _ = [body for _, body in FENCE.findall(_prose("howto/add-a-method"))]
    code = [text for text in example.splitlines() if text.strip()]
    assert len(code) <= 20
    space: dict[str, Any] = {}
    exec(example, space)
    made = eval(f"{{{line}}}", space)["channel-correlation"]
    torch.manual_seed(0)
    one, other = torch.randn(2, 3, 4, 4, 4), torch.randn(2, 3, 4, 4, 4)
    found = made((3,), (3,), adapters="none")(Output(one, (one,)), Output(other, (other,)))
    pairs = [[np.corrcoef(x.flatten(1)) for x in volume] for volume in (one, other)]
    assert float(found) == pytest.approx(np.square(np.subtract(*pairs)).mean(), rel=1e-4)

    student, teacher = dynunet(1, 2, channels=(4, 4, 8)), dynunet(1, 2, channels=(6, 8, 8))
    distiller = Distiller(student, teacher, made(student.channels, teacher.channels)).train()
    losses = distiller(torch.randn(1, 1, 8, 8, 8), torch.zeros(1, 1, 8, 8, 8).long(), distil=True)
    losses.distillation.backward()
    assert all(p.grad.abs().max() > 0 for p in distiller.method.parameters())


# --- the extensions -----------------------------------------------------------------------------


def test_remote_loads_are_found_and_links_are_not(tmp_path: Path) -> None:
    from dcd_offline import remote_loads

    (tmp_path / "page.html").write_text(
        """<link rel="stylesheet" href="https://a.example/x.css">
        <link rel="canonical" href="https://ok.example/"><a href="https://ok.example/">link</a>
        <script src="//b.example/x.js"></script><img src="local.png" srcset="https://c.example/2x">
        <img src="data:image/png;base64,AA=="><style>@import "https://d.example/x.css";</style>
        <p style="background: url(https://e.example/x.png)">url(https://ok.example/)</p>""",
        "utf-8",
    )
    (tmp_path / "sheet.css").write_text(
        "a{src:url('//f.example/x.woff2')} b{src:url(x.woff2)}", "utf-8"
    )
    hosts = [urlsplit(address).hostname for _, address in remote_loads(tmp_path)]
    assert sorted(str(host)[0] for host in hosts) == list("abcdef")


@pytest.mark.parametrize(
    ("address", "status"), [("https://remote.example/x.js", 1), ("local.js", 0)]
)
def test_a_remote_load_fails_the_build(tmp_path: Path, address: str, status: int) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "conf.py").write_text('extensions = ["dcd_offline"]\nproject = "p"\n', "utf-8")
    page = f'Page\n====\n\n.. raw:: html\n\n   <script src="{address}"></script>\n'
    (source / "index.rst").write_text(page, "utf-8")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(source)]
    built = subprocess.run(
        [*command, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(BOOK / "_ext"), "PYTHONWARNINGS": "ignore"},
    )
    assert built.returncode == status, built.stderr
    assert (address in built.stderr) == bool(status)


# --- the explorer -------------------------------------------------------------------------------

EXPLORER = BOOK / "_assets" / "explorer.js"


@pytest.mark.parametrize("wavelet", ["haar", "db2", "db4"])
@pytest.mark.parametrize("levels", [1, 2])
def test_the_explorer_computes_what_pywavelets_computes(wavelet: str, levels: int) -> None:
    import numpy as np
    import pywt

    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: the explorer's transform is not checked")
    side = 32
    volume = np.random.default_rng(levels).normal(size=(side,) * 3)
    script = f"""
        const e = require({json.dumps(str(EXPLORER))});
        const v = JSON.parse(require("fs").readFileSync(0));
        const packed = e.analyse(v, {side}, "{wavelet}", {levels});
        const chosen = [0, 1, 1, 1, 1, 1, 1, 0].map(Boolean);
        const part = e.select(packed, {side}, {levels}, chosen);
        console.log(JSON.stringify({{
          packed: [...packed], share: part.share,
          back: [...e.synthesise(packed, {side}, "{wavelet}", {levels})],
          partial: [...e.synthesise(part.kept, {side}, "{wavelet}", {levels})] }}))"""
    answer = subprocess.run(
        [node, "-e", script],
        input=json.dumps(volume.ravel().tolist()),
        capture_output=True,
        text=True,
        check=True,
    )
    ours = json.loads(answer.stdout)
    bands = pywt.wavedecn(volume, wavelet, mode="periodization", level=levels)
    whole, _ = pywt.coeffs_to_array(bands)
    bands[0] = np.zeros_like(bands[0])
    for level in bands[1:]:
        level["ddd"] = np.zeros_like(level["ddd"])
    kept, _ = pywt.coeffs_to_array(bands)
    partial = pywt.waverecn(bands, wavelet, mode="periodization")
    np.testing.assert_allclose(ours["packed"], whole.ravel(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours["back"], volume.ravel(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours["partial"], partial.ravel(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours["share"], (kept**2).sum() / (whole**2).sum(), rtol=1e-12)


@pytest.mark.browser
def test_the_explorer_answers(site: Path, browser: Browser) -> None:
    context = browser.new_context()
    page = context.new_page()
    seen = _watch(page)
    page.goto((site / "explorer.html").as_uri() + "#wavelet=haar&levels=2&slice=30&bands=254")
    widget = page.locator("#dcd-explorer[data-state=ready]")
    widget.wait_for(timeout=20_000)
    detail = float(widget.get_attribute("data-share") or "nan")
    assert not page.is_checked("#dcd-aaa")
    assert page.is_checked("#dcd-ddd")
    page.focus("#dcd-aaa")
    page.keyboard.press("Space")  # by keyboard: all eight bands
    assert float(widget.get_attribute("data-share") or "nan") == pytest.approx(1)
    assert "bands=255" in page.url
    page.get_by_role("button", name="coarse only").click()
    assert float(widget.get_attribute("data-share") or "nan") == pytest.approx(1 - detail)
    page.select_option("#dcd-wavelet", "db4")
    assert "wavelet=db4" in page.url
    page.evaluate("location.hash = 'wavelet=none&levels=9&slice=x&bands=3'")
    page.wait_for_function("document.getElementById('dcd-aad').checked")
    assert page.input_value("#dcd-wavelet") == "db4"  # nonsense in the address is ignored
    assert page.input_value("#dcd-levels") == "2"
    context.close()
    assert seen.foreign == []
    assert seen.errors == []


# --- the built book -----------------------------------------------------------------------------


def test_every_page_was_built(site: Path) -> None:
    assert [page for page in PAGES if not (site / f"{page}.html").is_file()] == []


def test_nothing_remote_is_loaded(site: Path) -> None:
    from dcd_offline import remote_loads

    assert list(remote_loads(site)) == []


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.ids.add(value)
            elif name in ("href", "src") and value:
                self.links.append(value)


def _anchors(page: Path) -> _Anchors:
    parser = _Anchors()
    parser.feed(page.read_text("utf-8"))
    return parser


def test_internal_links_resolve(site: Path) -> None:
    parsed = {page: _anchors(page) for page in site.rglob("*.html") if "_static" not in page.parts}
    broken = []
    for page, anchors in parsed.items():
        for link in anchors.links:
            target = urlsplit(link)
            if target.scheme or target.netloc:
                continue
            file = (page.parent / unquote(target.path)).resolve() if target.path else page
            found = file.is_file() and (
                not target.fragment
                or "=" in target.fragment  # a setting of the explorer
                or file not in parsed
                or unquote(target.fragment) in parsed[file].ids
            )
            if not found:
                broken.append(f"{page.relative_to(site)} -> {link}")
    assert broken == []


def test_pages_say_which_command_and_commit_made_them(site: Path) -> None:
    from dcd_provenance import command, commit, provenance

    status = (site / "status.html").read_text("utf-8")
    for page in NOTEBOOKS:
        file = BOOK / f"{page}.ipynb"
        made = provenance(file)
        assert made["profile"] in ("demo", "study", "paper")
        whole = (site / f"{page}.html").read_text("utf-8")
        for text in (re.sub(r"<[^>]+>", "", whole), re.sub(r"<[^>]+>", "", status)):
            assert command(file, made) in text
            assert commit(made) in text


def test_the_book_is_small(site: Path) -> None:
    size_mib = sum(file.stat().st_size for file in site.rglob("*") if file.is_file()) / 2**20
    assert size_mib < 60


# --- in a browser -------------------------------------------------------------------------------

MODES = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 900}},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}},
}
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)
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
    overflow: document.documentElement.scrollWidth - window.innerWidth,
  };
}"""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((found for name in names if (found := shutil.which(name))), None)
    if program is None:
        _without_browser("no Chromium found; install it to look at the book")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _without_browser("playwright is not installed; pip install -e .[dev]")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=FLAGS.split())
        yield running
        running.close()


def _without_browser(reason: str) -> None:
    if os.environ.get("DCD_REQUIRE_BROWSER") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def _watch(page: Page) -> SimpleNamespace:
    """Collect what a page asks for and complains about."""
    seen = SimpleNamespace(foreign=[], errors=[])
    local = ("file:", "data:", "blob:")
    page.on(
        "request",
        lambda request: None if request.url.startswith(local) else seen.foreign.append(request.url),
    )
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    return seen


@pytest.mark.browser
@pytest.mark.parametrize("mode", MODES)
def test_pages_in_a_browser(site: Path, browser: Browser, mode: str) -> None:
    context = browser.new_context(**MODES[mode])  # type: ignore[arg-type]
    complaints: dict[str, object] = {}
    formulas = 0
    page = context.new_page()
    seen = _watch(page)
    for name in PAGES:
        seen.foreign.clear()
        seen.errors.clear()
        page.goto((site / f"{name}.html").as_uri(), wait_until="load")
        look = page.evaluate(LOOK)
        formulas += look["rendered"]
        wrong = {
            "requests to other hosts": list(seen.foreign),
            "page errors": list(seen.errors),
            "formulas in error": look["wrong"],
            "formulas not rendered": look["formulas"] - look["rendered"],
            "broken images": look["broken"],
            "pixels beyond the width": max(0, look["overflow"]),
            "wrong ground": look["ground"] > 0.05 if mode == "dark" else look["ground"] < 0.8,
            "text hard to read": look["least"] if look["least"]["contrast"] < 4.5 else None,
        }
        if found := {what: value for what, value in wrong.items() if value}:
            complaints[name] = found
    context.close()
    assert complaints == {}
    assert formulas > 0


@pytest.mark.browser
def test_search_works_from_a_folder(site: Path, browser: Browser) -> None:
    context = browser.new_context()
    page = context.new_page()
    seen = _watch(page)
    page.goto((site / "search.html").as_uri() + "?q=periodization")
    page.wait_for_selector("ul.search li a", timeout=20_000)
    found = page.eval_on_selector_all("ul.search li a", "all => all.map(a => a.href)")
    context.close()
    assert any("glossary" in link for link in found)
    assert seen.foreign == []
    # A browser refuses to read other files from a folder, so results come without an excerpt.
    assert set(seen.errors) <= {"Failed to fetch"}
