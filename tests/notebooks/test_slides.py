"""Slides: a slide for each heading, solutions below their questions, and nothing remote."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
import slides
from book_pages import ROOT
from dcd_offline import remote_loads

from dcd_core.types import ContractError

PAGE = nbformat.read(ROOT / "book" / "notebooks" / "01-wavelets.ipynb", 4)


def test_headings_begin_slides_and_code_lies_below() -> None:
    made = slides.slides(PAGE).cells
    kinds = [(cell.metadata.slideshow.slide_type, cell) for cell in made]
    heads = [cell.source.splitlines()[0] for kind, cell in kinds if kind == "slide"]
    assert heads[0] == "# What is detail in 3D?"
    assert "### Exercise: An edge that moves" in heads
    assert "## Exercises" not in heads  # a heading of nothing
    text = "\n".join(cell.source for _, cell in kinds)
    assert "The answer" not in text
    assert "import numpy" not in text
    question = next(i for i, cell in enumerate(made) if "An edge that moves" in cell.source)
    assert kinds[question + 1][0] == "subslide"
    assert "def edge" in made[question + 1].source
    outputs = [output for cell in made for output in cell.get("outputs", ())]
    assert outputs
    assert not [o for o in outputs if any("papermill" in kind for kind in o.get("data", ()))]


def test_slides_load_nothing_remote(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="make book"):
        slides.write("01-wavelets", tmp_path)
    (tmp_path / "_static" / "reveal").mkdir(parents=True)
    path = slides.write("01-wavelets", tmp_path)
    assert "What is detail in 3D?" in path.read_text("utf-8")
    assert list(remote_loads(tmp_path)) == []
    used = set(
        slides.re.findall(r'(?:src|href)="\.\./_static/(reveal[^"]*)"', path.read_text("utf-8"))
    )
    assert len(used) == 3
    assert [file for file in used if not (ROOT / "book" / "_assets" / file).is_file()] == []
