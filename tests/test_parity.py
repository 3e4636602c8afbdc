"""Parity: what the authors' release (commit 7cf0ca6) computes, audited with executable figures.

Each test is one row of the audit and speaks of that commit, not of the paper. Numbers are exact
wherever a closed form exists: both transforms are separable, so expectations over white noise are
products of Frobenius products of small matrices.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import pywt
import torch
from torch import nn

from dcd_core import dcd
from dcd_core.dcd import DCD, PUBLISHED, detail_distance, kd_weight
from dcd_core.types import Output
from dcd_core.wavelet import BANDS, apply_separable, taps


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def analysis_pair(n, name):
    """Released analysis of one axis of n samples: its low and its high matrix."""
    return {"a": dcd._correlation(n, name, 0), "d": dcd._correlation(n, name, 1)}


def round_trip_pair(n, name):
    """Released analysis, then released synthesis, of one axis: low and high."""
    return {"a": dcd._round_trip_low(n, name), "d": dcd._round_trip_high(n, name)}


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


# --- A1: the synthesis does not invert the analysis -----------------------------------------------


@pytest.mark.parametrize("n", [16, 32, 64])
@pytest.mark.parametrize("name", ["haar", "db2", "db4"])
def test_a1_all_bands_reconstruct_noise_with_more_error_than_signal(name, n):
    pair = round_trip_pair(n, name)
    error = relative_error_on_noise(pair["a"] + pair["d"])
    assert 1.15 < error < 1.42
    # Predicting zeros would have an error of 1. One draw of noise agrees with the expectation.
    x = noise(1, 1, n, n, n)
    whole = torch.from_numpy(pair["a"] + pair["d"])
    back = apply_separable(x, [whole] * 3)
    assert ((back - x).norm() / x.norm()).item() == pytest.approx(error, abs=0.02)


@pytest.mark.parametrize("n", [16, 32, 64])
@pytest.mark.parametrize("name", ["haar", "db2", "db4"])
def test_a1_with_the_adjoint_of_the_analysis_they_reconstruct_exactly(name, n):
    pair = analysis_pair(n, name)
    adjoint = pair["a"].T @ pair["a"] + pair["d"].T @ pair["d"]
    assert np.abs(adjoint - np.eye(n)).max() < 1e-6  # the float32 taps leave 1e-7
    assert relative_error_on_noise(adjoint) < 1e-6


def test_a1_the_synthesis_taps_are_the_analysis_taps_reversed():
    # Correlation has already reversed the analysis, so its adjoint takes dec, not rec.
    for name in ("haar", "db2", "db4"):
        low, high, rec_low, rec_high = pywt.Wavelet(name).filter_bank
        assert (rec_low, rec_high) == (low[::-1], high[::-1])


# --- A2: the loss fades with depth ----------------------------------------------------------------


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
        (64, (0.82, 0.79, 0.73)),
        (32, (0.67, 0.61, 0.50)),
        (16, (0.42, 0.33, 0.17)),
        (8, (0.12, 0.05, 0.04)),
        (4, (0.00, 0.00, 0.00)),
    ],
)
def test_a2_share_of_the_masked_energy_that_the_released_loss_sees(n, expected):
    assert shares(n) == pytest.approx(expected, abs=0.006)


def test_a2_shares_describe_the_loss_itself():
    n, x = 32, noise(4, 4, 32, 32, 32)
    measured = level_losses(x, 1, wavelet="db4", convention="released")[0] * n**3
    down = analysis_pair(n, "db4")
    energy = sum(np.prod([(down[p] ** 2).sum() for p in band]) for band in PUBLISHED)
    assert measured / energy == pytest.approx(shares(n)[0], rel=0.02)


# --- A3: a constant difference leaks into "detail" ------------------------------------------------


def test_a3_a_constant_difference_costs_more_at_every_level():
    x = torch.ones(1, 1, 32, 32, 32, dtype=torch.float64)
    released = level_losses(x, 3, wavelet="db4", convention="released")
    assert released == pytest.approx([0.005, 0.121, 0.289], abs=0.0006)
    assert level_losses(x, 3, wavelet="db4") == pytest.approx([0, 0, 0], abs=1e-20)


# --- A4: the projection is made after the optimizer -----------------------------------------------


@pytest.mark.parametrize("listed", [False, True], ids=["as released", "as here"])
def test_a4_a_projection_learns_only_where_the_optimizer_lists_it(listed):
    student, method = nn.Conv3d(1, 2, 3, padding=1), DCD([2], [4], wavelet="haar")
    before = method.projections[0].weight.detach().clone()
    parameters = [*student.parameters(), *(method.parameters() if listed else [])]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    features = student(noise(1, 1, 8, 8, 8).float())
    teacher = Output(torch.empty(0), (noise(1, 4, 8, 8, 8, seed=1).float(),))
    method(Output(torch.empty(0), (features,)), teacher).backward()
    assert method.projections[0].weight.grad.abs().max() > 0  # it would have learned
    optimizer.step()
    assert torch.equal(method.projections[0].weight, before) != listed


def test_a4_released_keeps_its_projections_fixed_and_with_bias():
    method = DCD.released([8, 16], [32, 64])
    assert [p.requires_grad for p in method.parameters()] == [False] * 4


# --- A5: stages are summed, levels averaged -------------------------------------------------------


@pytest.mark.parametrize("stages", [2, 6])
def test_a5_the_released_sum_is_the_number_of_stages_times_the_mean(stages):
    channels = [2] * stages
    method = DCD.released(channels, channels)
    student, teacher = (
        Output(torch.empty(0), tuple(noise(1, 2, 8, 8, 8, seed=s + i) for i in range(stages)))
        for s in (0, 100)
    )
    total = method(student, teacher)
    method.stage_reduction = "mean"
    assert total.item() == pytest.approx(stages * method(student, teacher).item(), rel=1e-12)


def test_a5_levels_are_averaged():
    x = noise(1, 2, 16, 16, 16)
    levels = level_losses(x, 3, wavelet="db4", convention="released")
    loss = detail_distance(x, torch.zeros_like(x), levels=3, convention="released")
    assert loss.item() == pytest.approx(levels.mean(), rel=1e-12)


# --- A6: the published bands ----------------------------------------------------------------------


def test_a6_published_bands_leave_out_the_coarse_and_the_finest_diagonal():
    assert [BANDS.index(band) for band in PUBLISHED] == [1, 2, 3, 4, 5, 6]
    assert set(BANDS) - set(PUBLISHED) == {"aaa", "ddd"}


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


# --- A7: dense filters ----------------------------------------------------------------------------


def test_a7_a_dense_db4_filter_has_512_taps_where_24_do():
    assert taps("db4") ** 3 == 512
    assert 3 * taps("db4") == 24


# --- A8: the schedule -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peak", "start", "ramp"), [(0.01, 150, 800), (0.05, 100, 300)], ids=["brats2024", "isles2022"]
)
def test_a8_weight_schedule_and_its_marks(peak, start, ramp):
    weights = [kd_weight(epoch, peak=peak, start=start, ramp=ramp) for epoch in range(1001)]
    assert set(weights[: start + 1]) == {0.0}
    assert 0 < weights[start + 1] < 1e-4 * peak
    assert weights[start + ramp // 2] == pytest.approx(peak / 2)
    assert set(weights[start + ramp :]) == {peak}
    # Early stopping with a patience of 60 epochs may end training before distillation begins, or
    # at less than a twentieth of its weight 60 epochs into the ramp (BraTS) or a tenth (ISLES).
    assert weights[60] == 0
    assert weights[start + 60] < {800: 0.05, 300: 0.1}[ramp] * peak
