"""Real data from files to official scores, with phantoms in their layout at their full size."""

import os
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from dcd_core import models
from dcd_core.dcd import DCD
from dcd_core.train import Distiller, Recipe, fit
from dcd_lab import data, metrics, phantom
from dcd_lab.data import write
from dcd_lab.tasks import BRATS, ISLES

ARMS = (
    "arms={undistilled: {}, equal compute: {steps: 5}, DCD: {method: dcd},"
    " DCD released: {method: dcd-released, kd_balance: fixed, kd_peak: 0.01}}"
)
SETTINGS = """
glioma_steps=4 stroke_steps=4 ladder_steps=[2,4] ladder_seeds=[0,1] glioma_spacing_mm=4.0
stroke_spacing_mm=4.0 glioma_patch=[16,16,16] stroke_patch=[16,16,16] teacher_channels=[4,8,16]
student_channels=[2,4,8] teacher_floor=0.0 seeds=[0] workers=2
"""
"""What the profile paper is cut down to; everything else stays as it is for the real data."""


@pytest.mark.slow
def test_the_pages_of_the_paper_run_on_real_layouts(project, tmp_path):
    """`run.py --profile paper`, cut down by `--set` alone, on fourteen patients per challenge."""
    root = tmp_path / "clinical"
    gliomas, strokes = (phantom.cohort(k, 2, seed=5, spacing_mm=4.0) for k in ("glioma", "stroke"))
    ids = [f"BraTS-GLI-{n:05}-{100 + n % 2}" for n in range(14)]
    cases = (gliomas[n % 2]._replace(id=id) for n, id in enumerate(ids))
    write(cases, root / "training_data1_v2", task=BRATS)
    cases = (strokes[n % 2]._replace(id=f"sub-strokecase{n:04}") for n in range(14))
    write(cases, root / "isles2022", task=ISLES)
    shutil.copytree(project / "notebooks", tmp_path / "notebooks")
    shutil.copy(project / "pyproject.toml", tmp_path)
    settings = [part for setting in (*SETTINGS.split(), ARMS) for part in ("--set", setting)]
    done = subprocess.run(
        [sys.executable, "notebooks/run.py", "--profile", "paper", "05", "06", *settings],
        cwd=tmp_path,
        env={
            **os.environ,
            "DCD_DATA": str(root),
            "DCD_ROOT": str(tmp_path),
            "PYTHONPATH": str(project),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    gliomas = pd.read_csv(tmp_path / "results" / "paper" / "05-brats-scores.csv")
    strokes = pd.read_csv(tmp_path / "results" / "paper" / "06-isles-scores.csv")
    arms = {"undistilled", "equal compute", "DCD", "DCD released", "teacher"}
    assert set(gliomas.method) == set(strokes.method) == arms
    assert set(gliomas.region) == set(BRATS.regions)
    assert gliomas.case.nunique() == strokes.case.nunique() == 3  # a fifth of fourteen patients
    page = tmp_path / "runs" / "executed" / "paper" / "06-isles.ipynb"
    assert "clinical cases" in page.read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("task", [BRATS, ISLES], ids=lambda task: task.name)
def test_from_files_to_official_scores_at_full_size(task, tmp_path, monkeypatch):
    """Audited, prepared, distilled for two steps, predicted, exported, scored by the rules."""
    monkeypatch.setenv("DCD_ROOT", str(tmp_path))
    drawn = phantom.glioma(3, spacing_mm=1.0) if task is BRATS else phantom.stroke(3)
    spacing_mm = None if task is BRATS else 3.0  # resampled there and back
    [scan] = write([drawn], tmp_path / "data", task=task)
    audit = data.audit(tmp_path / "data")
    assert audit.count("error") == audit.count("warning") == 0, audit.text()
    size = (182, 218, 182) if task is BRATS else (112, 112, 73)
    assert nib.load(scan.channels[0]).shape == size
    [case] = data.prepared([scan], spacing_mm=spacing_mm)
    shape = {"in_channels": len(task.channels), "classes": len(task.labels)}
    teacher, student = (
        models.build("resenc", **shape, channels=channels, deep_supervision=True)
        for channels in ((8, 16, 16, 16), (2, 4, 4, 4))
    )
    method = DCD(student.channels, teacher.channels)
    recipe = Recipe(steps=2, patch=(48, 48, 32), batch=1, kd_start=0.0, kd_ramp=0.0, warmup=0)
    patches = data.Patches([case], patch=recipe.patch, batch=1, seed=0)
    fitted = fit(Distiller(student, teacher, method), patches, [], recipe, run_dir=tmp_path / "run")
    assert (fitted.history["distillation"] > 0).any()

    native = data.read(scan)
    label = data.predict_case(
        fitted.student, native, task, patch=(64, 64, 64), spacing_mm=spacing_mm, overlap=0.25
    )
    assert label.shape == native.label.shape
    path = data.export(label, tmp_path / f"{scan.id}.nii.gz", reference=scan.channels[0])
    back, reference = nib.load(path), nib.load(scan.channels[0])
    assert np.array_equal(back.affine, reference.affine)
    stored = np.asarray(back.dataobj)
    assert np.array_equal(stored, label)
    for row in metrics.challenge(stored, native.label, task, native.spacing_mm):
        assert np.isfinite([value for value in row.values() if not isinstance(value, str)]).all()
    for row in metrics.challenge(native.label, native.label, task, native.spacing_mm):
        assert row["dice"] == 1


@pytest.mark.real
def test_the_threshold_baseline_of_isles_0009_scores_as_the_challenge_says(
    real_cases, tmp_path, monkeypatch
):
    """The challenge's own example: DWI above its 99th percentile, by the challenge's own rules."""
    [scan] = data.isles2022(real_cases / "isles2022")
    case = data.read(scan)
    dwi = case.image[0]
    label = (dwi > np.percentile(dwi[dwi != 0], 99)).astype(np.uint8)
    path = data.export(label, tmp_path / "baseline.nii.gz", reference=scan.channels[0])
    scores = metrics.isles2022(np.asarray(nib.load(path).dataobj), case.label, case.spacing_mm)
    assert scores["dice"] == pytest.approx(0.1738, abs=5e-5)
    assert scores["avd_ml"] == pytest.approx(10.32, abs=5e-3)
    assert scores["lesion_count_diff"] == 87
    assert scores["lesion_f1"] == pytest.approx(0.2479, abs=5e-5)
    monkeypatch.setenv("DCD_ROOT", str(tmp_path))
    [prepared] = data.prepared([scan], spacing_mm=2.0)
    assert prepared.spacing_mm == (2.0, 2.0, 2.0)
    assert prepared.label.sum() * 0.008 == pytest.approx(4.184)
