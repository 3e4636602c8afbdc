"""Cohorts: splits that share no patient, work that resumes, names that do not know their place."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from dcd_core.types import BRATS, ISLES, Case, ContractError
from dcd_lab import phantom
from dcd_lab.data import Cohort, brats2024, clinical, cohorts, embedded, isles2022, store, write

SIZES = {"train": 2, "tune": 1, "test": 1}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DCD_ROOT", str(tmp_path))
    monkeypatch.delenv("DCD_DATA", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def phantoms():
    """Two real strokes of 4 mm, painted once for the whole module."""
    return phantom.cohort("stroke", 2, seed=0, spacing_mm=4.0)


def painter(made):
    """Stands for phantom.members: tiny cases with ids of the same form, counted."""

    def paint(kind, indices, *, seed, spacing_mm, workers):
        task = BRATS if kind == "glioma" else ISLES
        _, form = cohorts.PHANTOMS[task.name]
        for index in indices:
            made.append(index)
            yield tiny(form.format(index + 1), task, seed=seed + index)

    return paint


def tiny(id, task, *, seed=0, label=True):
    rng = np.random.default_rng(seed)
    image = np.zeros((len(task.channels), 8, 8, 8), np.float32)
    image[:, 1:7, 1:7, 1:7] = 1 + rng.random((len(image), 6, 6, 6), dtype=np.float32)
    mask = np.zeros((8, 8, 8), np.uint8)
    mask[2:5, 2:5, 2:5] = 1
    return Case(id, image, mask if label else None, (2.0,) * 3, np.diag([2.0, 2.0, 2.0, 1.0]))


@pytest.fixture
def made(monkeypatch):
    """Which phantoms were painted, with a painter that takes no time."""
    indices: list[int] = []
    monkeypatch.setattr(phantom, "members", painter(indices))
    return indices


# --- embedded -------------------------------------------------------------------------------------


def test_real_phantoms_are_written_read_and_prepared(root, phantoms):
    cohort = embedded("isles2022", **SIZES, spacing_mm=4.0)
    assert cohort.train == ("sub-strokecase0001", "sub-strokecase0002")
    assert (cohort.tune, cohort.test) == (("sub-strokecase0003",), ("sub-strokecase0004",))
    assert cohort.folder.parent == root / "runs"
    assert len(isles2022(cohort.folder)) == 4
    for case, painted in zip(cohort.cases("train"), phantoms, strict=True):
        assert case.id == painted.id
        assert case.spacing_mm == (4.0, 4.0, 4.0)
        assert case.label.sum() == painted.label.sum() > 0
        brain = case.image[0] != 0
        assert abs(case.image[0][brain].mean()) < 0.1


@pytest.mark.parametrize(
    ("task", "folders"),
    [
        ("brats2024", ["BraTS-GLI-00002-100"]),
        ("isles2022", ["rawdata/sub-strokecase0002"]),
        ("isles2022", ["derivatives/sub-strokecase0002"]),
    ],
)
def test_interrupted_work_goes_on_where_it_stopped(task, folders, root, made):
    first = embedded(task, **SIZES)
    assert made == [0, 1, 2, 3]
    for folder in folders:
        shutil.rmtree(first.folder / folder)
    made.clear()
    assert embedded(task, **SIZES) == first
    assert made == [1]
    made.clear()
    assert embedded(task, **SIZES) == first
    assert made == []
    assert len(first.cases("train")) == 2


def test_a_larger_cohort_extends_a_smaller_one(root, made):
    small = embedded("isles2022", **SIZES)
    made.clear()
    large = embedded("isles2022", train=4, tune=1, test=1)
    assert made == [4, 5]
    assert large.folder == small.folder
    assert large.identity != small.identity
    assert large.test == ("sub-strokecase0006",)


@pytest.mark.parametrize("task", ["brats2024", "isles2022"])
def test_splits_are_disjoint_and_complete(task, root, made):
    cohort = embedded(task, train=3, tune=2, test=2)
    ids = [*cohort.train, *cohort.tune, *cohort.test]
    assert [len(part) for part in (cohort.train, cohort.tune, cohort.test)] == [3, 2, 2]
    assert len(set(ids)) == 7
    reader = {"brats2024": brats2024, "isles2022": isles2022}[task]
    assert sorted(ids) == [scan.id for scan in reader(cohort.folder)]


def test_identity_names_content_not_place(root, made, tmp_path, monkeypatch):
    one = embedded("isles2022", **SIZES)
    monkeypatch.setenv("DCD_ROOT", str(tmp_path / "elsewhere"))
    two = embedded("isles2022", **SIZES)
    assert one.folder != two.folder
    assert one.folder.name == two.folder.name
    assert one.identity == two.identity
    others = [
        embedded("isles2022", **SIZES, seed=1),
        embedded("isles2022", **SIZES, spacing_mm=3.0),
        embedded("brats2024", **SIZES),
        embedded("isles2022", train=1, tune=2, test=1),
    ]
    assert len({cohort.identity for cohort in [one, *others]}) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prostate", 1, 1, 1), "task: got 'prostate'"),
        (("isles2022", 1, 0, 1), "at least one case each"),
    ],
)
def test_embedded_refuses_unknown_tasks_and_empty_splits(arguments, message, root):
    task, train, tune, test = arguments
    with pytest.raises(ContractError, match=message):
        embedded(task, train=train, tune=tune, test=test)
    assert not (root / "runs").exists()


def test_a_case_that_has_gone_is_named(root, made):
    cohort = embedded("brats2024", **SIZES)
    shutil.rmtree(cohort.folder / "BraTS-GLI-00003-100")
    with pytest.raises(ContractError, match="BraTS-GLI-00003-100"):
        cohort.scans("tune")


# --- clinical -------------------------------------------------------------------------------------


def clinical_root(tmp_path, monkeypatch, cases, task):
    write(cases, tmp_path / "data", task=task)
    monkeypatch.setenv("DCD_DATA", str(tmp_path / "data"))


def test_clinical_data_need_a_place(root):
    with pytest.raises(ContractError, match="DCD_DATA: got not set"):
        clinical("isles2022")


def test_clinical_reads_what_lies_under_dcd_data(root, tmp_path, monkeypatch):
    cases = [tiny(f"sub-strokecase{n:04}", ISLES, seed=n) for n in range(1, 21)]
    cases.append(tiny("sub-strokecase0099", ISLES, label=False))
    clinical_root(tmp_path, monkeypatch, cases, ISLES)
    found = [clinical("isles2022", fold=fold) for fold in range(5)]
    # Every labelled case is tested exactly once.
    assert sorted(id for cohort in found for id in cohort.test) == [c.id for c in cases[:-1]]
    for cohort in found:
        parts = [set(part) for part in (cohort.train, cohort.tune, cohort.test)]
        assert [len(part) for part in parts] == [14, 2, 4]
        assert len(set.union(*parts)) == 20
    assert len({cohort.identity for cohort in found}) == 5
    assert clinical("isles2022", fold=0) == found[0]
    assert clinical("isles2022", spacing_mm=2.0).identity != found[0].identity
    [case] = found[0].cases("tune")[:1]
    assert case.image.shape == (3, 8, 8, 8)  # the block and its margin
    resampled = clinical("isles2022", spacing_mm=4.0).cases("tune")[0]
    assert resampled.spacing_mm == (4.0, 4.0, 4.0)


def test_time_points_of_a_patient_stay_together(root, tmp_path, monkeypatch):
    ids = [f"BraTS-GLI-{patient:05}-{scan}" for patient in range(15) for scan in (100, 101)]
    cases = [tiny(id, BRATS, seed=n) for n, id in enumerate(ids)]
    clinical_root(tmp_path, monkeypatch, cases, BRATS)
    cohort = clinical("brats2024", fold=2)
    patients = [{id[:15] for id in part} for part in (cohort.train, cohort.tune, cohort.test)]
    assert not patients[0] & patients[1]
    assert not patients[0] & patients[2]
    assert not patients[1] & patients[2]
    assert len(cohort.train) + len(cohort.tune) + len(cohort.test) == 30


def test_the_same_data_elsewhere_have_the_same_identity(root, tmp_path, monkeypatch):
    cases = [tiny(f"sub-strokecase{n:04}", ISLES, seed=n) for n in range(1, 14)]
    clinical_root(tmp_path, monkeypatch, cases, ISLES)
    one = clinical("isles2022")
    (tmp_path / "data").rename(tmp_path / "moved")
    monkeypatch.setenv("DCD_DATA", str(tmp_path / "moved"))
    two = clinical("isles2022")
    assert one.folder != two.folder
    assert one.identity == two.identity


def test_phantoms_on_disk_pass_for_clinical_data(root, tmp_path, monkeypatch, phantoms):
    copies = [
        case._replace(id=f"sub-strokecase{10 * n + i:04}")
        for n in range(7)
        for i, case in enumerate(phantoms)
    ]
    clinical_root(tmp_path, monkeypatch, copies, ISLES)
    [case, *_] = clinical("isles2022").cases("test")
    assert case.image.shape[0] == 3
    assert case.label.any()


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("prostate", {}, "task: got 'prostate'"),
        ("isles2022", {"fold": 5}, "fold: got 5"),
        ("isles2022", {"fold": -1}, "fold: got -1"),
    ],
)
def test_clinical_refuses_unknown_tasks_and_folds(task, options, message, root):
    with pytest.raises(ContractError, match=message):
        clinical(task, **options)


@pytest.mark.parametrize("labelled", [0, 4, 12])
def test_too_few_labelled_cases_are_refused(labelled, root, tmp_path, monkeypatch):
    cases = [tiny(f"sub-strokecase{n:04}", ISLES, label=n <= labelled) for n in range(1, 14)]
    clinical_root(tmp_path, monkeypatch, cases, ISLES)
    with pytest.raises(ContractError, match="folds"):
        clinical("isles2022")


# --- by name --------------------------------------------------------------------------------------


def test_cohort_by_the_name_of_its_source(root, made, monkeypatch):
    one = cohorts.cohort("embedded", "isles2022", **SIZES, seed=3)
    assert isinstance(one, Cohort)
    monkeypatch.setattr(store, "read", None)  # would fail: by name, every case is prepared
    assert len(one.cases("train")) == SIZES["train"]
    assert one == embedded("isles2022", **SIZES, seed=3)
    with pytest.raises(ContractError, match="DCD_DATA"):
        cohorts.cohort("clinical", "isles2022", **SIZES)
