"""Notebook sources are clean and short, and the pages made of them are the ones they would make."""

from __future__ import annotations

import ast
import asyncio
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
import run
import yaml
from nbformat import NotebookNode

from dcd_core import train
from dcd_core.dcd import kd_weight
from dcd_core.methods import METHODS
from dcd_lab import records
from dcd_lab.experiments import record
from dcd_lab.experiments.description import case_file
from runner import execution, jobs, parameters, runs, screen, sources
from runner.pages import LIMIT_BYTES

PROJECT = Path(__file__).resolve().parents[2]
LINES, FOLDER_BYTES = 12, 15_000_000
KNOWN = sources.discover(PROJECT / "notebooks")
PAGES = {path: nbformat.read(path, 4) for path in (PROJECT / "book" / "notebooks").glob("*.ipynb")}


def cells(document: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in document.cells if cell.cell_type == "code"]


def nodes(text: str, *kinds: type[ast.AST]) -> list[Any]:
    return [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]


def offenders(faults: Callable[[NotebookNode], Iterator[str]]) -> list[str]:
    """Return what is wrong with the sources, each fault with the name of its notebook."""
    return [f"{name}: {fault}" for name, n in KNOWN.items() for fault in faults(n.document)]


def test_each_notebook_whose_runs_are_recorded_is_a_page() -> None:
    pages = {path.stem for path in PAGES}
    assert pages <= set(KNOWN)
    recorded = {name for name, notebook in KNOWN.items() if notebook.recorded}
    assert recorded <= pages, "run make study"


# --- sources ------------------------------------------------------------------------------------


def test_sources_are_clean() -> None:
    def faults(document: NotebookNode) -> Iterator[str]:
        ids = [cell.get("id") for cell in document.cells]
        if document.metadata.kernelspec.name != "python3" or document.nbformat_minor < 5:
            yield "another kernel or an old format"
        if not all(ids) or len(set(ids)) < len(ids):
            yield "cells without an id of their own"
        for cell in cells(document):
            noise = {"execution", "papermill", "ExecuteTime"} & set(cell.metadata)
            if cell.outputs or cell.execution_count is not None or noise:
                yield f"cell {cell.id} has been run"

    assert offenders(faults) == []


def test_sources_have_the_same_build() -> None:
    def faults(document: NotebookNode) -> Iterator[str]:
        first, code = document.cells[0], cells(document)
        if first.cell_type != "markdown" or not first.source.startswith("# "):
            yield "does not begin with a title"
        tagged = [i for i, cell in enumerate(code) if "parameters" in sources.tags(cell)]
        if tagged != [0]:
            yield "the first code cell, and no other, holds the parameters"
        if not all(isinstance(node, ast.Assign) for node in ast.parse(code[0].source).body):
            yield "parameters are assignments only"
        if sources.declared(document).get("profile") != "smoke":
            yield "does not start in the smoke profile"
        if any(nodes(c.source, ast.Import, ast.ImportFrom) for c in [code[0], *code[2:]]):
            yield "imports belong to the second code cell"
        if "records.save" not in code[-1].source:
            yield "does not end by keeping its results"

    assert offenders(faults) == []


def test_cells_are_short_and_plain() -> None:
    def faults(document: NotebookNode) -> Iterator[str]:
        for number, cell in enumerate(cells(document)):
            lines = [line for line in cell.source.splitlines() if line.strip()]
            if number and len(lines) > LINES:
                yield f"cell {cell.id} has {len(lines)} lines"
            functions = nodes(cell.source, ast.FunctionDef, ast.AsyncFunctionDef)
            if len(functions) > 1 or nodes(cell.source, ast.ClassDef):
                yield f"cell {cell.id} defines more than one function, or a class"
            texts = [str(node.value) for node in nodes(cell.source, ast.Constant)]
            if any(text.startswith(("/", "~/", "\\\\")) for text in texts):
                yield f"cell {cell.id} names a place of one machine"

    assert offenders(faults) == []


def test_profiles_set_declared_parameters_of_the_declared_type() -> None:
    for profile in ("smoke", "study", "paper"):
        resolved = parameters.resolve(KNOWN, profile, {})
        assert all(values["profile"] == profile for values in resolved.values())


def test_equal_compute_takes_the_time_of_dcd() -> None:
    study = parameters.resolve(KNOWN, "study", {})["06-isles"]
    steps = study["arms"]["equal compute"]["steps"] / study["stroke_steps"]
    measured = records.load("benchmarks", "training", "step").set_index("arm").over_undistilled
    assert steps == pytest.approx(measured["DCD"], rel=0.03), "run benchmarks/steps.py"


@pytest.mark.parametrize(
    ("page", "block"), [("15-few-labels", "E. Stroke, few labels"), ("12-beyond", "F. Beyond MRI")]
)
def test_a_page_shows_the_arms_that_are_planned_for_it(page: str, block: str) -> None:
    shown = parameters.resolve(KNOWN, "study", {})[page]
    (planned,) = (blocks for title, blocks in runs.plan().items() if title.startswith(block))
    for arm, options in planned["arms"].items():
        assert shown["arms"][arm] == (shown["arms"][arm] if options is None else options)
    assert set(planned["seeds"]) >= set(shown["seeds"])


@pytest.mark.parametrize(
    ("page", "peak", "start", "ramp"),
    [("05-brats", 0.01, 150, 800), ("06-isles", 0.05, 100, 300)],
)
def test_the_faithful_arm_has_the_schedule_of_the_release(
    page: str, peak: float, start: int, ramp: int
) -> None:
    released = dict(parameters.resolve(KNOWN, "paper", {})[page]["arms"]["DCD released"])
    assert released.pop("method") == "dcd-released"
    recipe = train.Recipe(**released)
    epochs = 1000
    assert recipe.kd_balance == "fixed"
    for epoch in range(0, epochs + 1, 10):
        expected = kd_weight(epoch, peak=peak, start=start, ramp=ramp)
        share = {"start": recipe.kd_start, "ramp": recipe.kd_ramp}
        weight = kd_weight(epoch / epochs, peak=recipe.kd_peak, **share)
        assert weight == pytest.approx(expected, abs=1e-9)


# --- running ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke() -> dict[str, jobs.Job]:
    """All notebooks, run in the smoke profile; those that are unchanged since are not run again."""
    plan = run.prepare(run.arguments(["--profile", "smoke"]))
    with screen.Screen(io.StringIO(), plan.values()) as view:
        asyncio.run(execution.run(plan, 1, view))
    return plan


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_the_notebook_runs(smoke: dict[str, jobs.Job], name: str) -> None:
    assert smoke[name].state in ("run", "cached"), smoke[name].message


def test_the_table_of_methods_names_every_method_once() -> None:
    text = KNOWN["07-methods"].document.cells[0].source
    rows = [row.split("|")[1] for row in text.splitlines() if row.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert sorted(named) == sorted(METHODS)


# --- pages --------------------------------------------------------------------------------------


def test_pages_are_fresh() -> None:
    """A page says what it was made of; if its source or its parameters moved on, make it again.

    Pages of a profile that is gone show an earlier experiment, and their badge says so.
    """
    stale, recorded = {}, []
    for path, page in PAGES.items():
        if not (PROJECT / "notebooks" / "params" / f"{page.metadata.dcd.profile}.yml").is_file():
            continue
        recorded.append(path.stem[:2])
        made, document = page.metadata.dcd, KNOWN[path.stem].document
        expected = parameters.resolve(KNOWN, made.profile, {})[path.stem]
        hashes = (jobs.source_sha256(document), records.fingerprint(expected), expected)
        if hashes != (made.source_sha256, made.params_sha256, made.parameters):
            stale[path.stem] = f"python notebooks/run.py --profile {made.profile} {path.stem}"
    assert stale == {}
    listed = [name[:2] for name, notebook in KNOWN.items() if notebook.recorded]
    assert listed == sorted(recorded), "make reproduce makes other pages"


def test_pages_are_small_whole_and_without_chance() -> None:
    wrong = []
    for path, page in PAGES.items():
        ran = all(cell.execution_count or not cell.source.strip() for cell in cells(page))
        outputs = [output for cell in cells(page) for output in cell.outputs]
        kinds = {kind for output in outputs for kind in output.get("data", ())}
        noise = {key for cell in page.cells for key in cell.metadata} & {"execution", "papermill"}
        checks = {
            "large": path.stat().st_size > LIMIT_BYTES,
            "metadata": set(page.metadata) != {"dcd", "kernelspec", "language_info"} or noise,
            "smoke profile": page.metadata.dcd.profile == "smoke",
            "a cell that did not run": not ran,
            "errors or warnings": [o for o in outputs if "ename" in o or o.get("name") == "stderr"],
            "widgets": [kind for kind in kinds if "widget" in kind or "plotly" in kind],
        }
        wrong += [f"{path.stem}: {what}" for what, fault in checks.items() if fault]
    assert wrong == []
    assert sum(path.stat().st_size for path in PAGES) < FOLDER_BYTES


# --- results ------------------------------------------------------------------------------------


def test_results_match_their_sidecars() -> None:
    tables = [t for t in (PROJECT / "results").glob("*/*.csv") if "smoke" not in t.parts]
    written = {t: json.loads(t.with_suffix(".json").read_text("utf-8"))["sha256"] for t in tables}
    assert written
    assert written == {t: hashlib.sha256(t.read_bytes()).hexdigest() for t in tables}


def test_recorded_runs_match_their_descriptions() -> None:
    for entry in record.entries():
        record.check_files(entry)
        kept = {file.name for file in entry.iterdir()}
        assert kept == {*record.read(entry)["files"], record.DESCRIPTION}
    recorded = [job for job in runs.runs_of("study", {}) if runs.state(job) == "recorded"]
    assert len(recorded) == len(record.entries())
    assert [job.label for job in recorded if not case_file(job.cohort).is_file()] == []
    weights = (PROJECT / "results" / "study").rglob("*.safetensors")
    assert sum(file.stat().st_size for file in weights) < 12e6


def test_the_index_names_every_figure_and_existing_results() -> None:
    folder = PROJECT / "figures"
    figures = {path.relative_to(folder).as_posix() for path in folder.glob("*/*.[ps][nv]g")}
    index = yaml.safe_load((folder / "INDEX.yml").read_text("utf-8"))
    assert set(index) == {name for name in figures if not name.startswith("smoke/")}
    lost = []
    for entry in index.values():
        makers = (f"notebooks/{entry['notebook']}.ipynb", f"benchmarks/{entry['notebook']}.py")
        if not any((PROJECT / maker).is_file() for maker in makers):
            lost.append(entry["notebook"])
        lost += [table for table in entry["results"] if not (PROJECT / table).is_file()]
    assert lost == []
