"""The command `dcd`: what it computes is the library's, and what cannot run says what to try."""

import importlib
import importlib.util
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from cases import changed, cut_short, make_case, moved_by, reoriented

from dcd_core import models
from dcd_core.errors import require
from dcd_core.types import ContractError
from dcd_lab import data, metrics
from dcd_lab.cli import checkout, main
from dcd_lab.cli.commands import EXAMPLES
from dcd_lab.tasks import BRATS, ISLES

PATCH = ("--patch", "16", "16", "16")


@pytest.fixture
def scan(workspace, monkeypatch):
    """A scan of ISLES in the folder "isles" below the current one."""
    monkeypatch.chdir(workspace)
    (scan,) = data.write([make_case(ISLES)], "isles", task=ISLES)
    return scan


@pytest.fixture
def network(scan):
    """The file of a network for ISLES, in a folder without a run."""
    return models.save(models.dynunet(3, 2, channels=(4, 8, 8)), "run/student.safetensors")


def predict(scan, network, *options, out="out.nii.gz"):
    return main(["predict", *map(str, scan.channels), "-m", str(network), "-o", out, *options])


def answer(capsys):
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("command", EXAMPLES, ids=lambda command: command.__name__)
def test_every_command_has_help_with_an_example_of_itself(command, capsys):
    assert main([command.__name__, "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"Example: {EXAMPLES[command]}" in said
    assert EXAMPLES[command].startswith(f"dcd {command.__name__}")
    # What an example names are options of the command.
    assert all(option in said for option in re.findall(r" (--?[a-z]+)", EXAMPLES[command]))


def test_help_loads_nothing_heavy_and_the_entry_point_is_declared(project):
    code = "import sys; from dcd_lab.cli import main; code = main(['--help'])\n"
    code += "assert code == 0 and not {'torch', 'numpy', 'pandas', 'monai'} & {*sys.modules}"
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(command.__name__ in done.stdout for command in EXAMPLES)
    assert 'dcd = "dcd_lab.cli:main"' in (project / "pyproject.toml").read_text("utf-8")


def test_a_shell_completes_commands(monkeypatch, capsys):
    for name, value in {"_DCD_COMPLETE": "complete_bash", "COMP_WORDS": "dcd pre"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COMP_CWORD", "1")
    assert main([]) == 0
    assert capsys.readouterr().out.split() == ["prepare", "predict"]


@pytest.mark.parametrize("arguments", [["adit"], ["audit"], ["cost", "net", "--rounds", "0"]])
def test_what_is_no_command_exits_with_two(arguments, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "Usage" in said.err
    assert "Traceback" not in said.err


def test_audit_and_folds_are_read_by_machines(workspace, capsys):
    ids = [f"BraTS-GLI-{n:05}-{t}" for n in range(6) for t in (100, 101)]
    data.write([make_case(id=id, size=(6, 6, 6)) for id in ids], workspace / "data", task=BRATS)
    cut_short(workspace / "data" / ids[0] / f"{ids[0]}-t1c.nii.gz")
    assert main(["audit", str(workspace / "data"), "--json"]) == 1
    said = answer(capsys)
    assert [row["id"] for row in said["manifest"]] == ids
    assert [row["case"] for row in said["findings"] if row["severity"] == "error"] == ids[:1]
    out = workspace / "new" / "splits.json"
    call = ["folds", str(workspace / "data"), "--task", "brats2024", "--out", str(out), "--json"]
    assert main(call) == 0
    said = answer(capsys)
    stored = json.loads(out.read_text("utf-8"))
    assert [{"train": f["train"], "val": f["val"]} for f in said["folds"]] == stored
    assert [fold["shared"] for fold in said["folds"]] == [0] * 5


def test_prepared_cases_are_kept_and_not_made_again(scan, workspace, capsys):
    call = ["prepare", "isles", "--task", "isles2022", "--spacing", "2", "--json"]
    assert main(call) == 0
    (row,) = answer(capsys)
    image = Path(row["folder"], "image.npy")
    assert workspace in image.parents
    (expected,) = data.prepared([scan], spacing_mm=2.0)
    np.testing.assert_array_equal(np.load(image), expected.image)
    made = image.stat().st_mtime_ns
    assert main(call[:-1]) == 0
    assert "1 prepared" in capsys.readouterr().out
    assert image.stat().st_mtime_ns == made


def test_a_prediction_is_that_of_the_library_on_the_grid_of_the_scan(scan, network, capsys):
    out = Path("new", "folder", "out.nii.gz")
    assert predict(scan, network, *PATCH, "--threshold", "0.4", "--json", out=str(out)) == 0
    said = answer(capsys)
    case, student = data.read(scan), models.load(network)
    expected = data.predict_case(student, case, ISLES, patch=(16, 16, 16), threshold=0.4)
    stored = nib.load(out)
    np.testing.assert_array_equal(np.asarray(stored.dataobj), expected)
    np.testing.assert_array_equal(stored.affine, nib.load(scan.channels[0]).affine)
    assert said["volume_ml"]["lesion"] == pytest.approx(6e-3 * (expected == 1).sum())
    assert {path.name for path in out.parent.iterdir()} == {out.name}


def test_patch_and_threshold_are_those_of_the_run(scan, network, capsys):
    facts = {"threshold": 0.35, "recipe": {"patch": [16, 8, 16]}}
    (network.parent / "fit.json").write_text(json.dumps(facts), "utf-8")
    assert predict(scan, network, "--json") == 0
    said = answer(capsys)
    assert (said["patch"], said["threshold"]) == ([16, 8, 16], 0.35)
    (network.parent / "threshold-1.json").write_text('{"threshold": 0.2}', "utf-8")
    assert predict(scan, network, "--json") == 0
    assert answer(capsys)["threshold"] == 0.2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "patch: got none, and no fit.json"),
        (["--patch", "15", "15", "15"], "a size that the strides of the network divide"),
        (["--patch", "0", "16", "16"], "patch: got 0"),
        ([*PATCH, "--task", "isles202"], "Try: 'isles2022'"),
        ([*PATCH, "--task", "brats2024"], "network: got 3 channels and 2 classes"),
        ([*PATCH, "--overlap", "1"], "overlap: got 1.0"),
        ([*PATCH, "--spacing", "-1"], "spacing: got -1.0"),
        ([*PATCH, "--out", "out.png"], "Try: out.png.nii.gz"),
        ([*PATCH, "--out", ".nii.gz"], "a name in .nii.gz"),
        ([*PATCH, "--out", "isles/out.nii/out.nii"], "isles/out.nii"),
        (["--patch", *["100000"] * 3], "windows that fit in memory"),
        ([*PATCH, "-m", "absent.safetensors"], "model file: got nothing at absent"),
        ([*PATCH, "-m", "isles/text"], "model file: got isles/text, unreadable"),
        ([*PATCH, "-m", "four.safetensors"], "images: got 3 files; expected 4"),
        ([*PATCH, "-m", "odd.safetensors"], "network: got 5 channels and 2 classes"),
    ],
)
def test_what_cannot_be_predicted_is_told_in_one_line(options, words, scan, network, capsys):
    Path("isles/text").write_text("no network", "utf-8")
    Path("isles/out.nii").touch()  # a file where a folder is wanted
    models.save(models.dynunet(4, 5, channels=(4, 8, 8)), "four.safetensors")
    models.save(models.dynunet(5, 2, channels=(4, 8, 8)), "odd.safetensors")
    before = {*Path().rglob("*")}
    assert predict(scan, network, *options) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
    assert (said.err[:7], said.err.count("\n")) == ("error: ", 1)
    assert {*Path().rglob("*")} == before


def test_no_file_that_is_read_is_written_over(scan, network, capsys):
    before = {path: path.read_bytes() for path in (*scan.files, network)}
    Path("link.nii.gz").symlink_to(scan.channels[1].resolve())
    commands = [
        ["predict", *scan.channels, "-m", network, *PATCH, "--out", scan.channels[2]],
        ["predict", *scan.channels, "-m", network, *PATCH, "--out", "link.nii.gz"],
        ["score", scan.label, scan.label, "--task", "isles2022", "--out", scan.label],
        ["folds", "isles", "--task", "isles2022", "--out", network],
        ["predict", *scan.channels[:1] * 3, "-m", network, *PATCH, "--out", "other.nii.gz"],
    ]
    for command in commands:
        assert main(list(map(str, command))) == 2
        assert re.search("--out: got|one file more than once", capsys.readouterr().err)
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize("text", ["[]", "{", '{"recipe": 3}', '{"spacing_mm": "a"}', '"\xff"'])
def test_what_lies_beside_a_network_is_read_or_refused(text, scan, network, capsys):
    (network.parent / "request.json").write_bytes(text.encode("latin-1"))
    assert predict(scan, network) == 2
    said = capsys.readouterr().err
    assert "defect" not in said
    assert "request.json" in said or "--patch" in said


def test_images_in_another_order_or_of_another_form_are_refused(scan, network, capsys):
    dwi, adc, flair = scan.channels
    assert predict(scan._replace(channels=(adc, dwi, flair)), network, *PATCH) == 2
    assert "image of dwi: got sub-strokecase0007_ses-0001_adc" in capsys.readouterr().err
    assert predict(scan._replace(channels=(dwi, adc)), network, *PATCH) == 2
    assert "images: got 2 files; expected 3" in capsys.readouterr().err
    changed(lambda array: np.stack([array] * 2, axis=-1))(adc)
    assert predict(scan, network, *PATCH) == 2
    assert "store one volume per file" in capsys.readouterr().err
    assert not Path("out.nii.gz").exists()


@pytest.fixture
def labels(scan):
    """Predictions for two scans of ISLES in "predictions", the truth among the scans."""
    case = make_case(ISLES, 1)._replace(id="sub-strokecase0011")
    scans = [scan, *data.write([case], "isles", task=ISLES)]
    for each in scans:
        label = np.asarray(nib.load(each.label).dataobj).copy()
        label[:4] = 0
        data.export(label, f"predictions/{each.id}.nii.gz", reference=each.label)
    return scans


SCORE = ["score", "predictions", "isles", "--task", "isles2022"]


def test_folders_are_matched_by_id_and_scored_as_by_the_library(labels, capsys):
    assert main([*SCORE, "--out", "new/scores.csv", "--json"]) == 0
    rows = answer(capsys)
    assert [row["case"] for row in rows] == [scan.id for scan in labels]
    for row, scan in zip(rows, labels, strict=True):
        pred, true = (
            np.asarray(nib.load(path).dataobj).astype(np.uint8)
            for path in (f"predictions/{scan.id}.nii.gz", scan.label)
        )
        (ours,) = metrics.score(pred, true, ISLES, (2.0, 1.0, 3.0))
        theirs = metrics.isles2022(pred, true, (2.0, 1.0, 3.0))
        assert row["dice"] == pytest.approx(ours["dice"])
        assert row["hd95_mm"] == pytest.approx(ours["hd95_mm"])
        assert row["challenge_lesion_f1"] == pytest.approx(theirs["lesion_f1"])
    assert rows[0]["lesion_dice_above_10ml"] is None  # there is no NaN in JSON
    assert [*pd.read_csv("new/scores.csv")["case"]] == [scan.id for scan in labels]
    assert main(SCORE) == 0
    said = capsys.readouterr().out
    assert "means, cases: 2" in said
    assert f"{np.mean([row['dice'] for row in rows]):.4g}" in said


def test_two_files_are_scored_whatever_their_names_and_orders_of_axes(labels, capsys):
    Path("mine.nii.gz").write_bytes(Path(labels[0].label).read_bytes())
    reoriented("RAS")(Path("mine.nii.gz"))
    call = ["score", "mine.nii.gz", str(labels[0].label), "--task", "isles2022", "--json"]
    assert main(call) == 0
    (row,) = answer(capsys)
    assert (row["case"], row["dice"], row["hd95_mm"]) == ("mine", 1, 0)


def test_brats_is_scored_by_region_with_the_scores_of_its_challenge(workspace, capsys):
    (scan,) = data.write([make_case(BRATS)], workspace / "data", task=BRATS)
    call = ["score", str(scan.label), str(workspace / "data"), "--task", "brats2024"]
    assert main([*call, "--json"]) == 0
    rows = answer(capsys)
    assert [row["region"] for row in rows] == [*BRATS.regions]
    assert {row["challenge_lesion_dice"] for row in rows} == {1}


def test_what_cannot_be_scored_is_told(labels, capsys):
    def refused(*words, call=SCORE):
        assert main([*call, "--out", "scores.csv"]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert all(word in said.err for word in ("error: ", *words))
        assert not Path("scores.csv").exists()

    refused("task: got 'isles22'", "Try: 'isles2022'", call=[*SCORE[:-1], "isles22"])
    refused("nothing at absent", call=["score", "absent", "isles", *SCORE[3:]])
    Path("empty").mkdir()
    refused("none in empty", call=["score", "predictions", "empty", *SCORE[3:]])
    first, second = (Path("predictions", f"{scan.id}.nii.gz") for scan in labels)
    second.rename("predictions/other.nii.gz")
    refused("1 without a reference: other", f"such as {labels[0].id}")
    Path("predictions/other.nii.gz").unlink()
    refused(f"references: got 1 without a prediction: {labels[1].id}", "--partial")
    assert main([*SCORE, "--partial", "--json"]) == 0
    assert [row["case"] for row in answer(capsys)] == [labels[0].id]
    copy = Path("predictions", "again", first.name)
    copy.parent.mkdir()
    copy.write_bytes(first.read_bytes())
    refused(f"two labels of {labels[0].id}", call=[*SCORE, "--partial"])
    copy.unlink()
    moved_by(1.0)(first)
    refused(first.name, "an affine 1 mm off", call=[*SCORE, "--partial"])
    changed(lambda array: array[:-1])(first)
    refused(first.name, "got shape (8, 8, 7)", call=[*SCORE, "--partial"])


def test_the_cost_is_that_of_the_network(network, monkeypatch, capsys):
    module = importlib.import_module("dcd_lab.deploy.cost")  # the function hides it
    monkeypatch.setattr(module, "peak_mib", lambda *given, **options: 7.0)  # it starts a process
    assert main(["cost", str(network), *PATCH, "--rounds", "1", "--cpu", "--json"]) == 0
    said = answer(capsys)
    assert said["shape"] == [1, 3, 16, 16, 16]
    assert said["parameters"] == models.parameters(models.load(network))
    assert main(["cost", str(network), *PATCH, "--rounds", "1"]) == 0
    assert "input         1 x 3 x 16 x 16 x 16" in capsys.readouterr().out
    assert main(["cost", str(network), "--patch", "15", "15", "15"]) == 2
    assert "strides of the network" in capsys.readouterr().err


def test_a_network_is_exported_or_the_extra_is_named(network, capsys):
    code = main(["export", str(network), *PATCH, "--json"])
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnxscript"):
        assert code == 0
        assert answer(capsys)["largest_difference"] < 1e-3
        assert network.with_suffix(".onnx").is_file()
    else:
        assert code == 2
        assert "Try: pip install -e '.[deploy]' in the checkout" in capsys.readouterr().err
        assert not network.with_suffix(".onnx").exists()


def test_the_doctor_names_what_is_missing(monkeypatch, capsys):
    wanted = ["torch>=2", 'typer>=0.2; extra == "lab"', 'no-such_package>1; extra == "deploy"']
    monkeypatch.setattr(metadata, "requires", lambda name: wanted)
    monkeypatch.setattr(metadata, "version", lambda name: "0.1.0")
    assert main(["doctor", "--json"]) == 0
    said = answer(capsys)
    assert said["missing"] == {"base": [], "lab": [], "deploy": ["no-such_package"]}
    wanted.append('another; extra == "lab"')
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert re.search(r"\[lab\] +no another. Try: pip install -e '\.\[lab\]' in the checkout", said)
    assert re.search(r"\[base\] +installed", said)


def test_an_absent_package_is_installed_from_a_checkout():
    with pytest.raises(ContractError, match=r"Try: pip install -e '\.\[deploy\]' in the checkout"):
        require("deploy", "no_such_package")


@pytest.mark.parametrize("failing", [None, "run.py"])
def test_reproduce_runs_the_steps_of_make_and_ends_at_one_that_fails(
    failing, project, monkeypatch, capsys
):
    called = []

    def run(step, cwd):
        called.append(" ".join(map(str, step)))
        assert cwd == project
        return subprocess.CompletedProcess(step, int(bool(failing) and failing in called[-1]))

    monkeypatch.setenv("DCD_ROOT", str(project))
    monkeypatch.setattr(checkout.subprocess, "run", run)
    assert main(["reproduce"]) == (1 if failing else 0)
    assert len(called) == (2 if failing else 4)
    makefile = (project / "Makefile").read_text("utf-8")
    steps = [re.sub(r"^\S+/", "", call) for call in called]
    assert steps[:2] == [
        "python notebooks/study.py verify --workers 2 --quiet",
        "python notebooks/run.py --profile study",
    ]
    assert all(step in makefile for step in steps[2:3])  # the book is built as `make book` does
    assert capsys.readouterr().err.count("$ ") == len(called)


def test_reproduce_needs_a_checkout(workspace, capsys):
    assert main(["reproduce"]) == 2
    assert "expected a checkout with its notebooks" in capsys.readouterr().err


@pytest.fixture
def cohort(workspace, monkeypatch):
    """Five scans of ISLES in "isles", a teacher's file, and the arguments that train on them."""
    monkeypatch.chdir(workspace)
    cases = [make_case(ISLES, n)._replace(id=f"sub-strokecase{n:04}") for n in range(5)]
    data.write(cases, "isles", task=ISLES)
    options = "--task isles2022 -o run --width 4 --steps 2 --spacing 2 --json"
    return ["train", "isles", *options.split(), *PATCH]


def test_a_network_is_trained_continued_and_predicts_with_its_own_settings(cohort, capsys):
    assert main(cohort) == 0
    said = answer(capsys)
    weights = Path(said["file"])
    stored = weights.read_bytes()
    assert main(cohort) == 0  # it is read back
    assert answer(capsys)["val_dice"] == said["val_dice"]
    assert weights.read_bytes() == stored
    scan = data.isles2022("isles")[0]
    assert predict(scan, weights, "--json") == 0
    predicted = answer(capsys)
    assert (predicted["patch"], predicted["threshold"]) == ([16, 16, 16], said["threshold"])
    assert predicted["spacing_mm"] == 2
    student = [*cohort, "--out", "student", "--teacher", str(weights), "--seed", "1"]
    assert main(student) == 0
    assert models.load("student/student.safetensors").channels == (4, 8, 16, 32)
    history = pd.read_csv("student/history.csv")
    assert "distillation" in history


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "isles"], "--out: got isles, which holds files"),
        (["--teacher", "four.safetensors"], "teacher: got 4 channels, 5 classes"),
        (["--teacher", "fine.safetensors", "--method", "dcdd"], "Try: 'dcd'"),
        (["--task", "isles"], "Try: 'isles2022'"),
        (["--spacing", "0"], "spacing: got 0.0"),
        (["--patch", "8", "8", "8"], "a size that the strides of the network divide"),
        (["--out", "taken"], "--out: got taken, a run with another task and channels"),
    ],
)
def test_what_cannot_be_trained_is_told(options, words, cohort, capsys):
    models.save(models.dynunet(4, 5, channels=(4, 8, 8)), "four.safetensors")
    models.save(models.dynunet(3, 2, channels=(4, 8, 8)), "fine.safetensors")
    Path("taken").mkdir()
    Path("taken", "request.json").write_text('{"channels": [1]}', "utf-8")
    before = {*Path().rglob("*")}
    assert main([*cohort, *options]) == 2
    assert words in capsys.readouterr().err
    assert {*Path().rglob("*")} == before


def test_a_run_that_diverges_is_told(cohort, monkeypatch, capsys):
    from dcd_core import train

    def diverge(*given, **options):
        raise FloatingPointError("the loss is nan at step 1")

    monkeypatch.setattr(train, "fit", diverge)
    assert main(cohort) == 1
    assert "diverged: the loss is nan at step 1" in capsys.readouterr().err


def test_the_page_on_the_command_line_has_every_command(project):
    page = (project / "book" / "howto" / "command-line.md").read_text("utf-8")
    listed = re.findall(r"^\| `dcd ([a-z]+)", page, re.MULTILINE)
    assert listed == [command.__name__ for command in EXAMPLES]


@pytest.mark.real
def test_a_real_case_is_audited_predicted_and_scored(real_cases, network, capsys):
    root = str(real_cases / "isles2022")
    assert main(["audit", root]) == 0
    (scan,) = data.isles2022(root)
    out = f"predictions/{scan.id}.nii.gz"
    options = ("--patch", "64", "64", "64", "--overlap", "0", "--spacing", "4")
    assert predict(scan, network, *options, out=out) == 0
    assert nib.load(out).shape == nib.load(scan.label).shape
    capsys.readouterr()
    assert main(["score", "predictions", root, "--task", "isles2022", "--json"]) == 0
    (row,) = answer(capsys)
    assert (row["case"], row["volume_true_ml"]) == (scan.id, 4.184)
