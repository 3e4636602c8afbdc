"""Preparation keeps every point where it was; batches depend on a seed and a step alone."""

import itertools
from collections import Counter

import nibabel as nib
import numpy as np
import pytest
import torch
from cases import make_case, oblique, world
from scipy import ndimage

from dcd_core.types import Case, ContractError
from dcd_lab import data
from dcd_lab.data.patches import NONE, Augment, cut
from dcd_lab.data.prepare import Z_RANGE
from dcd_lab.tasks import BRATS, ISLES


def test_channels_become_clipped_z_scores_of_one_shared_mask():
    case = make_case(size=(20, 18, 16))
    case.image[0, 8:10, 8:10, 8:10] = 0  # absent from one channel only
    case.image[:, 4, 4, 4] = 0  # a hole in the brain
    case.image[1, 5, 5, 5], case.image[2, 5, 5, 5] = 1e3, -1e3
    before = case.image.copy()
    prepared = data.prepare(case)
    np.testing.assert_array_equal(case.image, before)
    brain = ndimage.binary_fill_holes((before != 0).any(0))
    assert brain.sum() == 18 * 16 * 14
    for channel, raw in zip(prepared.image, before, strict=True):
        inside = channel[brain]
        assert not channel[~brain].any()
        expected = (raw[brain] - raw[brain].mean()) / raw[brain].std()
        np.testing.assert_allclose(inside, np.clip(expected, *Z_RANGE), atol=1e-4)
    assert (prepared.image[1].max(), prepared.image[2].min()) == (10, -5)


def test_adc_is_clipped_before_it_is_normalised():
    case = make_case(ISLES, size=(20, 18, 16))
    case.image[1, 5, 5, 5] = 4.0
    limit = data.prepare(case)
    case.image[1, 5, 5, 5] = 4e4
    np.testing.assert_array_equal(data.prepare(case).image, limit.image)
    two = ISLES._replace(channels=("dwi", "adc"))
    pair = data.prepare(case._replace(image=case.image[:2]), task=two)
    np.testing.assert_array_equal(pair.image, limit.image[:2])
    with pytest.raises(ContractError, match=r"channels of .*: got 3; expected t1n, t1c, t2w, t2f"):
        data.prepare(case, task=BRATS)


def test_cropping_moves_no_point_and_can_be_undone():
    case = make_case(size=(30, 28, 26))
    case.image[:, :9], case.image[:, :, 20:], case.image[..., :5] = 0, 0, 0
    case.label[:] = 0
    case.label[12:14, 10, 14] = 3
    prepared = data.prepare(case)
    assert prepared.image.shape[1:] == (23, 22, 23)  # brain 20 x 19 x 20, 1 or 2 voxels around
    label = prepared.label.astype(np.float32)
    back = data.resample(
        label, prepared.affine, onto_affine=case.affine, onto_shape=case.label.shape, order=0
    )
    np.testing.assert_array_equal(back, case.label)
    same = data.prepare(case, spacing_mm=case.spacing_mm)
    np.testing.assert_array_equal(same.image, prepared.image)
    np.testing.assert_array_equal(same.affine, prepared.affine)


@pytest.mark.parametrize("spacing_mm", [1.5, (2.0, 2.0, 2.0), (4.0, 1.0, 3.0)])
def test_resampling_keeps_every_point_where_it_was(spacing_mm):
    """A linear function of position, resampled, is the same function at the new voxels."""
    slope = np.array([[0.5, -0.2, 0.3], [0.1, 0.4, -0.6], [1.0, 0.0, 0.2], [0.3, 0.3, 0.3]])

    def function(affine, size):
        return 500 + np.tensordot(slope, world(affine, size), 1)

    size, affine = (30, 40, 26), oblique()
    raw = function(affine, size)
    case = Case("c", raw.astype(np.float32), None, (2.0, 1.0, 3.0), affine)
    prepared = data.prepare(case, spacing_mm=spacing_mm)
    assert prepared.label is None
    np.testing.assert_allclose(prepared.spacing_mm, np.broadcast_to(spacing_mm, 3))
    np.testing.assert_allclose(nib.affines.voxel_sizes(prepared.affine), prepared.spacing_mm)
    mean, std = (x[:, None, None, None] for x in (raw.mean((1, 2, 3)), raw.std((1, 2, 3))))
    expected = (function(prepared.affine, prepared.image.shape[1:]) - mean) / std
    index = world(np.linalg.inv(affine) @ prepared.affine, prepared.image.shape[1:])
    # Splines feel the end of the volume; a quarter of it is left at every voxel further in.
    edge = 7
    inner = ((index >= edge) & (index <= np.subtract(size, 1 + edge)[:, None, None, None])).all(0)
    assert inner.sum() > 1000
    np.testing.assert_allclose(prepared.image[:, inner], expected[:, inner], atol=1e-4)


def smooth(affine, size):
    """A brain with air around it, bright where a wave of 13 mm is high; four equal channels."""
    x, y, z = world(affine, size)
    wave = 5 + np.sin(x / 2) + np.cos(y / 2) + np.sin(z / 2)
    middle = np.array([x.mean(), y.mean(), z.mean()])[:, None, None, None]
    brain = np.linalg.norm(np.stack([x, y, z]) - middle, axis=0) < 14
    return np.stack([(wave * brain).astype(np.float32)] * 4), brain


def test_images_are_resampled_by_splines_and_end_where_the_brain_does():
    affine, size = np.diag([2.0, 2.0, 2.0, 1.0]), (24, 24, 24)
    image, brain = smooth(affine, size)
    prepared = data.prepare(Case("c", image, None, (2.0,) * 3, affine), spacing_mm=1.0)
    there, inside = smooth(prepared.affine, prepared.image.shape[1:])
    inside = ndimage.binary_erosion(inside, iterations=9)  # the jump to air rings
    expected = (there - image[:, brain].mean()) / image[:, brain].std()
    error = np.abs(prepared.image - expected)[:, inside]
    assert error.max() < 0.01  # linear interpolation is off by 0.2
    assert not prepared.image[:, ~ndimage.binary_dilation(there[0] != 0, iterations=2)].any()


@pytest.mark.parametrize("axis", [0, 2])
def test_thick_slices_are_taken_whole(axis):
    """Within a slice splines interpolate; across slices the nearest one is repeated."""
    spacing, size = np.ones(3), [28, 28, 28]
    spacing[axis], size[axis] = 5.0, 6
    affine = np.diag([*spacing, 1.0])
    image, _ = smooth(affine, tuple(size))
    label = (image[0] > 6).astype(np.uint8)
    case = Case("c", image, label, tuple(spacing), affine)
    native, prepared = data.prepare(case), data.prepare(case, spacing_mm=1.0)
    for before, after in ((native.image[0], prepared.image[0]), (native.label, prepared.label)):
        expected = np.repeat(before, 5, axis)
        np.testing.assert_allclose(after, expected, atol=1e-4)


def test_labels_are_resampled_by_the_largest_share():
    case = make_case(size=(24, 24, 24))._replace(spacing_mm=(1.0, 1.0, 1.0), affine=np.eye(4))
    case.label[:] = 0
    case.label[4:14, 6:16, 8:18] = 4
    case.label[6:10, 8:12, 10:14] = 1
    prepared = data.prepare(case, spacing_mm=2.0)
    assert prepared.label.dtype == np.uint8
    assert set(np.unique(prepared.label)) == {0, 1, 4}
    np.testing.assert_allclose((prepared.label == 4).sum() * 8, (case.label == 4).sum(), rtol=0.1)
    for value in (1, 4):
        centre = np.argwhere(prepared.label == value).mean(0)
        centre = nib.affines.apply_affine(prepared.affine, centre)
        np.testing.assert_allclose(centre, np.argwhere(case.label == value).mean(0), atol=0.3)


def test_an_empty_case_and_a_spacing_of_zero_are_refused():
    case = make_case()
    with pytest.raises(ContractError, match=case.id):
        data.prepare(case._replace(image=np.zeros_like(case.image)))
    holed = case.image.copy()
    holed[0, 0, 0, :2] = np.nan, np.inf
    with pytest.raises(ContractError, match=f"{case.id}: got 2 voxels that are not finite"):
        data.prepare(case._replace(image=holed))
    with pytest.raises(ContractError, match="spacing_mm"):
        data.prepare(case, spacing_mm=0.0)


def cohort(count=3, size=(20, 18, 16)):
    """Return prepared cases whose first channel is 1 + label in the brain: flips are visible."""
    cases = [make_case(seed=seed, size=size, id=f"case-{seed}") for seed in range(count)]
    for case in cases:
        case.image[0] = (1.0 + case.label) * (case.image[1] != 0)
    return cases


def patches_of(cases=None, **options):
    chosen = {"patch": (8, 7, 6), "batch": 2, "seed": 3, **options}
    return data.Patches(cohort() if cases is None else cases, **chosen)


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_batch_depends_on_seed_and_step_alone():
    one, again = patches_of(), patches_of()
    ahead = [one[step] for step in range(6)]
    image, label = ahead[0]
    assert (image.shape, image.dtype) == ((2, 4, 8, 7, 6), torch.float32)
    assert (label.shape, label.dtype) == ((2, 1, 8, 7, 6), torch.int64)
    assert image.is_contiguous()
    assert equal(again[5], ahead[5])  # asked first, without its predecessors
    assert not any(equal(a, b) for a, b in itertools.combinations(ahead, 2))
    assert not equal(patches_of(seed=4)[5], ahead[5])
    state, torch_state = np.random.get_state()[1].copy(), torch.random.get_rng_state()
    _ = again[7]
    assert (np.random.get_state()[1] == state).all()
    assert torch.equal(torch.random.get_rng_state(), torch_state)


def test_the_draws_of_a_seed_never_change():
    """Other draws would break the continuation of every stored run: change them knowingly."""
    drawn = [(draw.case, draw.corner, draw.flips) for draw in patches_of().draws(700)]
    assert drawn == [
        (2, (6, 0, 4), (False, True, False)),
        (0, (5, 11, 9), (True, False, True)),
    ]


def speck(size=(30, 30, 30)):
    """Return a case with one voxel of label 1 and 200 of label 2, away from the border."""
    case = make_case(size=size, id="speck")
    case.label[:] = 0
    case.label[14, 15, 16] = 1
    case.label[20:25, 8:18, 12:16] = 2
    return case


@pytest.mark.parametrize("share", [0.0, 1 / 3, 1.0])
def test_the_share_of_foreground_and_its_balance(share):
    patches, count = patches_of([speck()], patch=(5, 5, 5), batch=4, foreground=share), 3000
    [case] = patches.cases
    corners = [draw.corner for step in range(count // 4) for draw in patches.draws(step)]
    centres = Counter(int(case.label[i + 2, j + 2, k + 2]) for i, j, k in corners)
    by_chance = np.array([1, 200]) / 26**3
    for value, chance in zip((1, 2), by_chance, strict=True):
        expected = share / 2 + (1 - share) * chance
        sd = np.sqrt(count * expected * (1 - expected))
        assert abs(centres[value] - count * expected) <= 4 * sd


def test_patches_lie_within_the_case_and_reach_all_of_it():
    patches = patches_of(cohort(1), foreground=0.0)
    corners = np.array([draw.corner for step in range(400) for draw in patches.draws(step)])
    assert corners.min(0).tolist() == [0, 0, 0]
    assert corners.max(0).tolist() == [12, 11, 10]
    case = speck()
    case.label[:] = 0
    patches = patches_of([case], foreground=1.0, batch=9)  # without a lesion: anywhere
    assert len({draw.corner for draw in patches.draws(0)}) > 5
    case.label[0, 29, 15] = 1
    patches = patches_of([case], foreground=1.0)  # a lesion at the border is still in the patch
    assert all((patches[step][1].sum((1, 2, 3, 4)) == 1).all() for step in range(5))


def test_a_small_case_is_centred_in_zeros():
    [case] = cohort(1, size=(6, 18, 5))
    patches = patches_of([case], patch=(9, 8, 8), augment=NONE)
    image, label = (part.numpy() for part in patches[1])
    for row, draw in enumerate(patches.draws(1)):
        i, j, k = draw.corner
        assert (i, k) == (-2, -2)
        expected = np.pad(case.image[:, :, j : j + 8], ((0, 0), (2, 1), (0, 0), (2, 1)))
        np.testing.assert_array_equal(image[row], expected)
        expected = np.pad(case.label[:, j : j + 8], ((2, 1), (0, 0), (2, 1)))
        np.testing.assert_array_equal(label[row, 0], expected)


def test_flips_take_image_and_label_along():
    patches, seen = patches_of(augment=NONE._replace(flips=True)), set()
    for step in range(40):
        image, label = (part.numpy() for part in patches[step])
        brain = image[:, 1] != 0
        np.testing.assert_array_equal(image[:, 0][brain], 1 + label[:, 0][brain])
        for row, draw in enumerate(patches.draws(step)):
            unflipped = draw._replace(flips=(False,) * 3)
            plain, _ = cut(patches.cases[draw.case], unflipped, patches.patch)
            axes = tuple(axis + 1 for axis in range(3) if draw.flips[axis])
            np.testing.assert_array_equal(image[row], np.flip(plain, axes))
            seen.add(draw.flips)
    assert len(seen) == 8


def test_intensities_change_by_channel_and_background_stays_zero():
    changed = patches_of(augment=Augment(flips=False, gain=0.2, shift=0.3, noise=0.0))
    plain = patches_of(augment=NONE)
    draws = [draw for step in range(30) for draw in changed.draws(step)]
    assert np.ptp([draw.gain for draw in draws], axis=0).min() > 0.3
    assert np.abs([draw.gain - 1 for draw in draws]).max() <= 0.2
    assert np.abs([draw.shift for draw in draws]).max() <= 0.3
    for step in range(5):
        before, drawn = plain[step][0].numpy(), changed.draws(step)
        gain = np.stack([draw.gain for draw in drawn])[:, :, None, None, None]
        shift = np.stack([draw.shift for draw in drawn])[:, :, None, None, None]
        expected = (before * gain + shift) * (before != 0).any(1, keepdims=True)
        np.testing.assert_allclose(changed[step][0].numpy(), expected, atol=1e-6)


def test_noise_has_the_deviation_that_was_drawn():
    noisy = patches_of(augment=NONE._replace(noise=0.5), patch=(16, 16, 14))
    plain = patches_of(augment=NONE, patch=(16, 16, 14))
    levels = []
    for step in range(12):
        added = (noisy[step][0] - plain[step][0]).numpy()
        brain = plain[step][0].numpy().any(1)
        assert not added.transpose(0, 2, 3, 4, 1)[~brain].any()
        for row, draw in enumerate(noisy.draws(step)):
            np.testing.assert_allclose(added[row][:, brain[row]].std(), draw.noise, rtol=0.05)
            levels.append(draw.noise)
    assert 0 < np.count_nonzero(levels) < len(levels)
    assert max(levels) <= 0.5


@pytest.mark.parametrize(
    ("cases", "options", "words"),
    [
        ([], {}, "got none"),
        ([make_case(), make_case(id="x", labelled=False)], {}, "case x: got no label"),
        ([make_case(), make_case(ISLES)], {}, "3 channels; expected 4"),
        ([make_case()._replace(label=np.zeros((2, 2, 2), np.uint8))], {}, r"label \(2, 2, 2\)"),
        (None, {"patch": (8, 0, 8)}, "patch: got 0"),
        (None, {"batch": 0}, "batch: got 0"),
        (None, {"seed": -1}, "seed: got -1"),
        (None, {"foreground": 1.5}, "foreground: got 1.5"),
    ],
)
def test_what_cannot_be_cut_into_patches_is_refused(cases, options, words):
    with pytest.raises(ContractError, match=words) as caught:
        patches_of(cases, **options)
    assert "Try:" in str(caught.value)
