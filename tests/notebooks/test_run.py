"""The runner, on tiny notebooks: right parameters and order, nothing done twice, nothing lost."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import run

from dcd_core.types import ContractError
from runner import execution, jobs, pages, parameters, screen, sources

ONE = """\
steps = 3  # how many
rate = 0.5  # how fast
profile = "smoke"  # which
"""


def notebook(folder: Path, name: str, *cells: str, needs: Sequence[str] = ()) -> Path:
    """Write a clean notebook; its first cell is the parameters cell."""
    made = [
        {
            "cell_type": "code",
            "id": f"cell-{i}",
            "metadata": {"tags": ["parameters"]} if i == 0 else {},
            "source": text.splitlines(keepends=True),
            "outputs": [],
            "execution_count": None,
        }
        for i, text in enumerate(cells)
    ]
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": spec, "dcd": {"needs": list(needs)}}
    document = {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    path = folder / "notebooks" / f"{name}.ipynb"
    path.write_text(json.dumps(document), "utf-8")
    return path


def profile(folder: Path, text: str, name: str = "demo") -> None:
    (folder / "notebooks" / "params" / f"{name}.yml").write_text(text, "utf-8")


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


@pytest.fixture
def three(workspace: Path) -> dict[str, sources.Notebook]:
    notebook(workspace, "01-waves", ONE)
    notebook(workspace, "02-loss", "steps = 1", needs=["01-waves"])
    notebook(workspace, "10-cost", "size = 8", needs=["02-loss"])
    profile(workspace, "shared: {steps: 9}\n10-cost: {size: 4}\n")
    return sources.discover(workspace / "notebooks")


# --- asking -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ([], ["01-waves", "02-loss", "10-cost"]),
        (["02"], ["02-loss"]),
        (["cost", "01"], ["01-waves", "10-cost"]),
        (["notebooks/02-loss.ipynb"], ["02-loss"]),
    ],
)
def test_select(three: Mapping[str, Any], given: list[str], chosen: list[str]) -> None:
    assert sources.select(three, given) == chosen


def test_select_names_the_nearest(three: Mapping[str, Any]) -> None:
    with pytest.raises(ContractError, match="'waves'"):
        sources.select(three, ["wavs"])


def test_needed_notebooks_come_along_and_first(three: Mapping[str, Any]) -> None:
    assert sources.with_needs(three, ["10-cost"]) == ["01-waves", "02-loss", "10-cost"]


def test_needs_must_exist_and_end(workspace: Path) -> None:
    notebook(workspace, "01-a", "", needs=["02-b"])
    notebook(workspace, "02-b", "", needs=["01-a"])
    notebook(workspace, "03-c", "", needs=["01-b"])
    known = sources.discover(workspace / "notebooks")
    with pytest.raises(ContractError, match="01-a -> 02-b -> 01-a"):
        sources.with_needs(known, ["01-a"])
    with pytest.raises(ContractError, match=r"'01-b'.*'0[12]-[ab]'"):
        sources.with_needs(known, ["03-c"])


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_chunks_cover_everything_once(count: int) -> None:
    names = list("abcde")
    parts = [sources.chunk(names, f"{i}/{count}") for i in range(1, count + 1)]
    assert sorted(name for part in parts for name in part) == names


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b", "-1/2", ""])
def test_chunk_refuses(part: str) -> None:
    with pytest.raises(ContractError, match="--chunk"):
        sources.chunk(["a"], part)


def test_declared_agrees_with_papermill(workspace: Path) -> None:
    import papermill

    path = notebook(workspace, "01-a", ONE + "size: int = 4\nnames = ['a', 'b']\nnone = None\n")
    declared = sources.read(path).declared
    assert declared == {
        "steps": 3,
        "rate": 0.5,
        "profile": "smoke",
        "size": 4,
        "names": ["a", "b"],
        "none": None,
    }
    assert set(declared) == set(papermill.inspect_notebook(str(path)))


# --- parameters ---------------------------------------------------------------------------------


def test_later_layers_win_and_only_declared_ones_reach(three: Mapping[str, Any]) -> None:
    found = parameters.resolve(three, "demo", {"rate": 1})
    assert found == {
        "01-waves": {"profile": "demo", "steps": 9, "rate": 1.0},
        "02-loss": {"steps": 9},
        "10-cost": {"size": 4},
    }
    assert isinstance(found["01-waves"]["rate"], float)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("shared: {stepz: 9}", r"shared key.*'stepz'.*'steps'"),
        ("01-wave: {steps: 9}", r"section.*'01-waves'"),
        ("01-waves: {size: 4}", r"parameter of 01-waves.*'size'"),
        ("shared: {steps: many}", r"steps of 01-waves.*'many'.*int"),
        ("shared: {steps: 1.5}", "int"),
        ("shared: {steps: true}", "int"),
        ("01-waves: {rate: true}", "float"),
        ("01-waves: {rate: [1]}", "float"),
    ],
)
def test_wrong_parameters_are_refused(
    workspace: Path, three: Mapping[str, Any], text: str, said: str
) -> None:
    profile(workspace, text)
    with pytest.raises(ContractError, match=said):
        parameters.resolve(three, "demo", {})


def test_numbers_take_the_declared_type(workspace: Path, three: Mapping[str, Any]) -> None:
    profile(workspace, "shared: {steps: 1e3}\n01-waves: {rate: 1e-5}")
    found = parameters.resolve(three, "demo", {})["01-waves"]
    assert found == {"profile": "demo", "steps": 1000, "rate": 1e-5}
    assert isinstance(found["steps"], int)


def test_assignments() -> None:
    found = parameters.assignments(["a=1", "b=[1, 2]", "c=x=y", "d=1e-3"])
    assert found == {"a": 1, "b": [1, 2], "c": "x=y", "d": 0.001}
    for wrong in ("a", "=1", "a b=1"):
        with pytest.raises(ContractError, match="--set"):
            parameters.assignments([wrong])


# --- what counts as changed ---------------------------------------------------------------------


def test_the_source_hash_sees_cells_and_not_outputs(workspace: Path) -> None:
    document = read(notebook(workspace, "01-a", ONE, "1 + 1"))
    first = jobs.source_sha256(document)
    document["cells"][1].update(outputs=[{"output_type": "stream"}], execution_count=3)
    document["cells"][1]["source"] = "1 + 1"
    assert jobs.source_sha256(document) == first
    document["cells"][1]["source"] = "1 + 2"
    assert jobs.source_sha256(document) != first


def test_imported() -> None:
    texts = [
        "import dcd_core\nimport numpy as np, dcd_lab.stats",
        "def f():\n    from dcd_core import wavelet, dcd as d",
        "from dcd_lab.data.scans import x",
        "from numpy import dcd_core",
    ]
    assert jobs.imported(texts) == {"dcd_core", "stats", "wavelet", "dcd", "data"}


def test_the_package_hash_follows_imports(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = workspace / "dcd_core"
    (package / "deep").mkdir(parents=True)
    texts = {
        "__init__.py": "from dcd_core import base",
        "base.py": "",
        "top.py": "def f():\n    from dcd_core.deep import inner",
        "deep/__init__.py": "",
        "deep/inner.py": "x = 1",
        "other.py": "",
    }
    for name, text in texts.items():
        (package / name).write_text(text, "utf-8")
    monkeypatch.setattr(jobs, "PACKAGE", package)
    monkeypatch.setattr("dcd_lab.records.source_hash", lambda *names: ",".join(names))
    using = read(notebook(workspace, "01-a", "", "from dcd_core import top"))
    alone = read(notebook(workspace, "02-b", "", "import json"))
    assert jobs.package_sha256(using) == "base,dcd_core,deep,top"
    assert jobs.package_sha256(alone) == jobs.sha256([])[:12]


def test_a_key_depends_on_parameters_and_needs(three: Mapping[str, Any]) -> None:
    def keys(**changed: int) -> dict[str, str]:
        values: dict[str, dict[str, Any]] = {name: {} for name in three}
        values["02-loss"] = changed
        return {
            name: job.key for name, job in jobs.plan(three, list(three), "demo", values).items()
        }

    before, after = keys(), keys(steps=2)
    changed = [name for name in three if before[name] != after[name]]
    assert changed == ["02-loss", "10-cost"]


# --- running, without kernels -------------------------------------------------------------------


class Children:
    """Stands in for papermill: every child ends at once and leaves an executed copy, or none."""

    def __init__(self, broken: Sequence[str] = ()) -> None:
        self.broken, self.started, self.alive, self.most = broken, list[str](), 0, 0

    def __call__(self, command: list[str], **options: Any) -> SimpleNamespace:
        name = Path(command[3]).stem
        self.started.append(name)
        self.alive += 1
        self.most = max(self.most, self.alive)
        self.environment = options["env"]
        code = 1 if name in self.broken else 0
        if code == 0:
            document = read(Path(command[3]))
            document["cells"][0]["execution_count"] = 1
            Path(command[4]).write_text(json.dumps(document), "utf-8")
        child = SimpleNamespace(returncode=code)
        child.poll = lambda: self._ended(child)
        return child

    def _ended(self, child: SimpleNamespace) -> int:
        self.alive -= 1
        return child.returncode


def run_all(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    plan: dict[str, jobs.Job],
    children: Children,
    workers: int,
) -> bool:
    """Run `plan` with stand-ins for papermill; git and everything else stay what they are."""
    stand_in = SimpleNamespace(Popen=children, DEVNULL=None, STDOUT=None)
    monkeypatch.setattr(execution, "subprocess", stand_in)
    with TemporaryDirectory(dir=folder) as scratch:
        return execution.Runner(plan, workers, Path(scratch)).run()


@pytest.fixture
def diamond(workspace: Path) -> dict[str, sources.Notebook]:
    notebook(workspace, "01-a", ONE)
    for name in ("02-b", "03-c"):
        notebook(workspace, name, ONE, needs=["01-a"])
    notebook(workspace, "04-d", ONE, needs=["02-b", "03-c"])
    return sources.discover(workspace / "notebooks")


def planned(
    known: Mapping[str, sources.Notebook], steps: int = 3, **options: Any
) -> dict[str, jobs.Job]:
    """Plan all notebooks; `steps` is a parameter of the one called 03-c."""
    values = {name: {"steps": steps} if name == "03-c" else {} for name in known}
    return jobs.plan(known, list(known), "demo", values, **options)


def test_order_and_workers(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, diamond: Mapping[str, Any]
) -> None:
    children = Children()
    assert run_all(monkeypatch, workspace, planned(diamond), children, 2)
    assert children.started == ["01-a", "02-b", "03-c", "04-d"]
    assert children.most == 2
    assert children.environment["DCD_ROOT"] == str(workspace)


def test_done_is_not_done_again(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, diamond: Mapping[str, Any]
) -> None:
    children = Children()
    assert run_all(monkeypatch, workspace, planned(diamond), children, 1)
    plan = planned(diamond)
    assert run_all(monkeypatch, workspace, plan, children, 1)
    assert len(children.started) == 4
    assert {job.state for job in plan.values()} == {"cached"}
    page = workspace / "book" / "notebooks" / "03-c.ipynb"
    page.write_text(page.read_text("utf-8") + " ", "utf-8")
    assert run_all(monkeypatch, workspace, planned(diamond), children, 1)
    assert children.started[4:] == ["03-c"]
    assert run_all(monkeypatch, workspace, planned(diamond, forced=["02-b"]), children, 1)
    assert children.started[5:] == ["02-b"]
    assert run_all(monkeypatch, workspace, planned(diamond, steps=4), children, 1)
    assert children.started[6:] == ["03-c", "04-d"]


def test_a_lost_result_is_made_again(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, diamond: Mapping[str, Any]
) -> None:
    result = workspace / "results" / "demo" / "01-a-scores.csv"
    result.parent.mkdir(parents=True)
    result.write_text("a\n1\n", "utf-8")
    assert run_all(monkeypatch, workspace, planned(diamond), Children(), 1)
    assert jobs.is_done(planned(diamond)["01-a"])
    result.unlink()
    assert not jobs.is_done(planned(diamond)["01-a"])


def test_a_failure_blocks_what_needs_it_and_nothing_else(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, diamond: Mapping[str, Any]
) -> None:
    plan, children = planned(diamond), Children(broken=["02-b"])
    assert not run_all(monkeypatch, workspace, plan, children, 1)
    assert [job.state for job in plan.values()] == ["run", "failed", "run", "blocked"]
    assert children.started.count("02-b") == execution.TRIES  # it never started a cell
    assert "kernel" in plan["02-b"].message
    assert not (workspace / "book" / "notebooks" / "02-b.ipynb").exists()


def test_a_page_too_large_is_refused(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, diamond: Mapping[str, Any]
) -> None:
    monkeypatch.setattr(execution, "LIMIT_BYTES", 100)
    plan = planned(diamond)
    assert not run_all(monkeypatch, workspace, plan, Children(), 1)
    assert "below 1 MB" in plan["01-a"].message
    assert plan["01-a"].failed.is_file()
    assert not plan["01-a"].page.exists()


def published(*outputs: dict[str, Any]) -> list[dict[str, Any]]:
    """What a page keeps of the outputs of its only cell."""
    cell = {
        "cell_type": "code",
        "id": "a-b",
        "metadata": {},
        "outputs": list(outputs),
        "source": "",
    }
    job = SimpleNamespace(
        notebook=SimpleNamespace(document={}), hashes={}, profile="demo", parameters={}
    )
    kept: list[dict[str, Any]] = pages.publishable({"cells": [cell]}, job)["cells"][0]["outputs"]
    return kept


def test_pieces_of_a_stream_are_joined() -> None:
    def piece(name: str, text: str) -> dict[str, Any]:
        return {"output_type": "stream", "name": name, "text": [text]}

    picture = {"output_type": "display_data"}
    joined = published(piece("stdout", "a"), piece("stdout", "b\nc"), piece("stderr", "d"), picture)
    assert [output.get("text") for output in joined] == [["ab\n", "c"], ["d"], None]


def test_styled_tables_are_named_by_their_cell_and_not_by_lot() -> None:
    import pandas as pd

    def shown() -> list[dict[str, Any]]:
        made = [pd.DataFrame({"x": [n]}).style.set_properties(color="red") for n in range(2)]
        plain = ("text/plain", "<Styler at 0x7f4e4a556a90>")
        both = [dict([plain, ("text/html", style.to_html())]) for style in made]
        return [{"output_type": "display_data", "data": data} for data in both]

    one, two = published(*shown()), published(*shown())
    assert one == two
    for number, output in enumerate(one):
        html = output["data"]["text/html"]
        assert f'<table id="T_a-b_{number}">' in html
        assert html.count("T_") == html.count(f"T_a-b_{number}") > 3  # style sheet, rows and cells
    assert one[0]["data"]["text/plain"] == "<Styler>"


# --- the command line ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--profile", "dmeo"], "'demo'"),
        (["--profile", "demo", "99"], "notebook: got '99'"),
        (["--profile", "demo", "--set", "stepz=1"], "'steps'"),
        (["--profile", "demo", "10", "--set", "colour=1"], "--set: got 'colour'"),
        (["--profile", "demo", "--set", "steps=ten"], "int"),
        (["--profile", "demo", "--workers", "0"], "--workers"),
        (["--profile", "demo", "--chunk", "3/2"], "--chunk"),
        (["--profile", "demo", "--results"], "results/demo"),
    ],
)
def test_mistakes_get_one_line(
    three: Mapping[str, Any], capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert run.main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_list_shows_parameters_and_state(
    three: Mapping[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main(["--profile", "demo", "--list"]) == 0
    text = capsys.readouterr().out
    assert "02-loss  to do  needs 01-waves\n  steps = 9" in text
    assert "  rate = 0.5" in text


def test_results_shows_the_last_notebooks_tables(
    workspace: Path, three: Mapping[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = workspace / "results" / "demo"
    folder.mkdir(parents=True)
    (folder / "05-brats-scores.csv").write_text("method,dice\nother,0.1\n")
    (folder / "11-results-summary.csv").write_text("method,dice\nDCD,0.5\n")
    assert run.main(["--profile", "demo", "--results"]) == 0
    text = capsys.readouterr().out
    assert "DCD" in text
    assert "other" not in text


def test_a_terminal_shows_one_line_per_running_notebook(diamond: Mapping[str, Any]) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    view, plan = screen.Screen(terminal), planned(diamond)
    first, second = plan["01-a"], plan["02-b"]
    first.state = second.state = "running"
    first.started_s = second.started_s = time.monotonic()
    told = {"label": "training", "done": 3, "total": 9, "note": "loss 0.5"}
    view.show(plan.values(), lambda job: told)
    assert terminal.getvalue().count("running  0 s  training 3/9 loss 0.5\n") == 2
    first.state, first.seconds = "run", 4.0
    view.show(plan.values(), lambda job: {})
    last = terminal.getvalue().split("\x1b[2A\x1b[J")[1].splitlines()
    assert [line.split()[:2] for line in last] == [["01-a", "run"], ["02-b", "running"]]


def test_columns_line_up() -> None:
    assert screen.columns([("a", "bb"), ("ccc", "")]) == "a    bb\nccc"


# --- running, with kernels ----------------------------------------------------------------------


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Another kernel called python3, first on the path of kernels, must not be the one that runs.
    other = folder / "jupyter" / "kernels" / "python3" / "kernel.json"
    other.parent.mkdir(parents=True, exist_ok=True)
    spec = {"argv": ["false", "{connection_file}"], "display_name": "no", "language": "python"}
    other.write_text(json.dumps(spec), "utf-8")
    environment = {**os.environ, "DCD_ROOT": str(folder), "JUPYTER_PATH": str(folder / "jupyter")}
    return subprocess.run(
        [sys.executable, run.__file__, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def project_after_a_run(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A project after one run: a notebook did well, one refused, one broke, one was blocked."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "notebooks" / "params").mkdir(parents=True)
    kernel = "import os, sys\nprint(sys.executable)\nprint(os.getcwd())"
    notebook(folder, "01-good", ONE, kernel, "steps, rate, profile")
    refuse = (
        "from dcd_core.types import ContractError\nraise ContractError('patch', 3, 'even', '4')"
    )
    notebook(folder, "02-refuses", ONE, refuse, needs=["01-good"])
    notebook(folder, "03-breaks", ONE, "1 + 1", "1 / 0")
    notebook(folder, "04-blocked", ONE, needs=["03-breaks"])
    profile(folder, "shared: {steps: 7, rate: 1e-5}\n")
    profile(folder, "shared: {steps: 5}\n", "study")
    return folder, command(folder, "--profile", "demo", "--workers", "2")


def test_each_notebook_ends_as_it_should(project_after_a_run: Any) -> None:
    folder, done = project_after_a_run
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    states = dict(line.split()[:2] for line in done.stdout.split("seconds", 1)[1].splitlines()[1:])
    assert states == {
        "01-good": "run",
        "02-refuses": "failed",
        "03-breaks": "failed",
        "04-blocked": "blocked",
    }
    assert "patch: got 3; expected even. Try: 4" in done.stdout
    failed = "runs/executed/demo/03-breaks.FAILED.ipynb"
    assert f"cell 3: ZeroDivisionError: division by zero (see {failed})" in done.stdout
    assert (folder / failed).is_file()
    assert [path.name for path in (folder / "book" / "notebooks").iterdir()] == ["01-good.ipynb"]


def test_a_page_carries_its_provenance_and_no_chance(
    project_after_a_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = project_after_a_run
    monkeypatch.setenv("DCD_ROOT", str(folder))
    page = read(folder / "book" / "notebooks" / "01-good.ipynb")
    known = sources.discover(folder / "notebooks")
    made = page["metadata"]["dcd"]
    assert made["profile"] == "demo"
    assert made["parameters"] == {"steps": 7, "rate": 1e-5, "profile": "demo"}
    assert made["source_sha256"] == jobs.source_sha256(known["01-good"].document)
    assert made["params_sha256"] == jobs.sha256(parameters.resolve(known, "demo", {})["01-good"])
    assert set(page["metadata"]) == {"dcd", "kernelspec", "language_info"}
    tags = [sources.tags(cell) for cell in page["cells"]]
    assert tags[:2] == [["parameters", "remove-cell"], ["injected-parameters", "hide-input"]]
    ids = [cell["id"] for cell in page["cells"]]
    assert ids == ["cell-0", "injected-parameters", "cell-1", "cell-2"]
    assert not [
        cell for cell in page["cells"] if {"papermill", "execution"} & set(cell["metadata"])
    ]
    outputs = [cell["outputs"] for cell in page["cells"]]
    assert outputs[2][0]["text"] == [f"{sys.executable}\n", f"{folder}\n"]  # kernel and its folder
    assert outputs[3][0]["data"]["text/plain"] == ["(7, 1e-05, 'demo')"]


def test_the_same_run_gives_the_same_page(
    project_after_a_run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = project_after_a_run
    monkeypatch.setenv("DCD_ROOT", str(folder))
    page = folder / "book" / "notebooks" / "01-good.ipynb"
    before = page.read_bytes()
    assert run.main(["--profile", "demo", "01", "--force"]) == 0
    assert page.read_bytes() == before
    capsys.readouterr()
    assert run.main(["--profile", "demo", "01"]) == 0
    assert "cached" in capsys.readouterr().out


def test_other_profiles_stay_out_of_the_book_until_published(
    project_after_a_run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = project_after_a_run
    monkeypatch.setenv("DCD_ROOT", str(folder))
    page = folder / "book" / "notebooks" / "01-good.ipynb"
    demo = page.read_bytes()
    asked = ["--profile", "study", "01", "--set", "rate=2"]
    assert run.main(asked) == 0
    assert page.read_bytes() == demo
    executed = read(folder / "runs" / "executed" / "study" / "01-good.ipynb")
    assert executed["metadata"]["dcd"]["parameters"]["rate"] == 2.0
    capsys.readouterr()
    assert run.main([*asked, "--publish"]) == 0
    assert "cached" in capsys.readouterr().out
    assert read(page) == executed


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals and named pipes")
def test_an_interrupt_ends_the_kernel_and_leaves_no_page(workspace: Path) -> None:
    pipe = workspace / "pipe"
    os.mkfifo(pipe)
    wait = f"import os, signal\nopen({str(pipe)!r}, 'w').write(str(os.getpid()))\nsignal.pause()"
    notebook(workspace, "01-waits", ONE, wait)
    profile(workspace, "shared: {}\n")
    runner = subprocess.Popen(
        [sys.executable, run.__file__, "--profile", "demo"],
        env={**os.environ, "DCD_ROOT": str(workspace)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background has its children ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    kernel = psutil.Process(int(pipe.read_text("utf-8")))  # waits until the cell runs
    runner.send_signal(signal.SIGINT)
    _, error = runner.communicate(timeout=30)
    assert runner.returncode == 130
    assert "run again" in error
    assert "Traceback" not in error
    assert not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE
    assert not (workspace / "book").exists()
    assert not list((workspace / "runs").rglob("*.ipynb"))
