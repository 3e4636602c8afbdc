"""Files that would run something, promise too much, or have names that lie."""

import csv
import gzip
import io
import os
import pickle
import zipfile

import nibabel as nib
import numpy as np
import pytest
import torch
from cases import make_case
from training import run as train

from dcd_core.models import load
from dcd_core.types import ContractError
from dcd_lab.audit import audit
from dcd_lab.cli import main
from dcd_lab.data import isles2022, prepared, volumes, write
from dcd_lab.records.seals import SUMS
from dcd_lab.tasks import ISLES


class Harmful:
    """What an unpickled file could do."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def archived(thing):
    with io.BytesIO() as buffer:
        torch.save({"recipe": thing}, buffer)
        return buffer.getvalue()


def legacy(thing):
    with io.BytesIO() as buffer:
        torch.save({"recipe": thing}, buffer, _use_new_zipfile_serialization=False)
        return buffer.getvalue()


def zipped(thing):
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(thing))
            archive.writestr("archive/version", "3")
        return buffer.getvalue()


def array(thing):
    with io.BytesIO() as buffer:
        np.save(buffer, np.array([thing], object), allow_pickle=True)
        return buffer.getvalue()


FORMS = (pickle.dumps, archived, legacy, zipped, array)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_nothing_that_is_read_is_executed(form, workspace, tally):
    made = workspace / "made"
    hostile = form(Harmful(made))
    write([make_case(ISLES)], workspace / "data", task=ISLES)
    assert prepared(isles2022(workspace / "data"))
    folder = next((workspace / "runs").rglob("case.json")).parent
    places = {
        workspace / "run" / "checkpoint.pt": lambda: train(workspace / "run"),
        workspace / "net.safetensors": lambda: load(workspace / "net.safetensors"),
        folder / "image.npy": lambda: prepared(isles2022(workspace / "data")),
        workspace / "scan.nii": lambda: volumes.load(workspace / "scan.nii"),
    }
    (folder / SUMS).unlink()  # who changes a file can change its hash
    for path, read in places.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(hostile)
        with pytest.raises(ContractError):
            read()
        assert not made.exists()
    tally({"caused": len(places), "refused": len(places)})


def image_of(path, shape, **fields):
    """A file whose header promises int16 voxels of this shape, and which holds 500 of them."""
    header = nib.Nifti1Header()
    header["dim"][: len(shape) + 1] = [len(shape), *shape]
    header["datatype"], header["bitpix"], header["pixdim"][:4] = 4, 16, 1
    header["magic"], header["vox_offset"] = b"n+1", 352
    for name, value in fields.items():
        header[name] = value
    content = header.binaryblock + bytes(4 + 1000)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize(
    "shape", [(1200, 1200, 1200), (32767, 32767, 32767), (0, 4, 4), (4, 4, 0)], ids=str
)
def test_a_header_that_lies_is_refused_before_memory_is_taken(shape, name, tmp_path, monkeypatch):
    path = image_of(tmp_path / name, shape)
    monkeypatch.setattr(volumes, "voxels", lambda *_: pytest.fail("memory would be taken"))
    with pytest.raises(ContractError, match=r"as many as the file holds|readable NIfTI"):
        volumes.load(path)


def test_a_broken_quaternion_is_called_a_fault_of_the_header(tmp_path):
    path = image_of(tmp_path / "scan.nii.gz", (4, 4, 4), qform_code=1, quatern_b=0.9, quatern_c=0.9)
    with pytest.raises(ContractError, match="correct its header"):
        volumes.load(path)


NAMES = (
    "=cmd|'x'!A1.nii",
    "@sum.nii",
    "two\nlines.nii",
    "\x1b[31mred.nii",
    "no\udcfftext.nii",
)


def test_names_are_shown_and_written_as_text(tmp_path, capsys):
    write([make_case(ISLES)], tmp_path / "data", task=ISLES)
    try:
        for name in NAMES:
            (tmp_path / "data" / name).touch()
    except (OSError, ValueError):
        pytest.skip("a file system without such names")
    code = main(["audit", str(tmp_path / "data"), "--out", str(tmp_path / "out")])
    shown = capsys.readouterr()
    assert code in (0, 1), shown.err
    assert "\x1b" not in shown.out
    assert [line for line in shown.out.splitlines() if line.startswith("lines.nii")] == []
    with (tmp_path / "out" / "findings.csv").open(newline="", encoding="utf-8") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert [cell for cell in cells if cell[:1] in ("=", "+", "-", "@")] == []
    assert "'=cmd|'x'!A1.nii" in cells
    assert sum(r"two\nlines.nii" in cell for cell in cells) == 1
    assert audit(tmp_path / "data").count("error") == 0
    assert (
        main(["predict", str(tmp_path / "data" / NAMES[3]), "-m", "no\x1b.x", "-o", "a.nii"]) == 2
    )
    assert "\x1b" not in capsys.readouterr().err
