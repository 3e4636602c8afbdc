"""Data: files in, cases out, every defect refused by name; folds by patient."""

import itertools
import json
from pathlib import Path

import cases as spoil
import nibabel as nib
import numpy as np
import pytest
from cases import SIZE, file_of, make_case, oblique, save, voxels, world
from sklearn.model_selection import KFold

from dcd_core.types import ContractError
from dcd_lab import data
from dcd_lab.cli import main
from dcd_lab.data.scans import READERS
from dcd_lab.tasks import BRATS, ISLES

TASK = pytest.mark.parametrize("task", [BRATS, ISLES], ids=lambda task: task.name)


def message(call, *arguments, **options):
    with pytest.raises(ContractError) as caught:
        call(*arguments, **options)
    assert "Try:" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("task", "form"),
    [
        (BRATS, "{id}/{id}-{part}.nii.gz"),
        (ISLES, "rawdata/{id}/ses-0001/{id}_ses-0001_{part}.nii.gz"),
    ],
)
def test_what_is_written_has_the_names_of_the_challenge_and_is_read_back(task, form, tmp_path):
    case = make_case(task)
    (written,) = data.write([case], tmp_path, task=task)
    (scan,) = READERS[task.name](tmp_path)
    assert scan == written
    for path, part in zip(scan.channels, task.channels, strict=True):
        assert path == tmp_path / form.format(id=case.id, part=part)
    form, part = form.replace("rawdata", "derivatives"), "seg" if task is BRATS else "msk"
    assert scan.label == tmp_path / form.format(id=case.id, part=part)
    back = data.read(scan)
    np.testing.assert_array_equal(back.image, case.image)
    np.testing.assert_array_equal(back.label, case.label)
    np.testing.assert_allclose(back.affine, case.affine, atol=1e-5)
    assert (back.id, back.spacing_mm) == (case.id, case.spacing_mm)
    for path in scan.files:
        stored = nib.load(path)
        for affine, code in (stored.get_qform(coded=True), stored.get_sform(coded=True)):
            assert code > 0
            np.testing.assert_allclose(affine, oblique(), atol=1e-4)
        assert stored.get_data_dtype() == (np.uint8 if path == scan.label else np.float32)


@TASK
def test_a_label_is_read_alone_as_with_its_images(task, tmp_path):
    case = make_case(task)
    (scan,) = data.write([case], tmp_path, task=task)
    spoil.reoriented("PIR")(scan.label)  # another order of axes than that of the channels
    assert nib.load(scan.label).shape != SIZE
    whole = data.read(scan)
    for path in scan.channels[1:]:
        path.unlink()
    alone = data.read_label(scan)
    np.testing.assert_array_equal(alone.label, case.label)
    np.testing.assert_array_equal(alone.affine, whole.affine)
    assert (alone.id, alone.spacing_mm) == (whole.id, whole.spacing_mm)
    assert "no label" in message(data.read_label, scan._replace(label=None))
    save(scan.label, np.zeros((4, 4, 4)), oblique())
    assert f"{scan.label}: got shape (4, 4, 4)" in message(data.read_label, scan)


def test_brats_scans_of_all_editions_may_lie_at_any_depth(tmp_path):
    folders = {
        "BraTS-GLI-00005-000": "BraTS2023/train",
        "BraTS-GLI-00005-100": "BraTS2024/training_data1_v2",
        "BraTS-GLI-00005-101": "BraTS2024/training_data_additional",
        "BraTS-GLI-00008-103": "BraTS2024/validation_data",
    }
    for id, folder in folders.items():
        case = make_case(id=id, labelled=folder != "BraTS2024/validation_data")
        data.write([case], tmp_path / folder, task=BRATS)
    (tmp_path / ".partial-x" / "BraTS-GLI-00009-100").mkdir(parents=True)
    (tmp_path / "BraTS-GLI-00009-100.zip").touch()
    scans = data.brats2024(tmp_path)
    assert [scan.id for scan in scans] == sorted(folders)
    assert [scan.label is not None for scan in scans] == [True, True, True, False]
    assert [scan.post_op for scan in scans] == [False, True, True, True]
    assert [scan.group[-1] for scan in scans] == list("5558")
    assert data.read(scans[3]).label is None
    one = tmp_path / folders["BraTS-GLI-00005-000"] / "BraTS-GLI-00005-000"
    assert data.brats2024(one) == scans[:1]


ZENODO = "{id}/ses-0001/dwi/{id}_ses-0001_dwi {id}/ses-0001/dwi/{id}_ses-0001_adc"
ZENODO += " {id}/ses-0001/anat/{id}_ses-0001_FLAIR derivatives/{id}/ses-0001/{id}_ses-0001_msk"


@pytest.mark.parametrize(
    ("names", "suffix"),
    [
        (ZENODO, "nii.gz"),
        ("images-dwi/{id}_ses-0001_dwi {id}_ses-0001_ADC images/{id}_FLAIR labels/{id}_msk", "nii"),
        ("{id}/ses-0001/DWI {id}/ses-0001/ADC {id}/ses-0001/FLAIR {id}/derivatives/MSK", "nii.gz"),
    ],
)
def test_isles_files_are_known_by_name_wherever_they_lie(names, suffix, tmp_path):
    case = make_case(ISLES)
    parts = [*case.image, case.label.astype(np.uint16)]
    for name, array in zip(names.format(id=case.id).split(), parts, strict=True):
        save(tmp_path / f"{name}.{suffix}", array, oblique())
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)  # is followed once
    (scan,) = data.isles2022(tmp_path)
    assert (scan.id, scan.post_op) == (case.id, None)
    back = data.read(scan)
    np.testing.assert_array_equal(back.image, case.image)
    np.testing.assert_array_equal(back.label, case.label)


@TASK
def test_an_absent_empty_or_closed_root_is_refused(task, tmp_path, monkeypatch):
    for root in (tmp_path / "nowhere", tmp_path):
        assert str(root) in message(READERS[task.name], root)
    data.write([make_case(task)], tmp_path, task=task)
    (tmp_path / "closed").mkdir()
    spoil.without_permission(monkeypatch, "closed")
    assert f"{tmp_path / 'closed'}: got no permission" in message(READERS[task.name], tmp_path)


@TASK
def test_what_is_there_twice_is_refused(task, tmp_path):
    (scan,) = data.write([make_case(task)], tmp_path / "v1", task=task)
    unpacked = scan.channels[1].with_suffix("")
    nib.save(nib.load(scan.channels[1]), unpacked)
    assert unpacked.name in message(READERS[task.name], tmp_path)
    unpacked.unlink()
    other = tmp_path / "v2" / scan.id
    other.mkdir(parents=True)
    assert READERS[task.name](tmp_path) == [scan]  # an empty folder is no second copy
    if task is BRATS:  # files of one scan in two folders may be of two editions
        scan.label.rename(other / scan.label.name)
        assert "twice" in message(data.brats2024, tmp_path)
    other.parent.rename(tmp_path / ".v2")
    data.write([make_case(task)], tmp_path / "v3", task=task)
    text = message(READERS[task.name], tmp_path)
    assert "v1/" in text
    assert "v3/" in text


@pytest.mark.parametrize(("task", "files"), [(BRATS, 5), (ISLES, 4)])
@pytest.mark.parametrize("after", [1, 3, 5, 7])
def test_an_interrupted_write_is_continued(task, files, after, tmp_path, monkeypatch):
    write_file, calls = nib.save, itertools.count()

    def save_or_stop(*arguments):
        if next(calls) == after:
            raise KeyboardInterrupt
        write_file(*arguments)

    cases = [make_case(task, seed=n, id=f"case-{n}") for n in (1, 2)]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(nib, "save", save_or_stop)
        data.write(cases, tmp_path, task=task)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nii.gz")}
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
    for index, scan in enumerate(READERS[task.name](tmp_path) if before else []):
        if after >= files * (index + 1):
            assert data.read(scan).label is not None
        else:  # it must not pass for an unlabelled case
            assert "no such file" in message(data.read, scan)
    scans = data.write(cases, tmp_path, task=task)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for scan, case in zip(scans, cases, strict=True):
        np.testing.assert_array_equal(data.read(scan).image, case.image)


@pytest.mark.parametrize("change", ["label", "affine", "file"])
def test_a_folder_that_holds_something_else_is_refused(change, tmp_path):
    case = make_case()
    (scan,) = data.write([case], tmp_path, task=BRATS)
    if change == "label":
        case = case._replace(label=case.label.max() - case.label)
    elif change == "affine":
        case = case._replace(affine=oblique(origin=(0.0, 0.0, 0.0)))
    else:
        scan.channels[2].unlink()
    assert case.id in message(data.write, [case], tmp_path, task=BRATS)


def test_ids_are_translated_by_their_number_or_refused(tmp_path):
    (glioma,) = data.write([make_case(id="glioma-7")], tmp_path / "b", task=BRATS)
    (stroke,) = data.write([make_case(ISLES, id="stroke-0042")], tmp_path / "i", task=ISLES)
    assert (glioma.id, stroke.id) == ("BraTS-GLI-00007-100", "sub-strokecase0042")
    for ids, words in (
        (["anonymous"], "'anonymous': got no usable number"),
        (["glioma-123456"], "'glioma-123456': got no usable number"),
        (["a-7", "b-7"], "second BraTS-GLI-00007-100"),
    ):
        assert words in message(data.write, [make_case(id=i) for i in ids], tmp_path, task=BRATS)
    text = message(data.write, [make_case(id="sub-strokecase0001")], tmp_path / "i", task=ISLES)
    assert "4 channels; expected dwi, adc, flair" in text


# What a single file can have wrong is in test_audit.py, which reads what it spoils; this is more.
DEFECTS = [
    (Path.unlink, "no such file"),
    (lambda path: path.write_text("not an image"), "readable NIfTI"),
    (lambda path: path.write_bytes(b""), "readable NIfTI"),
    (spoil.cut_short, "readable NIfTI"),
    (spoil.moved_by(0.01), "0.01 mm off"),
    (spoil.with_value(np.inf), "1 NaN or infinite"),
    (spoil.changed(lambda a: np.where(a == a.max(), 1e300, 0)), "NaN or infinite"),
    (spoil.changed(lambda array: array[..., 0]), "shape (9, 8)"),
    (spoil.in_unit("meter"), "lengths in metre"),
]


DEFECTIVE = [(*file, *defect) for defect in DEFECTS for file in ((BRATS, "t1c"), (ISLES, "msk"))]
DEFECTIVE += [
    (BRATS, "seg", spoil.with_value(5), "labels 0, 1, 2, 3, 4, 5"),
    (BRATS, "seg", spoil.with_value(-1), "labels -1"),
    (ISLES, "msk", spoil.with_value(255), "labels 0, 1, 255"),
]


@pytest.mark.parametrize(("task", "part", "act", "words"), DEFECTIVE)
def test_every_defect_is_refused_by_name(task, part, act, words, tmp_path):
    (scan,) = data.write([make_case(task)], tmp_path, task=task)
    path = file_of(scan, part)
    act(path)
    text = message(data.read, scan)
    assert str(path) in text
    assert words in text


EDITIONS = {
    2013: {1: 1, 2: 2, 3: 1, 4: 3},
    2016: {1: 1, 2: 2, 3: 1, 4: 3},
    2017: {1: 1, 2: 2, 4: 3},
    2022: {1: 1, 2: 2, 4: 3},
    2023: {1: 1, 2: 2, 3: 3},
    2024: {1: 1, 2: 2, 3: 3, 4: 4},
    2025: {1: 1, 2: 2, 3: 3, 4: 4},
}


@pytest.mark.parametrize("edition", EDITIONS)
def test_labels_of_every_edition_become_those_of_2024(edition, tmp_path):
    numbers = EDITIONS[edition]
    stored = np.zeros(SIZE, np.float64)
    for value in numbers:
        stored[1 + value, 2:4] = value
    (written,) = data.write([make_case()], tmp_path, task=BRATS)
    save(written.label, stored)
    (scan,) = data.brats2024(tmp_path, edition=edition)
    label = data.read(scan if edition != 2024 else scan._replace(edition=None)).label
    np.testing.assert_array_equal(data.read_label(scan).label, label)
    assert {value: int(label[1 + value, 2, 0]) for value in numbers} == numbers
    assert (label != 0).sum() == (stored != 0).sum()
    for value in {3, 4, 7} - set(numbers):
        stored[0, 0, 0] = value
        save(written.label, stored)
        text = message(data.read, scan)
        assert f"edition {edition}" in text
        assert f"1 voxels of {value}" in text
    assert "edition of brats2024: got 1999" in message(data.brats2024, tmp_path, edition=1999)


@pytest.mark.parametrize("axes", ["LAS", "PIR"])
def test_a_file_in_another_axis_order_is_turned(axes, tmp_path):
    """The same grid, stored in another order: positions count, not indices."""
    case = make_case()
    (scan,) = data.write([case], tmp_path, task=BRATS)
    for path in scan.files[1:]:
        spoil.reoriented(axes)(path)
    back = data.read(scan)
    np.testing.assert_array_equal(back.image, case.image)
    np.testing.assert_array_equal(back.label, case.label)
    np.testing.assert_allclose(back.affine, case.affine, atol=1e-5)


def test_at_a_tilt_of_45_degrees_rounding_turns_nothing(tmp_path):
    tilted = oblique((1.0, 1.0, 1.0), tilt=np.pi / 4)
    case = make_case()._replace(affine=tilted, spacing_mm=(1.0, 1.0, 1.0))
    (scan,) = data.write([case], tmp_path, task=BRATS)
    for path, more in zip(scan.channels, (0, 1e-5, -1e-5, 2e-5), strict=True):
        save(path, voxels(path), oblique((1.0, 1.0, 1.0), tilt=np.pi / 4 + more))
    np.testing.assert_array_equal(data.read(scan).image, case.image)


def test_harmless_differences_are_accepted(tmp_path):
    case = make_case()
    case.image[0, 0, 0, 0] = -45  # interpolation leaves negative intensities behind
    (scan,) = data.write([case], tmp_path, task=BRATS)
    spoil.changed(lambda array: array[..., None])(scan.channels[0])
    spoil.changed(lambda array: (array + 1e-4).astype(np.float64))(scan.label)
    spoil.moved_by(5e-4)(scan.channels[2])
    back = data.read(scan)
    np.testing.assert_array_equal(back.image, case.image)
    np.testing.assert_array_equal(back.label, case.label)
    spoil.changed(np.zeros_like)(scan.label)
    assert not data.read(scan).label.any()


@pytest.mark.parametrize("factor", [1, 1000])
def test_the_unit_of_the_adc_is_recognised_inside_the_brain(factor, tmp_path):
    """Noise around the brain, however much there is of it, does not decide."""
    case = make_case(ISLES, size=(20, 20, 20))
    case.image[1] = 0.9
    case.image[:, :16] = np.array([0, 1e-6, 0])[:, None, None, None]
    stored = case.image * np.array([1, factor, 1], np.float32)[:, None, None, None]
    (scan,) = data.write([case._replace(image=stored)], tmp_path, task=ISLES)
    np.testing.assert_allclose(data.read(scan).image, case.image, rtol=1e-6)


def test_flair_of_another_grid_is_resampled_by_the_headers(tmp_path):
    """Trilinear interpolation of a linear function is exact, so its values are an oracle."""
    case = make_case(ISLES)
    (scan,) = data.write([case], tmp_path, task=ISLES)
    size, affine = (60, 55, 12), oblique((0.7, 0.7, 4.0), tilt=-0.2, origin=(22.0, -45.0, 2.0))
    slope = np.array([0.3, -0.7, 1.1])
    flair = 300 + np.tensordot(slope, world(affine, size), 1)
    save(scan.channels[2], flair.astype(np.float32), affine)
    back = data.read(scan)
    expected = 300 + np.tensordot(slope, world(case.affine, SIZE), 1)
    index = world(np.linalg.inv(affine) @ case.affine, SIZE)
    inside = ((index >= 0) & (index <= np.subtract(size, 1)[:, None, None, None])).all(0)
    assert 0.5 < inside.mean() < 1
    np.testing.assert_array_equal(back.image[2] != 0, inside)
    np.testing.assert_allclose(back.image[2][inside], expected[inside], rtol=1e-5)
    np.testing.assert_array_equal(back.image[:2], case.image[:2])
    for act in (spoil.moved_by(500), spoil.changed(np.zeros_like)):
        act(scan.channels[2])
        assert f"{scan.channels[2]}: got zeros throughout" in message(data.read, scan)


def test_everything_may_be_brought_to_the_grid_of_the_flair(tmp_path):
    """On a grid twice as fine, every other voxel is one of the native grid."""
    case = make_case(ISLES, size=(24, 24, 12))
    [scan] = data.write([case], tmp_path, task=ISLES)
    finer = case.affine @ np.diag([0.5, 0.5, 2.0, 1.0])
    flair = np.full((48, 48, 6), 7, np.float32)
    save(scan.channels[2], flair, finer)
    moved = data.read(scan, grid="flair")
    assert moved.image.shape == (3, 48, 48, 6)
    assert moved.label.shape == (48, 48, 6)
    np.testing.assert_allclose(moved.affine, finer, atol=1e-6)
    np.testing.assert_allclose(moved.spacing_mm, np.multiply(case.spacing_mm, (0.5, 0.5, 2)))
    np.testing.assert_array_equal(moved.image[2], flair)
    np.testing.assert_allclose(moved.image[0, ::2, ::2], case.image[0, :, :, ::2], rtol=1e-5)
    np.testing.assert_array_equal(moved.label[::2, ::2], case.label[:, :, ::2])
    assert set(np.unique(moved.label)) <= {0, 1}
    assert "grid of isles2022: got 't2w'" in message(data.read, scan, grid="t2w")


def test_isles_folds_are_those_of_nnunet():
    ids = [f"sub-strokecase{n:04}" for n in range(1, 251)]
    fold = data.folds(reversed(ids))[0]
    starts = [id.removeprefix("sub-strokecase") for id in fold.val[:6]]
    assert starts == ["0010", "0011", "0017", "0019", "0021", "0028"]
    assert (len(fold.train), len(fold.val)) == (200, 50)


@pytest.mark.parametrize(("count", "k"), [(7, 5), (613, 5), (23, 4)])
def test_folds_equal_scikit_learn(count, k):
    ids = np.sort([f"case{n:05}" for n in range(count)])
    oracle = KFold(k, shuffle=True, random_state=12345).split(ids)
    for fold, (train, val) in zip(data.folds(ids.tolist(), k=k), oracle, strict=True):
        assert fold.train == tuple(ids[train])
        assert fold.val == tuple(ids[val])


@pytest.mark.parametrize("by_scan", [False, True])
def test_folds_are_by_patient_and_written_for_nnunet(by_scan, tmp_path, capsys):
    ids = [f"BraTS-GLI-{n:05}-{t}" for n in range(12) for t in (100, 101)]
    cases = [make_case(id=id, size=(6, 6, 6)) for id in ids]
    cases.append(make_case(id="BraTS-GLI-00099-100", size=(6, 6, 6), labelled=False))
    data.write(cases, tmp_path / "data", task=BRATS)
    out = tmp_path / "new" / "splits_final.json"
    arguments = ["folds", str(tmp_path / "data"), "--task", "brats2024", "--out", str(out)]
    assert main([*arguments, *(["--by-scan"] if by_scan else [])]) == 0
    said = capsys.readouterr().out
    expected = data.folds(ids, group=None if by_scan else data.patient)
    stored = json.loads(out.read_text("utf-8"))
    assert stored == [{"train": list(f.train), "val": list(f.val)} for f in expected]
    leaks = [{id[:15] for id in f.train} & {id[:15] for id in f.val} for f in expected]
    assert any(leaks) == by_scan == ("on both sides" in said)
    assert [data.shared(fold, data.patient) for fold in expected] == [*map(sorted, leaks)]
    if by_scan:
        assert f"fold 0: 19 train, 5 val; {len(leaks[0])} patients on both sides" in said
    else:
        assert data.folds(ids, group={id: id[:15] for id in ids}) == expected
        assert sorted(id for fold in expected for id in fold.val) == ids


def test_folds_refuse_doubles_and_too_few_patients():
    assert "'b'] more than once" in message(data.folds, list("abbcde"))
    assert "k=5, 4 groups" in message(data.folds, list("abcd"))
    ids = [f"BraTS-GLI-00001-{t}" for t in range(100, 110)]
    assert "k=5, 1 groups" in message(data.folds, ids, group=data.patient)
