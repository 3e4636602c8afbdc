"""Store: what is opened equals what `prepare` makes, once, whole, and in little memory."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from cases import make_case

from dcd_core.types import Case, ContractError
from dcd_lab.data import brats2024, isles2022, prepare, prepared, read, store, write
from dcd_lab.tasks import BRATS, ISLES

pytestmark = pytest.mark.usefixtures("workspace")


@pytest.fixture
def scans(tmp_path):
    cases = [make_case(ISLES, seed=n, id=f"case-{n}", labelled=n != 2) for n in (1, 2, 3)]
    return write(cases, tmp_path / "data", task=ISLES)


def kept(workspace):
    """The folders of prepared cases."""
    return {path.parent for path in (workspace / "runs").rglob("case.json")}


@pytest.mark.parametrize(("spacing_mm", "workers"), [(None, 1), (1.5, 2)])
def test_opened_cases_are_those_that_prepare_makes(spacing_mm, workers, scans):
    opened = prepared(scans, spacing_mm=spacing_mm, workers=workers)
    for case, scan in zip(opened, scans, strict=True):
        expected = prepare(read(scan), spacing_mm=spacing_mm, task=ISLES)
        assert (case.id, case.spacing_mm) == (expected.id, expected.spacing_mm)
        assert np.array_equal(case.affine, expected.affine)
        assert np.array_equal(case.image, expected.image)
        assert (case.label is None) == (expected.label is None) == (scan.label is None)
        assert case.label is None or np.array_equal(case.label, expected.label)
    assert isinstance(opened[0].image, np.memmap)
    assert isinstance(opened[0].label, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        opened[0].image[:] = 0


def test_what_is_prepared_never_changes_within_a_version(tmp_path):
    """Where this fails, either mend the change or raise `store.VERSION` and these numbers."""
    write([make_case(ISLES, size=(16, 18, 9))], tmp_path / "data", task=ISLES)
    [case] = prepared(isles2022(tmp_path / "data"), spacing_mm=1.7)
    assert store.VERSION == 1
    assert case.image.shape == (3, 19, 11, 16)
    deviations, voxel = [0.592452, 0.601605, 0.578830], [0.458993, 0.061993, 0.742012]
    np.testing.assert_allclose(case.image.std((1, 2, 3)), deviations, atol=2e-5)
    np.testing.assert_allclose(case.image[:, 5, 6, 7], voxel, atol=2e-5)
    np.testing.assert_allclose(case.affine[:3, 3], [5.286601, -20.088656, 10.25], atol=2e-5)
    assert (case.label * np.arange(case.label.size).reshape(case.label.shape)).sum() == 2583609


def test_a_case_is_made_again_only_when_what_it_is_made_of_changes(scans, workspace, monkeypatch):
    prepared(scans)
    before = kept(workspace)
    prepared(scans)
    assert kept(workspace) == before
    os.utime(scans[0].channels[1], ns=(1, 1))
    prepared(scans)
    assert len(kept(workspace)) == len(before) + 1
    prepared(scans, spacing_mm=4.0)
    assert len(kept(workspace)) == len(before) + 1 + len(scans)
    monkeypatch.setattr(store, "VERSION", store.VERSION + 1)
    prepared(scans)
    assert len(kept(workspace)) == len(before) + 1 + 2 * len(scans)
    write(
        [make_case()._replace(label=np.full((9, 8, 7), 4, np.uint8))], workspace / "b", task=BRATS
    )
    for edition, expected in ((2024, 4), (2021, 3), (2024, 4)):
        [case] = prepared(brats2024(workspace / "b", edition=edition))
        assert np.unique(case.label) == [expected]


def test_interrupted_work_leaves_whole_cases_and_is_continued(scans, workspace, monkeypatch):
    save, calls = np.save, []

    def cut_off(path, array):
        save(path, array)
        calls.append(path.name)
        if len(calls) == 3:  # the image of the second case
            raise OSError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(np, "save", cut_off)
        prepared(scans)
    [folder] = kept(workspace)
    assert folder.name.startswith(scans[0].id)
    assert not list((workspace / "runs").rglob(".partial-*"))
    made = folder.stat().st_mtime_ns
    assert [case.id for case in prepared(scans)] == [scan.id for scan in scans]
    assert folder.stat().st_mtime_ns == made


def test_a_case_that_another_process_made_meanwhile_is_kept(scans, monkeypatch):
    save = np.save

    def overtaken(path, array):
        monkeypatch.setattr(np, "save", save)
        prepared(scans)
        save(path, array)

    monkeypatch.setattr(np, "save", overtaken)
    assert len(prepared(scans)) == 3


@pytest.mark.parametrize("workers", [1, 2])
def test_an_unsound_scan_is_named_and_the_others_stay(workers, scans, workspace):
    scans[1].channels[0].write_bytes(b"not an image")
    with pytest.raises(ContractError, match="sub-strokecase0002_ses-0001_dwi"):
        prepared(scans, workers=workers)
    shutil.rmtree(scans[1].channels[0].parent)
    with pytest.raises(ContractError, match="no such file"):
        prepared(scans, workers=workers)
    assert [case.id for case in prepared(scans[::2])] == [scans[0].id, scans[2].id]


@pytest.mark.slow
def test_a_full_scan_is_prepared_within_its_memory(tmp_path):
    """182 x 218 x 182 voxels, four channels: at most 1.5 GiB in a process that prepares it.

    Read as VmHWM: `ru_maxrss` begins at the peak of the process that started it.
    """
    image = np.zeros((4, 182, 218, 182), np.float32)
    brain = image[:, 20:160, 22:196, 23:159]
    brain[:] = np.random.default_rng(0).random(brain.shape, dtype=np.float32)
    one = Case("BraTS-GLI-00001-100", image, None, (1.0,) * 3, np.eye(4))
    write([one], tmp_path / "data", task=BRATS)
    del image, brain, one
    measured = f"""
from pathlib import Path
from dcd_lab.data import brats2024, prepared
[case] = prepared(brats2024({str(tmp_path / "data")!r}))
status = Path("/proc/self/status").read_text().split()
print(*case.image.shape, 1024 * int(status[status.index("VmHWM:") + 1]))
"""
    done = subprocess.run([sys.executable, "-c", measured], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *shape, peak = map(int, done.stdout.split())
    assert shape == [4, 144, 178, 140]
    assert peak < 1.5 * 2**30
