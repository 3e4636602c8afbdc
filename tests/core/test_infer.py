"""Infer: windows against one full pass, decisions and thresholds against known probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from dcd_core import infer
from dcd_core.infer import choose_threshold, decide, predict
from dcd_core.models import Segmenter, dynunet
from dcd_core.types import Case, ContractError

PATCH = (8, 8, 8)


def voxelwise(channels=1, classes=3):
    """Logits that depend on one voxel alone: windows cannot change them."""
    torch.manual_seed(0)
    return Segmenter(nn.Conv3d(channels, classes, 1), [""], [classes])


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
    found = predict(model, image(1, 8, 8, 8), patch=PATCH, precision=precision)
    assert set(seen) == {torch.bfloat16 if half else torch.float32}
    assert found.dtype == torch.float32


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("size", [(11, 8, 13), (5, 9, 3)], ids=["larger", "smaller"])
def test_windows_of_a_voxelwise_network_give_one_full_pass(overlap, size):
    model, x = voxelwise(), image(1, *size)
    x.flags.writeable = False  # as a memory-mapped image is
    found = predict(model, x, patch=PATCH, overlap=overlap, precision="32-true")
    expected = model(torch.from_numpy(x.copy())[None]).logits[0].softmax(0)
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)


def test_mirroring_averages_the_eight_flips():
    torch.manual_seed(0)
    model, x = dynunet(1, 2, channels=(4, 4, 6)).eval(), image(1, 8, 8, 8)
    found = predict(model, x, patch=PATCH, mirror=True, precision="32-true")
    flips = [[a for a in (2, 3, 4) if bits >> (a - 2) & 1] for bits in range(8)]
    with torch.no_grad():
        y = torch.from_numpy(x)[None]
        parts = [model(y.flip(axes)).logits.softmax(1).flip(axes) for axes in flips]
    assert torch.allclose(found, torch.stack(parts).mean(0)[0], rtol=0, atol=1e-6)
    assert not torch.allclose(found, parts[0][0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_prediction_leaves_model_and_gradients_as_they_were(training):
    model = dynunet(1, 2, channels=(4, 4, 6)).train(training)
    found = predict(model, image(1, 8, 8, 8), patch=PATCH)
    assert model.training == training
    assert not found.requires_grad
    model(torch.zeros(1, 1, 8, 8, 8)).logits.mean().backward()  # no inference mode on the weights


@pytest.mark.parametrize("overlap", [-0.1, 1.0])
def test_an_overlap_out_of_range_is_refused(overlap):
    with pytest.raises(ContractError, match="overlap"):
        predict(voxelwise(), image(1, 8, 8, 8), patch=PATCH, overlap=overlap)


@pytest.mark.unchecked
def test_an_image_without_channels_is_refused():
    with pytest.raises(ContractError, match=r"image: got \(8, 8, 8\)"):
        predict(voxelwise(), image(8, 8, 8), patch=PATCH)


def test_images_and_patches_that_no_network_takes_are_refused():
    with pytest.raises(ContractError, match="patch: got 0"):
        predict(voxelwise(), image(1, 8, 8, 8), patch=(0, 8, 8))
    with pytest.raises(ContractError, match="strides of the network divide"):
        predict(dynunet(1, 2, channels=(4, 4, 4, 4)), image(1, 24, 24, 24), patch=(20, 20, 20))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_one_voxel_that_is_not_finite_is_refused_and_never_background(wrong):
    """Convolutions and norms would spread it over the window."""
    x = image(1, 8, 8, 8)
    x[0, 1, 2, 3] = wrong
    with pytest.raises(ContractError, match="image to predict: got 1 of 512 values not finite"):
        predict(voxelwise(), x, patch=PATCH)


def test_a_network_that_gives_no_finite_number_is_refused():
    model = voxelwise()
    model.network.weight.data[0] = torch.nan
    with pytest.raises(ContractError, match="probabilities: got 1536 of 1536 values not finite"):
        predict(model, image(1, 8, 8, 8), patch=PATCH)


@pytest.mark.parametrize("dtype", ["float64", ">f4", "int16"])
def test_images_of_any_type_are_predicted_in_float32(dtype):
    x = np.rint(image(1, 8, 8, 8))
    expected = predict(voxelwise(), x, patch=PATCH)
    assert torch.equal(predict(voxelwise(), x.astype(dtype), patch=PATCH), expected)


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


# --- thresholds -----------------------------------------------------------------------------------


def chosen(*cases):
    """The threshold on cases (label, foreground probability), or with two labels (label, p, p)."""
    classes = len(cases[0]) if cases else 2
    logarithm = Segmenter(nn.Conv3d(classes, classes, 1, bias=False), [""], [classes])
    nn.init.dirac_(logarithm.network.weight)  # its softmax gives the probabilities back
    made = []
    for label, *p in cases:
        both = np.stack([1 - sum(p), *p]).astype(np.float32)
        made.append(Case("case", np.log(both), label, (1.0, 1.0, 1.0), np.eye(4)))
    return choose_threshold(logarithm, made, patch=PATCH, precision="32-true")


def lesion(n, value=1, start=0):
    label = np.zeros((8, 8, 8), np.uint8)
    label.reshape(-1)[start : start + n] = value
    return label


def test_threshold_is_the_one_with_the_best_mean_dice():
    # Foreground .62 on the lesion, .33 on a spurious blob: only thresholds between separate them.
    label = lesion(64)
    p = np.where(label, 0.62, 0.05) + 0.28 * lesion(32, start=128)
    assert chosen((label, p), (None, p)) == (0.35, 1.0)


def test_threshold_weighs_cases_not_voxels():
    # One large case is best at .3, two small ones at .7: the mean over cases is best at .7.
    large, small = lesion(256), lesion(8)
    cases = [(large, np.where(large, 0.4, 0.2)), *[(small, np.where(small, 0.9, 0.6))] * 2]
    threshold, dice = chosen(*cases)
    assert 0.6 <= threshold < 0.9
    assert dice == pytest.approx((0 + 1 + 1) / 3)


def test_labels_count_as_one_foreground():
    label = lesion(16) + lesion(16, 2, start=16)
    assert chosen((label, *(np.where(label == value, 0.6, 0.01) for value in (1, 2)))) == (0.05, 1)


def test_one_half_is_chosen_where_no_threshold_finds_anything():
    nowhere = np.full((8, 8, 8), 1e-3)
    assert chosen((lesion(4), nowhere)) == (0.5, 0.0)
    assert chosen((np.zeros_like(lesion(1)), nowhere)) == (0.05, 1.0)  # two empty masks agree
    threshold, dice = choose_threshold(voxelwise(), [], patch=PATCH)
    assert threshold == 0.5
    assert math.isnan(dice)
