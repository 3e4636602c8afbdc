"""Export: a label lies on its scan, voxel by voxel and in the header."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from dcd_core.types import ContractError
from dcd_lab.data import export

SIZE = (6, 7, 5)


def reference(path, *, shape=SIZE, scale=True):
    """A scan with everything that must survive and everything that must not."""
    affine = nib.affines.from_matvec(np.diag([-2.0, 2.0, 3.0]), [9.0, -4.0, 1.0])
    turned = affine.copy()
    turned[:2, :2] = [[-1.9, 0.6], [0.6, 1.9]]
    data = np.random.default_rng(0).normal(100, 30, shape)
    stored = nib.Nifti1Image(data.astype(np.int16) if scale else data, turned)
    stored.set_sform(turned, code=4)
    stored.set_qform(turned, code=1)
    stored.header.set_xyzt_units("mm", "sec")
    if scale:
        stored.header.set_slope_inter(0.25, -12)
    stored.header["cal_max"] = 400
    nib.save(stored, path)
    return nib.load(path)


def label():
    return np.random.default_rng(1).integers(0, 5, SIZE).astype(np.uint8)


@pytest.mark.parametrize("name", ["case.nii.gz", "deep/er/case.nii"])
def test_a_label_takes_the_space_of_its_reference(name, tmp_path):
    there = reference(tmp_path / "t1n.nii.gz")
    path = export(label(), tmp_path / name, reference=tmp_path / "t1n.nii.gz")
    found = nib.load(path)
    assert np.array_equal(np.asarray(found.dataobj), label())
    assert np.asarray(found.dataobj).dtype == found.get_data_dtype() == np.uint8
    assert np.array_equal(found.affine, there.affine)
    for which in ("qform", "sform"):
        (mine, code), (theirs, its) = (
            getattr(image, f"get_{which}")(coded=True) for image in (found, there)
        )
        assert code == its
        assert np.array_equal(mine, theirs)
    assert found.header.get_zooms() == there.header.get_zooms()
    assert found.header.get_xyzt_units() == ("mm", "sec")
    assert found.header["cal_max"] == 0
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []


def test_a_trailing_axis_of_the_reference_is_dropped(tmp_path):
    reference(tmp_path / "dwi.nii.gz", shape=(*SIZE, 1))
    path = export(label(), tmp_path / "p.nii.gz", reference=tmp_path / "dwi.nii.gz")
    assert nib.load(path).shape == SIZE


@pytest.mark.parametrize("shape", [(6, 7, 4), (*SIZE, 2)])
def test_another_shape_is_refused(shape, tmp_path):
    reference(tmp_path / "dwi.nii.gz", shape=shape)
    with pytest.raises(ContractError, match=r"label for p\.nii\.gz"):
        export(label(), tmp_path / "p.nii.gz", reference=tmp_path / "dwi.nii.gz")
    assert not (tmp_path / "p.nii.gz").exists()


def test_other_names_and_absent_references_are_refused(tmp_path):
    reference(tmp_path / "dwi.nii.gz")
    with pytest.raises(ContractError, match="a name in"):
        export(label(), tmp_path / "p.mha", reference=tmp_path / "dwi.nii.gz")
    with pytest.raises(ContractError, match="no such file"):
        export(label(), tmp_path / "p.nii.gz", reference=tmp_path / "none.nii.gz")
