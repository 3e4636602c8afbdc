"""Parity: what the authors' release (commit 7cf0ca6) computes, audited with executable figures.

Each test is one row of the audit and speaks of that commit, not of the paper. Numbers are exact
wherever a closed form exists: both transforms are separable, so expectations over white noise are
products of Frobenius products of small matrices.
"""

import itertools
import math

import numpy as np
import pytest
import pywt
import torch
import torch.nn.functional as F
from oracles import released_level
from outputs import drawn as noise
from torch import nn

from dcd_core.dcd import DCD, PUBLISHED, detail_distance, kd_weight
from dcd_core.models import resenc, shrink
from dcd_core.types import Output
from dcd_core.wavelet import BANDS

RELEASED = {"wavelet": "db4", "convention": "released"}


def taps(name):
    """The filter bank (dec_lo, dec_hi, rec_lo, rec_hi) as the release keeps it: float32 taps."""
    return torch.tensor(np.float32(pywt.Wavelet(name).filter_bank)).double()


def analysis_pair(n, name):
    """Released analysis of one axis of n samples as matrices, its low and its high half.

    Correlation with stride 2 and K - 1 zeros on both sides, applied to the unit vectors.
    """
    bank, unit = taps(name), torch.eye(n, dtype=torch.float64)[:, None]
    found = F.conv1d(unit, bank[:2, None], stride=2, padding=bank.shape[1] - 1)
    return {"a": found[:, 0].T.numpy(), "d": found[:, 1].T.numpy()}


def round_trip_pair(n, name):
    """Released analysis, then released synthesis, of one axis: low and high, cropped to n."""
    bank, found = taps(name), {}
    for half, (letter, down) in enumerate(analysis_pair(n, name).items()):
        lines = torch.from_numpy(down.T.copy())[:, None]
        up = bank[None, None, 2 + half]
        back = F.conv_transpose1d(lines, up, stride=2, padding=bank.shape[1] - 1)
        found[letter] = back[:, 0, :n].T.numpy()
    return found


def dense_loss(student, teacher, levels=3):
    """The released loss of both branches, each transformed by itself; squares in full precision."""
    total = 0.0
    for _ in range(levels):
        one, student = released_level(student, "db4", PUBLISHED)
        two, teacher = released_level(teacher, "db4", PUBLISHED)
        total = total + (one.double() - two.double()).square().mean()
    return total.item() / levels


def relative_error_on_noise(one_axis):
    """RMS of (S x S x S - I) applied to white noise, for S the same on three axes.

    ||S x S x S - I||_F^2 / n^3 = (||S||_F^6 - 2 tr(S)^3 + n^3) / n^3.
    """
    n = len(one_axis)
    norm, trace = (one_axis**2).sum(), np.trace(one_axis)
    return math.sqrt(max(norm**3 - 2 * trace**3 + n**3, 0) / n**3)


def level_losses(x, levels, **options):
    """The losses of the single levels, from the averages over the first 1, 2, ... levels."""
    sums = [0.0]
    for level in range(1, levels + 1):
        loss = detail_distance(x, torch.zeros_like(x), levels=level, **options)
        sums.append(loss.item() * level)
    return np.diff(sums)


A1 = {("haar", 64): 1.382, ("db2", 16): 1.351, ("db4", 16): 1.191, ("db4", 64): 1.350}


@pytest.mark.parametrize(("name", "n"), A1)
def test_a1_all_bands_reconstruct_noise_with_more_error_than_signal(name, n):
    pair = round_trip_pair(n, name)
    error = relative_error_on_noise(pair["a"] + pair["d"])
    assert error == pytest.approx(A1[name, n], abs=6e-4)
    # Predicting zeros would have an error of 1. One draw of noise agrees with the expectation.
    x = noise(1, 1, n, n, n)
    back = released_level(x, name, BANDS)[0]
    assert ((back - x).norm() / x.norm()).item() == pytest.approx(error, abs=0.02)
    # It is this reconstruction that the loss compares: with all bands, its mean square.
    loss = detail_distance(
        x, torch.zeros_like(x), wavelet=name, levels=1, bands=BANDS, convention="released"
    )
    assert loss.item() == pytest.approx(back.square().mean().item(), rel=1e-9)


def shares(n, name="db4", levels=3):
    """Expected released loss over expected masked energy of white noise, level by level.

    Both are quadratic forms of separable operators, so their expectations are sums of products of
    three one-axis Frobenius products.
    """
    reach, found = np.eye(n), []
    for _ in range(levels):
        down = {k: v @ reach for k, v in analysis_pair(len(reach), name).items()}
        seen = {k: v @ reach for k, v in round_trip_pair(len(reach), name).items()}
        released = sum(
            np.prod([(seen[p] * seen[q]).sum() for p, q in zip(one, two, strict=True)])
            for one, two in itertools.product(PUBLISHED, repeat=2)
        )
        energy = sum(np.prod([(down[p] ** 2).sum() for p in band]) for band in PUBLISHED)
        found.append(released / energy)
        reach = down["a"]
    return found


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (64, (0.822, 0.789, 0.729)),
        (32, (0.667, 0.609, 0.500)),
        (16, (0.417, 0.330, 0.171)),
        (8, (0.121, 0.048, 0.043)),
        (4, (0.000, 0.004, 0.004)),
    ],
)
def test_a2_share_of_the_masked_energy_that_the_released_loss_sees(n, expected):
    assert shares(n) == pytest.approx(expected, abs=6e-4)


def test_a2_shares_describe_the_loss_itself():
    n, x = 32, noise(8, 4, 32, 32, 32)
    measured = level_losses(x, 3, **RELEASED)
    size, reach = n, np.eye(n)
    for level, share in enumerate(shares(n)):
        down = {k: v @ reach for k, v in analysis_pair(size, "db4").items()}
        energy = sum(np.prod([(down[p] ** 2).sum() for p in band]) for band in PUBLISHED)
        # The loss of a level is a mean over its own grid.
        assert measured[level] * size**3 / energy == pytest.approx(share, rel=0.03)
        size, reach = len(down["a"]), down["a"]


def test_a3_a_constant_difference_costs_more_at_every_level():
    x = torch.ones(1, 1, 32, 32, 32, dtype=torch.float64)
    assert level_losses(x, 3, **RELEASED) == pytest.approx([0.005, 0.121, 0.289], abs=0.0006)
    assert level_losses(x, 3, wavelet="db4") == pytest.approx([0, 0, 0], abs=1e-20)


@pytest.mark.parametrize("listed", [False, True], ids=["as released", "as here"])
def test_a4_a_projection_learns_only_where_the_optimizer_lists_it(listed):
    student, method = nn.Conv3d(1, 2, 3, padding=1), DCD([2], [4], wavelet="haar")
    before = method.adapters[0].weight.detach().clone()
    parameters = [*student.parameters(), *(method.parameters() if listed else [])]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    features = student(noise(1, 1, 8, 8, 8).float())
    teacher = Output(torch.empty(0), (noise(1, 4, 8, 8, 8, seed=1).float(),))
    method(Output(torch.empty(0), (features,)), teacher).backward()
    assert method.adapters[0].weight.grad.abs().max() > 0  # it would have learned
    optimizer.step()
    assert torch.equal(method.adapters[0].weight, before) != listed


def test_a5_the_released_sum_grows_with_the_stages():
    student, teacher = (
        Output(torch.empty(0), (noise(1, 2, 8, 8, 8, seed=seed),) * 3) for seed in (0, 1)
    )
    one, three = (DCD.released([2] * n, [2] * n)(student, teacher) for n in (1, 3))
    assert three.item() == pytest.approx(3 * one.item(), rel=1e-12)


@pytest.mark.parametrize("convention", ["orthonormal", "released"])
def test_a6_the_loss_is_blind_to_the_finest_diagonal(convention):
    # A checkerboard is pure ddd for Haar; two voxels off the border no padding reaches it.
    index = torch.arange(16)
    signs = 1.0 - 2.0 * ((index[:, None, None] + index[:, None] + index) % 2).double()
    x = signs[None, None]
    options = {"wavelet": "haar", "levels": 1, "convention": convention}
    published = detail_distance(x, torch.zeros_like(x), **options).item()
    diagonal = detail_distance(x, torch.zeros_like(x), bands=("ddd",), **options).item()
    assert diagonal > 0.5
    assert published < 0.2 * diagonal
    if convention == "orthonormal":
        assert published < 1e-24


def test_a6_features_are_those_after_the_last_activation():
    # Its slope of .01 shows: what is below zero is a hundredth of what is above.
    features = resenc(1, 2, channels=(2, 3), blocks=(1, 2)).encode(noise(1, 1, 8, 8, 8).float())
    assert [f.shape[1] for f in features] == [2, 3]
    assert all(-0.05 * f.max() < f.min() < 0 for f in features)


@pytest.mark.parametrize(
    ("half", "apart", "low", "high"),
    [
        (torch.bfloat16, 0.1, 0.05, 0.5),
        (torch.bfloat16, 0.01, 1.0, 10.0),
        (torch.float16, 1.0, -0.01, 0.01),
        (torch.float16, 0.01, 0.02, 0.5),
    ],
    ids=str,
)
def test_a7_half_precision_overstates_small_differences(half, apart, low, high):
    """Student and teacher `apart` in units of their spread, a common mean of ten such units.

    The features are the same half precision numbers for all; only the transform differs. Each
    branch is rounded by itself, so what counts is their rounding, not their difference.
    """
    teacher = 10 + noise(1, 2, 16, 16, 16)
    student = teacher + apart * noise(1, 2, 16, 16, 16, seed=1)
    student, teacher = student.to(half), teacher.to(half)
    exact = dense_loss(student.double(), teacher.double())
    with torch.autocast("cpu", dtype=half):
        dense = dense_loss(student.float(), teacher.float())
        ours = detail_distance(student, teacher, levels=3, **RELEASED).item()
    assert low <= dense / exact - 1 < high
    assert ours == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize(
    ("peak", "start", "ramp"), [(0.01, 150, 800), (0.05, 100, 300)], ids=["brats2024", "isles2022"]
)
def test_a8_weight_schedule_and_its_marks(peak, start, ramp):
    weights = [kd_weight(epoch, peak=peak, start=start, ramp=ramp) for epoch in range(1001)]
    assert set(weights[: start + 1]) == {0.0}
    assert 0 < weights[start + 1] < 1e-4 * peak
    assert weights[start + ramp // 2] == pytest.approx(peak / 2)
    assert weights[start + ramp // 4] == pytest.approx(peak * (1 - math.sqrt(0.5)) / 2)
    assert kd_weight(start, peak=peak, start=start, ramp=0) == peak
    assert set(weights[start + ramp :]) == {peak}
    # Early stopping with a patience of 60 epochs counts from epoch 0: it may end a run before
    # distillation begins, and 60 epochs into the rise the weight is still a small part of its peak.
    assert weights[60] == 0
    assert weights[start + 60] / peak == pytest.approx({800: 0.0138, 300: 0.0955}[ramp], abs=1e-4)


def test_a9_the_student_that_the_default_plan_builds_is_not_a_resenc():
    channels = shrink((32, 64, 128, 256, 320, 320), 4)
    assert channels == (8, 16, 32, 64, 80, 80)
    ours = sum(p.numel() for p in resenc(4, 5, channels=channels).parameters())
    # What dynamic-network-architectures 0.4.4 builds from the ResEnc plan. MONAI's blocks differ a
    # little: no bias in a block, a shortcut of its own in strided ones, one head.
    assert ours == pytest.approx(6_406_377, rel=0.002)
    # And from the default plan, two plain units per stage.
    assert ours > 3 * 1_953_769
