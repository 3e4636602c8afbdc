"""Records: what is written can be read, comes back unchanged, and says where it came from."""

import dataclasses
import getpass
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

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
from dcd_lab.records.seals import check, seal

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    target, plain = tmp_path / "new" / "table.csv", tmp_path / "plain"
    plain.touch()
    for text in ("whole", "another"):
        with atomic(target) as temporary:
            temporary.write_text(text, "utf-8")
            assert temporary.parent == target.parent
            assert temporary.suffix == ".csv"
        assert target.read_text("utf-8") == text
    with pytest.raises(RuntimeError, match="halfway"), atomic(target) as temporary:
        temporary.write_text("ne", "utf-8")
        raise RuntimeError("halfway")
    assert target.read_text("utf-8") == "another"
    assert list(target.parent.iterdir()) == [target]
    assert target.stat().st_mode == plain.stat().st_mode


def test_the_root_is_named_or_the_checkout_around_or_the_cwd(tmp_path, monkeypatch):
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
    monkeypatch.setenv("DCD_REAL_CASES", str(tmp_path / "nowhere"))
    with pytest.raises(ContractError, match="DCD_REAL_CASES"):
        records.real_cases()


@dataclasses.dataclass(frozen=True)
class Setting:
    lr: float
    bands: tuple[str, ...]


def test_a_fingerprint_sees_values_not_their_containers():
    name = records.fingerprint({"lr": 0.5, "bands": ["aad"]})
    assert records.fingerprint(Setting(0.5, ("aad",))) == name
    assert records.fingerprint({"bands": ["aad"], "lr": np.float64(0.5)}) == name
    assert records.fingerprint(Path("a") / "b", {3, 1, 2}) == records.fingerprint("a/b", [1, 2, 3])
    assert records.fingerprint(np.arange(3)) == records.fingerprint([0, 1, 2])
    expected = hashlib.sha256(b'[1,{"a":null,"b":[true,0.5]}]').hexdigest()[:12]
    assert records.fingerprint(1, {"b": (True, 0.5), "a": None}) == expected


@given(PLAIN, PLAIN)
def test_fingerprints_differ_when_values_differ(one, other):
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (records.fingerprint(one) == records.fingerprint(other)) == same


def test_a_fingerprint_refuses_what_has_no_value():
    for value in (len, Setting):
        with pytest.raises(ContractError, match="fingerprint"):
            records.fingerprint({"key": [value]})


def git(folder, *arguments):
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    command = ("git", "-C", str(folder), *who, *arguments)
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_facts_follow_the_commit(workspace):
    assert records.facts()["commit"] is None
    (workspace / "dcd_core").mkdir()
    (workspace / "dcd_core" / "a.py").write_text("1\n")
    git(workspace, "init", "-q")
    git(workspace, "add", ".")
    git(workspace, "commit", "-qm", "first")
    (workspace / "results.csv").write_text("results are not code\n")
    clean = records.facts()
    assert clean["commit"] == git(workspace, "rev-parse", "HEAD")
    assert clean["dirty"] is False
    (workspace / "dcd_core" / "a.py").write_text("2\n")
    assert records.facts()["dirty"] is True


def test_facts_name_no_person_and_no_place(project):
    facts = records.facts()
    private = [str(project), str(Path.home()), platform.node(), getpass.getuser()]
    text = json.dumps(facts)
    assert not [word for word in private if len(word) > 1 and f'"{word}' in text]
    assert facts["versions"]["numpy"] == np.__version__


def test_a_table_comes_back(workspace):
    table = pd.DataFrame(
        {
            "method": ["none", "null", "NA", 'a "quoted", name', "Dé"],
            "dice": [0.5, np.nan, 1 / 3, np.inf, 1e-9],
            "steps": [1, 2, 3, 4, 5],
            "done": [True, False, True, False, True],
        }
    )
    extra = {"seed": 1, "unit": "Dice 0-1", "setting": Setting(0.5, ("aad",))}
    path = records.save(table, "demo", "05-brats", "scores", **extra)
    assert path == workspace / "results" / "demo" / "05-brats-scores.csv"
    written = path.read_bytes()
    assert b"\r" not in written
    back = records.load("demo", "05-brats", "scores")
    pd.testing.assert_frame_equal(back, table, rtol=1e-5, check_dtype=False)
    sidecar = json.loads(path.with_suffix(".json").read_text("utf-8"))
    assert (sidecar["rows"], sidecar["unit"], sidecar["facts"]["seed"]) == (5, "Dice 0-1", 1)
    assert sidecar["setting"] == {"lr": 0.5, "bands": ["aad"]}
    assert sidecar["sha256"] == hashlib.sha256(written).hexdigest()
    records.save(table.to_dict("records"), "demo", "05-brats", "scores")
    assert path.read_bytes() == written


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_text(path.read_text("utf-8")[:-4], "utf-8"),
        lambda path: path.write_bytes(path.read_bytes().replace(b"0.5", b"0.7")),
        lambda path: path.with_suffix(".json").unlink(),
        lambda path: path.with_suffix(".json").write_text("[]"),
    ],
)
def test_a_table_that_was_changed_is_refused(change, workspace):
    rows = [{"method": name, "dice": 0.5} for name in "abc"]
    change(records.save(rows, "study", "05-brats", "scores"))
    with pytest.raises(ContractError, match=r"result 05-brats-scores\.csv.*05-brats --force"):
        records.load("study", "05-brats", "scores")


def test_what_was_sealed_is_held_to_its_hash(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
        seal(tmp_path, name)
    check(tmp_path)
    (tmp_path / "a").write_text("c")
    with pytest.raises(ContractError, match=r"changed since it was written.*removing"):
        check(tmp_path)
    (tmp_path / "a").unlink()
    with pytest.raises(ContractError, match="no such file"):
        check(tmp_path)


def test_a_full_disk_is_named_with_the_path(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    said = r"table\.csv: got no space left on the disk \(inline"
    with pytest.raises(ContractError, match=said), atomic(tmp_path / "table.csv"):
        raise RuntimeError("inline_container.cc:672")
    assert [*tmp_path.iterdir()] == []


def test_a_missing_table_names_its_notebook(workspace):
    with pytest.raises(ContractError, match=r"run\.py --profile study 05-brats"):
        records.load("study", "05-brats", "scores")
    with pytest.raises(ContractError, match="file name"):
        records.save([{"a": 1}], "demo", "05-brats", "../scores")


def test_published_numbers_carry_their_source():
    assert records.published()["source"].notna().all()
    with pytest.raises(ContractError, match="'published'"):
        records.published("publishd")


def drawing():
    figure, axes = plt.subplots(label="dcd_lab.plots.curve")
    axes.plot([0, 1], [0, 1], label="a")
    axes.legend()
    plt.close(figure)
    return figure


@pytest.mark.parametrize("vector", [False, True])
def test_figures_are_the_same_bytes_again(workspace, vector):
    one, two = (
        records.save_figure(drawing(), "demo", "09-features", name, vector=vector) for name in "ab"
    )
    assert one.suffix == (".svg" if vector else ".png")
    assert one.read_bytes() == two.read_bytes()
    assert b"Matplotlib v" not in one.read_bytes()


def test_the_index_says_what_made_a_figure(workspace):
    table = records.save([{"a": 1}], "demo", "05-brats", "scores")
    records.save_figure(drawing(), "smoke", "05-brats", "curve")
    assert not (workspace / "figures" / "INDEX.yml").exists()
    for tables in (["results/x.csv"], [table]):
        records.save_figure(drawing(), "demo", "05-brats", "curve", tables=tables)
    index = yaml.safe_load((workspace / "figures" / "INDEX.yml").read_text("utf-8"))
    made = {"function": "dcd_lab.plots.curve", "notebook": "05-brats"}
    made["results"] = ["results/demo/05-brats-scores.csv"]
    assert index == {"demo/05-brats-curve.png": made}


@pytest.mark.slow
def test_the_index_survives_parallel_notebooks(workspace, project):
    code = (
        "import sys, matplotlib.pyplot as plt; from dcd_lab import records\n"
        "for i in range(9): records.save_figure(plt.figure(), 'demo', sys.argv[1], str(i))"
    )
    environment = {**os.environ, "PYTHONPATH": str(project)}
    command = [sys.executable, "-W", "ignore", "-c", code]
    runs = [subprocess.Popen([*command, name], env=environment) for name in "ab"]
    assert [run.wait() for run in runs] == [0, 0]
    index = yaml.safe_load((workspace / "figures" / "INDEX.yml").read_text("utf-8"))
    assert len(index) == 18


def test_glue_is_read_by_myst_nb(monkeypatch):
    values = {"a b": "'a b'", np.float32(0.25): "0.25", np.int64(3): "3", True: "True"}
    for value, text in values.items():
        assert glued(monkeypatch, value)["data"] == {"text/plain": text}
    pictured = type("Pictured", (), {"_repr_svg_": lambda self: "<svg/>"})()
    output = glued(monkeypatch, pictured)
    assert output["data"]["image/svg+xml"]
    assert output["metadata"]["scrapbook"] == {"name": "name", "mime_prefix": ""}


def glued(monkeypatch, value):
    """Return what myst-nb's own reader finds in the cell that called `glue`."""
    import IPython.display
    import nbformat
    from IPython.core.interactiveshell import InteractiveShell
    from myst_nb.ext.glue import extract_glue_data_cell

    shown = []

    def keep(data, *, raw, metadata):
        assert raw
        shown.append(nbformat.v4.new_output("display_data", data=data, metadata=metadata))

    monkeypatch.setattr(IPython.display, "display", keep)
    monkeypatch.setattr(IPython, "get_ipython", InteractiveShell.instance)
    records.glue("name", value)
    return dict(extract_glue_data_cell(nbformat.v4.new_code_cell(outputs=shown)))["name"]


def test_progress_keeps_the_latest_state_and_never_ends_a_run(tmp_path, monkeypatch, capsys):
    file = tmp_path / "progress"
    monkeypatch.setenv("DCD_PROGRESS", str(file))
    for done in (1, 2):
        progress("train", done, 2, "loss 0.4")
    latest = {"label": "train", "done": 2, "total": 2, "note": "loss 0.4"}
    assert json.loads(file.read_text("utf-8")) == latest
    assert list(tmp_path.iterdir()) == [file]
    monkeypatch.setenv("DCD_PROGRESS", str(tmp_path / "gone" / "progress"))
    progress("train", 1, 1)
    monkeypatch.delenv("DCD_PROGRESS")
    progress("train", 1, 1)
    assert capsys.readouterr() == ("", "")
