"""Methods on logits against oracles: torch, numpy, scipy, PyWavelets, closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import pywt
import torch
from outputs import labels, noise
from scipy.special import rel_entr, softmax

from dcd_core.methods import METHODS, build
from dcd_core.types import ContractError, Output

NAMES = ("logits", "dist", "wavelet-outputs", "cwd-logits")
REGIONAL = NAMES[:3]
each = pytest.mark.parametrize("name", NAMES)


def loss(name, student, teacher, target=None, **options):
    method = build(name, (1,), (1,), **options)
    assert not list(method.parameters())
    return method(Output(student, ()), Output(teacher, ()), target)


def pair(*shape):
    """Student and teacher logits (b, k, d, h, w), float64."""
    return noise(*shape, dtype=torch.float64), 2 * noise(*shape, seed=1, dtype=torch.float64)


def full(*values, size=2):
    """Logits that are the same in all voxels, (1, k, size, size, size)."""
    return torch.tensor(values, dtype=torch.float64)[None, :, None, None, None].expand(
        1, len(values), size, size, size
    )


def some_ignored(size=4, seed=3):
    """Labels of two samples with -1 in a third of the voxels, and which voxels count."""
    target = labels(size=size, classes=3, seed=seed) - 1
    return target, (target[:, 0] != -1).numpy()


# --- all ------------------------------------------------------------------------------------------


@each
def test_what_is_ignored_decides_nothing(name):
    student, teacher = pair(2, 3, 4, 4, 4)
    target, _ = some_ignored()
    spoiled = torch.where(target == -1, 9.0, student)
    other = torch.where(target == -1, -7 * teacher, teacher)
    expected = loss(name, student, teacher, target)
    assert loss(name, spoiled, other, target).item() == pytest.approx(expected.item(), rel=1e-12)
    assert loss(name, spoiled, other, target, ignore=None) != expected
    elsewhere = torch.where(target == -1, 7, target)
    assert torch.equal(loss(name, student, teacher, elsewhere, ignore=7), expected)
    assert torch.equal(
        loss(name, student, teacher, target, ignore=None), loss(name, student, teacher)
    )


@each
def test_ignored_voxels_get_no_gradient(name):
    student, teacher = pair(2, 3, 4, 4, 4)
    target, counts = some_ignored()
    loss(name, student.requires_grad_(), teacher, target).backward()
    size = student.grad.abs().sum(1).numpy()
    assert (size[~counts] == 0).all()
    assert (size[counts] > 0).all()


@pytest.mark.parametrize("name", REGIONAL)
def test_a_softmax_of_one_class_is_refused(name):
    student, teacher = pair(1, 1, 4, 4, 4)
    with pytest.raises(ContractError, match=r"classes of a softmax: got 1; .*regions=True"):
        loss(name, student, teacher)
    assert loss(name, student, teacher, regions=True) > 0.01


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("name", ["logits", "dist", "cwd-logits", "cwd-features"])
def test_temperatures_are_above_zero(name, temperature):
    with pytest.raises(ContractError, match="temperature: got"):
        build(name, (1,), (1,), temperature=temperature)


@pytest.mark.parametrize("name", ["logits", "dist"])
def test_a_sample_without_a_voxel_that_counts_is_not_in_the_mean(name):
    student, teacher = pair(2, 3, 4, 4, 4)
    target = labels(size=4)
    target[1] = -1
    alone = loss(name, student[:1], teacher[:1], target[:1]).item()
    assert loss(name, student, teacher, target).item() == pytest.approx(alone, rel=1e-12)


# --- logits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_logits_equal_torch_batchmean_over_voxels(temperature):
    student, teacher = pair(2, 3, 4, 5, 6)
    s, t = (z.movedim(1, -1).reshape(-1, 3) / temperature for z in (student, teacher))
    oracle = torch.nn.KLDivLoss(reduction="batchmean")(s.log_softmax(1), t.softmax(1))
    found = loss("logits", student, teacher, temperature=temperature)
    assert found.item() == pytest.approx(temperature**2 * oracle.item(), rel=1e-12)


def test_logits_of_counted_voxels_are_the_mean_over_these():
    student, teacher = pair(2, 3, 4, 4, 4)
    target, counts = some_ignored()
    rows = [z.movedim(1, -1).numpy()[counts] / 2 for z in (student, teacher)]
    s, t = (softmax(z, axis=1) for z in rows)
    expected = 4 * rel_entr(t, s).sum(1).mean()
    assert loss("logits", student, teacher, target).item() == pytest.approx(expected, rel=1e-12)


def test_logits_closed_forms_of_classes_and_regions():
    # The teacher says 3/4 at T = 2, the student 1/2.
    bernoulli = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    teacher = full(2 * math.log(3), 0.0)
    assert loss("logits", full(0.0, 0.0), teacher).item() == pytest.approx(4 * bernoulli)
    # Of two regions, one agrees already: mean over both.
    found = loss("logits", full(0.0, 0.0), teacher, regions=True)
    assert found.item() == pytest.approx(4 * bernoulli / 2)


def test_logits_of_regions_equal_a_divergence_per_region():
    student, teacher = pair(2, 3, 4, 4, 4)
    p, q = (1 / (1 + np.exp(-z.numpy() / 2)) for z in (student, teacher))
    expected = 4 * (rel_entr(q, p) + rel_entr(1 - q, 1 - p)).mean()
    assert loss("logits", student, teacher, regions=True).item() == pytest.approx(expected)


def test_logits_of_regions_stay_finite_where_a_sigmoid_saturates():
    student = full(-500.0, 500.0).float().requires_grad_()
    found = loss("logits", student, full(500.0, -500.0).float(), regions=True)
    found.backward()
    assert found.item() == pytest.approx(4 * 250)
    assert student.grad.isfinite().all()


# --- DIST -----------------------------------------------------------------------------------------


def dist_by_corrcoef(s, t, counts=None, temperature=1.0, beta=1.0, gamma=1.0):
    s, t = (softmax(z.numpy() / temperature, axis=1) for z in (s, t))
    counts = np.ones((len(s), *s.shape[2:]), bool) if counts is None else counts

    def r(a, b):
        return np.corrcoef(a, b)[0, 1]

    rows = zip(*(np.moveaxis(p, 1, -1)[counts] for p in (s, t)), strict=True)
    between = np.mean([r(a, b) for a, b in rows])
    within = np.mean(
        [r(p[k][c], q[k][c]) for p, q, c in zip(s, t, counts, strict=True) for k in range(3)]
    )
    return temperature**2 * (beta * (1 - between) + gamma * (1 - within))


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 4.0}, {"beta": 2.0, "gamma": 0.5}], ids=str
)
def test_dist_equals_numpy_corrcoef(options):
    student, teacher = pair(2, 3, 3, 4, 5)
    expected = dist_by_corrcoef(student, teacher, **options)
    assert loss("dist", student, teacher, **options).item() == pytest.approx(expected, rel=1e-6)


def test_dist_of_counted_voxels_equals_numpy_corrcoef_of_these():
    student, teacher = pair(2, 3, 4, 4, 4)
    target, counts = some_ignored()
    expected = dist_by_corrcoef(student, teacher, counts)
    assert loss("dist", student, teacher, target).item() == pytest.approx(expected, rel=1e-6)


def test_dist_of_a_batch_is_the_mean_of_its_samples():
    student, teacher = pair(3, 3, 4, 4, 4)
    alone = [loss("dist", s[None], t[None]).item() for s, t in zip(student, teacher, strict=True)]
    assert loss("dist", student, teacher).item() == pytest.approx(np.mean(alone), rel=1e-12)


def test_dist_of_two_classes_learns_nothing_between_them():
    student, teacher = pair(2, 2, 4, 4, 4)
    student[:, 1] = 0
    student += student.sign()  # nowhere undecided, where rounding would be all that is left
    student.requires_grad_()
    loss("dist", student, teacher, gamma=0.0).backward()
    assert student.grad.abs().max() < 1e-6
    student.grad = None
    loss("dist", student, teacher).backward()
    assert student.grad.abs().max() > 1e-4


def test_dist_of_one_region_is_the_correlation_within():
    student, teacher = pair(1, 1, 4, 4, 4)
    r = np.corrcoef(*(z.sigmoid().flatten().numpy() for z in (student, teacher)))[0, 1]
    found = loss("dist", student, teacher, regions=True)
    assert found.item() == pytest.approx(1 - r, rel=1e-6)


def test_dist_of_a_constant_student_is_that_of_no_relation():
    _, teacher = pair(1, 3, 2, 2, 2)
    assert loss("dist", full(0.0, 0.0, 0.0), teacher).item() == pytest.approx(2)


# --- wavelets of outputs --------------------------------------------------------------------------


def by_pywt(x, wavelet, levels):
    """Sum over levels of the mean absolute detail of x (b, k, d, h, w)."""
    _, *details = pywt.wavedecn(x.numpy(), wavelet, "periodization", levels, axes=(2, 3, 4))
    return sum(np.mean([np.abs(band) for band in level.values()]) for level in details)


@pytest.mark.parametrize(
    ("size", "wavelet", "levels", "used"),
    [
        ((8, 8, 8), "haar", 3, 3),
        ((8, 8, 8), "haar", 9, 3),
        ((4, 8, 8), "haar", 3, 2),
        ((7, 9, 5), "haar", 2, 2),
        ((14, 16, 14), "db4", 3, 1),
    ],
)
@pytest.mark.parametrize("regions", [False, True])
def test_wavelet_outputs_equal_pywt(size, wavelet, levels, used, regions):
    student, teacher = pair(2, 3, *size)
    s, t = (z.sigmoid() if regions else z.softmax(1) for z in (student, teacher))
    found = loss(
        "wavelet-outputs", student, teacher, wavelet=wavelet, levels=levels, regions=regions
    )
    assert found.item() == pytest.approx(by_pywt(s - t, wavelet, used), rel=1e-9)


def test_wavelet_outputs_closed_form_of_one_differing_voxel():
    # Every Haar coefficient of one voxel in eight is its value divided by the root of 8.
    teacher = full(0.0).clone()
    teacher[..., 0, 0, 0] = math.log(3)
    found = loss("wavelet-outputs", full(0.0), teacher, regions=True)
    assert found.item() == pytest.approx(0.25 / math.sqrt(8))


def test_wavelet_outputs_leave_the_coarse_band_free():
    assert loss("wavelet-outputs", full(0.0, 3.0, size=8), full(1.0, 0.0, size=8)) < 1e-12


def test_wavelet_outputs_need_one_level():
    with pytest.raises(ContractError, match=r"grid \(8, 8, 1\) with haar"):
        loss("wavelet-outputs", *pair(1, 2, 8, 8, 1))
    with pytest.raises(ContractError, match="levels: got 0"):
        build("wavelet-outputs", (1,), (1,), levels=0)


# --- channel-wise ---------------------------------------------------------------------------------


def cwd_by_scipy(s, t, temperature, counts=None):
    """Mean over samples and channels of the divergence over (counted) voxels, times T^2."""
    found = []
    for b in range(len(s)):
        keep = slice(None) if counts is None else counts[b].ravel()
        for z, y in zip(s[b].flatten(1).numpy(), t[b].flatten(1).numpy(), strict=True):
            p, q = softmax(z[keep] / temperature), softmax(y[keep] / temperature)
            found.append(rel_entr(q, p).sum())
    return temperature**2 * np.mean(found)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_cwd_equals_scipy_relative_entropy(temperature):
    student, teacher = pair(2, 3, 4, 5, 6)
    found = loss("cwd-logits", student, teacher, temperature=temperature)
    assert found.item() == pytest.approx(cwd_by_scipy(student, teacher, temperature), rel=1e-10)


def test_cwd_of_counted_voxels_is_that_of_their_distributions():
    student, teacher = pair(2, 3, 4, 4, 4)
    target, counts = some_ignored()
    found = loss("cwd-logits", student, teacher, target)
    assert found.item() == pytest.approx(cwd_by_scipy(student, teacher, 4.0, counts), rel=1e-10)


def test_cwd_does_not_see_how_bright_a_channel_is_as_a_whole():
    student, teacher = pair(1, 3, 4, 4, 4)
    shift = torch.tensor([5.0, -3.0, 0.0], dtype=torch.float64)[:, None, None, None]
    expected = loss("cwd-logits", student, teacher).item()
    assert loss("cwd-logits", student + shift, teacher).item() == pytest.approx(expected)


def test_cwd_closed_form():
    # At T = 1 the teacher puts 8/15 on one of eight voxels and 1/15 on each other.
    teacher = full(0.0).clone()
    teacher[..., 0, 0, 0] = math.log(8)
    expected = 8 / 15 * math.log(64 / 15) + 7 / 15 * math.log(8 / 15)
    found = loss("cwd-logits", full(0.0), teacher, temperature=1.0)
    assert found.item() == pytest.approx(expected)


def test_methods_on_logits_say_so():
    assert all(METHODS[name].needs_logits for name in NAMES)
    assert not METHODS["feature-mse"].needs_logits
