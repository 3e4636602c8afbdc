"""The built book and a browser, for the tests that look at its pages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from book_pages import BOOK, NOTEBOOKS, ROOT
from windows import FLAGS, MODES

from dcd_core.storage import locked

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The HTML of the book, built once and away from the checkout; warnings are errors."""
    base = tmp_path_factory.getbasetemp()
    # Processes that share the tests share the book: whichever comes first builds it.
    out = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "book"
    out.mkdir(exist_ok=True)
    with locked(out):
        if not (out / "built").is_file():
            _build(out)
            (out / "built").touch()
    return out / "_build" / "html"


def _build(out: Path) -> None:
    missing = [page for page in NOTEBOOKS if not (BOOK / f"{page}.ipynb").is_file()]
    assert missing == [], "never executed: run make study"
    program = str(Path(sys.executable).with_name("jupyter-book"))
    call = [program, "build", "book", "--config", "_config.yml", "--path-output", str(out)]
    built = subprocess.run(
        [*call, "-W", "-n", "--keep-going"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore", "NO_COLOR": "1"},
    )
    if built.returncode:
        said = [line for line in built.stderr.splitlines() if line.strip()]
        pytest.fail("the book does not build:\n" + "\n".join(said[-30:]), pytrace=False)


# Of a module: Playwright keeps an event loop running, which other tests could not start.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((path for name in names if (path := shutil.which(name))), None)
    if program is None and os.environ.get("DCD_REQUIRE_BROWSER") != "1":
        pytest.skip("no Chromium is installed to look at the book")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=FLAGS.split())
        yield running
        running.close()


@pytest.fixture
def context(browser: Browser, request: pytest.FixtureRequest) -> Iterator[BrowserContext]:
    """A window of the browser in the mode the test asks for."""
    opened = browser.new_context(**MODES[getattr(request, "param", "light")])
    yield opened
    opened.close()
