"""Audit: a sound data set has no findings; broken one way, it has that one, by its name."""

import hashlib
import importlib
import runpy
import sys
from pathlib import Path

import cases as spoil
import cc3d
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from cases import changed, cut_short, file_of, moved_by, reoriented, save, voxels, with_value

from dcd_core.types import Case, ContractError
from dcd_lab import data
from dcd_lab.audit import inspection
from dcd_lab.cli import main
from dcd_lab.tasks import BRATS, ISLES

# The function of the same name hides the module.
audit_module = importlib.import_module("dcd_lab.audit")

SIZE = (24, 28, 22)
IDS = {
    BRATS.name: ("BraTS-GLI-00005-100", "BraTS-GLI-00008-101"),
    ISLES.name: ("sub-strokecase0007", "sub-strokecase0009"),
}
# Cerebrospinal fluid, grey matter, white matter, then the labels from 1 on: relative to white
# matter, except that of the ADC, which is in 1e-3 mm2/s.
CONTRASTS = {
    "t1n": (0.20, 0.70, 1.0, 0.80, 0.95, 0.70, 0.20),
    "t1c": (0.25, 0.75, 1.0, 0.85, 1.00, 1.50, 0.20),
    "t2w": (2.60, 1.40, 1.0, 1.90, 1.50, 1.40, 2.50),
    "t2f": (0.40, 1.10, 1.0, 1.70, 1.60, 1.35, 0.40),
    "dwi": (0.30, 1.05, 1.0, 1.60),
    "adc": (3.00, 0.85, 0.80, 0.60),
    "flair": (0.40, 1.10, 1.0, 1.40),
}
TASK = pytest.mark.parametrize("task", [BRATS, ISLES], ids=lambda task: task.name)
TILTED = nib.affines.from_matvec([[-1.9, 0.6, 0], [0.6, 1.9, 0], [0, 0, 3.0]], [20.0, -30, 11])


def brain_case(task, id, seed=0, labelled=True):
    """Return a ball of a brain: ventricles, white matter, cortex, fluid, all kinds of lesions."""
    rng = np.random.default_rng(seed)
    position = np.indices(SIZE) - (np.array(SIZE) - 1)[:, None, None, None] / 2
    radius = np.sqrt((position**2).sum(0))
    tissue = np.select([radius < 3, radius < 7, radius < 9, radius < 10], [1, 3, 2, 1], 0)
    label = np.zeros(SIZE, np.uint8)
    for value in range(1, len(task.labels)):
        shift = 4.5 * np.array([np.cos(1.5 * value), np.sin(1.5 * value), 0])
        distance = np.sqrt(((position - shift[:, None, None, None]) ** 2).sum(0))
        label[(distance < 2.2) & (tissue == 3)] = value
    tissue = np.where(label > 0, label + 3, tissue)
    image = np.zeros((len(task.channels), *SIZE), np.float32)
    for channel, name in zip(image, task.channels, strict=True):
        noise = 1 + 0.03 * rng.standard_normal(SIZE)
        channel[...] = np.array([0, *CONTRASTS[name]])[tissue] * noise * (name == "adc" or 300)
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
        assert (row["shape"], row.orientation) == ("24x28x22", "LAS")
        assert row.label_sha256 == hashlib.sha256(scan.label.read_bytes()).hexdigest()
        assert tuple(tmp_path / name for name in row.files.split(";")) == scan.files
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


def wrong_checksum(path):
    """All voxels are there, but one bit is not what was written."""
    whole = bytearray(path.read_bytes())
    whole[-6] ^= 1
    path.write_bytes(bytes(whole))
    nib.load(path).get_fdata()  # which nibabel does not notice


def with_forms(sform, qform, distance_mm=0.0):
    """Return a defect that sets the codes, and a qform that lies elsewhere."""

    def act(path):
        stored = nib.load(path)
        save(path, voxels(path), sform=sform, qform=qform)
        moved, affine = nib.load(path), stored.affine.copy()
        affine[1, 3] += distance_mm
        moved.set_qform(affine, code=qform)
        nib.save(moved, path)

    return act


def beyond_the_skull(array):
    array = array.copy()
    array[:2, :2, :2] = 1
    return array


ONE = [
    (BRATS, "t2f", "damaged file", "error", cut_short, "EOFError"),
    (ISLES, "msk", "damaged file", "error", wrong_checksum, "CRC"),
    (BRATS, "seg", "damaged file", "error", lambda path: path.write_text("x"), "ImageFileError"),
    (BRATS, "t2f", "missing file", "error", Path.unlink, "no such file"),
    (ISLES, "msk", "shape differs", "error", changed(lambda a: a[:-1]), "shape (23, 28, 22)"),
    (BRATS, "t2f", "affine differs", "error", moved_by(3), "an affine 3 mm off"),
    (ISLES, "msk", "unusable affine", "error", spoil.flat_affine, "cannot be inverted"),
    (BRATS, "t2f", "number of axes", "error", changed(lambda a: np.stack([a, a], -1)), "22, 2)"),
    (ISLES, "msk", "complex voxels", "error", changed(lambda a: a * np.complex64(1)), "complex64"),
    (BRATS, "t2f", "unit of length", "error", spoil.in_unit("micron"), "lengths in micron"),
    (BRATS, "t2f", "NaN or infinite values", "error", with_value(np.nan), "1 NaN or infinite"),
    (ISLES, "msk", "NaN or infinite values", "error", with_value(np.nan), "1 NaN or infinite"),
    (ISLES, "flair", "missing file", "error", Path.unlink, "no such file"),
    (BRATS, "seg", "unknown label value", "error", with_value(7, count=3), "3 voxels of 7"),
    (ISLES, "msk", "unknown label value", "error", with_value(2), "1 voxels of 2"),
    (BRATS, "seg", "label values not whole", "error", with_value(1.5), "the value 1.5"),
    (BRATS, "seg", "float labels", "info", changed(lambda a: a.astype(float)), "float64"),
    (BRATS, "t1c", "only zeros", "error", changed(np.zeros_like), "zeros throughout"),
    (ISLES, "flair", "only zeros", "error", changed(np.zeros_like), "zeros throughout"),
    (ISLES, "flair", "FLAIR misplaced", "warning", moved_by(30), "Dice"),
    (ISLES, "msk", "mask outside the brain", "warning", changed(beyond_the_skull), "inside the"),
    (BRATS, "t2w", "sform and qform disagree", "warning", with_forms(1, 2, 2.5), "2.5 mm apart"),
    (ISLES, "dwi", "no qform", "info", with_forms(1, 0), "only the sform"),
    (BRATS, "seg", "axis order", "warning", reoriented("RAS"), "RAS"),
    (BRATS, "t2f", "background not zero", "warning", changed(lambda a: a + 20), "20 in the"),
    (ISLES, "adc", "ADC unit", "info", changed(lambda a: a * 1000), "1e-6 mm2/s"),
    (ISLES, "adc", "ADC unit", "warning", changed(lambda a: a / 1000), "0.000"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("task", "part", "check", "severity", "act", "words"),
    ONE,
    ids=[f"{part}-{check}-{words}" for _, part, check, _, _, words in ONE],
)
def test_one_fault_gives_one_finding(task, part, check, severity, act, words, tmp_path):
    """Where a finding changes on purpose, `dcd_lab.audit.VERSION` has to be raised."""
    scan, sound = written(task, tmp_path)
    path = file_of(scan, part)
    act(path)
    result = data.audit(tmp_path)
    assert named(result) == {(scan.id, check, severity)}
    (got,) = result.findings.got
    assert got.startswith(f"{path.name}: ") or check == "mask outside the brain"
    assert words in got
    assert list(result.manifest.id) == [scan.id, sound.id]
    if severity != "error":
        data.read(scan)
    else:
        assert "not usable as it is (1 error, 0 warnings, 0 notes)" in result.verdict()
        with pytest.raises(ContractError, match=path.name):
            data.read(scan)


SWAPS = [
    (BRATS, "t1n", "t1c", True),  # without an enhancing lesion the two T1 images look alike
    (BRATS, "t1n", "t2w", False),
    (BRATS, "t1c", "t2f", True),
    (BRATS, "t2w", "t2f", False),
    (ISLES, "dwi", "adc", True),
    (ISLES, "dwi", "adc", False),
]


@pytest.mark.parametrize(("task", "first", "second", "labelled"), SWAPS)
def test_swapped_channels_look_implausible(task, first, second, labelled, tmp_path):
    scan, _ = written(task, tmp_path, labelled=labelled)
    one, two = file_of(scan, first), file_of(scan, second)
    one.rename(tmp_path / "third")
    two.rename(one)
    (tmp_path / "third").rename(two)
    findings = data.audit(tmp_path).findings
    (row,) = findings[findings.check != "no label"].itertuples()
    assert (row.case, row.check, row.severity) == (scan.id, "implausible contrast", "warning")
    assert f"{first} and {second}" in row.got
    assert "may be swapped" in row.got


def test_identical_channels_are_an_error(tmp_path):
    scan, _ = written(ISLES, tmp_path)
    scan.channels[2].write_bytes(scan.channels[0].read_bytes())
    result = data.audit(tmp_path)
    assert named(result) == {(scan.id, "identical channels", "error")}
    assert scan.channels[0].name in result.findings.got[0]


def test_normalised_intensities_are_noticed_and_judged_no_further(tmp_path):
    scan, _ = written(BRATS, tmp_path)
    for path in scan.channels:
        changed(lambda a: np.where(a != 0, a - np.mean(a[a != 0]), 0))(path)
    result = data.audit(tmp_path)
    assert named(result) == {(scan.id, "negative values", "warning")}
    assert len(result.findings) == 4


def test_every_edition_has_its_grid(tmp_path, monkeypatch):
    moved, unplaced = written(BRATS, tmp_path)
    other, warning = "grid of another data set", "warning"
    for path in moved.files:
        moved_by(1)(path)
    result = data.audit(tmp_path)
    assert named(result) == {(moved.id, other, warning)}
    assert "24x28x22, LAS, origin (90, -126, -71) mm" in result.findings.got[0]
    assert "24x28x22 (MNI152 at 1 mm, edition 2024)" in result.findings.expected[0]
    monkeypatch.setattr(inspection, "SRI_SHAPE", SIZE)
    assert not named(data.audit(tmp_path, edition=2025))
    assert (moved.id, other, warning) not in named(data.audit(tmp_path, edition=2021))
    monkeypatch.setattr(inspection, "MNI_SHAPE", (182, 218, 182))
    assert len(named(data.audit(tmp_path))) == 2
    for path in unplaced.files:
        with_forms(0, 0)(path)
    assert (unplaced.id, "no placement", warning) in named(data.audit(tmp_path))


def test_labels_that_contradict_the_edition_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(inspection, "SRI_SHAPE", SIZE)
    before, after = "BraTS-GLI-00005-000", "BraTS-GLI-00005-100"
    scans = data.write([brain_case(BRATS, id) for id in (before, after)], tmp_path, task=BRATS)
    result = data.audit(tmp_path)
    assert (before, "edition", "warning") in named(result)
    assert not any(case == after for case, _, _ in named(result))
    result = data.audit(tmp_path, edition=2023)
    assert named(result) == {(id, "unknown label value", "error") for id in (before, after)}
    assert "edition 2023" in result.findings.expected[0]
    for scan in scans:
        changed(lambda a: np.where(a == 3, 4, a % 4))(scan.label)
    result = data.audit(tmp_path, edition=2021)
    assert named(result) == {(after, "edition", "warning")}
    assert (result.manifest.ET_ml > 0).all()
    assert (result.manifest.RC_ml == 0).all()


def test_what_the_names_alone_tell_is_listed(tmp_path, monkeypatch):
    scan, _ = written(BRATS, tmp_path / "v1")
    data.write([brain_case(BRATS, scan.id)], tmp_path / "v2", task=BRATS)
    path = scan.channels[1]
    path.rename(path.with_name("BraTS-GLI-00006-100-t1c.nii.gz"))
    (tmp_path / "BraTS-GLI-00001-100").mkdir()  # without any file
    (tmp_path / "closed").mkdir()
    spoil.without_permission(monkeypatch, "closed")
    result = data.audit(tmp_path, task="brats2024")
    assert named(result) == {
        (scan.id, "duplicate", "error"),
        ("(data set)", "file of no scan", "info"),
        ("(data set)", "unreadable folder", "error"),
        ("BraTS-GLI-00001-100", "missing file", "error"),
        ("BraTS-GLI-00001-100", "no label", "info"),
    }
    got = "\n".join(result.findings.got)
    for words in ("v1/", "v2/", "00005-100/BraTS-GLI-00006-100-t1c.nii.gz", "closed: "):
        assert words in got
    assert len(result.manifest) == 3


@TASK
def test_all_faults_of_all_scans_are_listed_by_any_number_of_processes(task, tmp_path):
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
    if task is ISLES:
        together = data.audit(tmp_path, workers=2)
        pd.testing.assert_frame_equal(result.findings, together.findings)
        pd.testing.assert_frame_equal(result.manifest, together.manifest)


def test_both_data_sets_are_audited_or_one_is_named(tmp_path):
    written(BRATS, tmp_path / "validation_data", labelled=False)
    diagonal, empty = written(ISLES, tmp_path / "i")
    save(empty.label, np.zeros(SIZE, np.uint8))
    label = np.zeros(SIZE, np.uint8)
    label[10, 10, 10] = label[11, 11, 11] = label[14, 14, 14] = 1  # two touch at a corner
    save(diagonal.label, label)
    both = data.audit(tmp_path)
    expected = {(id, "no label", "info") for id in IDS[BRATS.name]}
    assert named(both) == expected | {(empty.id, "empty mask", "info")}
    assert "2 scans of brats2024 and 2 scans of isles2022: sound" in both.verdict()
    assert both.manifest.lesion_components.dropna().tolist() == [2, 0]
    assert set(data.audit(tmp_path, task="isles2022").manifest.task) == {"isles2022"}
    assert set(data.audit(tmp_path, edition=2025).manifest.edition) == {2022, 2025}


def test_an_unforeseen_error_ends_one_scan_only(tmp_path, monkeypatch):
    first, second = written(ISLES, tmp_path)
    monkeypatch.setattr(inspection, "contrast", lambda *_: 1 / 0)
    result = data.audit(tmp_path)
    assert named(result) == {(scan.id, "not examined", "error") for scan in (first, second)}
    assert "ZeroDivisionError" in result.findings.got[0]
    assert (result.manifest.lesion_ml > 0).all()


def test_an_audit_examines_again_only_what_had_errors_or_has_changed(tmp_path, monkeypatch):
    root, out, examined = tmp_path / "data", tmp_path / "out", []
    first, second = written(ISLES, root)
    with_forms(1, 0)(first.channels[0])
    inspect = audit_module.inspect

    def noted(scan, base):
        examined.append(scan.id)
        if examined == [first.id, second.id]:  # in the first audit
            raise KeyboardInterrupt
        return inspect(scan, base)

    def audited():
        before = len(examined)
        result = data.audit(root, out=out)
        return result, examined[before:]

    monkeypatch.setattr(audit_module, "inspect", noted)
    with pytest.raises(KeyboardInterrupt):
        audited()
    assert not (out / "findings.csv").exists()
    one, ids = audited()
    assert ids == [second.id]
    kept = {name: pd.read_csv(out / f"{name}.csv") for name in ("findings", "manifest")}
    pd.testing.assert_frame_equal(kept["findings"], one.findings)
    assert list(kept["manifest"].id) == [first.id, second.id]
    assert not list(out.rglob(".*"))
    two, ids = audited()
    assert ids == []
    pd.testing.assert_frame_equal(two.findings, one.findings)
    pd.testing.assert_frame_equal(two.manifest, one.manifest)
    with_value(0)(second.label)
    three, ids = audited()
    assert three.manifest.lesion_ml[1] < one.manifest.lesion_ml[1]
    assert ids == [second.id]
    (out / "scans" / f"isles2022-{first.id}.json").write_text("{")
    assert audited()[1] == [first.id]
    monkeypatch.setattr(audit_module, "VERSION", audit_module.VERSION + 1)
    assert audited()[1] == [first.id, second.id]
    cut_short(first.channels[0])
    for _ in range(2):  # an error may have come from the disk or the network
        assert audited()[1] == [first.id]


def test_the_exit_code_tells_sound_from_unsound(tmp_path, capsys):
    root, out = tmp_path / "data", tmp_path / "out"
    scan, _ = written(BRATS, root)
    reoriented("RAS")(scan.label)
    assert main(["audit", str(root), "--task", "brats2024", "--edition", "2024"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "WARNING  axis order (1)"
    assert shown[1].startswith(f"  {scan.id}  {scan.label.name}: stored as RAS; expected LAS")
    assert shown[-1].endswith("usable, look at it (0 errors, 1 warning, 0 notes)")
    cut_short(scan.label)
    assert main(["audit", str(root), "--out", str(out)]) == 1
    assert capsys.readouterr().out.startswith("ERROR  damaged file (1)\n")
    assert {path.name for path in out.iterdir()} == {"findings.csv", "manifest.csv", "scans"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "no folder nowhere"),
        (["data", "--edition", "1999"], "edition of brats2024: got 1999"),
        (["data", "--task", "isles2022", "--edition", "2021"], "edition of isles2022: got 2021"),
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
    with pytest.raises(ContractError, match="task: got 'prostate'"):
        data.audit("data", task="prostate")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ModuleNotFoundError("no", name="nibabel"), 2, "pip install -e '.[lab]' in the checkout"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("nobody thought of it"), 2, "unexpected ZeroDivisionError: nobody"),
    ],
)
def test_an_absent_package_an_interruption_and_a_defect_are_told(
    error, code, words, monkeypatch, capsys
):
    def run(*arguments, **options):
        raise error

    monkeypatch.setattr(audit_module, "audit", run)
    assert main(["audit", "folder"]) == code
    assert words in capsys.readouterr().err


def test_the_module_is_a_command(tmp_path, monkeypatch):
    written(ISLES, tmp_path)
    monkeypatch.setattr(sys, "argv", ["dcd_lab", "audit", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_module("dcd_lab", run_name="__main__")


@pytest.mark.real
def test_isles_0009_passes_and_is_implausible_with_swapped_channels(real_cases, tmp_path):
    result = data.audit(real_cases / "isles2022")
    assert named(result) == {("sub-strokecase0009", "no qform", "info")}
    assert "msk" in result.findings.got[0]
    (row,) = result.manifest.to_dict("records")
    assert (row["lesion_ml"], row["lesion_components"]) == (4.184, 18)
    assert row["brain_ml"] == pytest.approx(1449.9, abs=0.05)
    assert row["flair_overlap"] == pytest.approx(0.961, abs=5e-4)
    assert row["adc_median"] == pytest.approx(0.904, abs=5e-4)
    assert (row["shape"], row["spacing_mm"], row["orientation"]) == ("112x112x73", "2x2x2", "LAS")
    (scan,) = data.isles2022(real_cases / "isles2022")
    for path, name in zip(scan.files, ("adc", "dwi", "flair", "msk"), strict=True):
        (tmp_path / f"{scan.id}_{name}.nii.gz").symlink_to(path)
        if name in ("flair", "msk"):  # without and with a label
            findings = data.audit(tmp_path).findings
            (got,) = findings.got[findings.check == "implausible contrast"]
            assert "dwi and adc may be swapped" in got
