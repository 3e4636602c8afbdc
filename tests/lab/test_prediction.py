"""Prediction: labels of a case on its own grid, which is checked in mm."""

import numpy as np
import pytest
import torch
from cases import oblique, world
from torch import nn

from dcd_core.infer import decide, predict
from dcd_core.models import Segmenter
from dcd_core.types import Case, ContractError
from dcd_lab.data import prepare
from dcd_lab.data.prediction import predict_case, to_native
from dcd_lab.tasks import BRATS, ISLES


def voxelwise(channels=1, classes=3):
    """Logits that depend on one voxel alone: windows cannot change them."""
    torch.manual_seed(0)
    return Segmenter(nn.Conv3d(channels, classes, 1), [""], [classes])


def make_case(task=ISLES, size=(14, 12, 10), spacing_mm=(2.0, 1.0, 3.0), seed=0):
    """A block of noise around 2, off centre, in zeros."""
    full = np.zeros((len(task.channels), *size), np.float32)
    full[:, 3:11, 4:10, 3:9] = np.random.default_rng(seed).normal(2, 0.3, (len(full), 8, 6, 6))
    label = (full[0] > 2.2).astype(np.uint8)
    return Case("sub-strokecase0001", full, label, spacing_mm, oblique(spacing_mm))


def test_a_crop_is_pasted_back_voxel_by_voxel():
    case = make_case()
    prepared = prepare(case, task=ISLES)
    assert prepared.image.shape[1:] == (12, 10, 9)  # the block and a margin of 2, cut at the edge
    p = np.random.default_rng(0).random((2, 12, 10, 9))
    p = (p / p.sum(0)).astype(np.float32)
    native = to_native(p, prepared, case)
    assert native.shape == (2, 14, 12, 10)
    assert np.array_equal(native[:, 1:13, 2:12, 1:10], p)
    outside = np.ones((14, 12, 10), bool)
    outside[1:13, 2:12, 1:10] = False
    assert (native[0][outside] == 1).all()
    assert (native[1][outside] == 0).all()


@pytest.mark.parametrize("spacing_mm", [(1.0, 2.0, 1.5), 4.0], ids=str)
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
    if spacing_mm is None:
        prepared = prepare(case, task=task).image
        expected = decide(predict(model, prepared, patch=(8, 8, 8)).numpy(), 0.4)
        assert np.array_equal(label[1:13, 2:12, 1:10], expected)


def test_other_channels_than_the_task_has_are_refused():
    with pytest.raises(ContractError, match="channels of sub-strokecase0001: got 3"):
        predict_case(voxelwise(3), make_case(), BRATS, patch=(8, 8, 8))


def test_a_network_of_other_classes_than_the_task_has_is_refused():
    network = Segmenter(nn.Conv3d(4, 2, 1), [""], [2])
    with pytest.raises(ContractError, match="network: got 2 classes; expected 5"):
        predict_case(network, make_case(BRATS), BRATS, patch=(8, 8, 8))
