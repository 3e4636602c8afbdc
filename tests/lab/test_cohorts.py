"""Cohorts: splits that share no patient, work that is continued, names that tell the content."""

import shutil

import pytest
from cases import make_case

from dcd_core.types import ContractError
from dcd_lab import phantom
from dcd_lab.data import Cohort, clinical, cohort, isles2022, patient, synthetic, write
from dcd_lab.tasks import BRATS, ISLES

pytestmark = pytest.mark.usefixtures("workspace")
SIZES = {"train": 2, "val": 1, "test": 1}


@pytest.fixture
def painted(monkeypatch):
    """The indices of the phantoms that were painted, by a painter that takes no time."""
    indices: list[int] = []

    def paint(kind, wanted, *, seed, spacing_mm, workers):
        task = BRATS if kind == "glioma" else ISLES
        for index in wanted:
            indices.append(index)
            id = f"BraTS-GLI-{index + 1:05}-100" if task is BRATS else f"{kind}-{index + 1}"
            yield make_case(task, seed=seed + index, id=id)

    monkeypatch.setattr(phantom, "members", paint)
    return indices


def patients(made):
    return [{patient(id) for id in ids} for ids in (made.train, made.val, made.test)]


def test_phantoms_are_written_read_and_prepared(workspace):
    made = cohort("synthetic", "isles2022", **SIZES, spacing_mm=4.0)
    assert isinstance(made, Cohort)
    assert list((workspace / "runs").glob("prepared-isles2022-*/*4-*")), "it comes prepared"
    assert made == synthetic("isles2022", **SIZES, spacing_mm=4.0)
    assert made.train == ("sub-strokecase0001", "sub-strokecase0002")
    assert (made.val, made.test) == (("sub-strokecase0003",), ("sub-strokecase0004",))
    assert made.folder.parent == workspace / "runs"
    assert len(isles2022(made.folder)) == 4
    phantoms = phantom.cohort("stroke", 2, seed=0, spacing_mm=4.0)
    for case, whole in zip(made.cases("train"), phantoms, strict=True):
        assert case.id == whole.id
        assert case.spacing_mm == (4.0, 4.0, 4.0)
        assert case.label.sum() == whole.label.sum() > 0
        assert abs(case.image[0][case.image[0] != 0].mean()) < 0.1


@pytest.mark.parametrize(
    ("task", "folder"),
    [
        ("brats2024", "BraTS-GLI-00002-100"),
        ("isles2022", "rawdata/sub-strokecase0002"),
        ("isles2022", "derivatives/sub-strokecase0002"),
    ],
)
def test_only_what_is_absent_is_painted(task, folder, painted):
    first = synthetic(task, **SIZES)
    assert painted == [0, 1, 2, 3]
    shutil.rmtree(first.folder / folder)
    assert synthetic(task, **SIZES) == first
    assert synthetic(task, **SIZES) == first
    assert painted == [0, 1, 2, 3, 1]
    large = synthetic(task, train=4, val=1, test=1)
    assert painted[5:] == [4, 5]
    assert large.folder == first.folder
    assert large.identity != first.identity
    assert [len(part) for part in patients(large)] == [4, 1, 1]
    assert len(set.union(*patients(large))) == 6
    shutil.rmtree(first.folder)
    with pytest.raises(ContractError):
        first.scans("val")


def test_identity_names_content_not_folder(painted, tmp_path, monkeypatch):
    one = synthetic("isles2022", **SIZES)
    monkeypatch.setenv("DCD_ROOT", str(tmp_path / "elsewhere"))
    two = synthetic("isles2022", **SIZES)
    assert one.folder != two.folder
    assert one.folder.name == two.folder.name
    assert one.identity == two.identity
    others = [
        synthetic("isles2022", **SIZES, seed=1),
        synthetic("isles2022", **SIZES, spacing_mm=3.0),
        synthetic("brats2024", **SIZES),
        synthetic("isles2022", train=1, val=2, test=1),
    ]
    monkeypatch.setattr(phantom, "VERSION", phantom.VERSION + 1)
    others.append(synthetic("isles2022", **SIZES))
    assert len({made.identity for made in [one, *others]}) == 6


def test_clinical_data_are_split_by_patient_into_five_folds(workspace, monkeypatch):
    ids = [f"BraTS-GLI-{number:05}-{scan}" for number in range(20) for scan in (100, 101)]
    cases = [make_case(id=id, seed=n) for n, id in enumerate(ids)]
    write(cases, workspace / "data", task=BRATS)
    write([make_case(id="BraTS-GLI-00099-100", labelled=False)], workspace / "data", task=BRATS)
    monkeypatch.setenv("DCD_DATA", str(workspace / "data"))
    folds = [clinical("brats2024", fold=fold) for fold in range(5)]
    assert sorted(id for made in folds for id in made.test) == ids  # labelled ones, each once
    for made in folds:
        assert [len(part) for part in patients(made)] == [14, 2, 4]
        assert len(set.union(*patients(made))) == 20
    assert len({made.identity for made in folds}) == 5
    assert cohort("clinical", "brats2024", **SIZES, spacing_mm=4.0).identity != folds[0].identity
    resampled = clinical("brats2024", spacing_mm=4.0).cases("val")[0]
    assert resampled.spacing_mm == (4.0, 4.0, 4.0)
    shutil.rmtree(workspace / "data" / folds[0].val[0])
    with pytest.raises(ContractError, match=folds[0].val[0]):
        folds[0].scans("val")
    (workspace / "data").rename(workspace / "moved")
    monkeypatch.setenv("DCD_DATA", str(workspace / "moved"))
    write([cases[ids.index(folds[0].val[0])]], workspace / "moved", task=BRATS)
    assert clinical("brats2024").identity == folds[0].identity


@pytest.mark.parametrize(
    ("make", "arguments", "words"),
    [
        (synthetic, {"task": "prostate", **SIZES}, "task: got 'prostate'"),
        (synthetic, {"task": "isles2022", **SIZES, "val": 0}, "at least one case each"),
        (cohort, {"source": "clinical", "task": "isles2022", **SIZES}, "DCD_DATA: got not set"),
        (clinical, {"task": "prostate"}, "task: got 'prostate'"),
        (clinical, {"task": "isles2022", "fold": 5}, "fold: got 5"),
    ],
)
def test_what_makes_no_cohort_is_refused(make, arguments, words, workspace):
    with pytest.raises(ContractError, match=words):
        make(**arguments)
    assert not (workspace / "runs").exists()


def test_too_few_labelled_cases_are_refused(workspace, monkeypatch):
    cases = [make_case(ISLES, id=f"case-{n}", labelled=n <= 12) for n in range(1, 14)]
    write(cases, workspace / "data", task=ISLES)
    monkeypatch.setenv("DCD_DATA", str(workspace / "data"))
    with pytest.raises(ContractError, match="folds"):
        clinical("isles2022")
