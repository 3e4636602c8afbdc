"""Buttons that lead to the repository: source, "suggest edit", an issue, a notebook in Binder.

`repository-code` in CITATION.cff is the one place that names the repository; while it is not set
there are no buttons. A notebook page is an executed copy, so its buttons lead to the source.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from sphinx.application import Sphinx
from sphinx.config import Config

CITATION = Path(__file__).parents[2] / "CITATION.cff"
FOLDER = "book"
"""Where the pages lie in the repository; notebooks lie in a folder of the same name at its root."""


def options(citation: Path) -> dict[str, Any]:
    """Options of the theme for the repository that the citation names, none without one."""
    url = yaml.safe_load(citation.read_text("utf-8")).get("repository-code")
    if not url:
        return {}
    buttons = ("use_repository_button", "use_edit_page_button", "use_issues_button")
    launch = {"binderhub_url": "https://mybinder.org", "notebook_interface": "jupyterlab"}
    named = {"repository_url": url, "repository_branch": "main", "path_to_docs": FOLDER}
    return {**named, **dict.fromkeys(buttons, True), "launch_buttons": launch}


def _set(app: Sphinx, config: Config) -> None:
    config.html_theme_options = {**config.html_theme_options, **options(CITATION)}


def _point(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    folder = "" if page.startswith("notebooks/") else FOLDER
    if context.get("theme_repository_url"):
        # The button that launches reads the option, the one that edits the context.
        app.config.html_theme_options["path_to_docs"] = context["doc_path"] = folder


def setup(app: Sphinx) -> dict[str, bool]:
    """Set the options before the theme reads them, and the folder before it makes the buttons."""
    app.connect("config-inited", _set)
    app.connect("html-page-context", _point, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
