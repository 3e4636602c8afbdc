"""Cohorts anyone may own: phantoms with the anatomy, physics and disease of the tasks.

Real anatomy (the MNI152 average that ships with nilearn) is deformed into individuals, given
gliomas or infarcts, and imaged by the sequence equations of MR physics with the artefacts of real
scanners. Three further kinds ask what holds beyond these: infarcts in CT, solid lesions in
ultrasound, and trees of vessels in MR angiography. The same seed gives the same voxels on every
machine: all arithmetic is float64 and intensities are rounded at the end (1/16 unit; ADC 1e-4), far
above last-bit differences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pandas as pd

from dcd_core.errors import at_least, finite, one_of
from dcd_core.types import Case, ContractError
from dcd_lab.phantom import ct_scan, glioma_scan, stroke_scan, ultrasound_scan, vessel_scan
from dcd_lab.phantom.fields import Array
from dcd_lab.pool import each
from dcd_lab.tasks import BRATS, CT_STROKE, ISLES, SIMULATED, ULTRASOUND, VESSELS, Task

__all__ = ["VERSION", "cohort", "ct_stroke", "difficulty", "glioma", "members", "stroke"]
__all__ += ["ultrasound", "vessels"]

VERSION = 1
"""Raise it by hand when the same seed gives another phantom; caches are named by it."""
_IDS = {
    "glioma": "BraTS-GLI-{:05d}-100",
    "stroke": "sub-strokecase{:04d}",
    **{name: f"{name}-{{:04d}}" for name in SIMULATED},
}


def glioma(seed: int, *, spacing_mm: float = 2.0) -> Case:
    """One treated glioma on the BraTS 2024 grid scaled to `spacing_mm` (1 to 4 mm).

    Image (4, i, j, k) t1n, t1c, t2w, t2f in arbitrary units, label 0-4 (background, NETC, SNFH,
    ET, RC). Raises ContractError for a spacing outside 1 to 4 mm.
    Source: grid and labels of de Verdier et al., arXiv 2405.18368, 2024.
    """
    _check(spacing_mm)
    image, label, _ = glioma_scan.paint(seed, glioma_scan.head_grid(spacing_mm))
    id = _IDS["glioma"].format(seed % 100000)
    return _case(id, image, label, spacing_mm, glioma_scan.affine(spacing_mm))


def stroke(seed: int, *, spacing_mm: float = 2.0) -> Case:
    """One acute stroke on an oblique DWI grid of `spacing_mm` (1 to 4 mm).

    Image (3, i, j, k) dwi (arbitrary units), adc (1e-3 mm2/s) and flair (arbitrary units), label
    0-1; a rare case has an empty label, as in the challenge. Raises ContractError as `glioma` does.
    Source: layout of Hernandez Petzsche et al., Scientific Data, 2022.
    """
    _check(spacing_mm)
    grid = stroke_scan.head_grid(spacing_mm)
    image, label = stroke_scan.paint(seed, grid)
    id = _IDS["stroke"].format(seed % 10000)
    return _case(id, image, label, spacing_mm, stroke_scan.oblique_affine(seed, grid))


def ct_stroke(seed: int, *, spacing_mm: float = 2.0) -> Case:
    """One stroke in the CT scanner, on a grid of `spacing_mm` (1 to 4 mm).

    Image (1, i, j, k) in Hounsfield units, 0 outside of the brain, label 0-1. Raises ContractError
    as `glioma` does.
    """
    _check(spacing_mm)
    grid = stroke_scan.head_grid(spacing_mm)
    image, label = ct_scan.paint(seed, grid)
    id = _IDS[CT_STROKE.name].format(seed % 10000)
    return _case(id, image, label, spacing_mm, stroke_scan.oblique_affine(seed, grid))


def ultrasound(seed: int, *, spacing_mm: float = 1.0) -> Case:
    """Ultrasound of a tissue with solid lesions, on a grid of `spacing_mm` (1 to 4 mm).

    Image (1, i, j, k) in grey values up to 255; axes across the beam, from plane to plane and along
    the beam; label 0-1. The probe lies on the belly: planes are axial, the beam goes to the back.
    Raises ContractError as `glioma` does.
    """
    _check(spacing_mm)
    image, label = ultrasound_scan.paint(seed, ultrasound_scan.field(spacing_mm))
    id = _IDS[ULTRASOUND.name].format(seed % 10000)
    return _case(id, image, label, spacing_mm, ultrasound_scan.affine(spacing_mm))


def vessels(seed: int, *, spacing_mm: float = 1.0) -> Case:
    """Arteries in MR angiography: voxels of `spacing_mm` (1 to 4 mm), slices 2.5 times as thick.

    Image (1, i, j, k) in arbitrary units, label 0-1 of arteries. Raises ContractError as `glioma`
    does.
    """
    _check(spacing_mm)
    image, label = vessel_scan.paint(seed, vessel_scan.field(spacing_mm))
    size = np.array([1.0, 1.0, vessel_scan.THICKNESS]) * spacing_mm
    id = _IDS[VESSELS.name].format(seed % 10000)
    return _case(id, image, label, size, np.diag([*size, 1.0]))


_PAINTERS = {
    "glioma": glioma,
    "stroke": stroke,
    CT_STROKE.name: ct_stroke,
    ULTRASOUND.name: ultrasound,
    VESSELS.name: vessels,
}


def _check(spacing_mm: float, kind: str = "glioma") -> None:
    one_of("kind", kind, *_IDS)
    finite("spacing_mm", spacing_mm, lambda x: 1 <= x <= 4, "1 to 4 mm")


def _case(id: str, image: Array, label: Array, spacing_mm: float | Array, affine: Array) -> Case:
    i, j, k = np.broadcast_to(spacing_mm, 3).tolist()
    spacing = (float(i), float(j), float(k))
    return Case(id, image.astype(np.float32), label.astype(np.uint8), spacing, affine)


def cohort(
    kind: str, n: int, *, seed: int, spacing_mm: float = 2.0, workers: int = 1
) -> list[Case]:
    """`n` cases of a kind; case i depends on `seed` and i, not on n.

    Kinds are "glioma", "stroke" and the names of `tasks.SIMULATED`. Ids follow the challenges
    (BraTS-GLI-00001-100, sub-strokecase0001), or are the kind and a number. `workers` > 1 paints in
    that many processes. Raises ContractError for an unknown kind or a spacing outside 1 to 4 mm.
    """
    made = members(
        kind, range(at_least("n", n, 0)), seed=seed, spacing_mm=spacing_mm, workers=workers
    )
    return sorted(made, key=lambda case: (len(case.id), case.id))


def members(
    kind: str, indices: Sequence[int], *, seed: int, spacing_mm: float = 2.0, workers: int = 1
) -> Iterator[Case]:
    """The cases at `indices` of the cohort of `seed`, each as soon as it is painted.

    With several `workers` they come in any order. Raises ContractError as `cohort` does, before the
    first case.
    """
    _check(spacing_mm, kind)
    paint = partial(_member, kind=kind, seed=seed, spacing_mm=spacing_mm)
    return each(paint, indices, workers=workers)


def _member(index: int, kind: str, seed: int, spacing_mm: float) -> Case:
    child = int(np.random.SeedSequence((seed, index)).generate_state(1)[0])
    case = _PAINTERS[kind](child, spacing_mm=spacing_mm)
    return case._replace(id=_IDS[kind].format(index + 1))


def difficulty(cases: Sequence[Case], task: Task | None = None) -> pd.DataFrame:
    """How far one threshold on one channel gets: the best Dice over the whole cohort.

    Intensities are z-scored inside each brain; the target is the whole tumour (labels 1, 2, 3) or
    what has the label 1. `task` names the channels; by default it is that of MRI with as many.
    Columns: channel, direction ("above" or "below" the threshold), threshold_z and dice (mean over
    cases), best first. Raises ContractError without labelled cases.
    """
    if not cases or any(case.label is None for case in cases):
        raise ContractError("cases", f"{len(cases)} cases", "labelled cases", "phantom.cohort(...)")
    task = task or (BRATS if len(cases[0].image) == len(BRATS.channels) else ISLES)
    thresholds = np.linspace(-4.0, 6.0, 101)
    rows = []
    for channel, name in enumerate(task.channels):
        for direction, sign in (("above", 1.0), ("below", -1.0)):
            dice = np.mean([_threshold_dice(c, channel, sign, thresholds) for c in cases], axis=0)
            rows.append((name, direction, sign * thresholds[dice.argmax()], dice.max()))
    table = pd.DataFrame(rows, columns=["channel", "direction", "threshold_z", "dice"])
    return table.sort_values("dice", ascending=False, ignore_index=True)


def _threshold_dice(case: Case, channel: int, sign: float, thresholds: Array) -> Array:
    """Dice of `sign * z > t` for every threshold t, from sorted values (no mask per threshold)."""
    assert case.label is not None
    brain = (case.image != 0).any(0)
    values = case.image[channel][brain].astype(float)
    target = np.isin(case.label[brain], (1, 2, 3))
    z = sign * (values - values.mean()) / (values.std() + 1e-8)
    above = len(z) - np.searchsorted(np.sort(z), thresholds, side="right")
    hit = np.sort(z[target])
    both = len(hit) - np.searchsorted(hit, thresholds, side="right")
    total = above + len(hit)
    return np.where(total > 0, 2.0 * both / np.maximum(total, 1), 1.0)
