"""The phantom cohort: physics against closed forms, anatomy and lesions against their promises."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from dcd_core.types import Case, ContractError
from dcd_lab import phantom
from dcd_lab.phantom import artefacts, glioma_scan, signal, stroke_scan
from dcd_lab.phantom.fields import Grid

GOLDEN = Path(__file__).parents[1] / "golden" / "phantom" / "phantoms.json"
FINE = {"ultrasound": 2.0, "vessels": 2.0}
"""Spacing in mm of kinds whose lesions are too small for 4 mm."""
LINE = np.arange(-60.0, 60.0, 3.0)
GRID = Grid((LINE, LINE, LINE), 3.0)


@pytest.fixture(scope="module")
def cohort():
    """Enough cases for prevalences, coarse enough for a test."""
    return {
        kind: phantom.cohort(kind, 24, seed=7, spacing_mm=spacing_mm)
        for kind, spacing_mm in (("glioma", 4.0), ("stroke", 3.5))
    }


def pieces_ml(case: Case) -> np.ndarray:
    parts, _ = ndimage.label(case.label, np.ones((3, 3, 3)))
    return np.bincount(parts.ravel())[1:] * np.prod(case.spacing_mm) / 1000.0


def test_sequences_against_closed_forms() -> None:
    tissue, csf = signal.Tissue(0.7, 1000.0, 80.0), signal.TISSUES["csf"]
    assert signal.spin_echo(tissue, tr_ms=1e7, te_ms=80.0) == pytest.approx(0.7 / np.e)
    assert signal.spin_echo(tissue, tr_ms=1000.0, te_ms=0.0) == pytest.approx(0.7 * (1 - 1 / np.e))
    ti_ms = signal.null_inversion_ms(4200.0, 9000.0)
    assert signal.inversion_recovery(csf, tr_ms=9000.0, ti_ms=ti_ms, te_ms=120.0) < 1e-12
    # For a long repetition time the null is T1 ln 2.
    assert signal.null_inversion_ms(1000.0, 1e6) == pytest.approx(1000.0 * np.log(2.0))
    # A gradient echo is strongest at the Ernst angle.
    ernst = np.degrees(np.arccos(np.exp(-12.0 / 1000.0)))
    below, best, above = (
        signal.spoiled_gradient_echo(tissue, tr_ms=12.0, flip_deg=float(ernst + off))
        for off in (-0.1, 0.0, 0.1)
    )
    assert best > max(below, above)
    enhanced = signal.with_contrast_agent(tissue, 0.2)
    assert 1000.0 / enhanced.t1_ms == pytest.approx(1.0 + 0.2 * 4.5)
    assert 1000.0 / enhanced.t2_ms == pytest.approx(1000.0 / 80.0 + 0.2 * 5.5)


def test_diffusion_gives_back_the_adc_it_was_made_from() -> None:
    adc = np.array([0.3, 0.75, 1.6, 3.0])
    tissue = signal.Tissue(0.8, 1300.0, 90.0, adc)
    timing = {"tr_ms": 8000.0, "te_ms": 80.0}
    weighted = signal.diffusion_weighted(tissue, **timing, b=1000.0)
    plain = np.full(4, signal.spin_echo(tissue, **timing))
    np.testing.assert_allclose(signal.apparent_diffusion(plain, weighted, 1000.0), adc, rtol=1e-12)


def test_acquisition_keeps_a_constant_blurs_along_slices_and_adds_rician_noise() -> None:
    def acquired(image, resolution_mm, snr, shift_mm=(0.0, 0.0, 0.0), reference=5.0):
        setup = artefacts.Acquisition(resolution_mm, snr, shift_mm)
        rng = np.random.default_rng(0)
        return artefacts.acquire([image], setup, rng, GRID, reference=reference)[0]

    constant = acquired(np.full(GRID.shape, 5.0), (3.0, 3.0, 6.0), 1e9, (0.4, -0.3, 0.0))
    np.testing.assert_allclose(constant, 5.0, rtol=1e-6)
    # Magnitude noise without signal is Rayleigh: mean sigma sqrt(pi / 2).
    empty = acquired(np.zeros(GRID.shape), (3.0, 3.0, 3.0), 10.0)
    assert empty.mean() == pytest.approx(0.5 * np.sqrt(np.pi / 2.0), rel=0.02)
    point = np.zeros(GRID.shape)
    point[20, 20, 20] = 1.0
    thick = acquired(point, (3.0, 3.0, 9.0), 1e9, reference=1.0)
    assert thick[21, 20, 20] == pytest.approx(0.0, abs=1e-6)
    assert thick[20, 20, 20] < 0.7


@pytest.mark.parametrize("seed", [0, 4])
def test_mass_effect_pushes_midline_and_ventricles_away(seed: int) -> None:
    grid = glioma_scan.head_grid(4.0)
    _, label, moved = glioma_scan.paint(seed, grid)
    _, _, still = glioma_scan.paint(seed, grid, mass_effect=False)
    side = np.sign(grid.axes[0][np.nonzero(np.isin(label, (1, 2, 3)))[0]].mean())
    midline = (np.abs(moved.mni[0]) < 4.0) & (moved.edge_mm > 15.0)
    # Where the falx is now, the brain without the tumour had tissue of the tumour's side.
    shift_mm = -side * (still.mni[0] - moved.mni[0])[midline]
    assert 0.5 < shift_mm.mean() < 5.0
    assert 3.0 < shift_mm.max() < 12.0
    # The first axis runs from right to left.
    row = np.arange(moved.csf.shape[0])[:, None, None] * np.ones(moved.csf.shape)
    ahead, before = (np.average(row, weights=a.ventricle) for a in (moved, still))
    assert side * (ahead - before) > 0.1


def test_stroke_grid_is_oblique_and_right_to_left() -> None:
    grid = stroke_scan.head_grid(2.0)
    assert grid.shape == (112, 112, 73)
    affine = stroke_scan.oblique_affine(3, grid)
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), 2.0)
    assert np.linalg.det(affine[:3, :3]) < 0
    assert abs(affine[1, 2]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "channels", "last"), [("glioma", 4, 4), ("stroke", 3, 1)])
def test_cases_keep_the_contract(cohort, kind: str, channels: int, last: int) -> None:
    steps = np.array([16, 1e4, 16] if kind == "stroke" else [16] * 4)[:, None, None, None]
    for case in cohort[kind]:
        assert (case.label.dtype, case.image.dtype) == (np.uint8, np.float32)
        assert len(case.image) == channels
        brain = (case.image != 0).any(0)
        assert not brain[[0, -1]].any()
        assert not case.label[~brain].any()
        assert 1000.0 < brain.sum() * np.prod(case.spacing_mm) / 1000.0 < 2000.0
        assert case.label.max() <= last
        # The first axis is right to left, so the determinant is negative.
        assert np.linalg.det(case.affine[:3, :3]) < 0
        stored = case.image * steps
        assert np.abs(stored - np.rint(stored)).max() < 1e-2, "intensities are whole steps"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "low", "high"), [("stroke", 0.1, 0.35), ("glioma", 0.35, 0.62)])
def test_one_threshold_is_not_enough(cohort, kind: str, low: float, high: float) -> None:
    table = phantom.difficulty(cohort[kind])
    assert table.dice.is_monotonic_decreasing
    assert low < table.dice[0] < high


def test_difficulty_of_a_case_that_is_its_own_label() -> None:
    label = np.zeros((8, 8, 8), np.uint8)
    label[3:5, 3:5, 3:5] = 1
    brain = np.pad(np.ones((6, 6, 6)), 1)
    image = np.stack([brain + 9.0 * label, brain, brain])
    case = Case("x", image.astype(np.float32), label, (1.0, 1.0, 1.0), np.eye(4))
    best = phantom.difficulty([case]).iloc[0]
    assert (best.channel, best.direction, best.dice) == ("dwi", "above", 1.0)
    # 8 of 216 brain voxels are 10, the others 1: those lie at z = -0.196, the next step is -0.1.
    assert best.threshold_z == pytest.approx(-0.1)


def summary(case: Case) -> dict:
    """A phantom in numbers that differ little, and in a hash that differs with one voxel."""
    steps = np.array([16, 1e4, 16] if len(case.image) == 3 else [16] * len(case.image))
    whole = np.rint(case.image * steps[:, None, None, None]).astype("<i4")
    return {
        "means": case.image.mean((1, 2, 3), dtype=float).tolist(),
        "voxels": np.bincount(case.label.ravel(), minlength=5).tolist(),
        "sha256": hashlib.sha256(whole.tobytes() + case.label.tobytes()).hexdigest(),
    }


@pytest.mark.parametrize("kind", ["glioma", "stroke", "ct_stroke", "ultrasound", "vessels"])
def test_the_same_seed_gives_the_same_voxels_on_every_machine_and_in_every_release(kind) -> None:
    made = summary(getattr(phantom, kind)(9, spacing_mm=FINE.get(kind, 4.0)))
    stored = json.loads(GOLDEN.read_text("utf-8"))
    message = f"raise phantom.VERSION, and store {made} with it in {GOLDEN}"
    assert stored["version"] == phantom.VERSION, message
    assert made["means"] == pytest.approx(stored[kind]["means"], rel=1e-4), message
    assert made == stored[kind], message


@pytest.mark.slow
def test_case_i_depends_neither_on_n_nor_on_workers() -> None:
    few = phantom.cohort("stroke", 2, seed=5, spacing_mm=4.0)
    more = phantom.cohort("stroke", 3, seed=5, spacing_mm=4.0, workers=2)
    assert [summary(c) for c in few] == [summary(c) for c in more[:2]]
    assert [c.id for c in more] == [f"sub-strokecase{i:04d}" for i in (1, 2, 3)]
    assert len({summary(c)["sha256"] for c in more}) == 3


def test_one_subject_at_two_spacings_has_one_tumour() -> None:
    fine, coarse = (phantom.glioma(4, spacing_mm=s) for s in (2.5, 4.0))
    volumes = [
        ((c.label > 0) & (c.label < 4)).sum() * np.prod(c.spacing_mm) for c in (fine, coarse)
    ]
    assert volumes[1] == pytest.approx(volumes[0], rel=0.1)


def test_errors_name_what_was_expected() -> None:
    with pytest.raises(ContractError, match="one of"):
        phantom.members("gliom", [0], seed=0)
    with pytest.raises(ContractError, match="1 to 4 mm"):
        phantom.stroke(0, spacing_mm=0.5)
    with pytest.raises(ContractError, match="1 to 4 mm"):
        phantom.members("glioma", [0], seed=0, spacing_mm=8.0)
    with pytest.raises(ContractError, match="labelled cases"):
        phantom.difficulty([])
