"""Data: files in, cases out; every defect refused by name; batches that depend on seed and step."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.model_selection import KFold

from dcd_core.types import BRATS, ISLES, Case, ContractError
from dcd_lab import data
from dcd_lab.__main__ import main
from dcd_lab.data import grid, nifti, patches, scans
from dcd_lab.records import real_cases

SIZE = (9, 8, 7)
CASE_ID = {BRATS.name: "BraTS-GLI-00005-101", ISLES.name: "sub-strokecase0007"}
LISTING = {BRATS.name: data.brats2024, ISLES.name: data.isles2022}
TASK = pytest.mark.parametrize("task", [BRATS, ISLES], ids=lambda task: task.name)


def oblique(spacing_mm=(2.0, 1.0, 3.0), tilt=0.3, origin=(5.0, -20.0, 11.0)):
    """Return an affine that no axis swap or sign slip leaves unchanged."""
    cos, sin = np.cos(tilt), np.sin(tilt)
    turn = np.array([[-cos, sin, 0], [sin, cos, 0], [0, 0, 1.0]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing_mm)
    affine[:3, 3] = origin
    return affine


def make_case(task=BRATS, seed=0, size=SIZE, id=None, labelled=True):
    """Return a case of noise around 2 within a border of zeros, with all labels of the task."""
    rng = np.random.default_rng(seed)
    image = np.zeros((len(task.channels), *size), np.float32)
    image[:, 1:-1, 1:-1, 1:-1] = 2 + 0.5 * rng.standard_normal(
        (len(image), *(extent - 2 for extent in size)), dtype=np.float32
    )
    label = rng.integers(0, len(task.labels), size).astype(np.uint8)
    label[0] = 0
    affine = oblique()
    id = id or CASE_ID[task.name]
    return Case(id, image, label if labelled else None, (2.0, 1.0, 3.0), affine)


def world(affine, size):
    """Return the scanner coordinates of every voxel, (3, i, j, k), in mm."""
    index = np.indices(size).reshape(3, -1)
    return (affine[:3, :3] @ index + affine[:3, 3:]).reshape(3, *size)


def save(path, array, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, oblique() if affine is None else affine), path)


def message(call, *arguments):
    with pytest.raises(ContractError) as caught:
        call(*arguments)
    return str(caught.value)


# --- layouts --------------------------------------------------------------------------------------


@TASK
def test_what_is_written_is_read_back(task, tmp_path):
    case = make_case(task)
    (written,) = data.write([case], tmp_path, task=task)
    (scan,) = LISTING[task.name](tmp_path)
    assert scan == written
    back = data.read(scan)
    np.testing.assert_array_equal(back.image, case.image)
    np.testing.assert_array_equal(back.label, case.label)
    np.testing.assert_allclose(back.affine, case.affine, atol=1e-5)
    assert (back.id, back.spacing_mm) == (case.id, case.spacing_mm)


@TASK
def test_a_label_is_read_alone_as_with_its_images(task, tmp_path):
    case = make_case(task)
    (scan,) = data.write([case], tmp_path, task=task)
    stored = nib.load(scan.label)
    turn = nib.orientations.axcodes2ornt("PIR")  # another order of axes than that of the channels
    turn = nib.orientations.ornt_transform(nib.io_orientation(stored.affine), turn)
    turned = stored.as_reoriented(turn)
    assert turned.shape != stored.shape
    nib.save(turned, scan.label)
    whole = data.read(scan)
    for path in scan.channels[1:]:
        path.unlink()
    alone = data.read_label(scan)
    assert alone.image.shape == (0, *whole.label.shape)
    np.testing.assert_array_equal(alone.label, case.label)
    np.testing.assert_array_equal(alone.label, whole.label)
    np.testing.assert_array_equal(alone.affine, whole.affine)
    assert (alone.id, alone.spacing_mm) == (whole.id, whole.spacing_mm)


def test_a_label_that_is_absent_or_on_another_grid_is_refused(tmp_path):
    (scan,) = data.write([make_case()], tmp_path, task=BRATS)
    assert "no label" in message(data.read_label, scan._replace(label=None))
    save(scan.label, np.zeros((4, 4, 4)))
    text = message(data.read_label, scan)
    assert str(scan.label) in text
    assert "shape (4, 4, 4)" in text


def names_below(root):
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_file_names_are_those_of_the_challenges(tmp_path):
    data.write([make_case(BRATS)], tmp_path / "b", task=BRATS)
    stem = "BraTS-GLI-00005-101/BraTS-GLI-00005-101"
    suffixes = ("t1n", "t1c", "t2w", "t2f", "seg")
    assert names_below(tmp_path / "b") == {f"{stem}-{name}.nii.gz" for name in suffixes}
    data.write([make_case(ISLES)], tmp_path / "i", task=ISLES)
    stem = "sub-strokecase0007/ses-0001/sub-strokecase0007_ses-0001"
    raw = {f"rawdata/{stem}_{name}.nii.gz" for name in ("dwi", "adc", "flair")}
    assert names_below(tmp_path / "i") == raw | {f"derivatives/{stem}_msk.nii.gz"}


@TASK
def test_both_affines_and_types_are_set(task, tmp_path):
    (scan,) = data.write([make_case(task)], tmp_path, task=task)
    for path in (*scan.channels, scan.label):
        stored = nib.load(path)
        assert int(stored.header["qform_code"]) > 0
        assert int(stored.header["sform_code"]) > 0
        np.testing.assert_allclose(stored.get_qform(), oblique(), atol=1e-4)
        assert stored.get_data_dtype() == (np.uint8 if path == scan.label else np.float32)


def test_brats_scans_may_lie_one_level_down_and_lack_a_label(tmp_path):
    first, second = "BraTS-GLI-00005-101", "BraTS-GLI-00005-000"
    data.write([make_case(id=first)], tmp_path / "training_data1_v2", task=BRATS)
    data.write([make_case(id=second, labelled=False)], tmp_path / "validation_data", task=BRATS)
    (tmp_path / ".partial-x" / "BraTS-GLI-00009-100").mkdir(parents=True)
    (tmp_path / "BraTS-GLI-00009-100.zip").touch()
    scans = data.brats2024(tmp_path)
    assert [scan.id for scan in scans] == [second, first]
    assert {scan.group for scan in scans} == {"BraTS-GLI-00005"}
    assert scans[0].label is None
    assert data.read(scans[0]).label is None


def test_zenodo_layout_is_the_same_case(tmp_path):
    case = make_case(ISLES)
    root = tmp_path / "ISLES-2022"
    subject = root / case.id / "ses-0001"
    for name, folder, image in zip(
        ("dwi", "adc", "FLAIR"), ("dwi", "dwi", "anat"), case.image, strict=True
    ):
        save(subject / folder / f"{case.id}_ses-0001_{name}.nii.gz", image)
    mask = root / "derivatives" / case.id / "ses-0001" / f"{case.id}_ses-0001_msk.nii.gz"
    save(mask, case.label.astype(np.uint16))
    (subject / "dwi" / f"{case.id}_ses-0001_dwi.json").write_text("{}")
    (scan,) = data.isles2022(tmp_path)
    assert scan.label == mask
    back = data.read(scan)
    np.testing.assert_array_equal(back.image, case.image)
    np.testing.assert_array_equal(back.label, case.label)


def test_all_brats_editions_may_lie_below_one_root(tmp_path):
    """Both id families, several time points of a patient, labels in some editions only."""
    places = {
        "BraTS-GLI-00005-000": "BraTS2023/train",
        "BraTS-GLI-00005-100": "BraTS2024/training_data1_v2",
        "BraTS-GLI-00005-101": "BraTS2024/training_data_additional",
        "BraTS-GLI-00008-103": "BraTS2024/validation_data",
    }
    for id, place in places.items():
        labelled = place != "BraTS2024/validation_data"
        data.write([make_case(id=id, labelled=labelled)], tmp_path / place, task=BRATS)
    scans = data.brats2024(tmp_path)
    assert [scan.id for scan in scans] == sorted(places)
    assert [scan.label is not None for scan in scans] == [True, True, True, False]
    assert [scan.post_op for scan in scans] == [False, True, True, True]
    assert len({scan.group for scan in scans}) == 2
    one = tmp_path / places["BraTS-GLI-00005-000"] / "BraTS-GLI-00005-000"
    assert data.brats2024(one) == scans[:1]


@pytest.mark.parametrize(
    "names",
    [
        "images-dwi/{id}_ses-0001_dwi {id}_ses-0001_ADC images/{id}_FLAIR labels/{id}_msk",
        "{id}_dwi {id}_adc {id}_flair {id}_msk",
        "{id}/ses-0001/DWI {id}/ses-0001/ADC {id}/ses-0001/FLAIR {id}/derivatives/MSK",
    ],
)
@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_isles_files_are_known_by_name_wherever_they_lie(names, suffix, tmp_path):
    case = make_case(ISLES)
    parts = [*case.image, case.label]
    for name, array in zip(names.format(id=case.id).split(), parts, strict=True):
        save(tmp_path / f"{name}.{suffix}", array)
    (scan,) = data.isles2022(tmp_path)
    assert scan.post_op is None
    back = data.read(scan)
    np.testing.assert_array_equal(back.image, case.image)
    np.testing.assert_array_equal(back.label, case.label)


def test_a_link_back_to_its_own_folder_is_followed_once(tmp_path):
    (scan,) = data.write([make_case(ISLES)], tmp_path, task=ISLES)
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    assert data.isles2022(tmp_path) == [scan]


def test_a_folder_that_cannot_be_opened_is_not_passed_over(tmp_path, monkeypatch):
    data.write([make_case()], tmp_path, task=BRATS)
    (tmp_path / "shut").mkdir()
    scandir = scans.os.scandir

    def refuse(path):
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(scans.os, "scandir", refuse)
    assert "a folder that is shut" in message(data.brats2024, tmp_path)


@TASK
def test_an_absent_or_empty_root_is_refused(task, tmp_path):
    for root in (tmp_path / "nowhere", tmp_path):
        text = message(LISTING[task.name], root)
        assert str(root) in text
        assert "Try:" in text


@TASK
def test_a_scan_that_is_there_twice_is_refused(task, tmp_path):
    for edition in ("v1", "v2"):
        data.write([make_case(task)], tmp_path / edition, task=task)
    text = message(LISTING[task.name], tmp_path)
    assert "v1" in text
    assert "v2" in text


@TASK
def test_a_file_that_is_there_packed_and_unpacked_is_refused(task, tmp_path):
    (scan,) = data.write([make_case(task)], tmp_path, task=task)
    nib.save(nib.load(scan.channels[1]), scan.channels[1].with_suffix(""))
    assert "twice" in message(LISTING[task.name], tmp_path)


def test_files_of_one_brats_scan_in_two_folders_are_two_editions(tmp_path):
    (scan,) = data.write([make_case()], tmp_path / "v1", task=BRATS)
    other = tmp_path / "v2" / scan.id
    other.mkdir(parents=True)
    assert data.brats2024(tmp_path) == [scan]  # an empty folder is no second copy
    scan.label.rename(other / scan.label.name)
    assert "twice" in message(data.brats2024, tmp_path)


# --- writing --------------------------------------------------------------------------------------


def interrupted(monkeypatch, after):
    """Make the file number `after` (from 0) the one at which the process is interrupted."""
    original, calls = nifti._save, itertools.count()

    def save_or_stop(*arguments):
        if next(calls) == after:
            raise KeyboardInterrupt
        original(*arguments)

    monkeypatch.setattr(nifti, "_save", save_or_stop)


@pytest.mark.parametrize(("task", "files"), [(BRATS, 5), (ISLES, 4)])
def test_an_interrupted_write_resumes(task, files, tmp_path, monkeypatch):
    ids = {BRATS.name: "BraTS-GLI-{:05}-100", ISLES.name: "sub-strokecase{:04}"}[task.name]
    cases = [make_case(task, seed=n, id=ids.format(n)) for n in (1, 2)]
    for after in range(1, 2 * files):
        root = tmp_path / str(after)
        with monkeypatch.context() as patch:
            interrupted(patch, after)
            with pytest.raises(KeyboardInterrupt):
                data.write(cases, root, task=task)
        assert not list(root.glob(".partial-*"))
        before = {path: (root / path).stat().st_mtime_ns for path in names_below(root)}
        if after >= files:
            assert data.read(LISTING[task.name](root)[0]).label is not None
        data.write(cases, root, task=task)
        assert {path: (root / path).stat().st_mtime_ns for path in before} == before
        for scan, case in zip(LISTING[task.name](root), cases, strict=True):
            np.testing.assert_array_equal(data.read(scan).image, case.image)


def test_a_case_cut_off_between_label_and_channels_does_not_pass_as_unlabelled(
    tmp_path, monkeypatch
):
    interrupted(monkeypatch, after=1)
    with pytest.raises(KeyboardInterrupt):
        data.write([make_case(ISLES)], tmp_path, task=ISLES)
    (scan,) = data.isles2022(tmp_path)
    assert "dwi.nii.gz: got no such file" in message(data.read, scan)


@TASK
def test_a_case_killed_without_clean_up_is_not_listed(task, tmp_path):
    (scan,) = data.write([make_case(task)], tmp_path / "half", task=task)
    (tmp_path / "half").rename(tmp_path / ".partial-z")
    assert "got no scan" in message(LISTING[task.name], tmp_path)
    data.write([make_case(task)], tmp_path, task=task)
    assert [found.id for found in LISTING[task.name](tmp_path)] == [scan.id]


def write_one(case, root, task):
    return data.write([case], root, task=task)


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
    text = message(write_one, case, tmp_path, BRATS)
    assert case.id in text
    assert "Try:" in text


def test_ids_of_another_form_are_translated_by_their_number(tmp_path):
    (glioma,) = data.write([make_case(id="glioma-7")], tmp_path / "b", task=BRATS)
    (stroke,) = data.write([make_case(ISLES, id="stroke-0042")], tmp_path / "i", task=ISLES)
    assert (glioma.id, stroke.id) == ("BraTS-GLI-00007-100", "sub-strokecase0042")


@pytest.mark.parametrize("id", ["anonymous", "glioma-123456"])
def test_ids_without_a_usable_number_are_refused(id, tmp_path):
    assert id in message(write_one, make_case(id=id), tmp_path, BRATS)


def test_two_cases_of_one_id_and_cases_of_another_task_are_refused(tmp_path):
    with pytest.raises(ContractError, match="second BraTS-GLI-00007-100"):
        data.write([make_case(id="a-7"), make_case(id="b-7")], tmp_path, task=BRATS)
    with pytest.raises(ContractError, match="4 channels; expected dwi, adc, flair"):
        data.write([make_case(id="sub-strokecase0001")], tmp_path / "i", task=ISLES)


# --- reading what is wrong ------------------------------------------------------------------------


def replaced(change):
    """Return a defect that stores a changed copy of the voxels."""

    def spoil(path):
        stored = nib.load(path)
        array = np.asarray(stored.dataobj, dtype=np.float32)
        save(path, change(array), stored.affine)

    return spoil


def with_value(value):
    def change(array):
        array[3, 3, 3] = value
        return array

    return replaced(change)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-200])


def beyond_float32(path):
    array = np.asarray(nib.load(path).dataobj, dtype=np.float64)
    array[3, 3, 3] = 1e300
    save(path, array)


def moved_by(distance_mm):
    def spoil(path):
        affine = oblique()
        affine[0, 3] += distance_mm
        save(path, np.asarray(nib.load(path).dataobj), affine)

    return spoil


def flattened(path):
    stored = nib.load(path)
    stored.header.set_sform(np.diag([1.0, 1.0, 0.0, 1.0]), code=1)
    nib.save(nib.Nifti1Image(np.asarray(stored.dataobj), None, stored.header), path)


DEFECTS = {
    "missing": (Path.unlink, "no such file"),
    "text": (lambda path: path.write_text("not an image"), "readable NIfTI"),
    "empty file": (lambda path: path.write_bytes(b""), "readable NIfTI"),
    "truncated": (cut_short, "readable NIfTI"),
    "shape": (replaced(lambda array: array[:-1]), "shape (8, 8, 7)"),
    "affine": (moved_by(0.01), "0.01 mm off"),
    "singular": (flattened, "cannot be inverted"),
    "nan": (with_value(np.nan), "1 NaN"),
    "inf": (with_value(np.inf), "1 NaN or infinite"),
    "overflow": (beyond_float32, "1 NaN or infinite"),
    "four axes": (replaced(lambda array: np.stack([array, array], -1)), "shape (9, 8, 7, 2)"),
    "two axes": (replaced(lambda array: array[..., 0]), "shape (9, 8)"),
}


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize(
    ("task", "part"), [(BRATS, "t1c"), (BRATS, "seg"), (ISLES, "adc"), (ISLES, "msk")]
)
def test_every_defect_is_refused_by_name(task, part, defect, tmp_path):
    spoil, words = DEFECTS[defect]
    (scan,) = data.write([make_case(task)], tmp_path, task=task)
    (path,) = (path for path in (*scan.channels, scan.label) if f"{part}.nii" in path.name)
    spoil(path)
    text = message(data.read, scan)
    assert str(path) in text
    assert words in text
    assert "Try:" in text


@pytest.mark.parametrize(
    ("task", "value", "words"),
    [
        (BRATS, 5, "labels 0, 1, 2, 3, 4, 5"),
        (BRATS, -1, "labels -1"),
        (BRATS, 1.4, "the value 1.4"),
        (ISLES, 2, "whole numbers 0 to 1"),
        (ISLES, 255, "labels 0, 1, 255"),
    ],
)
def test_labels_outside_the_task_are_refused(task, value, words, tmp_path):
    (scan,) = data.write([make_case(task)], tmp_path, task=task)
    with_value(value)(scan.label)
    text = message(data.read, scan)
    assert str(scan.label) in text
    assert words in text
    assert "Try:" in text


EDITIONS = {
    2013: {1: 1, 2: 2, 3: 1, 4: 3},
    2015: {1: 1, 2: 2, 3: 1, 4: 3},
    2018: {1: 1, 2: 2, 4: 3},
    2021: {1: 1, 2: 2, 4: 3},
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
    label = data.read(scan).label
    np.testing.assert_array_equal(data.read_label(scan).label, label)
    assert {value: int(label[1 + value, 2, 0]) for value in numbers} == numbers
    assert (label != 0).sum() == (stored != 0).sum()
    # A value that this edition does not have is named with the edition.
    for value in {3, 4, 7} - set(numbers):
        stored[0, 0, 0] = value
        save(written.label, stored)
        text = message(data.read, scan)
        assert f"edition {edition}" in text
        assert f"1 voxels of {value}" in text


def test_an_unknown_edition_is_refused(tmp_path):
    data.write([make_case()], tmp_path, task=BRATS)
    with pytest.raises(ContractError, match="edition of brats2024: got 1999"):
        data.brats2024(tmp_path, edition=1999)


def test_a_scan_of_no_edition_has_the_numbers_of_its_task(tmp_path):
    (scan,) = data.write([make_case()], tmp_path, task=BRATS)
    assert scan.edition == 2024
    whole = data.read(scan._replace(edition=None))
    np.testing.assert_array_equal(whole.label, data.read(scan).label)


@pytest.mark.parametrize("axes", ["LAS", "LPS", "RAS", "PIR"])
def test_a_file_in_another_axis_order_is_turned(axes, tmp_path):
    """The same grid, stored in another order: places count, not indices."""
    case = make_case()
    (scan,) = data.write([case], tmp_path, task=BRATS)
    whole = nib.orientations.axcodes2ornt(axes)
    for path in (*scan.channels[1:], scan.label):
        stored = nib.load(path)
        turn = nib.orientations.ornt_transform(nib.io_orientation(stored.affine), whole)
        nib.save(stored.as_reoriented(turn), path)
    back = data.read(scan)
    np.testing.assert_array_equal(back.image, case.image)
    np.testing.assert_array_equal(back.label, case.label)
    np.testing.assert_allclose(back.affine, case.affine, atol=1e-5)


def test_at_a_tilt_of_45_degrees_rounding_turns_nothing(tmp_path):
    case = make_case()._replace(affine=oblique((1.0, 1.0, 1.0), tilt=np.pi / 4))
    (scan,) = data.write([case], tmp_path, task=BRATS)
    for path, more in zip(scan.channels, (0, 1e-5, -1e-5, 2e-5), strict=True):
        affine = oblique((1.0, 1.0, 1.0), tilt=np.pi / 4 + more)
        save(path, np.asarray(nib.load(path).dataobj), affine)
    np.testing.assert_array_equal(data.read(scan).image, case.image)


@pytest.mark.parametrize(("sform", "qform"), [(1, 1), (2, 0), (0, 1)])
def test_the_affine_is_that_of_nibabel(sform, qform, tmp_path):
    """The sform where its code is set, else the qform, as nibabel documents."""
    case = make_case()
    (scan,) = data.write([case], tmp_path, task=BRATS)
    wrong = oblique(origin=(0.0, 0.0, 0.0))
    for path in (*scan.channels, scan.label):
        stored = nib.load(path)
        stored.set_sform(case.affine if sform else wrong, code=sform)
        stored.set_qform(wrong if sform else case.affine, code=qform)
        nib.save(stored, path)
    np.testing.assert_allclose(data.read(scan).affine, case.affine, atol=1e-4)


def test_negative_intensities_are_kept(tmp_path):
    case = make_case()
    case.image[0, 0, 0, 0] = -45
    (scan,) = data.write([case], tmp_path, task=BRATS)
    assert data.read(scan).image[0, 0, 0, 0] == -45


def test_the_unit_of_the_adc_is_judged_inside_the_brain(tmp_path):
    """Noise around the brain, however much there is of it, has no say."""
    case = make_case(ISLES, size=(20, 20, 20))
    case.image[0, :6], case.image[1] = 0, 1e-3
    case.image[1, 6:] = 900
    (scan,) = data.write([case], tmp_path, task=ISLES)
    assert data.read(scan).image[1, 10, 10, 10] == np.float32(0.9)
    mostly_noise = case.image.copy()
    mostly_noise[0, :16], mostly_noise[1, :16] = 0, 1e-3
    (scan,) = data.write([case._replace(image=mostly_noise)], tmp_path / "n", task=ISLES)
    assert data.read(scan).image[1, 18, 10, 10] == np.float32(0.9)


def test_an_empty_channel_is_refused(tmp_path):
    (scan,) = data.write([make_case()], tmp_path, task=BRATS)
    replaced(np.zeros_like)(scan.channels[3])
    text = message(data.read, scan)
    assert str(scan.channels[3]) in text
    assert "zeros throughout" in text


def test_harmless_differences_are_accepted(tmp_path):
    case = make_case()
    (scan,) = data.write([case], tmp_path, task=BRATS)
    replaced(lambda array: array[..., None])(scan.channels[0])
    replaced(lambda array: (array + 1e-4).astype(np.float64))(scan.label)
    moved_by(5e-4)(scan.channels[2])
    back = data.read(scan)
    np.testing.assert_array_equal(back.image, case.image)
    np.testing.assert_array_equal(back.label, case.label)
    replaced(np.zeros_like)(scan.label)
    assert not data.read(scan).label.any()


@pytest.mark.parametrize("factor", [1, 1000])
def test_the_unit_of_the_adc_is_recognised(factor, tmp_path):
    case = make_case(ISLES)
    stored = case.image * np.array([1, factor, 1], np.float32)[:, None, None, None]
    (scan,) = data.write([case._replace(image=stored)], tmp_path, task=ISLES)
    np.testing.assert_allclose(data.read(scan).image, case.image, rtol=1e-6)


def test_flair_of_another_grid_lands_where_it_belongs(tmp_path):
    """Trilinear interpolation of a linear function is exact, so its values are an oracle."""
    case = make_case(ISLES)
    (scan,) = data.write([case], tmp_path, task=ISLES)
    size, affine = (60, 55, 12), oblique((0.7, 0.7, 4.0), tilt=-0.2, origin=(22.0, -45.0, 2.0))
    slope = np.array([0.3, -0.7, 1.1])
    flair = 300 + np.tensordot(slope, world(affine, size), 1)
    save(scan.channels[2], flair.astype(np.float32), affine)
    back = data.read(scan)
    expected = 300 + np.tensordot(slope, world(case.affine, SIZE), 1)
    index = nib.affines.apply_affine(
        np.linalg.inv(affine), np.moveaxis(world(case.affine, SIZE), 0, -1)
    )
    inside = ((index >= 0) & (index <= np.subtract(size, 1))).all(-1)
    assert 0.5 < inside.mean() < 1
    np.testing.assert_array_equal(back.image[2] != 0, inside)
    np.testing.assert_allclose(back.image[2][inside], expected[inside], rtol=1e-5)
    np.testing.assert_array_equal(back.image[:2], case.image[:2])


def test_everything_may_come_to_the_grid_of_the_flair(tmp_path):
    """Another grid, the same places: what is read there equals a sampling of what is read here."""
    case = make_case(ISLES, size=(24, 24, 12))
    [scan] = data.write([case], tmp_path, task=ISLES)
    finer = case.affine @ np.diag([0.5, 0.5, 2.0, 1.0])
    flair = np.full((48, 48, 6), 7, np.float32)
    nib.save(nib.Nifti1Image(flair, finer), scan.channels[2])
    there = data.read(scan, grid="flair")
    assert there.image.shape == (3, 48, 48, 6)
    assert there.label.shape == (48, 48, 6)
    np.testing.assert_allclose(there.affine, finer, atol=1e-6)
    np.testing.assert_allclose(there.spacing_mm, np.multiply(case.spacing_mm, (0.5, 0.5, 2)))
    np.testing.assert_array_equal(there.image[2], flair)
    np.testing.assert_allclose(there.image[0, ::2, ::2], case.image[0, :, :, ::2], rtol=1e-5)
    np.testing.assert_array_equal(there.label[::2, ::2], case.label[:, :, ::2])
    assert set(np.unique(there.label)) <= {0, 1}
    here = data.read(scan)
    assert here.image.shape == case.image.shape
    with pytest.raises(ContractError, match="grid of isles2022: got 't2w'"):
        data.read(scan, grid="t2w")


def test_flair_that_misses_the_brain_is_refused(tmp_path):
    (scan,) = data.write([make_case(ISLES)], tmp_path, task=ISLES)
    moved_by(500)(scan.channels[2])
    text = message(data.read, scan)
    assert str(scan.channels[2]) in text
    assert "zeros throughout" in text


# --- folds ----------------------------------------------------------------------------------------


def test_isles_folds_are_those_of_nnunet():
    ids = [f"sub-strokecase{n:04}" for n in range(1, 251)]
    fold = data.folds(reversed(ids))[0]
    starts = [id.removeprefix("sub-strokecase") for id in fold.val[:6]]
    assert starts == ["0010", "0011", "0017", "0019", "0021", "0028"]
    assert (len(fold.train), len(fold.val)) == (200, 50)


@pytest.mark.parametrize(("count", "k"), [(7, 5), (250, 5), (613, 5), (1350, 5), (23, 4)])
def test_folds_equal_scikit_learn(count, k):
    ids = np.sort([f"case{n:05}" for n in range(count)])
    oracle = KFold(k, shuffle=True, random_state=12345).split(ids)
    for fold, (train, val) in zip(data.folds(ids.tolist(), k=k), oracle, strict=True):
        assert fold.train == tuple(ids[train])
        assert fold.val == tuple(ids[val])


def test_a_patient_stays_on_one_side():
    rng = np.random.default_rng(0)
    ids = [f"BraTS-GLI-{n:05}-{100 + t}" for n in range(40) for t in range(rng.integers(1, 4))]
    by_patient = data.folds(ids, group=data.patient)
    assert by_patient == data.folds(ids, group={id: id[:15] for id in ids})
    for fold in by_patient:
        assert not {id[:15] for id in fold.train} & {id[:15] for id in fold.val}
        assert sorted(fold.train + fold.val) == sorted(ids)
    assert sorted(id for fold in by_patient for id in fold.val) == sorted(ids)
    by_scan = data.folds(ids)[0]
    assert {id[:15] for id in by_scan.train} & {id[:15] for id in by_scan.val}  # nnU-Net's leak


@pytest.mark.parametrize("by_scan", [False, True])
def test_folds_are_written_for_nnunet_and_a_leak_is_said(by_scan, tmp_path, capsys):
    ids = [f"BraTS-GLI-{n:05}-{t}" for n in range(12) for t in (100, 101)]
    data.write([make_case(id=id, size=(6, 6, 6)) for id in ids], tmp_path / "data", task=BRATS)
    data.write(
        [make_case(id="BraTS-GLI-00099-100", size=(6, 6, 6), labelled=False)],
        tmp_path / "data",
        task=BRATS,
    )
    out = tmp_path / "new" / "splits_final.json"
    options = ["--by-scan"] if by_scan else []
    assert (
        main(["folds", str(tmp_path / "data"), "--task", "brats2024", "--out", str(out), *options])
        == 0
    )
    said = capsys.readouterr().out
    stored = json.loads(out.read_text("utf-8"))
    expected = data.folds(ids, group=None if by_scan else data.patient)
    assert stored == [{"train": list(f.train), "val": list(f.val)} for f in expected]
    assert ("on both sides" in said) == by_scan
    leaks = [data.shared(fold, data.patient) for fold in expected]
    assert any(leaks) == by_scan
    if by_scan:
        assert f"fold 0: 19 train, 5 val; {len(leaks[0])} patients on both sides" in said


def test_folds_refuse_doubles_and_too_few_patients():
    with pytest.raises(ContractError, match="'b'] more than once"):
        data.folds(list("abbcde"))
    with pytest.raises(ContractError, match="k=5, 4 groups"):
        data.folds(list("abcd"))
    with pytest.raises(ContractError, match="k=5, 1 groups"):
        data.folds([f"BraTS-GLI-00001-{t}" for t in range(100, 110)], group=data.patient)


# --- prepare --------------------------------------------------------------------------------------


def test_channels_become_z_scores_of_one_shared_mask():
    case = make_case(size=(20, 18, 16))
    case.image[0, 8:10, 8:10, 8:10] = 0  # absent from one channel only
    case.image[:, 4, 4, 4] = 0  # a hole in the brain
    before = case.image.copy()
    prepared = data.prepare(case)
    np.testing.assert_array_equal(case.image, before)
    brain = ndimage.binary_fill_holes((before != 0).any(0))
    assert brain.sum() == 18 * 16 * 14
    for channel, raw in zip(prepared.image, before, strict=True):
        inside = channel[brain]
        np.testing.assert_allclose([inside.mean(), inside.std()], [0, 1], atol=1e-4)
        assert not channel[~brain].any()
        expected = (raw[brain] - raw[brain].mean()) / raw[brain].std()
        np.testing.assert_allclose(inside, np.clip(expected, *grid.Z_RANGE), atol=1e-4)


def test_intensities_far_out_are_clipped():
    case = make_case(size=(20, 18, 16))
    case.image[1, 5, 5, 5], case.image[2, 5, 5, 5] = 1e3, -1e3
    prepared = data.prepare(case)
    assert prepared.image[1].max() == 10
    assert prepared.image[2].min() == -5


def test_adc_is_clipped_before_it_is_normalised():
    case = make_case(ISLES, size=(20, 18, 16))
    clean = data.prepare(case)
    case.image[1, 5, 5, 5] = 4.0
    limit = data.prepare(case)
    case.image[1, 5, 5, 5] = 4e4
    np.testing.assert_array_equal(data.prepare(case).image, limit.image)
    np.testing.assert_allclose(clean.image[1].mean(), limit.image[1].mean(), atol=1e-3)
    two = ISLES._replace(channels=("dwi", "adc"))
    pair = data.prepare(case._replace(image=case.image[:2]), task=two)
    np.testing.assert_array_equal(pair.image, limit.image[:2])
    with pytest.raises(ContractError, match="t1n, t1c, t2w, t2f"):
        data.prepare(case, task=BRATS)


def test_cropping_keeps_a_voxel_where_it_was():
    case = make_case(size=(30, 28, 26))
    case.image[:, :9], case.image[:, :, 20:], case.image[..., :5] = 0, 0, 0
    case.label[:] = 0
    case.label[12, 10, 14] = 3
    prepared = data.prepare(case)
    assert prepared.image.shape[1:] == (23, 22, 23)  # brain 20 x 19 x 20, 1 or 2 voxels around
    (there,), (here,) = np.argwhere(prepared.label == 3), np.argwhere(case.label == 3)
    np.testing.assert_allclose(
        nib.affines.apply_affine(prepared.affine, there),
        nib.affines.apply_affine(case.affine, here),
    )


@pytest.mark.parametrize("spacing_mm", [1.5, 0.8, (2.0, 2.0, 2.0), (4.0, 1.0, 3.0)])
def test_resampling_keeps_every_point_where_it_was(spacing_mm):
    """A linear function of the place, resampled, is the same function of the new voxels' places."""
    size = (30, 40, 26)
    slope = np.array([[0.5, -0.2, 0.3], [0.1, 0.4, -0.6], [1.0, 0.0, 0.2], [0.3, 0.3, 0.3]])

    def function(affine, size):
        return 500 + np.tensordot(slope, world(affine, size), 1)

    affine = oblique()
    raw = function(affine, size)
    case = Case("c", raw.astype(np.float32), None, (2.0, 1.0, 3.0), affine)
    prepared = data.prepare(case, spacing_mm=spacing_mm)
    expected_spacing = np.broadcast_to(spacing_mm, 3)
    np.testing.assert_allclose(prepared.spacing_mm, expected_spacing)
    np.testing.assert_allclose(nib.affines.voxel_sizes(prepared.affine), expected_spacing)
    mean, std = raw.mean((1, 2, 3)), raw.std((1, 2, 3))
    expected = function(prepared.affine, prepared.image.shape[1:])
    expected = (expected - mean[:, None, None, None]) / std[:, None, None, None]
    index = np.linalg.inv(affine) @ prepared.affine
    place = world(index, prepared.image.shape[1:])
    # Splines feel the end of the volume; a quarter of it is left at every voxel further in.
    edge = 7
    inner = ((place >= edge) & (place <= np.subtract(size, 1 + edge)[:, None, None, None])).all(0)
    assert inner.sum() > 1000
    np.testing.assert_allclose(prepared.image[:, inner], expected[:, inner], atol=1e-4)


def smooth(affine, size):
    """A brain with air around it, bright where a wave of 13 mm is high; four equal channels."""
    x, y, z = world(affine, size)
    wave = 5 + np.sin(x / 2) + np.cos(y / 2) + np.sin(z / 2)
    middle = np.array([x.mean(), y.mean(), z.mean()])[:, None, None, None]
    brain = np.linalg.norm(np.stack([x, y, z]) - middle, axis=0) < 14
    return np.stack([(wave * brain).astype(np.float32)] * 4), brain


def test_images_are_resampled_by_splines_and_end_where_the_brain_does():
    affine, size = np.diag([2.0, 2.0, 2.0, 1.0]), (24, 24, 24)
    image, brain = smooth(affine, size)
    prepared = data.prepare(Case("c", image, None, (2.0,) * 3, affine), spacing_mm=1.0)
    there, inside = smooth(prepared.affine, prepared.image.shape[1:])
    inside = ndimage.binary_erosion(inside, iterations=9)  # the jump to air rings
    expected = (there - image[:, brain].mean()) / image[:, brain].std()
    error = np.abs(prepared.image - expected)[:, inside]
    assert error.max() < 0.01  # linear interpolation is off by 0.2
    assert not prepared.image[:, ~ndimage.binary_dilation(there[0] != 0, iterations=2)].any()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_thick_slices_are_taken_whole(axis):
    """Within a slice splines interpolate; across slices the nearest one is repeated."""
    spacing = np.ones(3)
    spacing[axis] = 5.0
    affine = np.diag([*spacing, 1.0])
    size = [28, 28, 28]
    size[axis] = 6
    image, _ = smooth(affine, tuple(size))
    label = (image[0] > 6).astype(np.uint8)
    case = Case("c", image, label, tuple(spacing), affine)
    native = data.prepare(case)
    prepared = data.prepare(case, spacing_mm=1.0)
    slices, originals = (np.moveaxis(c.image[0], axis, 0) for c in (prepared, native))
    assert len(slices) == 5 * len(originals)
    for i, one in enumerate(slices):
        np.testing.assert_allclose(one, originals[i // 5], atol=1e-4)
    labels, before = (np.moveaxis(c.label, axis, 0) for c in (prepared, native))
    assert all((one == before[i // 5]).all() for i, one in enumerate(labels))


def test_labels_are_resampled_by_the_largest_share():
    case = make_case(size=(24, 24, 24))._replace(spacing_mm=(1.0, 1.0, 1.0), affine=np.eye(4))
    case.label[:] = 0
    case.label[4:14, 6:16, 8:18] = 4
    case.label[6:10, 8:12, 10:14] = 1
    prepared = data.prepare(case, spacing_mm=2.0)
    assert prepared.label.dtype == np.uint8
    assert set(np.unique(prepared.label)) == {0, 1, 4}
    np.testing.assert_allclose((prepared.label == 4).sum() * 8, (case.label == 4).sum(), rtol=0.1)
    for value in (1, 4):
        there = np.argwhere(prepared.label == value).mean(0)
        here = np.argwhere(case.label == value).mean(0)
        there = nib.affines.apply_affine(prepared.affine, there)
        np.testing.assert_allclose(there, here, atol=0.3)


def test_prepared_labels_return_to_the_native_grid():
    case = make_case(size=(20, 18, 16))
    prepared = data.prepare(case)
    back = data.resample(
        prepared.label.astype(np.float32),
        prepared.affine,
        onto_affine=case.affine,
        onto_shape=case.label.shape,
        order=0,
    )
    np.testing.assert_array_equal(back, case.label)


def test_resampling_onto_the_same_grid_loses_no_border():
    rng = np.random.default_rng(0)
    volume = make_case().image[0] + 1
    for _ in range(20):
        affine = oblique(rng.uniform(0.5, 5, 3), rng.uniform(-3, 3), rng.uniform(-99, 99, 3))
        same = data.resample(volume, affine, onto_affine=affine, onto_shape=SIZE)
        np.testing.assert_allclose(same, volume, rtol=1e-5)


def test_spacing_that_is_there_already_changes_nothing():
    case = make_case(labelled=False)
    same, plain = data.prepare(case, spacing_mm=(2.0, 1.0, 3.0)), data.prepare(case)
    np.testing.assert_array_equal(same.image, plain.image)
    np.testing.assert_array_equal(same.affine, plain.affine)
    assert same.label is None


def test_an_empty_case_and_a_spacing_of_zero_are_refused():
    case = make_case()
    with pytest.raises(ContractError, match=case.id):
        data.prepare(case._replace(image=np.zeros_like(case.image)))
    with pytest.raises(ContractError, match="spacing_mm"):
        data.prepare(case, spacing_mm=0.0)


# --- patches --------------------------------------------------------------------------------------


def cohort(count=3, size=(20, 18, 16)):
    """Return prepared cases whose first channel is 1 + label in the brain: flips are visible."""
    cases = []
    for seed in range(count):
        case = make_case(seed=seed, size=size, id=f"case-{seed}")
        case.image[0] = (1.0 + case.label) * (case.image[1] != 0)
        cases.append(case)
    return cases


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def deal(cases=None, **options):
    chosen = {"patch": (8, 7, 6), "batch": 2, "seed": 3, **options}
    return data.Patches(cohort() if cases is None else cases, **chosen)


def test_a_batch_depends_on_seed_and_step_alone():
    dealt, again = deal(), deal()
    ahead = [dealt[step] for step in range(6)]
    assert equal(again[5], ahead[5])  # asked first, without its predecessors
    assert all(map(equal, itertools.islice(again, 6), ahead))
    assert not any(equal(a, b) for a, b in itertools.combinations(ahead, 2))
    assert not equal(deal(seed=4)[5], ahead[5])
    state = np.random.get_state()[1].copy()
    torch_state = torch.random.get_rng_state()
    _ = again[7]
    assert (np.random.get_state()[1] == state).all()
    assert torch.equal(torch.random.get_rng_state(), torch_state)


def test_batches_have_the_shapes_and_types_of_the_contract():
    image, label = deal()[0]
    assert image.shape == (2, 4, 8, 7, 6)
    assert image.dtype == torch.float32
    assert label.shape == (2, 1, 8, 7, 6)
    assert label.dtype == torch.int64
    assert image.is_contiguous()


def test_the_draws_of_a_seed_never_change():
    """Another stream would break the resumption of every stored run: change it knowingly."""
    drawn = [(draw.case, draw.corner, draw.flips) for draw in deal().draws(700)]
    assert drawn == [
        (2, (6, 0, 4), (False, True, False)),
        (0, (5, 11, 9), (True, False, True)),
    ]


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (3, 4), (2, 2)])
def test_the_stream_yields_the_same_batches(start, stop):
    dealt = deal()
    streamed = list(dealt.stream(start, stop))
    assert len(streamed) == stop - start
    assert all(map(equal, streamed, (dealt[step] for step in range(start, stop))))


def test_the_stream_runs_two_batches_ahead_and_no_further(monkeypatch):
    made, original = [], data.Patches.__getitem__

    def counted(dealt, step):
        made.append(step)
        return original(dealt, step)

    monkeypatch.setattr(data.Patches, "__getitem__", counted)
    stream = deal().stream(0, 100)
    for _ in range(4):
        next(stream)
    stream.close()
    assert made == sorted(made)
    assert len(made) <= 4 + 2


def test_augmentation_moves_no_patch():
    plain, mild = deal(augment=patches.NONE), deal()
    for step in range(20):
        for a, b in zip(plain.draws(step), mild.draws(step), strict=True):
            assert (a.case, a.corner) == (b.case, b.corner)
            assert a.flips == (False, False, False)
            assert not a.shift.any()
            assert (a.gain == 1).all()
            assert a.noise == 0


def speck(size=(30, 30, 30)):
    """Return a case with one voxel of label 1 and 200 of label 2, away from the border."""
    case = make_case(size=size, id="speck")
    case.label[:] = 0
    case.label[14, 15, 16] = 1
    case.label[20:25, 8:18, 12:16] = 2
    return case


@pytest.mark.parametrize("share", [0.0, 1 / 3, 1.0])
def test_the_share_of_foreground_and_its_balance(share):
    dealt = deal([speck()], patch=(5, 5, 5), batch=4, foreground=share)
    count, case = 3000, dealt.cases[0]
    corners = [draw.corner for step in range(count // 4) for draw in dealt.draws(step)]
    centres = Counter(int(case.label[i + 2, j + 2, k + 2]) for i, j, k in corners)
    by_chance = np.array([1, 200]) / 26**3
    for value, chance in zip((1, 2), by_chance, strict=True):
        expected = share / 2 + (1 - share) * chance
        sd = np.sqrt(count * expected * (1 - expected))
        assert abs(centres[value] - count * expected) <= 4 * sd


def test_patches_lie_within_the_case_and_reach_all_of_it():
    dealt = deal(cohort(1), foreground=0.0)
    corners = np.array([draw.corner for step in range(400) for draw in dealt.draws(step)])
    assert corners.min(0).tolist() == [0, 0, 0]
    assert corners.max(0).tolist() == [12, 11, 10]


def test_foreground_at_the_border_is_still_in_the_patch():
    case = speck()
    case.label[:] = 0
    case.label[0, 29, 15] = 1
    dealt = deal([case], foreground=1.0)
    for step in range(5):
        assert (dealt[step][1].sum((1, 2, 3, 4)) == 1).all()


def test_a_case_without_lesion_is_sampled_anywhere():
    case = speck()._replace(label=np.zeros((30, 30, 30), np.uint8))
    assert len({draw.corner for draw in deal([case], foreground=1.0, batch=9).draws(0)}) > 5


def test_a_small_case_is_centred_in_zeros():
    case = cohort(1, size=(6, 18, 5))[0]
    dealt = deal([case], patch=(9, 8, 8), augment=patches.NONE)
    image, label = (part.numpy() for part in dealt[1])
    for row, draw in enumerate(dealt.draws(1)):
        j = draw.corner[1]
        assert (draw.corner[0], draw.corner[2]) == (-2, -2)
        expected = np.pad(case.image[:, :, j : j + 8], ((0, 0), (2, 1), (0, 0), (2, 1)))
        np.testing.assert_array_equal(image[row], expected)
        expected = np.pad(case.label[:, j : j + 8], ((2, 1), (0, 0), (2, 1)))
        np.testing.assert_array_equal(label[row, 0], expected)


def test_flips_take_image_and_label_along():
    dealt = deal(augment=patches.NONE._replace(flips=True))
    seen = set()
    for step in range(40):
        image, label = (part.numpy() for part in dealt[step])
        brain = image[:, 1] != 0
        np.testing.assert_array_equal(image[:, 0][brain], 1 + label[:, 0][brain])
        for row, draw in enumerate(dealt.draws(step)):
            plain, _ = patches.cut(
                dealt.cases[draw.case], draw._replace(flips=(False,) * 3), dealt.patch
            )
            axes = tuple(axis + 1 for axis in range(3) if draw.flips[axis])
            np.testing.assert_array_equal(image[row], np.flip(plain, axes))
            seen.add(draw.flips)
    assert len(seen) == 8


def test_intensities_change_by_channel_and_background_stays_zero():
    settings = patches.Augment(flips=False, gain=0.2, shift=0.3, noise=0.0)
    changed, plain = deal(augment=settings), deal(augment=patches.NONE)
    draws = [draw for step in range(30) for draw in changed.draws(step)]
    assert np.ptp([draw.gain for draw in draws], axis=0).min() > 0.3
    assert np.abs([draw.gain - 1 for draw in draws]).max() <= 0.2
    assert np.abs([draw.shift for draw in draws]).max() <= 0.3
    for step in range(5):
        before = plain[step][0].numpy()
        drawn = changed.draws(step)
        gain = np.stack([draw.gain for draw in drawn])[:, :, None, None, None]
        shift = np.stack([draw.shift for draw in drawn])[:, :, None, None, None]
        brain = (before != 0).any(1, keepdims=True)
        expected = (before * gain + shift) * brain
        np.testing.assert_allclose(changed[step][0].numpy(), expected, atol=1e-6)


def test_noise_has_the_deviation_that_was_drawn():
    settings = patches.NONE._replace(noise=0.5)
    noisy, plain = (
        deal(augment=settings, patch=(16, 16, 14)),
        deal(augment=patches.NONE, patch=(16, 16, 14)),
    )
    levels = []
    for step in range(12):
        added = (noisy[step][0] - plain[step][0]).numpy()
        brain = plain[step][0].numpy().any(1)
        assert not added.transpose(0, 2, 3, 4, 1)[~brain].any()
        for row, draw in enumerate(noisy.draws(step)):
            np.testing.assert_allclose(added[row][:, brain[row]].std(), draw.noise, rtol=0.05)
            levels.append(draw.noise)
    assert 0 < np.count_nonzero(levels) < len(levels)
    assert max(levels) <= 0.5


def test_arrays_may_stay_on_disk(tmp_path):
    cases = cohort(2)
    kept = []
    for case in cases:
        np.save(tmp_path / f"{case.id}.npy", case.image)
        mapped = np.load(tmp_path / f"{case.id}.npy", mmap_mode="r")
        kept.append(case._replace(image=mapped))
    assert all(equal(deal(kept)[step], deal(cases)[step]) for step in range(4))


@pytest.mark.parametrize(
    ("cases", "options", "words"),
    [
        ([], {}, "got none"),
        ([make_case(), make_case(id="x", labelled=False)], {}, "case x: got no label"),
        ([make_case(), make_case(ISLES)], {}, "3 channels; expected 4"),
        ([make_case()._replace(label=np.zeros((2, 2, 2), np.uint8))], {}, r"label of \(2, 2, 2\)"),
        (None, {"patch": (8, 0, 8)}, r"patch=\(8, 0, 8\)"),
        (None, {"batch": 0}, "batch=0"),
        (None, {"seed": -1}, "seed=-1"),
        (None, {"foreground": 1.5}, "foreground=1.5"),
    ],
)
def test_what_cannot_be_dealt_is_refused(cases, options, words):
    with pytest.raises(ContractError, match=words) as caught:
        deal(cases, **options)
    assert "Try:" in str(caught.value)


def test_loaders_pair_patches_with_whole_cases():
    train, tune = cohort(3)[:2], cohort(3)[2:]
    made = data.loaders(train, tune, patch=(8, 7, 6), batch=2, seed=3, foreground=0.5)
    assert equal(made.train[4], deal(train, foreground=0.5)[4])
    assert [case.id for case in made.tune] == ["case-2"]


def test_loaders_refuse_a_patient_on_both_sides_and_other_cases():
    options = {"patch": (4, 4, 4), "batch": 1, "seed": 0}
    one, two = (make_case(id=f"BraTS-GLI-00005-{time}") for time in (100, 101))
    with pytest.raises(ContractError, match="BraTS-GLI-00005 on both sides"):
        data.loaders([one], [two], **options)
    with pytest.raises(ContractError, match="no label"):
        data.loaders([one], [make_case(id="x", labelled=False)], **options)
    with pytest.raises(ContractError, match="3 channels"):
        data.loaders([one], [make_case(ISLES)], **options)


# --- real cases -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    folder = real_cases()
    if folder is None:
        pytest.skip("no real cases: set DCD_REAL_CASES or put them in shared/data")
    return folder


@pytest.mark.real
def test_isles_0009_has_its_known_numbers(real):
    (scan,) = data.isles2022(real / "isles2022")
    assert (scan.id, scan.group) == ("sub-strokecase0009", "sub-strokecase0009")
    case = data.read(scan)
    assert case.image.shape == (3, 112, 112, 73)
    assert case.spacing_mm == (2.0, 2.0, 2.0)
    assert np.isclose(case.label.sum() * 0.008, 4.184)
    assert ndimage.label(case.label, np.ones((3, 3, 3)))[1] == 18
    dwi, adc, flair = case.image
    assert np.isclose(np.count_nonzero(dwi) * 0.008, 1449.9, atol=0.05)
    assert np.isclose(np.median(adc[dwi != 0]), 0.904, atol=1e-3)
    shared = np.count_nonzero((dwi != 0) & (flair != 0))
    dice = 2 * shared / (np.count_nonzero(dwi) + np.count_nonzero(flair))
    assert np.isclose(dice, 0.961, atol=1e-3)
    threshold = dwi > np.percentile(dwi[dwi != 0], 99)
    found = 2 * (threshold & (case.label == 1)).sum() / (threshold.sum() + case.label.sum())
    assert np.isclose(found, 0.1738, atol=1e-3)


@pytest.mark.real
def test_isles_0009_survives_preparation_and_writing(real, tmp_path):
    case = data.read(data.isles2022(real / "isles2022")[0])
    prepared = data.prepare(case)
    assert prepared.label.sum() == case.label.sum()
    assert all(
        size < before for size, before in zip(prepared.label.shape, (112, 112, 74), strict=True)
    )
    (scan,) = data.write([case], tmp_path, task=ISLES)
    back = data.read(scan)
    np.testing.assert_array_equal(back.image, case.image)
    np.testing.assert_allclose(back.affine, case.affine, atol=1e-4)


@pytest.mark.real
def test_a_real_brain_on_the_brats_grid(real, tmp_path):
    """MS patient 19 of Lesjak et al. (Neuroinformatics, 2017) takes the place of a glioma scan."""
    source, id = real / "open_ms_mni" / "patient19", "BraTS-GLI-00019-100"
    folder = tmp_path / id
    folder.mkdir()
    for name, suffix in zip(("T1", "T1POST", "T2", "FLAIR"), BRATS.channels, strict=True):
        (folder / f"{id}-{suffix}.nii.gz").symlink_to((source / f"{name}.nii.gz").resolve())
    (folder / f"{id}-seg.nii.gz").symlink_to((source / "lesions.nii.gz").resolve())
    case = data.read(data.brats2024(tmp_path)[0])
    assert case.image.shape == (4, 182, 218, 182)
    expected = [[-1, 0, 0, 90], [0, 1, 0, -126], [0, 0, 1, -72], [0, 0, 0, 1]]
    np.testing.assert_allclose(case.affine, expected, atol=1e-3)
    prepared = data.prepare(case)
    brain = prepared.image.any(0)
    np.testing.assert_allclose(prepared.image[:, brain].mean(1), 0, atol=0.02)
    assert prepared.label.sum() == case.label.sum()
