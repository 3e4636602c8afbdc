"""Store: what is opened equals what `prepare` makes, once, whole, and in little memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from dcd_core.types import BRATS, ISLES, Case, ContractError
from dcd_lab.data import brats2024, isles2022, prepare, prepared, read, store, write


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DCD_ROOT", str(tmp_path))
    return tmp_path


def case(n, *, label=True, size=(10, 12, 9)):
    rng = np.random.default_rng(n)
    image = np.zeros((3, *size), np.float32)
    image[:, 2:-1, 2:-2, 1:-1] = 1 + rng.random((3, *np.subtract(size, (3, 4, 2))))
    mask = np.zeros(size, np.uint8)
    mask[3:6, 4:7, 2:5] = 1
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = n, -7, 4
    id = f"sub-strokecase{n:04}"
    return Case(id, image, mask if label else None, (2.0, 2.0, 3.0), affine)


@pytest.fixture
def scans(tmp_path):
    write([case(1), case(2, label=False), case(3)], tmp_path / "data", task=ISLES)
    return isles2022(tmp_path / "data")


def kept(root):
    return sorted(path for path in (root / "runs").rglob("*") if path.is_dir())


@pytest.mark.parametrize("spacing_mm", [None, 1.5])
@pytest.mark.parametrize("workers", [1, 2])
def test_opened_cases_are_those_that_prepare_makes(spacing_mm, workers, scans):
    for found, scan in zip(
        prepared(scans, spacing_mm=spacing_mm, workers=workers), scans, strict=True
    ):
        expected = prepare(read(scan), spacing_mm=spacing_mm, task=ISLES)
        assert (found.id, found.spacing_mm) == (expected.id, expected.spacing_mm)
        assert np.array_equal(found.affine, expected.affine)
        assert np.array_equal(found.image, expected.image)
        assert (found.label is None) == (expected.label is None) == (scan.label is None)
        assert found.label is None or np.array_equal(found.label, expected.label)


def test_arrays_are_mapped_and_cannot_be_written(scans):
    [found, *_] = prepared(scans)
    assert isinstance(found.image, np.memmap)
    assert isinstance(found.label, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        found.image[:] = 0


def test_a_case_is_made_once(scans, monkeypatch):
    first = prepared(scans)
    monkeypatch.setattr(store, "read", None)  # would fail if it were called
    for one, two in zip(first, prepared(scans), strict=True):
        assert np.array_equal(one.image, two.image)


def test_a_changed_file_or_spacing_makes_it_again(scans, root):
    prepared(scans)
    before = kept(root)
    path = scans[0].channels[1]
    os.utime(path, ns=(1, 1))
    prepared(scans)
    assert len(kept(root)) == len(before) + 1
    prepared(scans, spacing_mm=4.0)
    assert len(kept(root)) == len(before) + 1 + 1 + len(scans)  # and the folder of that spacing


def test_another_edition_of_the_labels_makes_it_again(tmp_path):
    image = np.ones((4, 6, 6, 6), np.float32)
    label = np.zeros((6, 6, 6), np.uint8)
    label[2:4, 2:4, 2:4] = 4
    one = Case("BraTS-GLI-00001-000", image, label, (1.0,) * 3, np.eye(4))
    write([one], tmp_path / "data", task=BRATS)
    for edition, expected in ((2024, 4), (2021, 3), (2024, 4)):
        [found] = prepared(brats2024(tmp_path / "data", edition=edition))
        assert set(np.unique(found.label)) == {0, expected}


def test_interrupted_work_leaves_whole_cases_and_goes_on(scans, root, monkeypatch):
    real, made = store.prepare, []

    def twice(*arguments, **options):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(arguments[0].id)
        return real(*arguments, **options)

    monkeypatch.setattr(store, "prepare", twice)
    with pytest.raises(KeyboardInterrupt):
        prepared(scans)
    assert not list((root / "runs").rglob(".partial-*"))
    monkeypatch.setattr(store, "prepare", lambda c, **o: made.append(c.id) or real(c, **o))
    assert len(prepared(scans)) == 3
    assert made == [scan.id for scan in scans]


def test_half_a_case_is_never_opened(scans, root, monkeypatch):
    real = np.save

    def cut_off(path, array):
        real(path, array)
        if path.name == "label.npy":
            raise OSError("No space left on device")

    monkeypatch.setattr(np, "save", cut_off)
    with pytest.raises(OSError, match="No space"):
        prepared(scans)
    monkeypatch.undo()
    monkeypatch.setenv("DCD_ROOT", str(root))
    assert [c.id for c in prepared(scans)] == [scan.id for scan in scans]


def test_a_case_that_another_process_made_meanwhile_is_kept(scans, monkeypatch):
    real = store.prepare

    def overtaken(*arguments, **options):
        monkeypatch.setattr(store, "prepare", real)
        prepared(scans)
        return real(*arguments, **options)

    monkeypatch.setattr(store, "prepare", overtaken)
    assert len(prepared(scans)) == 3


@pytest.mark.parametrize("workers", [1, 2])
def test_an_unsound_scan_is_named_and_the_others_stay(workers, scans, root):
    scans[1].channels[0].write_bytes(b"not an image")
    with pytest.raises(ContractError, match="sub-strokecase0002_ses-0001_dwi"):
        prepared(scans, workers=workers)
    shutil.rmtree(scans[1].channels[0].parent)
    with pytest.raises(ContractError, match="no such file"):
        prepared(scans, workers=workers)
    assert [c.id for c in prepared([scans[0], scans[2]])] == [scans[0].id, scans[2].id]


def test_a_full_scan_is_prepared_within_its_memory(tmp_path):
    """182 x 218 x 182 voxels, four channels: at most 1.5 GiB in a process that prepares it.

    Read as VmHWM: `ru_maxrss` begins at the peak of the process that started it.
    """
    size = (182, 218, 182)
    image = np.zeros((4, *size), np.float32)
    image[:, 20:160, 22:196, 23:159] = np.random.default_rng(0).random(
        (4, 140, 174, 136), dtype=np.float32
    )
    one = Case("BraTS-GLI-00001-100", image, None, (1.0,) * 3, np.eye(4))
    write([one], tmp_path / "data", task=BRATS)
    del image, one
    measured = f"""
from pathlib import Path
from dcd_lab.data import brats2024, prepared
[found] = prepared(brats2024({str(tmp_path / "data")!r}))
status = Path("/proc/self/status").read_text().split()
print(*found.image.shape, status[status.index("VmHWM:") + 1])
"""
    done = subprocess.run([sys.executable, "-c", measured], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *shape, peak_kib = map(int, done.stdout.split())
    assert shape == [4, 144, 178, 140]
    assert peak_kib < 1.5 * 2**20


def test_a_quick_benchmark_of_the_preparation_writes_its_table(root, project):
    script = project / "benchmarks" / "preparation.py"
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), "--quick"],
        cwd=project,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(root / "results" / "smoke" / "preparation-times.csv").set_index("step")
    assert list(table.index) == ["nibabel", "read", "prepare", "resampled", "keep"]
    assert table.loc["nibabel", "over_nibabel"] == 1
    assert (table.time_ms > 0).all()
