"""A disk that is full, or may not be written to: the path is named, and what was there is kept."""

import shutil
import subprocess

import numpy as np
import pytest
import training
from cases import make_case
from faults import MANY

from dcd_core.models import dynunet, save
from dcd_core.types import ContractError
from dcd_lab import records
from dcd_lab.data import export, isles2022, prepared, write
from dcd_lab.tasks import ISLES

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("workspace")]
SIZE = (40, 40, 40)


def network(folder):
    save(dynunet(1, 2, channels=(16, 32, 32)), folder / "net.safetensors")


def label(folder):
    reference = next((folder / "data").rglob("*dwi.nii.gz"))
    noise = np.random.default_rng(0).integers(0, 2**31, SIZE)
    export(noise, folder / "label.nii.gz", reference=reference)


def table(folder):
    records.save([{"seed": n, "dice": n / 7} for n in range(20000)], "study", "05-page", "scores")


def cases(folder):
    write([make_case(ISLES, size=SIZE, id="case-2")], folder / "data", task=ISLES)


WRITES = {
    "network": network,
    "label": label,
    "table": table,
    "cases": cases,
    "prepared": lambda folder: prepared(isles2022(folder / "data")),
    "run": lambda folder: training.run(folder / "run"),
}
SOME = pytest.mark.parametrize("what", WRITES if MANY else ["network", "table", "cases"])


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A disk of 8 MiB with a case on it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    monkeypatch.setenv("DCD_ROOT", str(folder))
    try:
        write([make_case(ISLES, size=SIZE)], folder / "data", task=ISLES)
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def files(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@SOME
def test_a_full_disk_is_named_and_nothing_is_half_written(what, disk, tally):
    filler, room = disk / "filler", shutil.disk_usage(disk).free - 16384
    filler.write_bytes(bytes(room))
    before = files(disk)
    with pytest.raises(ContractError, match=rf"{disk}.*no space left"):
        WRITES[what](disk)
    left = files(disk)  # a whole folder of a case is no half: the label comes before the images
    assert before.items() <= left.items()
    assert not [path for path in left if any(part.startswith(".") for part in path.parts)]
    filler.unlink()
    WRITES[what](disk)
    tally({"caused": 1, "refused": 1})


@SOME
def test_a_disk_that_may_not_be_written_to_is_named(what, disk, tally):
    before = files(disk)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises((ContractError, OSError), match=str(disk)):
        WRITES[what](disk)
    assert files(disk) == before
    tally({"caused": 1, "refused": 1})
