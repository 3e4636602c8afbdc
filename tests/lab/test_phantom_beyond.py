"""Phantoms beyond MRI of the brain: their physics against closed forms, their cases by contract."""

import numpy as np
import pytest
from scipy import ndimage

from dcd_core.models import dynunet
from dcd_core.train import Recipe
from dcd_lab import phantom
from dcd_lab.data import cohort
from dcd_lab.experiments import evaluate
from dcd_lab.phantom import signal, tomography, ultrasound_scan, vessel_scan
from dcd_lab.phantom.fields import Grid
from dcd_lab.phantom.vessel_tree import Point, daughters, draw, grow
from dcd_lab.tasks import SIMULATED

SIZE = 64
RADIUS = 20.0
LINE = np.arange(SIZE, dtype=float)
GRID = Grid((LINE, LINE, LINE), 1.0)


def disc(radius=RADIUS, slices=1):
    centre = np.arange(SIZE) - (SIZE - 1) / 2
    inside = np.clip(radius - np.hypot(centre[:, None], centre) + 0.5, 0.0, 1.0)
    return np.repeat(inside[..., None], slices, axis=2)


def test_the_projections_of_a_disc_are_its_chords():
    matrix = tomography.projector(SIZE)
    np.testing.assert_allclose(matrix.sum(axis=0), tomography.ANGLES, rtol=1e-9)
    lines = (matrix @ disc().ravel()).reshape(tomography.ANGLES, -1)
    bins = np.arange(lines.shape[1]) - lines.shape[1] / 2 + 0.5
    chords = 2.0 * np.sqrt(np.clip(RADIUS**2 - bins**2, 0.0, None))
    inner = np.abs(bins) < RADIUS - 3
    assert np.abs(lines - chords)[:, inner].max() < 0.4
    assert lines[:, np.abs(bins) > RADIUS + 1.5].max() == 0.0


def scanned(water, bone=None, photons=1e15):
    bone = np.zeros_like(water) if bone is None else bone
    rng = np.random.default_rng(0)
    options = {"voxel_mm": 4.0, "photons": photons, "sharpness": 1.0}
    return tomography.scan(rng, water * (1 - bone), bone, **options)


def test_water_is_zero_and_air_a_thousand_below():
    image, inside = scanned(disc()), disc(RADIUS - 3)[..., 0] == 1
    assert np.abs(image[inside]).max() < 6.0
    assert abs(image[inside].mean()) < 0.5
    assert image[:6, :6].mean() == pytest.approx(-1000.0, abs=6.0)


def test_noise_has_the_texture_of_filtered_back_projection():
    """Its power rises with the frequency and falls with the filter; white noise has neither."""
    middle = scanned(disc(28.0, 24), photons=1e6)[16:48, 16:48]
    power = np.abs(np.fft.fft2(middle - middle.mean((0, 1)), axes=(0, 1))) ** 2
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(32)] * 2, indexing="ij"))
    low, high, last = (
        power[(frequency > a) & (frequency < b)].mean()
        for a, b in ((0.01, 0.05), (0.1, 0.2), (0.4, 0.5))
    )
    assert high > 1.4 * low
    assert high > 10 * last


def test_it_is_darker_between_two_bones():
    bone = np.zeros((SIZE, SIZE, 1))
    bone[24:40, 14:17] = bone[24:40, 47:50] = 0.9
    image = scanned(disc(28.0), bone)[..., 0]
    between, beside = image[28:36, 28:36].mean(), image[8:14, 28:36].mean()
    assert between < beside - 3.0


def test_speckle_is_rayleigh_and_wider_across_than_along_the_beam():
    rng = np.random.default_rng(0)
    sizes = (2.0, 1.5, 0.8)
    echoes = ultrasound_scan.speckle(rng, GRID, np.full(GRID.shape, 3.0), *sizes)
    inner = echoes[8:-8, 8:-8, 8:-8]
    envelope = np.abs(inner)
    assert (np.abs(inner) ** 2).mean() == pytest.approx(9.0, rel=0.05)
    assert envelope.mean() == pytest.approx(3.0 * np.sqrt(np.pi) / 2, rel=0.03)
    assert envelope.mean() / envelope.std() == pytest.approx(1.91, rel=0.04)
    for axis, size in enumerate(sizes):
        one, other = (np.take(inner, range(i, 46 + i), axis) for i in (0, 2))
        found = (one * other.conj()).mean().real / 9.0
        assert found == pytest.approx(np.exp(-(2.0**2) / (4 * size**2)), abs=0.05)


def test_sound_is_lost_with_depth_and_more_behind_a_rib():
    loss = np.ones(GRID.shape)
    loss[:20, :, 10:16] = 12.0
    rng = np.random.default_rng(1)
    image = ultrasound_scan._image(rng, GRID, np.zeros(GRID.shape), loss)
    assert image[:12, :, 24:].mean() < image[40:, :, 24:].mean() - 40.0
    steady = ultrasound_scan._image(rng, GRID, np.zeros(GRID.shape), np.zeros(GRID.shape))
    assert steady[:, :, 40:].mean() > steady[:, :, :10].mean() + 5.0  # the gain alone


def test_branches_obey_murray():
    (one, turn), (two, other) = daughters(2.0, 0.3)
    assert one**3 + two**3 == pytest.approx(8.0)
    assert one < two
    assert turn > other  # the thinner branch turns more
    (thin, angle), _ = daughters(1.0, 0.5)
    assert thin == pytest.approx(0.5 ** (1 / 3))
    assert np.degrees(2 * angle) == pytest.approx(74.9, abs=0.1)


def test_a_tree_thins_out_and_its_blood_ages():
    up = np.array([0.0, 0.0, 1.0])
    points = grow(np.random.default_rng(2), np.array([32.0, 32.0, 0.0]), up, 2.0, GRID)
    radii = {point.radius for point in points}
    assert max(radii) == 2.0
    assert min(radii) >= 0.45
    assert len(radii) > 5
    first, oldest = points[0], max(points, key=lambda point: point.age_s)
    assert first.age_s < 0.02 < oldest.age_s
    assert all((point.place > -3.0).all() and (point.place < SIZE + 2).all() for point in points)


def test_blood_at_the_wall_is_older_than_on_the_axis():
    points = [Point(np.array([32.0, 32.0, z]), 4.0, 0.1) for z in np.arange(0.0, 60.0, 0.5)]
    vessels = draw(points, GRID)
    assert vessels.level_mm[32, 32, 30] == pytest.approx(4.0)
    assert vessels.level_mm[35, 32, 30] == pytest.approx(1.0)
    assert vessels.age_s[32, 32, 30] == pytest.approx(0.05)
    assert vessels.age_s[34, 32, 30] == pytest.approx(0.05 / (1 - 0.25))


def test_blood_flows_in_fresh_and_is_saturated_like_what_stays():
    settings = {"tr_ms": 25.0, "flip_deg": 20.0}
    blood = vessel_scan.BLOOD
    fresh, late = (signal.inflowing(blood, **settings, pulses=n) for n in (0.0, 1e4))
    assert fresh == pytest.approx(blood.density * np.sin(np.deg2rad(20.0)))
    assert late == pytest.approx(signal.spoiled_gradient_echo(blood, **settings))
    once = signal.inflowing(blood, **settings, pulses=1.0)
    e1 = np.exp(-25.0 / blood.t1_ms)  # one pulse leaves cos a, the rest comes back by 1 - e1
    assert once == pytest.approx(fresh * (e1 * np.cos(np.deg2rad(20.0)) + 1 - e1))


@pytest.fixture(scope="module")
def cases():
    spacing = {"ct-stroke": 4.0, "ultrasound": 2.0, "vessels": 1.5}
    return {kind: phantom.cohort(kind, 6, seed=3, spacing_mm=s) for kind, s in spacing.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [("ct-stroke", 0.02, 0.3), ("ultrasound", 0.04, 0.35), ("vessels", 0.2, 0.65)],
)
def test_cases_keep_the_contract_and_one_threshold_is_not_enough(cases, kind, low, high):
    task, made = SIMULATED[kind], cases[kind]
    volumes = []
    for case in made:
        assert (case.label.dtype, case.image.dtype) == (np.uint8, np.float32)
        assert (len(case.image), case.label.max()) == (1, 1)
        scanned = case.image[0] != 0
        assert not case.label[~scanned].any()
        assert scanned.all() == (kind != "ct-stroke")
        assert np.abs(case.image * 16 - np.rint(case.image * 16)).max() == 0
        np.testing.assert_allclose(np.linalg.norm(case.affine[:3, :3], axis=0), case.spacing_mm)
        parts, _ = ndimage.label(case.label, np.ones((3, 3, 3)))
        volumes += (np.bincount(parts.ravel())[1:] * np.prod(case.spacing_mm) / 1000).tolist()
    assert case.spacing_mm[2] == pytest.approx(
        case.spacing_mm[0] * (2.5 if kind == "vessels" else 1)
    )
    assert max(volumes) > 10 * min(volumes)
    table = phantom.difficulty(made, task)
    assert table.channel[0] == task.channels[0]
    assert low < table.dice[0] < high


@pytest.mark.slow
@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("kind", SIMULATED)
def test_a_cohort_is_written_read_and_scored_without_a_challenge(kind):
    made = cohort("synthetic", kind, train=1, val=1, test=2, spacing_mm=4.0)
    assert made.test == (f"{kind}-0003", f"{kind}-0004")
    (case,) = made.cases("train")
    whole = phantom.cohort(kind, 1, seed=0, spacing_mm=4.0)[0]
    assert case.spacing_mm == whole.spacing_mm
    assert case.label.sum() == whole.label.sum()
    student = dynunet(1, 2, channels=(2, 2, 4))
    table = evaluate(student, 0.5, made, Recipe(patch=(16, 16, 16), overlap=0.0)).scores
    assert table.region.tolist() == [SIMULATED[kind].labels[1]] * 2
    assert {"dice", "boundary_2mm_dice", "small_lesion_dice"} <= {*table}
    assert not {"lesion_f1", "avd_ml", "lesion_count_diff"} & {*table}
