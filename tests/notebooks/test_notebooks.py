"""Notebook sources are clean and short, and the pages made of them are the ones they would make."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dcd_core import train
from dcd_core.dcd import kd_weight
from runner import jobs, parameters, sources
from runner.execution import LIMIT_BYTES

PROJECT = Path(__file__).resolve().parents[2]
PATHS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
PAGES = sorted((PROJECT / "book" / "notebooks").glob("*.ipynb"))
LINES = 12
FOLDER_BYTES = 15_000_000
each_source = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def code(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in document["cells"] if cell["cell_type"] == "code"]


def trees(document: dict[str, Any]) -> list[ast.Module]:
    return [ast.parse(sources.source(cell)) for cell in code(document)]


def test_there_are_notebooks_and_each_is_a_page() -> None:
    assert PATHS
    assert [path.name for path in PAGES] == [path.name for path in PATHS], "run make demo"


# --- sources ------------------------------------------------------------------------------------


@each_source
def test_sources_are_clean(path: Path) -> None:
    document = read(path)
    assert document["metadata"]["kernelspec"]["name"] == "python3"
    assert (document["nbformat"], document["nbformat_minor"]) >= (4, 5)
    ids = [cell.get("id") for cell in document["cells"]]
    assert all(ids)
    assert len(set(ids)) == len(ids)
    for cell in code(document):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        assert not {"execution", "papermill", "ExecuteTime"} & set(cell["metadata"])


@each_source
def test_sources_begin_with_a_question_parameters_and_imports(path: Path) -> None:
    document = read(path)
    first = document["cells"][0]
    assert first["cell_type"] == "markdown"
    assert sources.source(first).startswith("# ")
    tagged = ["parameters" in sources.tags(cell) for cell in code(document)]
    assert tagged.index(True) == 0, "the first code cell holds the parameters"
    assert tagged.count(True) == 1
    with_imports = [
        number
        for number, tree in enumerate(trees(document))
        if any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(tree))
    ]
    assert with_imports in ([], [1]), "imports belong to the second code cell"


@each_source
def test_parameters_are_literals_and_start_in_the_smoke_profile(path: Path) -> None:
    cell = code(read(path))[0]
    for node in ast.parse(sources.source(cell)).body:
        assert isinstance(node, ast.Assign | ast.AnnAssign), "assignments only"
        assert node.value is not None
        ast.literal_eval(node.value)
    assert sources.declared(read(path)).get("profile") == "smoke"


@each_source
def test_cells_are_short_and_plain(path: Path) -> None:
    for number, cell in enumerate(code(read(path))):
        text = sources.source(cell)
        lines = [line for line in text.splitlines() if line.strip()]
        assert number == 0 or len(lines) <= LINES, f"{len(lines)} lines:\n{text}"
        assert not text.lstrip().startswith(("!", "%", "?"))
        nodes = list(ast.walk(ast.parse(text)))
        assert not [node for node in nodes if isinstance(node, ast.ClassDef)]
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        assert sum(isinstance(node, functions) for node in nodes) <= 1
        texts = [str(node.value) for node in nodes if isinstance(node, ast.Constant)]
        assert not [text for text in texts if text.startswith(("/", "~/", "\\\\"))]


@each_source
def test_sources_end_by_keeping_their_results(path: Path) -> None:
    assert "records.save" in sources.source(code(read(path))[-1])


PROFILES = sorted(path.stem for path in (PROJECT / "notebooks" / "params").glob("*.yml"))


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_set_declared_parameters_of_the_declared_type(profile: str) -> None:
    known = sources.discover(PROJECT / "notebooks")
    found = parameters.resolve(known, profile, {})
    assert set(found) == set(known)
    assert all(values.get("profile", profile) == profile for values in found.values())
    assert sources.with_needs(known, known)


def test_every_choice_of_the_paper_profile_says_why() -> None:
    text = (PROJECT / "notebooks" / "params" / "paper.yml").read_text("utf-8")
    _, settings = text.split("shared:", 1)
    lines = [line for line in settings.splitlines() if line.startswith("  ")]
    assert len(lines) > 30
    assert not [line for line in lines if "  # " not in line]


@pytest.mark.parametrize(
    ("page", "peak", "start", "ramp"),
    [("05-brats", 0.01, 150, 800), ("06-isles", 0.05, 100, 300)],
)
def test_the_faithful_arm_has_the_schedule_of_the_release(page, peak, start, ramp) -> None:
    known = sources.discover(PROJECT / "notebooks")
    released = parameters.resolve(known, "paper", {})[page]["released"]
    recipe = train.Recipe(**released)
    epochs = 1000
    assert recipe.kd_balance == "fixed"
    for epoch in range(0, epochs + 1, 10):
        expected = kd_weight(epoch, peak=peak, start=start, ramp=ramp)
        share = {"start": recipe.kd_start, "ramp": recipe.kd_ramp}
        found = kd_weight(epoch / epochs, peak=recipe.kd_peak, **share)
        assert found == pytest.approx(expected, abs=1e-9)


# --- pages --------------------------------------------------------------------------------------


@each_page
def test_pages_are_fresh(path: Path) -> None:
    """A page says what it was made of; if its source or its parameters moved on, make it again."""
    made = read(path)["metadata"]["dcd"]
    known = sources.discover(PROJECT / "notebooks")
    again = f"python notebooks/run.py --profile {made['profile']} {path.stem}"
    assert made["source_sha256"] == jobs.source_sha256(known[path.stem].document), again
    expected = parameters.resolve(known, made["profile"], {})[path.stem]
    assert made["parameters"] == expected, again
    assert made["params_sha256"] == jobs.sha256(expected), again


@each_page
def test_pages_are_small_whole_and_without_chance(path: Path) -> None:
    document = read(path)
    assert path.stat().st_size < LIMIT_BYTES
    assert set(document["metadata"]) == {"dcd", "kernelspec", "language_info"}
    assert document["metadata"]["dcd"]["profile"] != "smoke"
    for cell in code(document):
        assert cell["execution_count"] is not None or not sources.source(cell).strip()
        assert not {"execution", "papermill"} & set(cell["metadata"])
        kinds = {kind for output in cell["outputs"] for kind in output.get("data", ())}
        assert "error" not in {output["output_type"] for output in cell["outputs"]}
        assert not [kind for kind in kinds if "widget" in kind or "plotly" in kind]


def test_all_pages_together_are_small() -> None:
    assert sum(path.stat().st_size for path in PAGES) < FOLDER_BYTES


# --- results ------------------------------------------------------------------------------------


def test_results_match_their_sidecars() -> None:
    tables = sorted((PROJECT / "results").rglob("*.csv"))
    assert tables
    for table in tables:
        if "smoke" in table.parts:
            continue
        sidecar = read(table.with_suffix(".json"))
        where = table.relative_to(PROJECT).as_posix()
        assert sidecar["sha256"] == hashlib.sha256(table.read_bytes()).hexdigest(), where


def test_the_index_names_every_figure_and_existing_results() -> None:
    folder = PROJECT / "figures"
    figures = {path.relative_to(folder).as_posix() for path in folder.glob("*/*.[ps][nv]g")}
    figures = {name for name in figures if not name.startswith("smoke/")}
    file = folder / "INDEX.yml"
    index = yaml.safe_load(file.read_text("utf-8")) if file.is_file() else {}
    assert set(index) == figures
    for name, entry in index.items():
        makers = (f"notebooks/{entry['notebook']}.ipynb", f"benchmarks/{entry['notebook']}.py")
        assert any((PROJECT / maker).is_file() for maker in makers), name
        lost = [table for table in entry["results"] if not (PROJECT / table).is_file()]
        assert not lost, f"{name} was drawn from {lost}"


@each_page
def test_no_page_shows_a_warning(path: Path) -> None:
    outputs = [output for cell in code(read(path)) for output in cell["outputs"]]
    assert not [output["text"] for output in outputs if output.get("name") == "stderr"]
