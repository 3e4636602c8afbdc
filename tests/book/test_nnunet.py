"""The page on nnU-Net: its commands in an environment with stock nnU-Net, and the trainer there.

DCD_STOCK_NNUNET names the Python of that environment; without it what needs one is skipped.
"""

import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from book_pages import ROOT, blocks, prose

from dcd_core.nnunet.settings import PREFIX, Settings, read_settings

PAGE = prose("howto/nnunet")
INSTALL, VALUES, TEACHER, STUDENT, RESUME, PREDICT = blocks(PAGE, "bash")
SUPPORT = ROOT / "tests" / "support"
MODEL = "DCDTrainer__nnUNetResEncUNetMPlans__3d_fullres"
TASKS = {
    27: ("Stroke", {"labels": {"background": 0, "rim": 1, "core": 2}}),
    28: (
        "Regions",
        {
            "labels": {"background": 0, "whole": [1, 2], "core": 2},
            "regions_class_order": [1, 2],
        },
    ),
}
SHORT = {"epochs": 2, "iterations": 3, "val_iterations": 1}
Bash = Callable[..., str]


def test_the_page_names_all_settings(tmp_path: Path) -> None:
    rows = re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named == {each.name for each in fields(Settings)}
    (tmp_path / "settings.yml").write_text(blocks(PAGE, "yaml")[0], "utf-8")
    settings = read_settings({f"{PREFIX}SETTINGS": str(tmp_path / "settings.yml")})
    assert settings.method == settings.name == "reco"


@pytest.fixture(scope="module")
def stock() -> Path:
    """The Python of an environment with stock nnU-Net and the base dependencies, without us."""
    python = Path(os.environ.get("DCD_STOCK_NNUNET", "none")).expanduser().absolute()
    if not python.is_file():
        pytest.skip("DCD_STOCK_NNUNET names no Python with stock nnU-Net: see CONTRIBUTING.md")
    code = (
        "import importlib.util as u; print([n for n in 'nnunetv2 pywt jaxtyping dcd_core'.split()"
    )
    call = [python, "-c", f"{code} if u.find_spec(n)])"]
    found = subprocess.run(call, cwd="/", env=clean(), capture_output=True, text=True).stdout
    if found.strip() != "['nnunetv2', 'pywt', 'jaxtyping']":
        pytest.skip(f"DCD_STOCK_NNUNET: {found.strip()} where nnunetv2, pywt, jaxtyping are needed")
    return python


def clean() -> dict[str, str]:
    names = ("PYTHONPATH", "nnUNet", "DCD_NNUNET", "VIRTUAL_ENV")
    return {key: value for key, value in os.environ.items() if not key.startswith(names)}


@pytest.fixture(scope="module")
def bash(stock: Path, tmp_path_factory: pytest.TempPathFactory) -> Bash:
    """Run commands in that environment, in one folder; `project` puts this checkout beside them."""
    folder = tmp_path_factory.mktemp("nnunet")
    places = {f"nnUNet_{name}": str(folder / name) for name in ("raw", "preprocessed", "results")}
    few = {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f"}
    values = {**places, **few, "DEVICE": "cpu", "TEACHER": "TinyTrainer"}
    assert set(re.findall(r"(\w+)=", VALUES)) <= values.keys()
    for number, (name, task) in TASKS.items():
        write_raw(folder / "raw" / f"Dataset{number:03d}_{name}", task)

    def run(commands: str, *, project: bool, status: int = 0, **more: str) -> str:
        environment = {**clean(), **values, **more}
        environment["PATH"] = f"{stock.parent}:{os.environ['PATH']}"
        if project:
            short = {f"{PREFIX}{key.upper()}": str(value) for key, value in SHORT.items()}
            trainers = {"nnUNet_extTrainer": str(SUPPORT / "nnunet_trainers")}
            environment |= {"PYTHONPATH": str(ROOT), **trainers, **short, **more}
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, (done.stdout + done.stderr)[-5000:]
        return done.stderr if status else done.stdout

    run.folder = folder  # type: ignore[attr-defined]
    return run


def write_raw(folder: Path, task: dict[str, object]) -> None:
    """Balls of two labels, in some cases of one, six to train on and one to predict."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*3 * [np.arange(16)], indexing="ij"))
    for index in range(7):
        part = "Tr" if index < 6 else "Ts"
        (folder / f"images{part}").mkdir(parents=True, exist_ok=True)
        (folder / f"labels{part}").mkdir(exist_ok=True)
        distance = np.sqrt(np.square(grid - rng.uniform(6, 10, (3, 1, 1, 1))).sum(0))
        label = (distance < 5).astype(np.uint8) + ((distance < 3) & (index % 4 > 0))
        files = {f"labels{part}/case_{index}": label.astype(np.uint8)}
        for channel in range(2):
            image = 2.0 * (label > channel) + rng.standard_normal(label.shape)
            files[f"images{part}/case_{index}_{channel:04d}"] = image.astype(np.float32)
        for name, voxels in files.items():
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / f"{name}.nii.gz")
    facts = {"channel_names": {"0": "DWI", "1": "ADC"}, "numTraining": 6, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps({**facts, **task}), "utf-8")


@pytest.fixture(scope="module", params=TASKS)
def trained(bash: Bash, request: pytest.FixtureRequest) -> tuple[str, Path]:
    """What the page's commands leave, up to the student, and the page's words for a data set."""
    name = TASKS[request.param][0]
    bash(of(request.param, TEACHER + STUDENT), project=True)
    folder: Path = bash.folder  # type: ignore[attr-defined]
    return request.param, folder / "results" / f"Dataset{request.param:03d}_{name}" / MODEL


def of(number: int, commands: str) -> str:
    """The page's commands for another data set."""
    name = TASKS[number][0]
    return commands.replace("27", str(number)).replace("Stroke", name)


@pytest.mark.slow
def test_the_commands_of_the_page(bash: Bash, trained: tuple[int, Path]) -> None:
    number, model = trained
    plans = json.loads((model / "plans.json").read_text("utf-8"))
    options = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert options["features_per_stage"] == [8, 16, 32]
    (log,) = (model / "fold_0").glob("training_log*")
    assert "gradient ratio 0.200" in log.read_text("utf-8")
    (model / "fold_0" / "checkpoint_final.pth").unlink()
    exports = "".join(STUDENT.splitlines(keepends=True)[:2])
    bash(of(number, exports + RESUME), project=True)
    (resumed,) = {*(model / "fold_0").glob("training_log*")} - {log}
    assert "Epoch 0 \n" not in resumed.read_text("utf-8")
    assert (model / "fold_0" / "checkpoint_final.pth").is_file()
    bash(f"rm -rf predictions\n{of(number, PREDICT)}", project=False)
    folder: Path = bash.folder  # type: ignore[attr-defined]
    prediction = nib.load(folder / "predictions" / "case_6.nii.gz").get_fdata()
    assert prediction.shape == (16, 16, 16)
    assert {*np.unique(prediction)} <= {0, 1, 2}
    scores = json.loads((folder / "predictions" / "summary.json").read_text("utf-8"))
    assert 0 <= scores["foreground_mean"]["Dice"] <= 1


@pytest.mark.slow
def test_a_mistake_ends_the_command_with_one_message(bash: Bash) -> None:
    told = bash(STUDENT, project=True, status=1, DCD_NNUNET_FACTR="2")
    assert "Traceback" not in told
    assert told.strip().splitlines()[-1] == blocks(PAGE, "text")[-1].strip()


@pytest.mark.slow
def test_the_trainer_where_nnunet_is(bash: Bash, trained: tuple[int, Path]) -> None:
    number, _ = trained
    if number == max(TASKS):  # both data sets are prepared by now
        print(bash(f"python {SUPPORT / 'nnunet_driver.py'}", project=True))
