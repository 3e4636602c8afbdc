"""Audit: a sound data set has no findings; broken one way, it has that one, by its name."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import json
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from itertools import combinations
from pathlib import Path

import cc3d
import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from dcd_core.types import BRATS, ISLES, TASKS, Case, ContractError
from dcd_lab import data
from dcd_lab.__main__ import main
from dcd_lab.audit import inspection, soundness
from dcd_lab.data import scans

# The function of the same name stands before the module.
audit_module = importlib.import_module("dcd_lab.audit")

SIZE = (24, 28, 22)
IDS = {
    BRATS.name: ("BraTS-GLI-00005-100", "BraTS-GLI-00008-101"),
    ISLES.name: ("sub-strokecase0007", "sub-strokecase0009"),
}
# Cerebrospinal fluid, grey matter, white matter, then the labels from 1 on: relative to white
# matter, except that of the ADC, which is in 1e-3 mm2/s.
CONTRASTS = {
    BRATS.name: {
        "t1n": (0.20, 0.70, 1.0, 0.80, 0.95, 0.70, 0.20),
        "t1c": (0.25, 0.75, 1.0, 0.85, 1.00, 1.50, 0.20),
        "t2w": (2.60, 1.40, 1.0, 1.90, 1.50, 1.40, 2.50),
        "t2f": (0.40, 1.10, 1.0, 1.70, 1.60, 1.35, 0.40),
    },
    ISLES.name: {
        "dwi": (0.30, 1.05, 1.0, 1.60),
        "adc": (3.00, 0.85, 0.80, 0.60),
        "flair": (0.40, 1.10, 1.0, 1.40),
    },
}
TASK = pytest.mark.parametrize("task", [BRATS, ISLES], ids=lambda task: task.name)
TILTED = nib.affines.from_matvec(
    np.array([[-1.9, 0.6, 0], [0.6, 1.9, 0], [0, 0, 3.0]]), [20.0, -30, 11]
)


def brain_case(task, id, seed=0, labelled=True):
    """Return a ball of a brain: ventricles, white matter, cortex, fluid, all kinds of lesions."""
    rng = np.random.default_rng(seed)
    place = np.indices(SIZE) - (np.array(SIZE) - 1)[:, None, None, None] / 2
    radius = np.sqrt((place**2).sum(0))
    tissue = np.select([radius < 3, radius < 7, radius < 9, radius < 10], [1, 3, 2, 1], 0)
    label = np.zeros(SIZE, np.uint8)
    for value in range(1, len(task.labels)):
        shift = 4.5 * np.array([np.cos(1.5 * value), np.sin(1.5 * value), 0])
        apart = np.sqrt(((place - shift[:, None, None, None]) ** 2).sum(0))
        label[(apart < 2.2) & (tissue == 3)] = value
    tissue = np.where(label > 0, label + 3, tissue)
    image = np.zeros((len(task.channels), *SIZE), np.float32)
    for channel, (name, levels) in zip(image, CONTRASTS[task.name].items(), strict=True):
        unit = 1 if name == "adc" else 300
        noise = 1 + 0.03 * rng.standard_normal(SIZE)
        channel[...] = np.array([0, *levels])[tissue] * noise * unit
    affine = inspection.MNI_AFFINE if task == BRATS else TILTED
    spacing = tuple(float(size) for size in nib.affines.voxel_sizes(affine))
    return Case(id, image, label if labelled else None, spacing, affine)


@pytest.fixture(autouse=True)
def _small_grid(monkeypatch):
    """The BraTS grid of these tests is as small as their brains."""
    monkeypatch.setattr(inspection, "MNI_SHAPE", SIZE)


def written(task, root, **options):
    cases = [brain_case(task, id, seed, **options) for seed, id in enumerate(IDS[task.name])]
    return data.write(cases, root, task=task)


def named(result):
    """Return the findings as a set of case, check and severity."""
    return set(result.findings[["case", "check", "severity"]].itertuples(index=False, name=None))


# --- sound ----------------------------------------------------------------------------------------


@TASK
def test_a_sound_data_set_has_no_findings(task, tmp_path):
    saved = written(task, tmp_path)
    result = data.audit(tmp_path)
    assert named(result) == set()
    assert list(result.findings.columns) == ["case", "check", "got", "expected", "severity"]
    assert result.verdict() == f"2 scans of {task.name}: sound (0 errors, 0 warnings, 0 notes)"
    assert result.text() == ""
    rows = result.manifest.set_index("id")
    assert tuple(rows.index) == IDS[task.name]
    for seed, scan in enumerate(saved):
        case, row = brain_case(task, scan.id, seed), rows.loc[scan.id]
        assert (row.task, row.edition, row.group) == (task.name, scan.edition, scan.group)
        assert row["shape"] == "24x28x22"
        assert row.orientation == "LAS"
        assert row.label_sha256 == hashlib.sha256(scan.label.read_bytes()).hexdigest()
        assert [tmp_path / name for name in row.files.split(";")] == [*scan.channels, scan.label]
        voxel_ml = np.prod(case.spacing_mm) / 1000
        assert row.brain_ml == pytest.approx((case.image != 0).any(0).sum() * voxel_ml, abs=1e-3)
        for value, name in enumerate(task.labels[1:], start=1):
            mask = case.label == value
            assert row[f"{name}_ml"] == pytest.approx(mask.sum() * voxel_ml, abs=1e-3)
            _, components = cc3d.connected_components(mask, connectivity=26, return_N=True)
            assert row[f"{name}_components"] == components
    if task == ISLES:
        assert (rows.flair_overlap == 1).all()
        assert rows.adc_median.between(0.7, 1.0).all()


def test_components_touch_at_corners(tmp_path):
    (scan, _) = written(ISLES, tmp_path)
    label = np.zeros(SIZE, np.uint8)
    label[10, 10, 10] = label[11, 11, 11] = label[14, 14, 14] = 1
    store(scan.label, label)
    assert data.audit(tmp_path).manifest.lesion_components[0] == 2


def test_both_data_sets_are_found_below_one_root_or_one_is_named(tmp_path):
    written(BRATS, tmp_path / "b")
    written(ISLES, tmp_path / "i")
    both = data.audit(tmp_path)
    assert named(both) == set()
    assert list(both.manifest.task) == ["brats2024"] * 2 + ["isles2022"] * 2
    for task in TASKS:
        assert set(data.audit(tmp_path, task=task).manifest.task) == {task}
    assert set(data.audit(tmp_path, edition=2025).manifest.edition) == {2022, 2025}


def test_unlabelled_scans_and_empty_masks_are_listed_and_no_more(tmp_path):
    written(BRATS, tmp_path / "validation_data", labelled=False)
    (scan, _) = written(ISLES, tmp_path / "i")
    store(scan.label, np.zeros(SIZE, np.uint8))
    result = data.audit(tmp_path)
    expected = {(id, "no label", "info") for id in IDS[BRATS.name]}
    assert named(result) == expected | {(scan.id, "empty mask", "info")}
    assert "sound" in result.verdict()
    assert result.manifest.set_index("id").lesion_components[scan.id] == 0


# --- broken one way at a time ---------------------------------------------------------------------


def store(path, array, affine=None):
    """Write other voxels to a file, with its own affine or another one."""
    affine = nib.load(path).affine if affine is None else affine
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    nib.save(image, path)


def changed(change):
    def spoil(path):
        store(path, change(np.asarray(nib.load(path).dataobj)))

    return spoil


def with_value(value, *, count=1):
    """Put a value into a few voxels, inside the brain and its lesions."""

    def change(array):
        array = array.astype(np.float32)
        array[tuple(np.argwhere(array)[:count].T)] = value
        return array if np.isnan(value) or value % 1 or value > 9 else array.astype(np.int16)

    return changed(change)


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def wrong_checksum(path):
    """All voxels are there, but one bit is not what was written."""
    whole = bytearray(path.read_bytes())
    whole[-6] ^= 1
    path.write_bytes(bytes(whole))
    nib.load(path).get_fdata()  # which nibabel does not notice


def moved_by(distance_mm):
    def spoil(path):
        stored = nib.load(path)
        affine = stored.affine.copy()
        affine[2, 3] += distance_mm
        store(path, np.asarray(stored.dataobj), affine)

    return spoil


def with_forms(sform, qform, distance_mm=0.0):
    """Set the codes, and a qform that lies elsewhere."""

    def spoil(path):
        stored = nib.load(path)
        affine = stored.affine.copy()
        image = nib.Nifti1Image(np.asarray(stored.dataobj), affine)
        image.set_sform(affine, code=sform)
        affine[1, 3] += distance_mm
        image.set_qform(affine, code=qform)
        nib.save(image, path)

    return spoil


def flat_affine(path):
    stored = nib.load(path)
    stored.header.set_sform(np.diag([1.0, 1.0, 0.0, 1.0]), code=1)
    stored.header.set_qform(None, code=0)
    nib.save(nib.Nifti1Image(np.asarray(stored.dataobj), None, stored.header), path)


def in_another_order(path):
    turned = nib.load(path).as_reoriented(np.array([[0, -1], [1, 1], [2, 1]]))
    store(path, np.asarray(turned.dataobj), turned.affine)


def beyond_the_skull(array):
    array = array.copy()
    array[:2, :2, :2] = 1
    return array


ERRORS = {
    "truncated": ("damaged file", cut_short, "EOFError"),
    "checksum": ("damaged file", wrong_checksum, "CRC"),
    "text": ("damaged file", lambda path: path.write_text("not an image"), "BadGzipFile"),
    "shape": ("shape differs", changed(lambda array: array[:-1]), "shape (23, 28, 22)"),
    "moved": ("affine differs", moved_by(3), "an affine 3 mm off"),
    "flat": ("unusable affine", flat_affine, "cannot be inverted"),
    "four axes": ("number of axes", changed(lambda a: np.stack([a, a], -1)), "22, 2)"),
    "nan": ("NaN or infinite values", with_value(np.nan), "1 NaN or infinite"),
}


@pytest.mark.parametrize("defect", ERRORS)
@pytest.mark.parametrize(
    ("task", "part"),
    [(BRATS, "t1n"), (BRATS, "t2f"), (BRATS, "seg"), (ISLES, "adc"), (ISLES, "msk")],
)
def test_every_error_is_found_and_named(task, part, defect, tmp_path):
    check, spoil, words = ERRORS[defect]
    scan, sound = written(task, tmp_path)
    (path,) = (path for path in (*scan.channels, scan.label) if f"{part}.nii" in path.name)
    spoil(path)
    result = data.audit(tmp_path)
    assert named(result) == {(scan.id, check, "error")}
    (got,) = result.findings.got
    assert got.startswith(f"{path.name}: ")
    assert words in got
    assert list(result.manifest.id) == [scan.id, sound.id]
    assert "not usable as it is (1 error, 0 warnings, 0 notes)" in result.verdict()
    if defect != "checksum":  # which only an audit takes the time to verify
        with pytest.raises(ContractError):
            data.read(scan)


SINGLE = [
    (BRATS, "t1c", Path.unlink, "missing file", "error", "no such file"),
    (ISLES, "dwi", Path.unlink, "missing file", "error", "no such file"),
    (ISLES, "flair", Path.unlink, "missing file", "error", "no such file"),
    (BRATS, "seg", with_value(7, count=3), "unknown label value", "error", "3 voxels of 7"),
    (ISLES, "msk", with_value(2), "unknown label value", "error", "1 voxels of 2"),
    (BRATS, "seg", with_value(1.5), "label values not whole", "error", "the value 1.5"),
    (BRATS, "seg", changed(lambda a: a.astype(float)), "float labels", "info", "float64"),
    (BRATS, "t1c", changed(np.zeros_like), "only zeros", "error", "zeros throughout"),
    (ISLES, "flair", changed(np.zeros_like), "only zeros", "error", "zeros throughout"),
    (ISLES, "flair", moved_by(30), "FLAIR misplaced", "warning", "Dice"),
    (
        ISLES,
        "msk",
        changed(beyond_the_skull),
        "mask outside the brain",
        "warning",
        "of it inside the brain",
    ),
    (BRATS, "t2w", with_forms(1, 2, 2.5), "sform and qform disagree", "warning", "2.5 mm apart"),
    (ISLES, "dwi", with_forms(1, 0), "no qform", "info", "only the sform"),
    (BRATS, "seg", in_another_order, "axis order", "warning", "RAS"),
    (
        BRATS,
        "t2f",
        changed(lambda a: a + 20),
        "background not zero",
        "warning",
        "20 in the corners",
    ),
    (ISLES, "adc", changed(lambda a: a * 1000), "ADC unit", "info", "1e-6 mm2/s"),
    (ISLES, "adc", changed(lambda a: a / 1000), "ADC unit", "warning", "0.000"),
]


@pytest.mark.parametrize(
    ("task", "part", "spoil", "check", "severity", "words"),
    SINGLE,
    ids=[f"{part}-{check}" for _, part, _, check, _, _ in SINGLE],
)
def test_one_fault_gives_one_finding(task, part, spoil, check, severity, words, tmp_path):
    scan, _ = written(task, tmp_path)
    (path,) = (path for path in (*scan.channels, scan.label) if f"{part}.nii" in path.name)
    spoil(path)
    result = data.audit(tmp_path)
    assert named(result) == {(scan.id, check, severity)}
    assert words in result.findings.got[0]
    if severity == "error":
        with pytest.raises(ContractError):
            data.read(scan)
    else:
        data.read(scan)


SWAPS = [(BRATS, *pair, True) for pair in combinations(BRATS.channels, 2)]
# Without an enhancing lesion the two T1 images look alike.
SWAPS += [(BRATS, *pair, False) for pair in list(combinations(BRATS.channels, 2))[1:]]
SWAPS += [(ISLES, "dwi", "adc", labelled) for labelled in (True, False)]


@pytest.mark.parametrize(("task", "first", "second", "labelled"), SWAPS)
def test_swapped_channels_look_implausible(task, first, second, labelled, tmp_path):
    scan, _ = written(task, tmp_path, labelled=labelled)
    one, two = (scan.channels[task.channels.index(name)] for name in (first, second))
    one.rename(tmp_path / "third")
    two.rename(one)
    (tmp_path / "third").rename(two)
    result = data.audit(tmp_path)
    found = result.findings[result.findings.check != "no label"]
    assert list(zip(found.case, found.check, found.severity, strict=True)) == [
        (scan.id, "implausible contrast", "warning")
    ]
    assert f"{first} and {second}" in found.got.iloc[0]
    assert "may be swapped" in found.got.iloc[0]


@pytest.mark.parametrize(("task", "first", "second"), [(BRATS, 0, 1), (ISLES, 0, 2)])
def test_identical_channels_are_an_error(task, first, second, tmp_path):
    scan, _ = written(task, tmp_path)
    scan.channels[second].write_bytes(scan.channels[first].read_bytes())
    result = data.audit(tmp_path)
    assert named(result) == {(scan.id, "identical channels", "error")}
    assert scan.channels[first].name in result.findings.got[0]


def test_normalised_intensities_are_noticed_and_judged_no_further(tmp_path):
    scan, _ = written(BRATS, tmp_path)
    for path in scan.channels:
        changed(lambda a: np.where(a != 0, a - np.mean(a[a != 0]), 0))(path)
    result = data.audit(tmp_path)
    assert named(result) == {(scan.id, "negative values", "warning")}
    assert len(result.findings) == 4


def test_a_brats_scan_on_another_grid_is_noticed_once(tmp_path):
    scan, _ = written(BRATS, tmp_path)
    for path in (*scan.channels, scan.label):
        moved_by(1)(path)
    result = data.audit(tmp_path)
    assert named(result) == {(scan.id, "grid of another data set", "warning")}
    assert "24x28x22, LAS, origin (90, -126, -71) mm" in result.findings.got[0]
    assert "24x28x22 (MNI152 at 1 mm, edition 2024)" in result.findings.expected[0]


def test_a_scan_that_no_header_places_is_noticed(tmp_path):
    scan, _ = written(BRATS, tmp_path)
    for path in (*scan.channels, scan.label):
        with_forms(0, 0)(path)
    checks = {check for _, check, _ in named(data.audit(tmp_path))}
    assert checks == {"no placement", "grid of another data set"}


def test_every_edition_has_its_grid(tmp_path, monkeypatch):
    written(BRATS, tmp_path)
    other = "grid of another data set"
    assert {check for _, check, _ in named(data.audit(tmp_path, edition=2023))} >= {other}
    monkeypatch.setattr(inspection, "SRI_SHAPE", SIZE)
    assert not {check for _, check, _ in named(data.audit(tmp_path, edition=2025))}
    monkeypatch.setattr(inspection, "MNI_SHAPE", (182, 218, 182))
    assert not {check for _, check, _ in named(data.audit(tmp_path, edition=2025))}
    assert {check for _, check, _ in named(data.audit(tmp_path))} == {other}


def test_labels_that_contradict_the_edition_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(inspection, "SRI_SHAPE", SIZE)
    before, after = "BraTS-GLI-00005-000", "BraTS-GLI-00005-100"
    data.write([brain_case(BRATS, id) for id in (before, after)], tmp_path, task=BRATS)
    result = data.audit(tmp_path)
    assert (before, "edition", "warning") in named(result)
    assert not any(case == after for case, _, _ in named(result))
    result = data.audit(tmp_path, edition=2023)
    assert named(result) == {(id, "unknown label value", "error") for id in (before, after)}
    assert "edition 2023" in result.findings.expected[0]
    for id in (before, after):
        with_numbers = changed(lambda a: np.where(a == 3, 4, a % 4))
        with_numbers(tmp_path / id / f"{id}-seg.nii.gz")
    result = data.audit(tmp_path, edition=2021)
    assert named(result) == {(after, "edition", "warning")}
    assert (result.manifest.ET_ml > 0).all()
    assert (result.manifest.RC_ml == 0).all()


@TASK
def test_a_scan_that_is_there_twice_is_listed(task, tmp_path):
    scan, _ = written(task, tmp_path / "v1")
    data.write([brain_case(task, scan.id)], tmp_path / "v2", task=task)
    result = data.audit(tmp_path)
    assert named(result) == {(scan.id, "duplicate", "error")}
    assert "v1/" in result.findings.got[0]
    assert "v2/" in result.findings.got[0]
    assert len(result.manifest) == 2


def test_misnamed_files_are_listed(tmp_path):
    scan, _ = written(BRATS, tmp_path)
    path = scan.channels[1]
    path.rename(path.with_name("BraTS-GLI-00006-100-t1c.nii.gz"))
    result = data.audit(tmp_path)
    expected = {(scan.id, "missing file", "error"), ("(data set)", "file of no scan", "info")}
    assert named(result) == expected
    assert "00005-100/BraTS-GLI-00006-100-t1c.nii.gz" in "".join(result.findings.got)


def test_a_folder_that_cannot_be_opened_is_listed(tmp_path, monkeypatch):
    written(BRATS, tmp_path)
    (tmp_path / "shut").mkdir()
    scandir = scans.os.scandir

    def refuse(path):
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(scans.os, "scandir", refuse)
    result = data.audit(tmp_path)
    assert named(result) == {("(data set)", "folder that is shut", "error")}
    assert result.findings.got[0].startswith("shut: ")


# --- never stopped --------------------------------------------------------------------------------


@TASK
def test_all_faults_of_all_scans_are_listed(task, tmp_path):
    first, second = written(task, tmp_path)
    cut_short(first.channels[0])
    first.channels[1].unlink()
    with_value(7)(first.label)
    moved_by(2)(second.channels[1])
    cut_short(second.label)
    result = data.audit(tmp_path)
    assert named(result) == {
        (first.id, "damaged file", "error"),
        (first.id, "missing file", "error"),
        (first.id, "unknown label value", "error"),
        (second.id, "affine differs", "error"),
        (second.id, "damaged file", "error"),
    }
    assert result.text().startswith("ERROR  affine differs (1)\n")
    assert result.text(most=1).count("... and 1 more") == 1


def test_a_scan_without_any_file_is_listed(tmp_path):
    (tmp_path / "BraTS-GLI-00001-100").mkdir()
    result = data.audit(tmp_path)
    assert len(result.findings) == 5  # four channels and the label
    assert result.count("error") == 4


@pytest.mark.parametrize("when", ["before", "between"])
@pytest.mark.parametrize("part", [1, "label"])
def test_a_file_that_vanishes_on_the_way_is_missing(when, part, tmp_path, monkeypatch):
    scan, _ = written(BRATS, tmp_path)
    path = scan.label if part == "label" else scan.channels[part]
    module, name = {
        "before": (audit_module, "survey"),
        "between": (soundness, "_read_to_the_end"),
    }[when]
    original = getattr(module, name)

    def and_then_gone(argument):
        result = original(argument)
        if argument in (path, tmp_path):
            path.unlink()
        return result

    monkeypatch.setattr(module, name, and_then_gone)
    result = data.audit(tmp_path)
    assert named(result) == {(scan.id, "missing file", "error")}


def test_what_nobody_thought_of_ends_one_scan_only(tmp_path, monkeypatch):
    first, second = written(ISLES, tmp_path)

    def stumble(*arguments):
        raise ZeroDivisionError("nobody thought of it")

    with monkeypatch.context() as patch:
        patch.setattr(inspection, "contrast", stumble)
        result = data.audit(tmp_path)
    assert named(result) == {(scan.id, "not examined", "error") for scan in (first, second)}
    assert "ZeroDivisionError: nobody" in result.findings.got[0]
    assert (result.manifest.lesion_ml > 0).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "prostate"}, "task: got 'prostate'"),
        ({"edition": 1999}, "edition of brats2024: got 1999"),
        ({"task": "isles2022", "edition": 2021}, "edition of isles2022: got 2021"),
    ],
)
def test_a_question_without_sense_is_refused(options, words, tmp_path):
    written(BRATS, tmp_path)
    with pytest.raises(ContractError, match=words):
        data.audit(tmp_path, **options)


@pytest.mark.parametrize("task", [None, "isles2022"])
def test_a_root_without_scans_is_refused(task, tmp_path):
    with pytest.raises(ContractError, match="no scan"):
        data.audit(tmp_path, task=task)
    with pytest.raises(ContractError, match="no folder"):
        data.audit(tmp_path / "nowhere", task=task)


# --- kept -----------------------------------------------------------------------------------------


@pytest.fixture
def examined(monkeypatch):
    """The ids that are really examined."""
    ids: list[str] = []
    original = audit_module.inspect

    def counted(scan, base):
        ids.append(scan.id)
        return original(scan, base)

    monkeypatch.setattr(audit_module, "inspect", counted)
    return ids


def test_tables_are_written_and_repeating_is_cheap(tmp_path, examined):
    root, out = tmp_path / "data", tmp_path / "out"
    first, second = written(ISLES, root)
    with_forms(1, 0)(first.channels[0])
    one = data.audit(root, out=out)
    assert examined == [first.id, second.id]
    kept = {name: pd.read_csv(out / f"{name}.csv") for name in ("findings", "manifest")}
    pd.testing.assert_frame_equal(kept["findings"], one.findings)
    assert list(kept["manifest"].id) == [first.id, second.id]
    assert not list(out.rglob(".*"))
    examined.clear()
    two = data.audit(root, out=out)
    assert examined == []
    pd.testing.assert_frame_equal(two.findings, one.findings)
    pd.testing.assert_frame_equal(two.manifest, one.manifest)
    # A file that has changed or a broken record: looked at again.
    with_value(0)(second.label)
    assert data.audit(root, out=out).manifest.lesion_ml[1] < one.manifest.lesion_ml[1]
    assert examined == [second.id]
    examined.clear()
    (out / "scans" / f"isles2022-{first.id}.json").write_text("{")
    assert list(data.audit(root, out=out).manifest.id) == [first.id, second.id]
    assert examined == [first.id]


def test_another_edition_or_other_code_is_looked_at_again(tmp_path, examined, monkeypatch):
    root, out = tmp_path / "data", tmp_path / "out"
    written(BRATS, root)
    for options, code in (({}, "a"), ({}, "b"), ({"edition": 2025}, "b")):
        monkeypatch.setattr(audit_module, "source_hash", lambda name, code=code: code)
        examined.clear()
        data.audit(root, out=out, **options)
        assert len(examined) == 2


def test_scans_with_errors_are_looked_at_again(tmp_path, examined):
    root, out = tmp_path / "data", tmp_path / "out"
    first, _ = written(ISLES, root)
    cut_short(first.channels[0])
    data.audit(root, out=out)
    examined.clear()
    assert data.audit(root, out=out).count("error") == 1
    assert examined == [first.id]


def test_an_interrupted_audit_goes_on(tmp_path, monkeypatch):
    root, out = tmp_path / "data", tmp_path / "out"
    first, second = written(ISLES, root)
    original = audit_module.inspect

    def interrupted(scan, base):
        if scan.id == second.id:
            raise KeyboardInterrupt
        return original(scan, base)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(audit_module, "inspect", interrupted)
        data.audit(root, out=out)
    assert not (out / "findings.csv").exists()
    kept = json.loads((out / "scans" / f"isles2022-{first.id}.json").read_text())
    assert kept["row"]["id"] == first.id
    assert named(data.audit(root, out=out)) == set()


def test_several_processes_find_the_same(tmp_path):
    first, _ = written(ISLES, tmp_path)
    cut_short(first.label)
    alone, together = data.audit(tmp_path), data.audit(tmp_path, workers=2)
    pd.testing.assert_frame_equal(alone.findings, together.findings)
    pd.testing.assert_frame_equal(alone.manifest, together.manifest)


def test_a_killed_worker_is_told_with_a_way_out(tmp_path, monkeypatch):
    written(ISLES, tmp_path)

    def killed(*arguments):
        raise BrokenProcessPool("terminated abruptly")

    monkeypatch.setattr(audit_module, "ProcessPoolExecutor", killed)
    with pytest.raises(ContractError, match=r"a worker that was killed.*fewer workers"):
        data.audit(tmp_path, workers=2)


def test_progress_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("DCD_PROGRESS", str(tmp_path / "progress"))
    written(ISLES, tmp_path / "data")
    data.audit(tmp_path / "data")
    state = json.loads((tmp_path / "progress").read_text())
    assert (state["label"], state["done"], state["total"]) == ("audit", 2, 2)


# --- command line ---------------------------------------------------------------------------------


def test_exit_codes(tmp_path, capsys):
    root = tmp_path / "data"
    scan, _ = written(BRATS, root)
    assert main(["audit", str(root)]) == 0
    assert (
        capsys.readouterr().out == "2 scans of brats2024: sound (0 errors, 0 warnings, 0 notes)\n"
    )
    in_another_order(scan.label)
    assert main(["audit", str(root), "--task", "brats2024", "--edition", "2024"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "WARNING  axis order (1)"
    assert shown[1].startswith(f"  {scan.id}  {scan.label.name}: stored as RAS; expected LAS")
    assert shown[-1].endswith("usable, look at it (0 errors, 1 warning, 0 notes)")
    cut_short(scan.label)
    out = tmp_path / "out"
    assert main(["audit", str(root), "--out", str(out)]) == 1
    assert capsys.readouterr().out.startswith("ERROR  damaged file (1)\n")
    assert {path.name for path in out.iterdir()} == {"findings.csv", "manifest.csv", "scans"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "no folder nowhere"),
        (["data", "--edition", "1999"], "edition of brats2024"),
        (["data", "--task", "isles2022"], "no scan"),
        (["data", "--out", "file"], "file"),
    ],
)
def test_what_cannot_run_says_so_in_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    written(BRATS, tmp_path / "data")
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert main(["audit", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert words in said.err
    assert said.err.count("\n") == 1


def test_an_absent_package_and_an_interruption_are_told(tmp_path, monkeypatch, capsys):
    def stop(error):
        def run(*arguments, **options):
            raise error

        monkeypatch.setattr(data, "audit", run)
        return main(["audit", str(tmp_path)])

    assert stop(ModuleNotFoundError("no", name="nibabel")) == 2
    assert "nibabel is not installed. Try: pip install 'dcd-core[lab]'" in capsys.readouterr().err
    assert stop(KeyboardInterrupt()) == 130
    assert stop(ZeroDivisionError("nobody thought of it")) == 2
    assert "unexpected ZeroDivisionError: nobody" in capsys.readouterr().err


def test_the_module_is_a_command(tmp_path, project):
    written(ISLES, tmp_path)
    command = [sys.executable, "-m", "dcd_lab", "audit", str(tmp_path)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("2 scans of isles2022: sound")
    done = subprocess.run(command[:3], cwd=project, capture_output=True, text=True)
    assert done.returncode == 2
    assert "COMMAND" in done.stderr


# --- real cases -----------------------------------------------------------------------------------


@pytest.mark.real
def test_isles_0009_passes_with_its_known_numbers(real_cases):
    result = data.audit(real_cases / "isles2022")
    assert named(result) == {("sub-strokecase0009", "no qform", "info")}
    assert "msk" in result.findings.got[0]
    (row,) = result.manifest.to_dict("records")
    assert (row["lesion_ml"], row["lesion_components"]) == (4.184, 18)
    assert row["brain_ml"] == pytest.approx(1449.9, abs=0.05)
    assert row["flair_overlap"] == pytest.approx(0.961, abs=5e-4)
    assert row["adc_median"] == pytest.approx(0.904, abs=5e-4)
    assert (row["shape"], row["spacing_mm"], row["orientation"]) == ("112x112x73", "2x2x2", "LAS")


@pytest.mark.real
def test_isles_0009_with_swapped_channels_is_implausible(real_cases, tmp_path):
    (scan,) = data.isles2022(real_cases / "isles2022")
    for path, name in zip(scan.channels, ("adc", "dwi", "flair"), strict=True):
        (tmp_path / f"{scan.id}_{name}.nii.gz").symlink_to(path)
    for labelled in (False, True):
        if labelled:
            (tmp_path / f"{scan.id}_msk.nii.gz").symlink_to(scan.label)
        found = data.audit(tmp_path).findings
        (got,) = found.got[found.check == "implausible contrast"]
        assert "dwi and adc may be swapped" in got


@pytest.mark.real
def test_a_real_brain_passes_as_a_brats_scan(real_cases, tmp_path, monkeypatch):
    """Patient 19 of open_ms is on the grid of BraTS 2024; its lesions are no tumour."""
    monkeypatch.undo()  # the true size of the grid
    source, id = real_cases / "open_ms_mni" / "patient19", "BraTS-GLI-00019-100"
    names = {"t1n": "T1", "t1c": "T1POST", "t2w": "T2", "t2f": "FLAIR", "seg": "lesions"}

    def linked(folder, order):
        (tmp_path / folder / id).mkdir(parents=True)
        for part, file in zip(order, names.values(), strict=True):
            path = tmp_path / folder / id / f"{id}-{part}.nii.gz"
            path.symlink_to(source / f"{file}.nii.gz")
        return data.audit(tmp_path / folder)

    sound = linked("as it is", names)
    assert named(sound) == set()
    (row,) = sound.manifest.to_dict("records")
    assert (row["shape"], row["spacing_mm"], row["orientation"]) == ("182x218x182", "1x1x1", "LAS")
    with gzip.open(source / "lesions.nii.gz") as file:
        assert row["NETC_ml"] == pytest.approx(sum(file.read()[352:]) / 1000)
    swapped = linked("swapped", ("t1n", "t1c", "t2f", "t2w", "seg"))
    assert named(swapped) == {(id, "implausible contrast", "warning")}
    assert "t2w and t2f may be swapped" in swapped.findings.got[0]
