"""Methods on logits against oracles: torch, numpy, scipy, PyWavelets, closed forms."""

import numpy as np
import pytest
import pywt
import torch
from outputs import labels, noise
from scipy.special import expit, rel_entr, softmax

from dcd_core.methods import build
from dcd_core.types import ContractError, Output

REGIONAL = ("logits", "dist", "wavelet-outputs")
each = pytest.mark.parametrize("name", [*REGIONAL, "cwd-logits"])


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


def one_voxel(value):
    """Logits of one class, 0 but for one voxel of eight."""
    result = full(0.0).clone()
    result[..., 0, 0, 0] = value
    return result


def some_ignored(size=4, seed=3):
    """Labels of two samples with -1 in a third of the voxels, and which voxels count."""
    target = labels(size=size, classes=3, seed=seed) - 1
    return target, (target[:, 0] != -1).numpy()


@each
def test_what_is_ignored_decides_nothing_and_gets_no_gradient(name):
    student, teacher = pair(2, 3, 4, 4, 4)
    target, counts = some_ignored()
    spoiled = torch.where(target == -1, 9.0, student).requires_grad_()
    other = torch.where(target == -1, -7 * teacher, teacher)
    expected = loss(name, student, teacher, target)
    value = loss(name, spoiled, other, target)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    assert loss(name, spoiled, other, target, ignore=None) != expected
    elsewhere = torch.where(target == -1, 7, target)
    assert torch.equal(loss(name, student, teacher, elsewhere, ignore=7), expected)
    everything = loss(name, student, teacher, target, ignore=None)
    assert torch.equal(everything, loss(name, student, teacher))
    value.backward()
    size = spoiled.grad.abs().sum(1).numpy()
    assert (size[~counts] == 0).all()
    assert (size[counts] > 0).all()


@each
def test_a_target_of_another_grid_is_refused(name):
    with pytest.raises(ContractError, match=r"grid of the target: got \(8, 8, 8\)"):
        loss(name, *pair(2, 3, 4, 4, 4), labels(size=8))


@pytest.mark.parametrize("name", REGIONAL)
def test_a_softmax_of_one_class_is_refused(name):
    student, teacher = pair(1, 1, 4, 4, 4)
    with pytest.raises(ContractError, match=r"classes of a softmax: got 1; .*regions=True"):
        loss(name, student, teacher)
    assert loss(name, student, teacher, regions=True) > 0.01


@pytest.mark.parametrize("name", ["logits", "dist"])
def test_a_sample_without_a_voxel_that_counts_is_not_in_the_mean(name):
    student, teacher = pair(2, 3, 4, 4, 4)
    target = labels(size=4)
    target[1] = -1
    alone = loss(name, student[:1], teacher[:1], target[:1]).item()
    assert loss(name, student, teacher, target).item() == pytest.approx(alone, rel=1e-12)


def logits_by_scipy(s, t, counts, temperature=2.0):
    rows = [np.moveaxis(z, 1, -1)[counts] / temperature for z in (s, t)]
    p, q = (softmax(z, axis=1) for z in rows)
    return temperature**2 * rel_entr(q, p).sum(1).mean()


def logits_of_regions(s, t, counts, regions):
    p, q = (expit(np.moveaxis(z, 1, -1)[counts] / 2) for z in (s, t))
    return 4 * (rel_entr(q, p) + rel_entr(1 - q, 1 - p)).mean()


def r(a, b):
    return np.corrcoef(a, b)[0, 1]


def dist_by_corrcoef(s, t, counts, temperature=1.0, beta=1.0, gamma=1.0, regions=False):
    s, t = (expit(z) if regions else softmax(z / temperature, axis=1) for z in (s, t))
    rows = zip(*(np.moveaxis(p, 1, -1)[counts] for p in (s, t)), strict=True)
    between = np.mean([r(a, b) for a, b in rows])
    classes = [r(p[k][c], q[k][c]) for p, q, c in zip(s, t, counts, strict=True) for k in range(3)]
    return temperature**2 * (beta * (1 - between) + gamma * (1 - np.mean(classes)))


def cwd_by_scipy(s, t, counts, temperature=4.0):
    divergences = []
    for p, q, c in zip(s / temperature, t / temperature, counts, strict=True):
        maps = [(softmax(y[c]), softmax(x[c])) for x, y in zip(p, q, strict=True)]
        divergences.append([rel_entr(*both).sum() for both in maps])
    return temperature**2 * np.mean(divergences)


@pytest.mark.parametrize("some", [False, True], ids=["all", "counted"])
@pytest.mark.parametrize(
    ("name", "oracle", "options"),
    [
        ("logits", logits_by_scipy, {}),
        ("logits", logits_by_scipy, {"temperature": 1.0}),
        ("logits", logits_of_regions, {"regions": True}),
        ("dist", dist_by_corrcoef, {"regions": True}),
        ("dist", dist_by_corrcoef, {}),
        ("dist", dist_by_corrcoef, {"temperature": 4.0, "beta": 2.0, "gamma": 0.5}),
        ("cwd-logits", cwd_by_scipy, {}),
        ("cwd-logits", cwd_by_scipy, {"temperature": 1.0}),
    ],
)
def test_classes_equal_the_oracle_over_all_voxels_and_over_those_that_count(
    name, oracle, options, some
):
    student, teacher = pair(2, 3, 4, 4, 4)
    target, counts = some_ignored() if some else (None, np.ones((2, 4, 4, 4), bool))
    expected = oracle(student.numpy(), teacher.numpy(), counts, **options)
    value = loss(name, student, teacher, target, **options)
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_logits_of_regions_stay_finite_where_a_sigmoid_saturates():
    student = full(-500.0, 500.0).float().requires_grad_()
    value = loss("logits", student, full(500.0, -500.0).float(), regions=True)
    value.backward()
    assert value.item() == pytest.approx(4 * 250)
    assert student.grad.isfinite().all()


def test_dist_of_one_region_or_of_a_constant_student():
    student, teacher = pair(1, 1, 4, 4, 4)
    within = r(*(z.sigmoid().flatten().numpy() for z in (student, teacher)))
    assert loss("dist", student, teacher, regions=True).item() == pytest.approx(1 - within)
    assert loss("dist", full(0.0, 0.0, 0.0), pair(1, 3, 2, 2, 2)[1]).item() == pytest.approx(2)


@pytest.mark.parametrize(
    ("size", "wavelet", "levels", "used"),
    [
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
    _, *details = pywt.wavedecn((s - t).numpy(), wavelet, "periodization", used, axes=(2, 3, 4))
    expected = sum(np.mean([np.abs(band) for band in level.values()]) for level in details)
    options = {"wavelet": wavelet, "levels": levels, "regions": regions}
    value = loss("wavelet-outputs", student, teacher, **options)
    assert value.item() == pytest.approx(expected, rel=1e-9)


def test_wavelet_outputs_leave_the_coarse_band_free():
    assert loss("wavelet-outputs", full(0.0, 3.0, size=8), full(1.0, 0.0, size=8)) < 1e-12


def test_wavelet_outputs_need_one_level():
    with pytest.raises(ContractError, match=r"grid \(8, 8, 1\) with haar"):
        loss("wavelet-outputs", *pair(1, 2, 8, 8, 1))
