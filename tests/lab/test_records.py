"""Records: what is written can be read, comes back unchanged, and says where it came from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dcd_core.progress import progress
from dcd_core.storage import atomic
from dcd_core.types import ContractError
from dcd_lab import records
from dcd_lab.cache import run_dir

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def profile(workspace: Path, text: str, name: str = "demo") -> None:
    (workspace / "notebooks" / "params" / f"{name}.yml").write_text(text, "utf-8")


# --- files --------------------------------------------------------------------------------------


def test_atomic_replaces_on_success(tmp_path: Path) -> None:
    target = tmp_path / "new" / "table.csv"
    with atomic(target) as temporary:
        temporary.write_text("whole", "utf-8")
        assert not target.exists()
        assert temporary.parent == target.parent
        assert temporary.suffix == ".csv"
    assert target.read_text("utf-8") == "whole"
    assert [path.name for path in target.parent.iterdir()] == ["table.csv"]


def test_atomic_leaves_the_old_file_on_error(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old", "utf-8")
    with pytest.raises(RuntimeError, match="halfway"), atomic(target) as temporary:
        temporary.write_text("ne", "utf-8")
        raise RuntimeError("halfway")
    assert target.read_text("utf-8") == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(os.name == "nt", reason="an open file cannot be replaced there")
def test_atomic_never_changes_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old", "utf-8")
    with target.open(encoding="utf-8") as reader:
        with atomic(target) as temporary:
            temporary.write_text("new", "utf-8")
        assert reader.read() == "old"
    assert target.read_text("utf-8") == "new"


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_atomic_files_are_ordinary_files(tmp_path: Path) -> None:
    plain, ours = tmp_path / "plain", tmp_path / "ours"
    plain.touch()
    with atomic(ours):
        pass
    assert ours.stat().st_mode == plain.stat().st_mode


def test_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DCD_ROOT", raising=False)
    deep = tmp_path / "project" / "notebooks"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert records.root() == deep.resolve()
    (tmp_path / "project" / "pyproject.toml").write_text('[project]\nname = "dcd-core"\n')
    (deep / "pyproject.toml").write_text('[project]\nname = "another"\n')
    assert records.root() == (tmp_path / "project").resolve()
    monkeypatch.setenv("DCD_ROOT", str(tmp_path))
    assert records.root() == tmp_path.resolve()


def test_real_cases(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCD_ROOT", str(workspace / "checkout"))
    assert records.real_cases() is None
    (workspace / "shared" / "data").mkdir(parents=True)
    assert records.real_cases() == workspace / "shared" / "data"
    monkeypatch.setenv("DCD_REAL_CASES", str(workspace / "nowhere"))
    with pytest.raises(ContractError, match="DCD_REAL_CASES"):
        records.real_cases()
    monkeypatch.setenv("DCD_REAL_CASES", str(workspace))
    assert records.real_cases() == workspace


# --- parameters ---------------------------------------------------------------------------------


def test_params_merge_shared_and_own(workspace: Path) -> None:
    profile(workspace, "shared: {seed: 1, steps: 5}\n05-brats: {steps: 7, lr: 1e-3}\n06-isles:\n")
    own = {"profile": "demo", "seed": 1, "steps": 7, "lr": 0.001}
    assert records.params("demo", "05-brats") == own
    assert records.params("demo", "06-isles") == {"profile": "demo", "seed": 1, "steps": 5}


@pytest.mark.parametrize(
    ("asked", "notebook", "said"),
    [
        ("dmeo", "05-brats", "'demo'"),
        ("demo", "05-bratz", "'05-brats'"),
        ("demo", "shared", "05-brats"),
        ("broken", "05-brats", "line 2"),
        ("shape", "05-brats", "a mapping"),
    ],
)
def test_params_errors_name_the_nearest(
    workspace: Path, asked: str, notebook: str, said: str
) -> None:
    profile(workspace, "05-brats: {steps: 7}\n")
    profile(workspace, "a: [1, 2\n", "broken")
    profile(workspace, "05-brats: 3\n", "shape")
    with pytest.raises(ContractError, match=said):
        records.params(asked, notebook)


def test_yaml_numbers() -> None:
    read = records.read_yaml("[1e-3, 5E4, -1.5e+3, 12, 0.5, 1e, e5, 1.2.3, '1e-3']")
    assert read == [1e-3, 5e4, -1500.0, 12, 0.5, "1e", "e5", "1.2.3", "1e-3"]


# --- identity -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Setting:
    lr: float
    bands: tuple[str, ...]


class Pair(NamedTuple):
    a: int
    b: float


def test_fingerprint_sees_values_not_their_containers() -> None:
    name = records.fingerprint({"lr": 0.5, "bands": ["aad"]}, {"a": 1, "b": 2.0})
    assert records.fingerprint(Setting(0.5, ("aad",)), Pair(1, 2.0)) == name
    assert records.fingerprint({"bands": ["aad"], "lr": np.float64(0.5)}, Pair(1, 2.0)) == name
    assert len(name) == 12
    assert set(name) <= set("0123456789abcdef")
    assert records.fingerprint(Path("a") / "b", {3, 1, 2}) == records.fingerprint("a/b", [1, 2, 3])
    assert records.fingerprint(np.arange(3)) == records.fingerprint([0, 1, 2])


def test_fingerprint_is_the_sha256_of_canonical_json() -> None:
    expected = hashlib.sha256(b'[1,{"a":null,"b":[true,0.5]}]').hexdigest()[:12]
    assert records.fingerprint(1, {"b": (True, 0.5), "a": None}) == expected


@given(PLAIN, PLAIN)
def test_fingerprint_differs_when_values_differ(one: object, other: object) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (records.fingerprint(one) == records.fingerprint(other)) == same


@pytest.mark.parametrize(
    "value", [len, object(), Setting, lambda: 0], ids=["function", "object", "class", "lambda"]
)
def test_fingerprint_refuses_what_has_no_value(value: object) -> None:
    with pytest.raises(ContractError, match="fingerprint"):
        records.fingerprint({"key": [value]})


def test_source_hash_follows_the_files(project: Path) -> None:
    hashes = [
        records.source_hash(),
        *(records.source_hash(name) for name in ("dcd_core.types", "dcd_lab.records")),
    ]
    assert len({*hashes}) == 3
    both = ("dcd_lab.records", "dcd_core.types")
    assert records.source_hash(*both) == records.source_hash(*reversed(both))
    digest = hashlib.sha256(
        b"dcd_core/types.py\n" + (project / "dcd_core" / "types.py").read_bytes()
    )
    assert hashes[1] == digest.hexdigest()[:12]
    with pytest.raises(ContractError, match=r"'dcd_core\.types'"):
        records.source_hash("dcd_core.typos")


def test_run_dir(workspace: Path) -> None:
    folder = run_dir("teacher", Setting(0.5, ()), 3)
    assert folder.parent == workspace / "runs"
    assert folder.name == f"teacher-{records.fingerprint(Setting(0.5, ()), 3)}"
    assert not folder.exists()
    with pytest.raises(ContractError, match=r"a-b"):
        run_dir("a/b")


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    command = ("git", "-C", str(folder), *who, *arguments)
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_facts_follow_the_commit(workspace: Path) -> None:
    assert records.facts()["commit"] is None
    (workspace / "dcd_core").mkdir()
    (workspace / "dcd_core" / "a.py").write_text("1\n")
    git(workspace, "init", "-q")
    git(workspace, "add", ".")
    git(workspace, "commit", "-qm", "first")
    (workspace / "results.csv").write_text("results are not code\n")
    clean = records.facts(seed=3, params={"lr": 0.5})
    assert clean["commit"] == git(workspace, "rev-parse", "HEAD")
    assert clean["dirty"] is False
    assert clean["seed"] == 3
    assert clean["params"] == records.fingerprint({"lr": 0.5})
    (workspace / "dcd_core" / "a.py").write_text("2\n")
    assert records.facts()["dirty"] is True


def test_facts_name_no_person_and_no_place(project: Path) -> None:
    import getpass
    import platform

    text = json.dumps(records.facts())
    private = [str(project), str(Path.home()), platform.node()]
    with_name = getpass.getuser()
    assert not [word for word in private if len(word) > 1 and f'"{word}' in text]
    assert f'"{with_name}"' not in text
    versions = records.facts()["versions"]
    assert set(versions) == {"python", "torch", "numpy", "monai", "pywavelets", "dcd_core"}
    assert versions["numpy"] == np.__version__


def test_capacity() -> None:
    capacity = records.capacity()
    assert 1 <= capacity["cores"] <= (os.cpu_count() or 1)
    assert capacity["memory_gib"] is None or capacity["memory_gib"] > 0


# --- tables -------------------------------------------------------------------------------------


def test_a_table_comes_back(workspace: Path) -> None:
    table = pd.DataFrame(
        {
            "method": ["none", "null", "NA", 'a "quoted", name', "Dé"],
            "dice": [0.5, np.nan, 1 / 3, np.inf, 1e-9],
            "steps": [1, 2, 3, 4, 5],
            "done": [True, False, True, False, True],
        }
    )
    path = records.save(table, "demo", "05-brats", "scores", seed=1, unit="Dice 0-1")
    assert path == workspace / "results" / "demo" / "05-brats-scores.csv"
    back = records.load("demo", "05-brats", "scores")
    pd.testing.assert_frame_equal(back, table, rtol=1e-5, check_dtype=False)
    assert b"\r" not in path.read_bytes()
    sidecar = json.loads(path.with_suffix(".json").read_text("utf-8"))
    assert sidecar["columns"] == ["method", "dice", "steps", "done"]
    assert (sidecar["rows"], sidecar["unit"]) == (5, "Dice 0-1")
    assert sidecar["facts"]["seed"] == 1
    assert sidecar["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_saving_twice_gives_the_same_bytes(workspace: Path) -> None:
    rows = [{"case": "a", "dice": 1 / 3}, {"case": "b", "dice": 2 / 3}]
    first = records.save(rows, "smoke", "01-x", "t").read_bytes()
    assert records.save(rows, "smoke", "01-x", "t").read_bytes() == first
    assert first == b"case,dice\na,0.333333\nb,0.666667\n"


def test_a_missing_table_names_its_notebook(workspace: Path) -> None:
    with pytest.raises(ContractError, match=r"run\.py --profile study 05-brats"):
        records.load("study", "05-brats", "scores")
    with pytest.raises(ContractError, match="file name"):
        records.save([{"a": 1}], "demo", "05-brats", "../scores")


def test_published_numbers_carry_their_source(project: Path) -> None:
    table = records.published()
    assert len(table) == 9
    assert table["source"].notna().all()
    dcd = table[(table["method"] == "DCD") & (table["dataset"] == "ISLES 2022")].iloc[0]
    assert (dcd["dice_percent"], dcd["hd95_mm"], dcd["nsd_percent"]) == (73.95, 12.95, 83.47)
    file = project / "results" / "published" / "published.csv"
    sidecar = json.loads(file.with_suffix(".json").read_text("utf-8"))
    assert list(sidecar["columns"]) == list(table.columns)
    assert sidecar["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(ContractError, match="'published'"):
        records.published("publishd")


# --- figures and prose --------------------------------------------------------------------------


def drawing() -> plt.Figure:
    figure, axes = plt.subplots(label="dcd_lab.plots.curve")
    axes.plot([0, 1], [0, 1], label="a")
    axes.legend()
    return figure


@pytest.mark.parametrize("vector", [False, True])
def test_figures_are_the_same_bytes_again(workspace: Path, vector: bool) -> None:
    paths = []
    for name in ("one", "two"):
        figure = drawing()
        paths.append(records.save_figure(figure, "demo", "09-features", name, vector=vector))
        plt.close(figure)
    assert paths[0].suffix == (".svg" if vector else ".png")
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert b"Matplotlib v" not in paths[0].read_bytes()


def test_the_index_says_what_made_a_figure(workspace: Path) -> None:
    figure = drawing()
    table = records.save([{"a": 1}], "demo", "05-brats", "scores")
    records.save_figure(figure, "smoke", "05-brats", "curve")
    assert not (workspace / "figures" / "INDEX.yml").exists()
    records.save_figure(figure, "demo", "05-brats", "curve", tables=[table])
    records.save_figure(figure, "study", "05-brats", "curve", tables=["results/x.csv"])
    records.save_figure(figure, "demo", "05-brats", "curve", tables=[table], function="f")
    plt.close(figure)
    index = yaml.safe_load((workspace / "figures" / "INDEX.yml").read_text("utf-8"))
    assert index == {
        "demo/05-brats-curve.png": {
            "function": "f",
            "notebook": "05-brats",
            "results": ["results/demo/05-brats-scores.csv"],
        },
        "study/05-brats-curve.png": {
            "function": "dcd_lab.plots.curve",
            "notebook": "05-brats",
            "results": ["results/x.csv"],
        },
    }


def test_the_index_survives_parallel_notebooks(workspace: Path, project: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from dcd_lab.records.results import _index\n"
        "root = Path(sys.argv[1])\n"
        "for i in range(15): _index(root / 'figures' / 'demo' / f'{sys.argv[2]}-{i}', {'i': i})"
    )
    (workspace / "figures").mkdir()
    command = [sys.executable, "-c", code, str(workspace)]
    runs = [subprocess.Popen([*command, name], cwd=project) for name in "ab"]
    assert [run.wait() for run in runs] == [0, 0]
    index = yaml.safe_load((workspace / "figures" / "INDEX.yml").read_text("utf-8"))
    assert len(index) == 30


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a b", "'a b'"),
        (0.25, "0.25"),
        (np.float32(0.25), "0.25"),
        (np.int64(3), "3"),
        (True, "True"),
    ],
)
def test_glue_is_read_by_myst_nb(monkeypatch: pytest.MonkeyPatch, value: object, text: str) -> None:
    outputs = glued(monkeypatch, "name", value)
    assert outputs["name"]["data"] == {"text/plain": text}


def test_glue_shows_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    pictured = type("Pictured", (), {"_repr_svg_": lambda self: "<svg/>"})()
    outputs = glued(monkeypatch, "fig", pictured)
    assert outputs["fig"]["data"]["image/svg+xml"]
    assert outputs["fig"]["metadata"]["scrapbook"] == {"name": "fig", "mime_prefix": ""}


def glued(monkeypatch: pytest.MonkeyPatch, name: str, value: object) -> dict:
    """Return what myst-nb's own reader finds in the cell that called `glue`."""
    import IPython.display
    import nbformat
    from IPython.core.interactiveshell import InteractiveShell
    from myst_nb.ext.glue import extract_glue_data_cell

    shown: list = []

    def keep(data: dict, *, raw: bool, metadata: dict) -> None:
        assert raw
        shown.append(nbformat.v4.new_output("display_data", data=data, metadata=metadata))

    monkeypatch.setattr(IPython.display, "display", keep)
    monkeypatch.setattr(IPython, "get_ipython", InteractiveShell.instance)
    records.glue(name, value)
    return dict(extract_glue_data_cell(nbformat.v4.new_code_cell(outputs=shown)))


def test_glue_is_silent_outside_a_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    code = "from dcd_lab import records; records.glue('a', 1)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert (done.stdout, done.stderr) == (b"", b"")


# --- progress -----------------------------------------------------------------------------------


def test_progress_keeps_the_latest_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "progress"
    monkeypatch.setenv("DCD_PROGRESS", str(file))
    for done in range(1000):
        progress("train", done, 1000, "loss 0.5")
    progress("train", 1000, 1000, "loss 0.4")
    latest = {"label": "train", "done": 1000, "total": 1000, "note": "loss 0.4"}
    assert json.loads(file.read_text("utf-8")) == latest
    assert list(tmp_path.iterdir()) == [file]
    monkeypatch.delenv("DCD_PROGRESS")
    progress("train", 1, 1)
    assert capsys.readouterr() == ("", "")


def test_progress_never_ends_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DCD_PROGRESS", str(tmp_path / "gone" / "progress"))
    progress("train", 1, 1)
