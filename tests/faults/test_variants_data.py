"""Variants of the listed faults in cases, tables and scores: each right value as a test."""

import math

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from cases import make_case

from dcd_core.infer import choose_threshold
from dcd_core.models import dynunet
from dcd_core.types import ContractError
from dcd_lab import metrics, phantom, records, stats
from dcd_lab.data import Patches, folds, prepare, read, volumes, write
from dcd_lab.data.cohorts import cohort
from dcd_lab.data.patches import MILD
from dcd_lab.tasks import ISLES

CASE = make_case(ISLES)
SLICE = CASE._replace(label=CASE.label[..., :1])
LARGER = CASE._replace(label=np.pad(CASE.label, 3))
MASK = np.zeros((4, 4, 4), bool)
MASK[:2] = True
TABLE = pd.DataFrame(
    [(m, s, c, s + c / 9) for m in "ab" for s in range(3) for c in range(4)],
    columns=["method", "seed", "case", "dice"],
)


def cut(**changed):
    given = {"patch": (4, 4, 4), "batch": 1, "seed": 0, **changed}
    return Patches([CASE], **given)[0]


def kept(table, **extra):
    return records.save(table, "study", "05-page", "scores", **extra)


def without(table, column, row, value):
    """A table with another value in one row."""
    return table.assign(**{column: [value if n == row else x for n, x in enumerate(table[column])]})


REFUSED = {
    "spacing of a phantom": (lambda: phantom.stroke(0, spacing_mm="2"), "spacing_mm: got '2'"),
    "half a phantom": (lambda: phantom.cohort("stroke", 1.5, seed=0), "n: got 1.5"),
    "half a case to train on": (
        lambda: cohort("synthetic", ISLES.name, train=1.5, val=1, test=1),
        "splits: got 1.5",
    ),
    "a result of one mapping": (lambda: kept({"a": [1]}), "a mapping"),
    "a result of nothing": (lambda: kept([]), "the columns"),
    "a result with a column twice": (
        lambda: kept(pd.concat([TABLE, TABLE["dice"]], axis=1)),
        "the columns",
    ),
    "an imaginary result": (lambda: kept([{"a": 1j}]), "complex numbers"),
    "another hash of a result": (lambda: kept([{"a": 1}], sha256="0"), "'sha256'"),
    "a result without a name": (
        lambda: records.save([{"a": 1}], "study", "05-page", None),
        "got None",
    ),
    "ids alike but for case": (lambda: folds([*"abcde", "B "]), "ids: got \\['B ', 'b'\\]"),
    "ids in two Unicode forms": (lambda: folds([*"abcd", "\xe9", "e\u0301"]), "Unicode form"),
    "an id that is a number": (lambda: folds([1, 2, 3, 4, 5]), "ids: got 1"),
    "an id without a patient": (lambda: folds([*"abcdef"], group={"a": "x"}), "no patient of 'b'"),
    "half a fold": (lambda: folds([*"abcdef"], k=2.5), "k: got 2.5"),
    "noise NaN": (lambda: cut(augment=MILD._replace(noise=math.nan)), "noise: got nan"),
    "noise below 0": (lambda: cut(augment=MILD._replace(gain=-1.0)), "gain: got -1"),
    "half a voxel": (lambda: cut(patch=(4.5, 4, 4)), "patch: got 4.5"),
    "a step back": (lambda: Patches([CASE], patch=(4, 4, 4), batch=1, seed=0)[-1], "step: got -1"),
    "label of one slice": (lambda: prepare(SLICE), "a label"),
    "label of a larger grid": (lambda: prepare(LARGER), "a label"),
    "label stretched in val": (
        lambda: choose_threshold(dynunet(3, 2, channels=(2, 2, 2)), [SLICE], patch=(4, 4, 4)),
        "a label",
    ),
    "label to train on": (lambda: Patches([LARGER], patch=(4, 4, 4), batch=1, seed=0), "a label"),
    "label 300, stored as 44": (
        lambda: prepare(CASE._replace(label=CASE.label.astype(int) * 300)),
        "labels 0 to 300",
    ),
    "label below 0 in a case": (
        lambda: prepare(CASE._replace(label=CASE.label.astype(int) - 1)),
        "labels -1 to 0",
    ),
    "imaginary case": (lambda: prepare(CASE._replace(image=CASE.image * 1j)), "real numbers"),
    "case of text": (lambda: prepare(CASE._replace(image=CASE.image.astype("U3"))), "real numbers"),
    "case of lists": (lambda: prepare(CASE._replace(label=CASE.label.tolist())), "of list"),
    "affine without inverse": (
        lambda: prepare(CASE._replace(affine=np.tile([1.0, 0, 0, 0], (4, 1)))),
        "affine",
    ),
    "affine in words": (lambda: prepare(CASE._replace(affine="RAS")), "affine"),
    "spacing in another unit": (lambda: prepare(CASE, spacing_mm=1e-4), "1000000000 voxels"),
    "two spacings": (lambda: prepare(CASE, spacing_mm=(1.0, 2.0)), "one number or three"),
    "task by name": (lambda: prepare(CASE, task="isles2022"), "a Task"),
    "spacing of another affine": (
        lambda: prepare(CASE._replace(spacing_mm=(1.0, 1.0, 1.0))),
        "the same lengths",
    ),
    "unpaired seeds": (lambda: stats.spread(TABLE[3:], "dice"), "1 to 4 values a run"),
    "other cases": (
        lambda: stats.spread(TABLE.assign(case=TABLE["method"] + TABLE["case"].map(str)), "dice"),
        "2 lists of cases",
    ),
    "infinite score": (lambda: stats.spread(without(TABLE, "dice", 0, math.inf), "dice"), "finite"),
    "imaginary score": (
        lambda: stats.compare(TABLE.assign(dice=1j), "dice", "a", "b"),
        "complex numbers",
    ),
    "score in words": (
        lambda: stats.summarise(TABLE.assign(dice="x"), "method", metrics=["dice"]),
        "to float",
    ),
    "row without a seed": (
        lambda: stats.compare(without(TABLE, "seed", 0, None), "dice", "a", "b"),
        "1 rows without them",
    ),
    "a column twice": (
        lambda: stats.spread(pd.concat([TABLE, TABLE[["dice"]]], axis=1), "dice"),
        "more than once",
    ),
    "a design of NaN": (
        lambda: stats.detectable(0.1, 0.1, 0.1, 3, math.nan),
        "n_cases: got nan",
    ),
    "volumes without a voxel": (lambda: metrics.dice(MASK[:0], MASK[:0]), "voxels along all axes"),
    "worst distance below 0": (
        lambda: metrics.hd95(MASK, MASK & False, (1, 1, 1), empty_mm=-1),
        "empty_mm: got -1",
    ),
    "tolerances in words": (
        lambda: metrics.score(MASK * 1, MASK * 1, ISLES, (1, 1, 1), tolerances_mm="12"),
        "tolerances_mm: got '12'",
    ),
    "level in per cent": (
        lambda: stats.compare(TABLE, "dice", "a", "b", level=95),
        "level: got 95",
    ),
    "no resamples": (lambda: stats.compare(TABLE, "dice", "a", "b", resamples=0), "draws: got 0"),
    "limit NaN": (
        lambda: metrics.small_lesion_dice(MASK, MASK, (1, 1, 1), below_ml=math.nan),
        "below_ml: got nan",
    ),
    "margin without end": (
        lambda: metrics.lesions(MASK, MASK, (1, 1, 1), margin_mm=math.inf),
        "distance in mm: got inf",
    ),
    "band without end": (
        lambda: metrics.boundary_dice(MASK, MASK, (1, 1, 1), band_mm=math.inf),
        "distance in mm: got inf",
    ),
    "spacing in words": (lambda: metrics.hd95(MASK, MASK, ("a", 1, 1)), "spacing_mm"),
}


@pytest.mark.unchecked
@pytest.mark.parametrize("name", REFUSED)
def test_a_case_or_a_table_is_refused_in_words(name, workspace):
    call, message = REFUSED[name]
    with pytest.raises(ContractError, match=message):
        call()
    assert not (workspace / "results").exists()


@pytest.mark.parametrize("kind", ["i2", "u1", "i8", "f8", "f2", ">f4", "?"])
def test_a_case_of_any_type_is_prepared_and_written_as_its_numbers(kind, tmp_path):
    typed = CASE._replace(image=(CASE.image * 50).round().astype(kind))
    known = typed._replace(image=typed.image.astype(np.float32))
    label = CASE.label.astype({"f2": ">i2", "f8": "?"}.get(kind, "i8"))
    expected, found = prepare(known), prepare(typed._replace(label=label))
    assert found.image.dtype == np.float32
    assert found.label.dtype == np.uint8
    np.testing.assert_array_equal(found.image, expected.image)
    np.testing.assert_array_equal(found.label, expected.label)
    (scan,) = write([typed._replace(label=label)], tmp_path, task=ISLES)
    np.testing.assert_array_equal(read(scan).image[0], known.image[0])
    np.testing.assert_array_equal(read(scan).label, CASE.label)


@pytest.mark.parametrize("suffix", [".img", ".img.gz"])
def test_a_pair_of_header_and_voxels_is_read_whole_or_refused(suffix, tmp_path):
    voxels, file = CASE.image[0], tmp_path / f"scan{suffix}"
    nib.save(nib.Nifti1Pair(voxels, CASE.affine), file)
    for path in (file, tmp_path / f"scan{suffix}".replace("img", "hdr")):
        np.testing.assert_array_equal(volumes.load(path).array, voxels)
    content = bytearray(file.read_bytes())
    content[-6] ^= 1  # in the checksum, where there is one
    for damaged in (content[:-1], content if suffix.endswith("gz") else content[:99]):
        file.write_bytes(damaged)
        with pytest.raises(ContractError, match=f"scan{suffix}: got (?!ContractError)"):
            volumes.load(file)


def test_what_is_not_finite_is_not_written(tmp_path):
    with pytest.raises(ContractError, match="1512 voxels that are not finite"):
        write([CASE._replace(image=CASE.image * math.nan)], tmp_path, task=ISLES)
    assert not [*tmp_path.iterdir()]


def test_a_label_of_another_grid_is_not_written(tmp_path):
    with pytest.raises(ContractError, match="a label"):
        write([LARGER], tmp_path, task=ISLES)
    assert not [*tmp_path.iterdir()]
