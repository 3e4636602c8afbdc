"""Export: a label lies on its scan, voxel by voxel and in the header."""

import nibabel as nib
import numpy as np
import pytest

from dcd_core.types import ContractError
from dcd_lab.data import export

SIZE = (6, 7, 5)
LABEL = np.random.default_rng(1).integers(0, 5, SIZE)


@pytest.fixture
def reference(tmp_path):
    """A scan with everything that must survive and everything that must not."""
    affine = nib.affines.from_matvec([[-1.9, 0.6, 0], [0.6, 1.9, 0], [0, 0, 3.0]], [9.0, -4, 1])
    voxels = np.random.default_rng(0).normal(100, 30, (*SIZE, 1)).astype(np.int16)
    stored = nib.Nifti1Image(voxels, affine)
    stored.set_sform(affine, code=4)
    stored.set_qform(affine, code=1)
    stored.header.set_xyzt_units("mm", "sec")
    stored.header.set_slope_inter(0.25, -12)
    stored.header["cal_max"] = 400
    nib.save(stored, tmp_path / "dwi.nii.gz")
    return tmp_path / "dwi.nii.gz"


@pytest.mark.parametrize(
    ("name", "label", "stored_as"),
    [
        ("case.nii.gz", LABEL.astype(np.uint8), np.uint8),
        ("deep/er/case.nii", LABEL.astype(np.float64), np.uint8),
        ("case.nii.gz", LABEL > 2, np.uint8),
        ("case.nii.gz", 100 * LABEL, np.uint16),
    ],
)
def test_a_label_takes_the_space_of_its_reference(name, label, stored_as, reference, tmp_path):
    path = export(label, tmp_path / name, reference=reference)
    image, scan = nib.load(path), nib.load(reference)
    assert np.array_equal(np.asarray(image.dataobj), label)
    assert np.asarray(image.dataobj).dtype == image.get_data_dtype() == stored_as
    assert image.shape == SIZE
    for mine, its in ((image.get_qform, scan.get_qform), (image.get_sform, scan.get_sform)):
        assert mine(coded=True)[1] == its(coded=True)[1]
        assert np.array_equal(mine(), its())
    assert image.header.get_zooms() == scan.header.get_zooms()[:3]
    assert image.header.get_xyzt_units() == ("mm", "sec")
    assert image.header["cal_max"] == 0
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("label", "name", "words"),
    [
        (LABEL[..., :4], "p.nii.gz", r"label for p\.nii\.gz: got shape \(6, 7, 4\)"),
        (LABEL + 0.5, "p.nii.gz", "210 voxels such as .* expected whole numbers from 0 on"),
        (LABEL - 1, "p.nii.gz", "voxels such as -1"),
        (LABEL * 2.0**70, "p.nii.gz", r"below 2\*\*32"),
        (np.where(LABEL == 2, np.nan, LABEL), "p.nii.gz", "voxels such as nan"),
        (np.where(LABEL == 2, np.inf, LABEL), "p.nii.gz", "voxels such as inf"),
        (LABEL, "p.mha", "a name in"),
        (LABEL, ".nii.gz", "a name in"),
    ],
)
def test_what_is_no_label_of_the_reference_is_refused(label, name, words, reference, tmp_path):
    with pytest.raises(ContractError, match=words):
        export(label, tmp_path / name, reference=reference)
    assert not (tmp_path / name).exists()
    with pytest.raises(ContractError, match="no such file"):
        export(LABEL, tmp_path / "p.nii.gz", reference=tmp_path / "none.nii.gz")
    with pytest.raises(ContractError, match="the scan would be lost"):
        export(LABEL, reference, reference=reference)
