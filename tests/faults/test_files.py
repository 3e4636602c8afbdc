"""Every kind of file the project reads, damaged: refused, repaired or harmless, never other values.

An uncompressed NIfTI file and an export have no checksum anywhere; they are not here.
"""

import shutil

import pytest
import training
from cases import make_case
from faults import DAMAGE, cause
from jobs import make_cohort, make_job
from nnunet import network_of
from nnunet import write as write_nnunet

from dcd_core.models import dynunet, from_nnunet, load, save
from dcd_core.train import read_fit
from dcd_lab import records
from dcd_lab.audit import audit
from dcd_lab.data import isles2022, prepared, volumes, write
from dcd_lab.experiments import record, run
from dcd_lab.tasks import ISLES

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("workspace")]


def weights(model):
    return {**model.state_dict(), "spec": str(model.spec)}


def make_fit(folder):
    training.run(folder)


def read_run(folder):
    fitted = read_fit(folder)
    numbers = fitted.threshold, fitted.val_dice, fitted.seconds, fitted.history
    return *numbers, dict(fitted.method), weights(fitted.student)


def make_checkpoint(folder):
    with pytest.raises(training.Interrupted):
        training.run(folder, fail_at=7)


def resume(folder):
    return weights(training.run(folder).student)


def make_model(folder):
    save(dynunet(1, 2, channels=(4, 4, 8)), folder / "model.safetensors", half=True)


def make_nnunet(folder):
    write_nnunet(folder / "net", network_of("PlainConvUNet"))


def make_scans(folder):
    write([make_case(ISLES)], folder / "data", task=ISLES)


def make_prepared(folder):
    make_scans(folder)
    prepared(isles2022(folder / "data"))


def make_audit(folder):
    make_scans(folder)
    audit(folder / "data", out=folder / "audit")


def make_table(folder):
    rows = [{"method": name, "dice": 1 / (ord(name) - 90)} for name in "abc"]
    records.save(rows, "study", "05-page", "scores")


def read_table(folder):
    return records.load("study", "05-page", "scores")


def make_record(folder):
    kept = folder / "runs" / "a-run"
    kept.mkdir(parents=True)
    for name in ("fit.json", "history.csv"):
        (kept / name).write_text(f"1 2 3 {name}")
    record.enter(kept, {"identity": "0"})
    shutil.rmtree(folder / "runs")


def restore(folder):
    record.restore(folder / "runs" / "a-run")
    return [f.read_text() for f in sorted((folder / "runs" / "a-run").iterdir())]


def job_of(folder):
    return make_job(make_cohort(folder / "cases"))


def make_tested(folder):
    run(job_of(folder))


def read_tested(folder):
    job = job_of(folder)
    return job.read(), job.read("lesions"), job.result().threshold, job.val_dice


def read_prepared(folder):
    return [tuple(case) for case in prepared(isles2022(folder / "data"))]


def examine(folder):
    return list(audit(folder / "data", out=folder / "audit"))


KINDS = {
    "checkpoint": (make_checkpoint, "checkpoint.pt", resume),
    "student": (make_fit, "student.safetensors", read_run),
    "method": (make_fit, "method.safetensors", read_run),
    "history": (make_fit, "history.csv", read_run),
    "fit": (make_fit, "fit.json", read_run),
    "model": (make_model, "*.safetensors", lambda f: weights(load(f / "model.safetensors"))),
    "nnU-Net": (make_nnunet, "*.pth", lambda f: weights(from_nnunet(f / "net"))),
    "plans": (make_nnunet, "plans.json", lambda f: weights(from_nnunet(f / "net"))),
    "nii.gz": (make_scans, "*dwi.nii.gz", lambda f: volumes.load(next(f.rglob("*dwi.nii.gz")))[1:]),
    "prepared image": (make_prepared, "image.npy", read_prepared),
    "prepared label": (make_prepared, "label.npy", read_prepared),
    "prepared facts": (make_prepared, "case.json", read_prepared),
    "kept audit": (make_audit, "audit/scans/*.json", examine),
    "table": (
        make_table,
        "05-page-scores.csv",
        read_table,
    ),
    "sidecar": (
        make_table,
        "05-page-scores.json",
        read_table,
    ),
    "recorded run": (make_record, "history.csv", restore),
    "entry": (make_record, "run.json", restore),
    "threshold": (make_tested, "threshold-*.json", read_tested),
    "scores": (make_tested, "scores-*.csv", read_tested),
    "seals": (make_tested, "runs/*/SHA256SUMS", read_tested),
}
"""Kinds of files: what makes a folder with one, its name, and what reads it."""


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_refused_repaired_or_harmless(
    kind, damage, pristine, tmp_path, monkeypatch, tally
):
    make, name, read = KINDS[kind]

    def read_in(folder):
        monkeypatch.setenv("DCD_ROOT", str(folder))
        return read(folder)

    outcomes, raw = cause(pristine(make), name, read_in, damage, tmp_path)
    tally(outcomes)
    assert raw == []
    assert outcomes["wrong"] == 0


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """What makes the folder of a kind, once."""
    made = {}

    def of(make):
        if make not in made:
            folder = tmp_path_factory.mktemp("pristine")
            with pytest.MonkeyPatch.context() as patched:
                patched.setenv("DCD_ROOT", str(folder))
                make(folder)
            made[make] = folder
        return made[make]

    return of
