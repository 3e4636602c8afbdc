"""The runner, on tiny notebooks: right parameters and order, nothing done twice, nothing lost."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import psutil
import pytest
import run
from nbformat import v4

from dcd_core.types import ContractError
from runner import execution, jobs, pages, parameters, screen, sources

ONE = """\
steps = 3  # how many
rate = 0.5  # how fast
profile = "smoke"  # which
"""


def notebook(folder: Path, name: str, *cells: str, needs: Sequence[str] = ()) -> Path:
    """Write a clean notebook; its first cell is the parameters cell."""
    made = [v4.new_code_cell(text, id=f"cell-{i}") for i, text in enumerate(cells)]
    made[0].metadata.tags = ["parameters"]
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": spec, "dcd": {"needs": list(needs)}}
    path = folder / "notebooks" / f"{name}.ipynb"
    nbformat.write(v4.new_notebook(cells=made, metadata=metadata), path)
    return path


def profile(folder: Path, text: str | bytes, name: str = "study") -> None:
    content = text if isinstance(text, bytes) else text.encode("utf-8")
    (folder / "notebooks" / "params" / f"{name}.yml").write_bytes(content)


@pytest.fixture
def three(workspace: Path) -> dict[str, sources.Notebook]:
    notebook(workspace, "01-waves", ONE)
    notebook(workspace, "02-loss", "steps = 1", needs=["01-waves"])
    notebook(workspace, "10-cost", "size = 8", needs=["02-loss"])
    profile(workspace, "shared: {steps: 9}\n10-cost: {size: 4}\n")
    return sources.discover(workspace / "notebooks")


# --- asking -------------------------------------------------------------------------------------


def test_select_by_number_name_or_path(three: Mapping[str, Any]) -> None:
    assert sources.select(three, []) == ["01-waves", "02-loss", "10-cost"]
    assert sources.select(three, ["cost", "01"]) == ["01-waves", "10-cost"]
    assert sources.select(three, ["notebooks/02-loss.ipynb"]) == ["02-loss"]
    with pytest.raises(ContractError, match="'waves'"):
        sources.select(three, ["wavs"])


def test_needed_notebooks_come_along_and_first(workspace: Path, three: Mapping[str, Any]) -> None:
    assert sources.with_needs(three, ["10-cost"]) == ["01-waves", "02-loss", "10-cost"]
    fewer = {name: one.needing(["02-loss"]) for name, one in three.items()}
    assert sources.with_needs(fewer, ["10-cost"]) == ["02-loss", "10-cost"]
    notebook(workspace, "03-early", "", needs=["10-cost"])
    with pytest.raises(ContractError, match=r"needs of 03-early.*'10-cost'.*'0\d-"):
        sources.discover(workspace / "notebooks")


def test_chunks_cover_everything_once() -> None:
    names = list("abcde")
    for count in (1, 2, 7):
        parts = [sources.chunk(names, f"{i}/{count}") for i in range(1, count + 1)]
        assert sorted(name for part in parts for name in part) == names
    for part in ("0/2", "3/2", "1", "a/b", "-1/2", ""):
        with pytest.raises(ContractError, match="--chunk"):
            sources.chunk(names, part)


def test_declared_agrees_with_papermill(workspace: Path) -> None:
    import papermill

    path = notebook(workspace, "01-a", ONE + "names = ['a', 'b']\nnone = None\n")
    declared = {"steps": 3, "rate": 0.5, "profile": "smoke", "names": ["a", "b"], "none": None}
    assert sources.read(path).declared == declared
    assert set(declared) == set(papermill.inspect_notebook(str(path)))


@pytest.mark.parametrize(
    ("cells", "said"), [(["x = 1", "f("], "SyntaxError"), (["x = y"], "x"), (None, "JSON")]
)
def test_a_broken_notebook_is_refused_by_name(workspace: Path, cells: Any, said: str) -> None:
    path = notebook(workspace, "01-a", *(cells or ("",)))
    if cells is None:
        path.write_text('{"cells": [', "utf-8")
    with pytest.raises(ContractError, match=rf"01-a\.ipynb.*{said}"):
        sources.read(path)


# --- parameters ---------------------------------------------------------------------------------


def test_later_layers_win_and_numbers_take_the_declared_type(three: Mapping[str, Any]) -> None:
    resolved = parameters.resolve(three, "study", {"rate": 1, "steps": 1e3})
    assert resolved == {
        "01-waves": {"profile": "study", "steps": 1000, "rate": 1.0},
        "02-loss": {"steps": 1000},
        "10-cost": {"size": 4},
    }
    first = resolved["01-waves"]
    assert [type(first[key]) for key in ("steps", "rate")] == [int, float]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("shared: {stepz: 9}", r"'stepz'.*'steps'"),
        ("01-wave: {steps: 9}", r"section.*'01-waves'"),
        ("01-waves: {size: 4}", r"in 01-waves.*'size'"),
        ("shared: {steps: many}", r"steps of 01-waves.*'many'.*int"),
        ("shared: {steps: 1.5}", "int"),
        ("shared: {steps: true}", "int"),
        ("01-waves: {rate: true}", "float"),
        ("01-waves: {rate: [1]}", "float"),
        ("", r"study\.yml"),
        ("- steps", r"study\.yml"),
        ("shared: 3", r"'shared' of.*study\.yml"),
        ("shared: {steps: 1}\nshared: {steps: 2}", r"study\.yml.*line 2.*duplicate"),
        ("shared: [", r"study\.yml"),
        (b"shared: {name: \xff}", r"study\.yml.*utf-8"),
        ("shared: {steps: }", "got None; expected int"),
        ("01-waves: {rate: .nan}", "got nan; expected a finite number"),
        ("shared: {steps: 010}", "'010'; expected numbers as people write them"),
        ("shared: {steps: 1:30}", "'1:30'"),
        ("shared: {steps: " + "[" * 3000 + "]" * 3000 + "}", r"study\.yml"),
    ],
)
def test_wrong_parameters_are_refused(
    workspace: Path, three: Mapping[str, Any], text: str | bytes, said: str
) -> None:
    profile(workspace, text)
    with pytest.raises(ContractError, match=said):
        parameters.resolve(three, "study", {})


def test_assignments() -> None:
    pairs = parameters.assignments(["a=1", "b=[1, 2]", "c=x=y", "d=1e-3", "e=null"])
    assert pairs == {"a": 1, "b": [1, 2], "c": "x=y", "d": 0.001, "e": None}
    for wrong in ("a", "=1", "a b=1", "a=[db4", "a=%x", "a=b: c: d", "a=${", "a=010", "a=\ud800"):
        with pytest.raises(ContractError, match="--set"):
            parameters.assignments([wrong])
    with pytest.raises(ContractError, match="a twice"):
        parameters.assignments(["a=1", "a=2"])


@pytest.mark.parametrize("value", ["[no, on]", "[1]", "[.nan]", "[['a']]"])
def test_members_of_a_list_are_of_its_type(workspace: Path, value: str) -> None:
    profile(workspace, f"shared: {{names: {value}}}")
    known = {"01-waves": notebook(workspace, "01-waves", "names = ['a', 'b']")}
    known = {name: sources.read(path) for name, path in known.items()}
    with pytest.raises(ContractError, match="member of parameter names"):
        parameters.resolve(known, "study", {})


# --- what counts as changed ---------------------------------------------------------------------


def test_the_source_hash_sees_cells_and_not_outputs(workspace: Path) -> None:
    document = sources.read(notebook(workspace, "01-a", ONE, "1 + 1")).document
    first = jobs.source_sha256(document)
    document.cells[1].update(outputs=[{"output_type": "stream"}], execution_count=3)
    assert jobs.source_sha256(document) == first
    document.cells[1].source = "1 + 2"
    assert jobs.source_sha256(document) != first


def test_the_package_hash_follows_imports(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        "__init__.py": "from dcd_core import base",
        "base.py": "",
        "top.py": "def f():\n    from dcd_core.deep import inner",
        "deep/__init__.py": "",
        "deep/inner.py": "",
        "other.py": "",
    }
    files = {name: workspace / "dcd_core" / name for name in texts}
    files["deep/inner.py"].parent.mkdir(parents=True)
    for name, text in texts.items():
        files[name].write_text(text, "utf-8")
    monkeypatch.setattr(jobs, "CHECKOUT", workspace)
    path = notebook(workspace, "01-a", "", "from dcd_core import top")
    document = sources.read(path).document
    counted = set()
    for name, file in files.items():
        before = jobs.package_sha256(document)
        file.write_text(texts[name] + "\nx = 1", "utf-8")
        counted |= {name} if jobs.package_sha256(document) != before else set()
    assert counted == set(texts) - {"other.py"}


# --- running, without kernels -------------------------------------------------------------------


class Papermill:
    """Stands in for papermill: every notebook ends at once, and leaves an executed copy or none."""

    def __init__(self, broken: str = "", text: str = "") -> None:
        self.broken, self.text, self.started, self.alive, self.most = broken, text, [], 0, 0

    async def __call__(self, job: jobs.Job, threads: int) -> int:
        self.started.append(job.name)
        self.alive += 1
        self.most = max(self.most, self.alive)
        await asyncio.sleep(0)
        self.alive -= 1
        document = nbformat.read(job.notebook.path, 4)
        document.cells[0].outputs = [v4.new_output("stream", text=self.text)]
        if job.name != self.broken:
            nbformat.write(document, job.scratch / "copy.ipynb")
        return job.name == self.broken


@pytest.fixture
def diamond(workspace: Path) -> dict[str, sources.Notebook]:
    notebook(workspace, "01-a", ONE)
    for name in ("02-b", "03-c"):
        notebook(workspace, name, ONE, needs=["01-a"])
    notebook(workspace, "04-d", ONE, needs=["02-b", "03-c"])
    return sources.discover(workspace / "notebooks")


def planned(known: Mapping[str, sources.Notebook], steps: int = 3) -> dict[str, jobs.Job]:
    """Plan all notebooks; `steps` is a parameter of the one called 03-c."""
    values = {name: {"steps": steps} if name == "03-c" else {} for name in known}
    return jobs.plan(known, known, "study", values)


def run_all(plan: dict[str, jobs.Job], papermill: Papermill, workers: int = 1) -> list[str]:
    """Run a plan by a stand-in for papermill; return the states of its jobs."""
    with screen.Screen(io.StringIO(), plan.values()) as view:
        asyncio.run(execution.run(plan, workers, view, papermill))
    return [job.state for job in plan.values()]


def test_order_and_workers(diamond: Mapping[str, Any]) -> None:
    papermill = Papermill()
    assert run_all(planned(diamond), papermill, 2) == ["run"] * 4
    assert papermill.started == ["01-a", "02-b", "03-c", "04-d"]
    assert papermill.most == 2


def test_done_is_not_done_again(workspace: Path, diamond: Mapping[str, Any]) -> None:
    result = workspace / "results" / "study" / "02-b-scores.csv"
    result.parent.mkdir(parents=True)
    result.write_text("a\n1\n", "utf-8")
    papermill = Papermill()
    run_all(planned(diamond), papermill)
    assert run_all(planned(diamond), papermill) == ["cached"] * 4
    page = workspace / "book" / "notebooks" / "03-c.ipynb"
    made = page.read_bytes()
    page.write_bytes(made + b" ")
    run_all(planned(diamond), papermill)
    assert page.read_bytes() == made
    result.write_text("a\n2\n", "utf-8")
    assert run_all(planned(diamond), papermill) == ["cached", "run", "cached", "cached"]
    assert run_all(planned(diamond, steps=4), papermill) == ["cached", "cached", "run", "run"]


def test_a_failure_blocks_what_needs_it_and_nothing_else(
    workspace: Path, diamond: Mapping[str, Any]
) -> None:
    plan, papermill = planned(diamond), Papermill(broken="02-b")
    assert run_all(plan, papermill) == ["run", "failed", "run", "blocked"]
    assert papermill.started.count("02-b") == execution.TRIES  # it never started a cell
    assert "kernel" in plan["02-b"].message
    assert not (workspace / "book" / "notebooks" / "02-b.ipynb").exists()


def test_a_page_too_large_is_refused(workspace: Path, diamond: Mapping[str, Any]) -> None:
    plan = planned(diamond)
    assert run_all(plan, Papermill(text="x" * pages.LIMIT_BYTES))[0] == "failed"
    assert "more than 1" in plan["01-a"].message
    assert plan["01-a"].kept("FAILED.ipynb").is_file()
    assert not (workspace / "book").exists()


def test_a_page_names_tables_and_objects_not_by_chance(diamond: Mapping[str, Any]) -> None:
    import pandas as pd

    def shown() -> list[dict[str, Any]]:
        made = [pd.DataFrame({"x": [n]}).style.set_properties(color="red") for n in range(2)]
        data = [{"text/plain": repr(style), "text/html": style.to_html()} for style in made]
        cell = v4.new_code_cell(outputs=[v4.new_output("display_data", d) for d in data], id="a-b")
        document = v4.new_notebook(cells=[cell])
        pages.settle(document, planned(diamond)["01-a"])
        return [output.data for output in document.cells[0].outputs]

    one, two = shown(), shown()
    assert one == two
    for number, data in enumerate(one):
        html = data["text/html"]
        assert html.count("T_") == html.count(f"T_a-b_{number}") > 3  # style sheet, rows and cells
        assert " at 0x" not in data["text/plain"]


# --- the command line ---------------------------------------------------------------------------


def test_mistakes_get_one_line(
    three: Mapping[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    mistakes = {
        "--profile sutdy": "'study'",
        "--profile study 99": "notebook: got '99'",
        "--profile study --set stepz=1": "'steps'",
        "--profile study 01 --set size=1": "--set: got 'size'",
        "--profile study --set steps=ten": "int",
        "--profile study --workers 0": "--workers",
    }
    for words, said in mistakes.items():
        assert run.main(words.split()) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_list(three: Mapping[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--profile", "study", "--list"]) == 0
    assert "02-loss  to do  needs 01-waves\n  steps = 9" in capsys.readouterr().out


@pytest.mark.parametrize("terminal", [True, False])
def test_the_screen(
    diamond: Mapping[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # a pipe stays a pipe
    stream, plan = io.StringIO(), planned(diamond)
    stream.isatty = lambda: terminal  # type: ignore[method-assign]
    job = plan["01-a"]
    told = {"label": "training", "done": 3, "total": 9, "note": "loss [0.5]"}
    (tmp_path / "progress").write_text(json.dumps(told), "utf-8")
    job.scratch, job.state = tmp_path, "running"
    with screen.Screen(stream, plan.values()) as view:
        view.show()
        job.state, job.message = "failed", "ValueError: " + 30 * "long "
        view.show()
    text = stream.getvalue()
    assert "training 3/9 loss [0.5]" in text
    assert f"01-a failed  {job.message}".strip() in text
    assert ("\x1b" in text) == terminal


# --- running, with kernels ----------------------------------------------------------------------


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, run.__file__, "--profile", "study", *arguments],
        env={**os.environ, "DCD_ROOT": str(folder), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background has its children ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A project after one run: a notebook did well, one refused, one broke, one was blocked."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "notebooks" / "params").mkdir(parents=True)
    kernel = "import os, sys\nfor t in (sys.executable, os.getcwd()): print(t, flush=True)"
    notebook(folder, "01-good", ONE, kernel, "steps, rate, profile")
    refuse = (
        "from dcd_core.types import ContractError\nraise ContractError('patch', 3, 'even', '4')"
    )
    notebook(folder, "02-refuses", ONE, refuse, needs=["01-good"])
    notebook(folder, "03-breaks", ONE, "1 + 1", "1 / 0")
    notebook(folder, "04-blocked", ONE, needs=["03-breaks"])
    profile(folder, "shared: {steps: 7, rate: 1e-5}\n")
    profile(folder, "shared: {steps: 5}\n", "paper")
    # Another kernel called python3, first on the path of kernels, must not be the one that runs.
    other = folder / "jupyter" / "kernels" / "python3" / "kernel.json"
    other.parent.mkdir(parents=True)
    spec = {"argv": ["false", "{connection_file}"], "display_name": "no", "language": "python"}
    other.write_text(json.dumps(spec), "utf-8")
    process = start(folder, "--workers", "2", JUPYTER_PATH=str(folder / "jupyter"))
    out, error = process.communicate(timeout=300)
    return SimpleNamespace(folder=folder, out=out, error=error, status=process.returncode)


@pytest.mark.slow
def test_each_notebook_ends_as_it_should(ended: SimpleNamespace) -> None:
    assert ended.status == 1
    assert "Traceback" not in ended.out + ended.error
    states = dict(line.split()[:2] for line in ended.out.splitlines()[-4:])
    assert states == {
        "01-good": "run",
        "02-refuses": "failed",
        "03-breaks": "failed",
        "04-blocked": "blocked",
    }
    assert "patch: got 3; expected even. Try: 4" in ended.out
    failed = "runs/executed/study/03-breaks.FAILED.ipynb"
    assert f"ZeroDivisionError: division by zero (see [4] in {failed})" in ended.out
    assert (ended.folder / failed).is_file()
    pages = (ended.folder / "book" / "notebooks").iterdir()
    assert [path.name for path in pages] == ["01-good.ipynb"]


@pytest.mark.slow
def test_a_page_carries_its_provenance_and_no_chance(
    ended: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DCD_ROOT", str(ended.folder))
    page = nbformat.read(ended.folder / "book" / "notebooks" / "01-good.ipynb", 4)
    known = sources.discover(ended.folder / "notebooks")
    resolved = parameters.resolve(known, "study", {})
    job = jobs.plan(known, ["01-good"], "study", resolved)["01-good"]
    made = page.metadata.dcd
    assert job.hashes.items() <= made.items()
    assert (made.profile, made.parameters) == ("study", resolved["01-good"])
    assert set(page.metadata) == {"dcd", "kernelspec", "language_info"}
    tags = [sources.tags(cell) for cell in page.cells]
    assert tags[:2] == [["parameters", "remove-cell"], ["injected-parameters", "hide-input"]]
    ids = [cell.id for cell in page.cells]
    assert ids == ["cell-0", "injected-parameters", "cell-1", "cell-2"]
    assert not [cell for cell in page.cells if {"papermill", "execution"} & set(cell.metadata)]
    # This interpreter's kernel ran in the project's folder; pieces of a stream are joined.
    assert [o.text for o in page.cells[2].outputs] == [f"{sys.executable}\n{ended.folder}\n"]
    assert page.cells[3].outputs[0].data["text/plain"] == "(7, 1e-05, 'study')"


@pytest.mark.slow
def test_the_same_run_gives_the_same_page_and_other_profiles_none(
    ended: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DCD_ROOT", str(ended.folder))
    page = ended.folder / "book" / "notebooks" / "01-good.ipynb"
    before = page.read_bytes()
    assert run.main(["--profile", "study", "01"]) == 0
    assert "cached" in capsys.readouterr().out
    assert run.main(["--profile", "study", "01", "--force"]) == 0
    assert "cached" not in capsys.readouterr().out
    asked = ["--profile", "paper", "01", "--set", "rate=2"]
    assert run.main(asked) == 0
    assert page.read_bytes() == before
    assert run.main([*asked, "--publish"]) == 0
    assert "cached" in capsys.readouterr().out
    made = nbformat.read(page, 4).metadata.dcd
    assert (made.profile, made.parameters.rate) == ("paper", 2.0)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals and named pipes")
@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_the_kernel_ends_with_the_runner(workspace: Path, name: str) -> None:
    pipe = workspace / "pipe"
    os.mkfifo(pipe)
    wait = f"import os, signal\nopen({str(pipe)!r}, 'w').write(str(os.getpid()))\nsignal.pause()"
    notebook(workspace, "01-waits", ONE, wait)
    profile(workspace, "shared: {steps: 3}\n")
    runner = start(workspace)
    kernel = psutil.Process(int(pipe.read_text("utf-8")))  # waits until the cell runs
    runner.send_signal(getattr(signal, name))
    _, error = runner.communicate(timeout=60)
    if name != "SIGKILL":
        assert runner.returncode == 130
        assert "run again" in error
        assert "Traceback" not in error
    assert psutil.wait_procs([kernel], timeout=60)[0]
    assert not (workspace / "book").exists()
    assert not list((workspace / "runs").rglob("*.ipynb"))
