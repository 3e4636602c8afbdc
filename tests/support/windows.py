"""Windows of a browser in which tests look at the book."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Page

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
MODES: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": DESKTOP},
    "dark": {"color_scheme": "dark", "viewport": DESKTOP},
    "phone": {"color_scheme": "light", "viewport": PHONE, "has_touch": True},
}
# WebGL is drawn by the processor.
FLAGS = (
    "--headless --no-sandbox --disable-gpu --enable-unsafe-swiftshader --disable-quic "
    "--no-first-run --disable-background-networking --disable-component-update --disable-sync"
)


BARRIERS = {"critical", "serious"}


def watch(page: Page) -> SimpleNamespace:
    """Collect what a page asks for and complains about."""
    seen = SimpleNamespace(foreign=[], errors=[], files=set())

    def asked(address: str) -> None:
        if address.startswith("file:"):
            seen.files.add(unquote(urlsplit(address).path))
        elif not address.startswith(("data:", "blob:")):
            seen.foreign.append(address)

    page.on("request", lambda request: asked(request.url))
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    return seen


def barriers(page: Page, rules: Sequence[str] = (), without: Sequence[list[str]] = ()) -> list[str]:
    """What axe-core calls critical or serious, by the named rules or else by all that it has."""
    from axe_playwright_python.sync_playwright import Axe

    options: dict[str, Any] = {"resultTypes": ["violations"]}
    if rules:
        options["runOnly"] = {"type": "rule", "values": [*rules]}
    context = {"include": [["html"]], "exclude": [*without]}
    return [
        f"{violation['id']}: {node['html'][:120]}"
        for violation in Axe().run(page, context, options).response["violations"]
        if violation["impact"] in BARRIERS
        for node in violation["nodes"]
    ]
