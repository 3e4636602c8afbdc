"""The road of the real data, from files to official scores, walked by phantoms in their layout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from dcd_core import phantom
from dcd_core.data import write
from dcd_core.types import BRATS, ISLES

TINY = {
    "glioma_steps": 4,
    "stroke_steps": 4,
    "matched_steps": 5,
    "glioma_spacing_mm": 4.0,
    "stroke_spacing_mm": 4.0,
    "glioma_patch": [16, 16, 16],
    "stroke_patch": [16, 16, 16],
    "teacher_channels": [4, 8, 16],
    "student_channels": [2, 4, 8],
    "teacher_floor": 0.0,
    "seeds": [0],
    "workers": 2,
}
"""What the profile paper is cut down to; everything else stays as it is for the real data."""


@pytest.fixture(scope="module")
def clinical_data(tmp_path_factory):
    """Fourteen patients of each challenge, in the layouts of their archives, painted from two."""
    root = tmp_path_factory.mktemp("clinical")
    gliomas = phantom.cohort("glioma", 2, seed=5, spacing_mm=4.0)
    strokes = phantom.cohort("stroke", 2, seed=5, spacing_mm=4.0)
    write(
        (gliomas[n % 2]._replace(id=f"BraTS-GLI-{n:05}-{100 + n % 2}") for n in range(14)),
        root / "training_data1_v2",
        task=BRATS,
    )
    write(
        (strokes[n % 2]._replace(id=f"sub-strokecase{n:04}") for n in range(14)),
        root / "isles2022",
        task=ISLES,
    )
    return root


def test_the_pages_of_the_paper_run_on_real_layouts(clinical_data, project, tmp_path):
    """`run.py --profile paper`, cut down by `--set` alone: both distillations, both protocols."""
    shutil.copytree(project / "notebooks", tmp_path / "notebooks")
    shutil.copy(project / "pyproject.toml", tmp_path)
    settings = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    done = subprocess.run(
        [sys.executable, "notebooks/run.py", "--profile", "paper", "05", "06", *settings],
        cwd=tmp_path,
        env={**os.environ, "DCD_DATA": str(clinical_data), "DCD_ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = tmp_path / "results" / "paper"
    gliomas = pd.read_csv(results / "05-brats-scores.csv")
    strokes = pd.read_csv(results / "06-isles-scores.csv")
    arms = {"undistilled", "DCD", "DCD released", "teacher"}
    assert set(gliomas.method) == arms
    assert set(strokes.method) == arms | {"equal compute"}
    assert set(gliomas.region) == set(BRATS.regions)
    for scores, cases in ((gliomas, 3), (strokes, 3)):
        assert scores.case.nunique() == cases  # a fifth of fourteen patients
    # Fold 0 of nnU-Net, dealt out by patient, is what nobody trains on.
    assert not list((tmp_path / "book").rglob("*.ipynb"))
