"""Small cases, and ways to spoil the files they are written to."""

import os

import nibabel as nib
import numpy as np

from dcd_core.types import Case
from dcd_lab.tasks import BRATS, ISLES

SIZE = (9, 8, 7)
IDS = {BRATS.name: "BraTS-GLI-00005-101", ISLES.name: "sub-strokecase0007"}


def oblique(spacing_mm=(2.0, 1.0, 3.0), tilt=0.3, origin=(5.0, -20.0, 11.0)):
    """Return an affine that no axis swap or sign slip leaves unchanged."""
    cos, sin = np.cos(tilt), np.sin(tilt)
    turn = np.array([[-cos, sin, 0], [sin, cos, 0], [0, 0, 1.0]])
    return nib.affines.from_matvec(turn @ np.diag(spacing_mm), origin)


def world(affine, size):
    """Return the scanner coordinates of every voxel, (3, i, j, k), in mm."""
    index = np.moveaxis(np.indices(size), 0, -1)
    return np.moveaxis(nib.affines.apply_affine(affine, index), -1, 0)


def make_case(task=BRATS, seed=0, size=SIZE, id=None, labelled=True):
    """Return a case of noise around 2 within a border of zeros, with all labels of the task."""
    rng = np.random.default_rng(seed)
    image = np.zeros((len(task.channels), *size), np.float32)
    inner = (len(image), *(extent - 2 for extent in size))
    image[:, 1:-1, 1:-1, 1:-1] = 2 + 0.5 * rng.standard_normal(inner, dtype=np.float32)
    label = rng.integers(0, len(task.labels), size).astype(np.uint8)
    label[0] = 0
    label = label if labelled else None
    return Case(id or IDS[task.name], image, label, (2.0, 1.0, 3.0), oblique())


def file_of(scan, part):
    """Return the path of a part of a scan, "t1c" or "seg", say."""
    (path,) = (path for path in scan.files if f"{part}.nii" in path.name)
    return path


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


def save(path, array, affine=None, *, sform=1, qform=1):
    """Write voxels to a file, by default with the affine that it has."""
    affine = nib.load(path).affine if affine is None else affine
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, code=qform)
    image.set_sform(affine, code=sform)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def changed(change):
    """Return a defect that stores changed voxels."""
    return lambda path: save(path, change(voxels(path)))


def with_value(value, *, count=1):
    """Return a defect that puts a value into the first voxels that are not zero."""

    def change(array):
        array = array.astype(np.float32)
        array[tuple(np.argwhere(array)[:count].T)] = value
        return array.astype(np.int16) if float(value).is_integer() and value < 10 else array

    return changed(change)


def moved_by(distance_mm):
    def spoil(path):
        affine = nib.load(path).affine.copy()
        affine[2, 3] += distance_mm
        save(path, voxels(path), affine)

    return spoil


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flat_affine(path):
    header = nib.load(path).header
    header.set_sform(np.diag([1.0, 1.0, 0.0, 1.0]), code=1)
    header.set_qform(None, code=0)
    nib.save(nib.Nifti1Image(voxels(path), None, header), path)


def in_unit(unit):
    def spoil(path):
        stored = nib.load(path)
        stored.header.set_xyzt_units(unit)
        nib.save(nib.Nifti1Image(voxels(path), None, stored.header), path)

    return spoil


def reoriented(axes):
    """Return a defect that stores the same grid in another order of axes."""

    def spoil(path):
        stored = nib.load(path)
        target = nib.orientations.axcodes2ornt(axes)
        turn = nib.orientations.ornt_transform(nib.io_orientation(stored.affine), target)
        turned = stored.as_reoriented(turn)
        save(path, np.asarray(turned.dataobj), turned.affine)

    return spoil


def without_permission(monkeypatch, name):
    """Let folders called `name` refuse to be listed."""
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) == name:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
