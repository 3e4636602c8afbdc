"""Infer: windows against one full pass, decisions against hand-made probabilities, grids in mm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dcd_core import infer
from dcd_core.infer import THRESHOLDS, choose_threshold, decide, predict
from dcd_core.models import Segmenter, dynunet
from dcd_core.types import BRATS, ISLES, Case, ContractError
from dcd_lab.data import prepare
from dcd_lab.data.prediction import predict_case, to_native


@pytest.fixture(autouse=True)
def _float32(monkeypatch):
    """Compare in float32 on every machine, whatever its processor has natively."""
    monkeypatch.setattr(infer, "native_bfloat16", lambda device: False)


class Voxelwise(nn.Module):
    """Logits that depend on one voxel alone: windows cannot change them."""

    def __init__(self, channels, classes):
        super().__init__()
        self.mix = nn.Conv3d(channels, classes, 1)

    def forward(self, x):
        return self.mix(x)


def voxelwise(channels=1, classes=3, seed=0):
    torch.manual_seed(seed)
    return Segmenter(Voxelwise(channels, classes), ["mix"], [classes])


def image(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize(
    ("precision", "native", "half"),
    [
        ("auto", True, True),
        ("auto", False, False),
        ("32-true", True, False),
        ("bf16-mixed", False, True),
    ],
)
def test_precision_decides_what_the_network_computes_in(precision, native, half, monkeypatch):
    monkeypatch.setattr(infer, "native_bfloat16", lambda device: native)
    model, seen = voxelwise(), []
    model.network.register_forward_hook(lambda net, inputs, output: seen.append(output.dtype))
    found = predict(model, image(1, 8, 8, 8), patch=(8, 8, 8), precision=precision)
    assert set(seen) == {torch.bfloat16 if half else torch.float32}
    assert found.dtype == torch.float32


# --- sliding windows ------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_one_window_as_large_as_the_volume_is_one_forward_pass(overlap):
    torch.manual_seed(0)
    model, x = dynunet(2, 3, channels=(4, 6, 8)).eval(), image(2, 16, 16, 16)
    found = predict(model, x, patch=(16, 16, 16), overlap=overlap)
    with torch.no_grad():
        expected = model(torch.from_numpy(x)[None]).logits[0].softmax(0)
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.75])
@pytest.mark.parametrize("mirror", [False, True], ids=["", "mirror"])
def test_windows_reassemble_what_depends_on_one_voxel(overlap, mirror):
    model, x = voxelwise(), image(1, 11, 8, 13)
    found = predict(model, x, patch=(6, 8, 4), overlap=overlap, mirror=mirror, batch=3)
    with torch.no_grad():
        expected = model(torch.from_numpy(x)[None]).logits[0].softmax(0)
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)
    assert torch.allclose(found.sum(0), torch.ones(11, 8, 13), rtol=0, atol=1e-5)


def test_a_volume_smaller_than_the_patch_is_padded_and_cropped_back():
    found = predict(voxelwise(), image(1, 5, 9, 3), patch=(8, 8, 8))
    assert found.shape == (3, 5, 9, 3)


def test_mirroring_averages_the_eight_flips():
    torch.manual_seed(0)
    model, x = dynunet(1, 2, channels=(4, 4, 6)).eval(), image(1, 8, 8, 8)
    found = predict(model, x, patch=(8, 8, 8), mirror=True)
    flips = [[a for a in (2, 3, 4) if bits >> (a - 2) & 1] for bits in range(8)]
    with torch.no_grad():
        y = torch.from_numpy(x)[None]
        parts = [model(y.flip(axes)).logits.softmax(1).flip(axes) for axes in flips]
    assert torch.allclose(found, torch.stack(parts).mean(0)[0], rtol=0, atol=1e-6)
    assert not torch.allclose(found, predict(model, x, patch=(8, 8, 8)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_prediction_leaves_model_and_gradients_as_they_were(training):
    model = dynunet(1, 2, channels=(4, 4, 6)).train(training)
    found = predict(model, image(1, 8, 8, 8), patch=(8, 8, 8))
    assert model.training == training
    assert not found.requires_grad
    x = torch.zeros(1, 1, 8, 8, 8)
    model(x).logits.mean().backward()  # nothing of inference mode sticks to the weights


def test_a_read_only_image_is_predicted_and_not_changed():
    x = image(1, 8, 8, 8)
    x.flags.writeable = False
    before = x.copy()
    predict(voxelwise(), x, patch=(8, 8, 8))
    assert np.array_equal(x, before)


@pytest.mark.parametrize("overlap", [-0.1, 1.0])
def test_an_overlap_out_of_range_is_refused(overlap):
    with pytest.raises(ContractError, match="overlap"):
        predict(voxelwise(), image(1, 8, 8, 8), patch=(8, 8, 8), overlap=overlap)


# --- decisions ------------------------------------------------------------------------------------


def test_decide_takes_the_best_foreground_label_above_the_threshold():
    # (background, 1, 2) of five voxels
    p = np.array(
        [
            [0.6, 0.4, 0.5, 0.0, 1.0],
            [0.3, 0.2, 0.25, 0.9, 0.0],
            [0.1, 0.4, 0.25, 0.1, 0.0],
        ],
        np.float32,
    ).reshape(3, 5, 1, 1)
    assert decide(p, 0.5).ravel().tolist() == [0, 2, 0, 1, 0]  # exceeds: .5 is not above .5
    assert decide(p, 0.35).ravel().tolist() == [1, 2, 1, 1, 0]
    assert decide(p, 0.35).dtype == np.uint8
    assert decide(p, 0.99).ravel().tolist() == [0, 0, 0, 1, 0]


def test_threshold_is_the_one_with_the_best_mean_dice():
    # Foreground .62 on the lesion, .33 on a spurious blob: only thresholds between separate them.
    label = np.zeros((4, 4, 4), np.uint8)
    label[:2] = 1
    p = np.where(label, 0.62, 0.05).astype(np.float32)
    p[3] = 0.33
    cases = [np.stack([1 - p, p])] * 2
    threshold, dice = choose_threshold(cases, [label, label])
    assert 0.33 < threshold < 0.62
    assert dice == 1.0


def test_threshold_weighs_cases_not_voxels():
    # One large case is best at .3, two small ones at .7: the mean over cases is best at .7.
    def case(n, on, off):
        label = np.zeros((n, 2, 2), np.uint8)
        label[: n // 4] = 1
        p = np.where(label, np.float32(on), np.float32(off))
        return np.stack([1 - p, p]), label

    cases = [case(64, 0.4, 0.2), case(4, 0.9, 0.6), case(4, 0.9, 0.6)]
    threshold, dice = choose_threshold([p for p, _ in cases], [y for _, y in cases])
    assert 0.6 <= threshold < 0.9
    assert dice == pytest.approx((0 + 1 + 1) / 3)


def test_labels_count_as_one_foreground():
    label = np.zeros((3, 2, 2), np.uint8)
    label[0], label[1] = 1, 2
    p = np.zeros((3, 3, 2, 2), np.float32)
    p[1, :2] = p[2, :2] = 0.3  # .6 together
    p[0] = 1 - p[1:].sum(0)
    _, dice = choose_threshold([p], [label])
    assert dice == 1.0
    assert decide(p, 0.5).any(axis=(1, 2)).tolist() == [True, True, False]


def test_thresholds_lie_inside_zero_and_one():
    assert THRESHOLDS[0] == 0.05
    assert THRESHOLDS[-1] == 0.95
    assert len(set(THRESHOLDS)) == 19


# --- grids ----------------------------------------------------------------------------------------


def oblique(spacing_mm, tilt=0.3, origin=(5.0, -20.0, 11.0)):
    cos, sin = np.cos(tilt), np.sin(tilt)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[-cos, sin, 0], [sin, cos, 0], [0, 0, 1.0]]) @ np.diag(spacing_mm)
    affine[:3, 3] = origin
    return affine


def make_case(task=ISLES, size=(14, 12, 10), spacing_mm=(2.0, 1.0, 3.0), seed=0):
    """A block of noise around 2, off centre, in zeros."""
    full = np.zeros((len(task.channels), *size), np.float32)
    block = (slice(None), slice(3, 11), slice(4, 10), slice(3, 9))
    full[block] = 2 + 0.3 * image(*full[block].shape, seed=seed)
    label = (full[0] > 2.2).astype(np.uint8)
    return Case("sub-strokecase0001", full, label, spacing_mm, oblique(spacing_mm))


def world(affine, size):
    index = np.indices(size).reshape(3, -1)
    return (affine[:3, :3] @ index + affine[:3, 3:]).reshape(3, *size)


def test_a_crop_is_pasted_back_voxel_by_voxel():
    case = make_case()
    prepared = prepare(case, task=ISLES)
    assert prepared.image.shape[1:] == (12, 10, 9)  # the block and a margin of 2, cut at the edge
    p = image(2, *prepared.image.shape[1:]) ** 2
    p = (p / p.sum(0)).astype(np.float32)
    native = to_native(p, prepared, case)
    assert native.shape == (2, 14, 12, 10)
    assert np.array_equal(native[:, 1:13, 2:12, 1:10], p)
    outside = np.ones((14, 12, 10), bool)
    outside[1:13, 2:12, 1:10] = False
    assert (native[0][outside] == 1).all()
    assert (native[1][outside] == 0).all()


@pytest.mark.parametrize("spacing_mm", [1.5, (1.0, 2.0, 1.5), 4.0], ids=str)
def test_another_spacing_comes_back_to_the_same_place_in_mm(spacing_mm):
    case = make_case(size=(30, 28, 26))
    prepared = prepare(case, spacing_mm=spacing_mm, task=ISLES)
    assert prepared.image.shape[1:] != case.image.shape[1:]
    # A probability that is linear in scanner coordinates survives linear interpolation exactly.
    slope = np.array([0.004, -0.003, 0.005])

    def ramp(affine, size):
        return (0.4 + np.tensordot(slope, world(affine, size), 1)).astype(np.float32)

    p = ramp(prepared.affine, prepared.image.shape[1:])
    native = to_native(np.stack([1 - p, p]), prepared, case)
    inside = np.zeros(case.image.shape[1:], bool)
    inside[4:10, 5:9, 4:8] = True  # within the prepared grid by more than one voxel
    expected = ramp(case.affine, case.image.shape[1:])
    assert np.abs(native[1] - expected)[inside].max() < 1e-5
    assert np.abs(native.sum(0) - 1).max() < 1e-6
    corner = (slice(None), -1, -1, -1)
    assert native[corner].tolist() == [1, 0]


@pytest.mark.parametrize("task", [BRATS, ISLES], ids=lambda task: task.name)
@pytest.mark.parametrize("spacing_mm", [None, 2.5])
def test_a_case_is_labelled_on_its_own_grid(task, spacing_mm):
    case = make_case(task)
    model = voxelwise(len(task.channels), len(task.labels))
    label = predict_case(model, case, task, patch=(8, 8, 8), spacing_mm=spacing_mm, threshold=0.4)
    assert label.shape == case.image.shape[1:]
    assert label.dtype == np.uint8
    assert label.max() < len(task.labels)
    assert label.any()
    assert not label[:1].any()  # beyond the crop


def test_the_label_of_a_case_is_that_of_its_prepared_image_moved_back():
    case, model = make_case(), voxelwise(3, 2)
    prepared = prepare(case, task=ISLES)
    expected = decide(predict(model, prepared.image, patch=(8, 8, 8)).numpy(), 0.5)
    found = predict_case(model, case, ISLES, patch=(8, 8, 8), threshold=0.5)
    assert np.array_equal(found[1:13, 2:12, 1:10], expected)
    assert found.sum() == expected.sum() > 0


def test_other_channels_than_the_task_has_are_refused():
    with pytest.raises(ContractError, match="channels of sub-strokecase0001: got 3"):
        predict_case(voxelwise(3), make_case(), BRATS, patch=(8, 8, 8))
