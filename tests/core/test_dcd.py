"""DCD: golden values of the released loss, an independent slow reference, and exact identities."""

from __future__ import annotations

import copy
import io
import itertools
import math
import os
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import pywt
import torch
import torch.nn.functional as F
from golden import RELEASED, assert_stored
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import dcd_core
from dcd_core import dcd
from dcd_core.dcd import DCD, PUBLISHED, detail_distance, kd_weight
from dcd_core.models import Segmenter
from dcd_core.train import Distiller
from dcd_core.types import ContractError, Output
from dcd_core.wavelet import (
    BANDS,
    Pyramid,
    Selection,
    diagonal,
    dwt3,
    energy,
    idwt3,
    usable_levels,
    wavedec3,
    waverec3,
)

DISCRETE = pywt.wavelist(kind="discrete")
ORTHOGONAL = ["haar", "db2", "db4", "sym4", "coif1"]
EVERY_ORTHOGONAL = [n for n in DISCRETE if pywt.Wavelet(n).orthogonal and n != "dmey"]
CONVENTIONS = ["orthonormal", "released"]
each_convention = pytest.mark.parametrize("convention", CONVENTIONS)
some_bands = st.sets(st.sampled_from(BANDS), min_size=1).map(lambda chosen: tuple(sorted(chosen)))
SUBSETS = [
    BANDS,
    PUBLISHED,
    BANDS[1:],
    ("aaa",),
    ("ddd",),
    ("aad", "ada", "daa"),
    ("aaa", "add", "dda", "dad", "ddd"),
]


def noise(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def zeros(x):
    return torch.zeros_like(x)


def taps(name):
    return pywt.Wavelet(name).dec_len


def gradients(loss, *tensors):
    """The loss of leaves like `tensors`, a number, and its gradient in each of them."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    value = loss(*leaves)
    value.backward()
    return value.item(), [leaf.grad for leaf in leaves]


def mask(bands):
    """1 for the selected bands and 0 for the others, (8, 1, 1, 1)."""
    keep = torch.tensor([float(band in bands) for band in BANDS], dtype=torch.float64)
    return keep[:, None, None, None]


def outputs(channels, sizes, *, batch=1, seed=0, dtype=torch.float32):
    """An `Output` with one stage of noise per entry of channels and sizes."""
    stages = tuple(
        noise(batch, c, *([n] * 3 if isinstance(n, int) else n), dtype=dtype, seed=seed + i)
        for i, (c, n) in enumerate(zip(channels, sizes, strict=True))
    )
    return Output(torch.zeros(batch, 2, 1, 1, 1), stages)


# --- the released convention ----------------------------------------------------------------------


def released_reference(x, wavelet, levels, bands):
    """The released loss of a difference x, written from its description, one dense filter per band.

    conv3d with the outer products of the analysis taps, stride 2, K - 1 zeros on both sides; masked
    bands back through conv_transpose3d with the synthesis taps, cropped to the first n samples;
    mean of squares per level; the next level starts from the coarse band.
    """
    bank = torch.tensor(np.float32(pywt.Wavelet(wavelet).filter_bank)).to(x.dtype)
    k = bank.shape[1]

    def kernels(low, high):
        chosen = [[high if letter == "d" else low for letter in band] for band in BANDS]
        return torch.stack([torch.einsum("i,j,k->ijk", *axes) for axes in chosen])[:, None]

    down, up = kernels(bank[0], bank[1]), kernels(bank[2], bank[3])
    x = x.reshape(-1, 1, *x.shape[2:])
    total = 0.0
    for _ in range(levels):
        size = x.shape[2:]
        coefficients = F.conv3d(x, down, stride=2, padding=k - 1)
        masked = coefficients * mask(bands).to(x.dtype)
        back = F.conv_transpose3d(masked, up, stride=2, padding=k - 1)
        total = total + back[:, :, : size[0], : size[1], : size[2]].square().mean()
        x = coefficients[:, :1]
    return total / levels


def released_by_axes(x, wavelet, levels, bands):
    """The same with one short filter per axis: slower to read, and fit for filters of 100 taps."""
    names = (wavelet,) * 3 if isinstance(wavelet, str) else wavelet
    banks = [torch.tensor(np.float32(pywt.Wavelet(n).filter_bank)).to(x.dtype) for n in names]

    def along(x, axis, filters, convolve):
        lines = x.movedim(2 + axis, -1)
        flat = lines.reshape(-1, 1, lines.shape[-1])
        found = convolve(flat, filters[None, None], stride=2, padding=len(filters) - 1)
        return found.reshape(*lines.shape[:-1], -1).movedim(-1, 2 + axis)

    total = 0.0
    for level in range(levels):
        size, back, coarse = x.shape[2:], 0.0, None
        for band in BANDS:
            if band not in bands and (band != "aaa" or level == levels - 1):
                continue
            part = x
            for axis, letter in enumerate(band):
                part = along(part, axis, banks[axis]["ad".index(letter)], F.conv1d)
            coarse = part if band == "aaa" else coarse
            if band in bands:
                for axis, letter in enumerate(band):
                    part = along(part, axis, banks[axis]["..ad".index(letter)], F.conv_transpose1d)
                back = back + part[:, :, : size[0], : size[1], : size[2]]
        total, x = total + back.square().mean(), coarse
    return total / levels


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)], ids=["f64", "f32"]
)
@pytest.mark.parametrize("path", RELEASED, ids=lambda path: path.stem)
def test_released_loss_and_gradient_are_the_golden_ones(path, dtype, tolerance):
    distance = partial(detail_distance, convention="released")
    assert_stored(path, distance, dtype=dtype, tolerance=tolerance)


def test_there_are_nine_golden_cases():
    assert len(RELEASED) == 9


@pytest.mark.parametrize("size", [(8, 8, 8), (7, 10, 9), (4, 5, 6)])
@pytest.mark.parametrize("wavelet", ["haar", "db3", "coif1", "bior1.3", "rbio2.2"])
def test_released_convention_equals_an_independent_reference(wavelet, size):
    x = noise(2, 2, *size)
    for levels, bands in itertools.product((1, 3), SUBSETS):
        expected = released_reference(x, wavelet, levels, bands)
        assert released_by_axes(x, wavelet, levels, bands).item() == pytest.approx(expected.item())
        found = detail_distance(
            x, zeros(x), wavelet=wavelet, levels=levels, bands=bands, convention="released"
        )
        assert found.item() == pytest.approx(expected.item(), rel=1e-10)


def assert_released(size, wavelet, levels, bands, seed):
    x, y = noise(1, 2, *size, seed=seed), noise(1, 2, *size, seed=seed + 1)
    options = {"wavelet": wavelet, "levels": levels, "bands": bands}
    value, found = gradients(
        lambda x, y: detail_distance(x, y, convention="released", **options), x, y
    )
    expected, wanted = gradients(lambda x, y: released_by_axes(x - y, **options), x, y)
    # Tiny grids lose nearly all energy: what is left is the rounding of sums of order one.
    assert value == pytest.approx(expected, rel=1e-9, abs=1e-16)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-9 * other.abs().max() + 1e-16)
    return value


@pytest.mark.parametrize("name", DISCRETE)
def test_released_loss_and_gradient_of_every_discrete_wavelet(name):
    # On a grid shorter than the filter the released loss is next to nothing, so one axis is long.
    turn = DISCRETE.index(name)
    size, names = [5, 4, 3], ["haar", "db2", "haar"]
    size[turn % 3], names[turn % 3] = 2 * taps(name) + turn % 2, name
    value = assert_released(tuple(size), tuple(names), 1, PUBLISHED, turn)
    assert value > 1e-3


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    size=st.tuples(*[st.integers(2, 15)] * 3),
    wavelet=st.one_of(
        st.sampled_from([n for n in DISCRETE if taps(n) <= 20]),
        st.tuples(*[st.sampled_from(["haar", "db2", "db4", "bior2.2", "rbio3.1"])] * 3),
    ),
    levels=st.integers(1, 4),
    bands=some_bands,
    seed=st.integers(0, 99),
)
def test_released_loss_and_gradient_of_any_case(size, wavelet, levels, bands, seed):
    assert_released(size, wavelet, levels, bands, seed)


# --- identities of the orthonormal convention -----------------------------------------------------


def definition(x, wavelet, levels, bands, coarse_weight=0.0):
    """The loss of a difference and the levels it took, by PyWavelets alone.

    An axis shorter than its filter is left as it is: bands that are high along it do not exist.
    """
    names = (wavelet,) * 3 if isinstance(wavelet, str) else wavelet
    x, total, used = x.numpy(), 0.0, 0
    while used < levels:
        axes = [axis for axis in range(3) if x.shape[2 + axis] >= taps(names[axis])]
        if not axes:
            break
        parts = pywt.dwtn(
            x, [names[axis] for axis in axes], "periodization", [2 + axis for axis in axes]
        )
        for band in bands:
            if all(band[axis] == "a" for axis in range(3) if axis not in axes):
                total += (parts["".join(band[axis] for axis in axes)] ** 2).sum() / x.size
        size, x, used = x.size, parts["a" * len(axes)], used + 1
    if used:
        total += coarse_weight * (x**2).sum() / size
    return total / max(used, 1), used


any_wavelet = st.one_of(
    st.sampled_from(DISCRETE), st.tuples(*[st.sampled_from([*ORTHOGONAL, "bior2.2"])] * 3)
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    size=st.tuples(*[st.integers(1, 24)] * 3),
    wavelet=any_wavelet,
    levels=st.integers(1, 4),
    bands=some_bands,
    coarse_weight=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 99),
)
def test_orthonormal_loss_levels_and_gradient_are_those_of_the_definition(
    size, wavelet, levels, bands, coarse_weight, seed
):
    x, y, v = (noise(2, 1, *size, seed=seed + shift) for shift in (0, 1, 2))
    options = {"wavelet": wavelet, "levels": levels, "bands": bands, "coarse_weight": coarse_weight}
    expected, used = definition(x - y, **options)
    [stage] = DCD([1], [1], projection="none", **options).per_stage(
        Output(x, (x,)), Output(y, (y,))
    )
    assert stage.levels == used
    if not used:
        with pytest.raises(ContractError, match="wavelet levels"):
            detail_distance(x, y, **options)
        return
    value, (one, other) = gradients(lambda x, y: detail_distance(x, y, **options), x, y)
    # Complements lose a few digits where the selected bands hold next to no energy.
    assert value == pytest.approx(expected, rel=1e-9, abs=1e-13)
    assert stage.distance.item() == value
    # A quadratic form: the central difference along any direction is its derivative, exactly.
    slope = (definition(x - y + v, **options)[0] - definition(x - y - v, **options)[0]) / 2
    assert (one * v).sum().item() == pytest.approx(slope, rel=1e-8, abs=1e-10)
    assert torch.equal(one, -other)


@pytest.mark.parametrize("name", DISCRETE)
def test_orthonormal_loss_of_every_discrete_wavelet(name):
    n = max(taps(name), 12)
    x = noise(1, 1, 3, n + n % 4, 5)  # one long axis is enough: the transform is separable
    for bands in (("ada",), BANDS[1:]):
        expected, used = definition(x, name, 3, bands)
        found = detail_distance(x, zeros(x), wavelet=name, levels=3, bands=bands)
        assert used >= 1
        assert found.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("size", [(131, 8, 4), (4, 200, 8), (9, 2, 114)])
@pytest.mark.parametrize("name", ["db4", "bior2.2", "haar"])
def test_long_axes(size, name):
    x = noise(1, 3, *size)
    for bands in (PUBLISHED, BANDS[1:], ("add",)):
        expected, _ = definition(x, name, 2, bands)
        value, (gradient,) = gradients(
            lambda x, bands=bands: detail_distance(
                x, zeros(x), wavelet=name, levels=2, bands=bands
            ),
            x,
        )
        assert value == pytest.approx(expected, rel=1e-9)
        assert (gradient * x).sum().item() == pytest.approx(2 * value, rel=1e-8)
    assert_released(size, name, 2, PUBLISHED, 0)


def direct(x, *, wavelet, levels, bands, coarse_weight=0.0):
    """The definition, term by term, from the bands of `dwt3`."""
    total = 0.0
    for _ in range(levels):
        parts, size = dwt3(x, wavelet), x.numel()
        total += sum(parts[:, :, BANDS.index(band)].square().sum() for band in bands) / size
        x = parts[:, :, 0]
    return (total + coarse_weight * x.square().sum() / size) / levels


@pytest.mark.parametrize("bands", SUBSETS, ids=len)
@pytest.mark.parametrize("wavelet", [*ORTHOGONAL, "bior2.2", ("haar", "db2", "sym4")])
def test_every_band_subset_equals_the_direct_sum_of_coefficients(wavelet, bands):
    x, y = noise(1, 2, 32, 16, 32), noise(1, 2, 32, 16, 32, seed=1)
    longest = taps("db4")
    for levels, coarse_weight in [(1, 0.0), (2, 0.3)]:
        options = {"wavelet": wavelet, "levels": levels, "bands": bands}
        found = detail_distance(x, y, coarse_weight=coarse_weight, **options)
        expected = direct(x - y, coarse_weight=coarse_weight, **options)
        assert found.item() == pytest.approx(expected.item(), rel=1e-10)
    assert longest <= 8  # every axis of both levels is long enough


@pytest.mark.parametrize("bands", SUBSETS, ids=len)
def test_gradient_of_every_band_subset_equals_that_of_the_direct_sum(bands):
    x = noise(1, 1, 16, 16, 16).requires_grad_()
    options = {"wavelet": "db2", "levels": 2, "bands": bands, "coarse_weight": 0.1}
    (found,) = torch.autograd.grad(detail_distance(x, zeros(x), **options), x)
    (expected,) = torch.autograd.grad(direct(x, **options), x)
    assert torch.allclose(found, expected, rtol=0, atol=1e-14)


def orthonormal_grid(size, name):
    """That size, but long axes even: where periodization keeps energy, some axis transformed."""
    grid = tuple(n + 1 if n >= taps(name) and n % 2 else n for n in size)
    assume(any(n >= taps(name) for n in grid))
    return grid


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    size=st.tuples(*[st.integers(1, 32)] * 3),
    name=st.sampled_from(EVERY_ORTHOGONAL),
    seed=st.integers(0, 99),
)
def test_all_bands_of_one_level_are_the_mean_squared_error(size, name, seed):
    grid = orthonormal_grid(size, name)
    x, y = noise(2, 1, *grid, seed=seed), noise(2, 1, *grid, seed=seed + 1)
    found = detail_distance(x, y, wavelet=name, levels=1, bands=BANDS)
    # Some tables of taps are orthonormal to ten digits.
    assert found.item() == pytest.approx(F.mse_loss(x, y).item(), rel=1e-8)


def test_all_bands_but_coarse_plus_coarse_is_the_mean_squared_error():
    x = noise(1, 2, 8, 8, 8)
    found = detail_distance(x, zeros(x), levels=1, bands=BANDS[1:], coarse_weight=1.0)
    assert found.item() == pytest.approx(x.square().mean().item(), rel=1e-12)


@pytest.mark.parametrize(
    ("dtype", "below"), [(torch.float64, 1e-20), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
@pytest.mark.parametrize("wavelet", [*ORTHOGONAL, "bior2.2"])
def test_loss_is_blind_to_a_constant_offset(wavelet, dtype, below):
    x = torch.full((1, 2, 16, 16, 16), 30.0, dtype=dtype)
    assert 0 <= detail_distance(x, zeros(x), wavelet=wavelet, levels=2).item() < below
    assert detail_distance(x, zeros(x), wavelet=wavelet, coarse_weight=1.0).item() > 100


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    size=st.tuples(*[st.integers(1, 20)] * 3),
    name=st.sampled_from([n for n in DISCRETE if taps(n) <= 20]),
    levels=st.integers(1, 4),
    bands=st.sets(st.sampled_from(BANDS[1:]), min_size=1).map(lambda chosen: tuple(sorted(chosen))),
    offset=st.floats(-10, 10),
)
def test_an_offset_changes_nothing(size, name, levels, bands, offset):
    assume(any(n >= taps(name) for n in size))
    x, y = noise(1, 1, *size), noise(1, 1, *size, seed=1)
    options = {"wavelet": name, "levels": levels, "bands": bands}
    (here, one), (there, other) = (
        gradients(lambda x: detail_distance(x, y, **options), z) for z in (x, x + offset)
    )
    assert there == pytest.approx(here, rel=1e-7, abs=1e-9)
    assert torch.allclose(other[0], one[0], rtol=0, atol=1e-7)


def test_an_offset_does_not_drown_detail_in_float32():
    # ||x||^2 - ||aaa||^2 - ||ddd||^2 would be off by hundreds of times the result, and negative.
    x = 100 + 0.1 * noise(1, 4, 32, 32, 32)
    single, double = (
        detail_distance(x.to(dtype), zeros(x).to(dtype)).item()
        for dtype in (torch.float32, torch.float64)
    )
    assert single == pytest.approx(double, rel=1e-4)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    half=st.tuples(*[st.integers(4, 10)] * 3),
    name=st.sampled_from([n for n in EVERY_ORTHOGONAL if taps(n) <= 8]),
    bands=some_bands,
    seed=st.integers(0, 99),
)
def test_coefficient_form_equals_masked_reconstruction_form(half, name, bands, seed):
    x = noise(1, 2, *(2 * n for n in half), seed=seed)
    parts = pywt.dwtn(x.numpy(), name, "periodization", axes=(2, 3, 4))
    kept = {band: part if band in bands else 0 * part for band, part in parts.items()}
    masked = pywt.idwtn(kept, name, "periodization", axes=(2, 3, 4))
    found = detail_distance(x, zeros(x), wavelet=name, levels=1, bands=bands)
    # pywt's taps of sym4 are orthonormal to ten digits.
    assert found.item() == pytest.approx((masked**2).mean(), rel=1e-9)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    bands=st.sets(st.sampled_from(BANDS), min_size=1),
    wavelet=st.sampled_from(["haar", "db2", "bior1.3"]),
    half=st.tuples(*[st.integers(3, 6)] * 3),
    seed=st.integers(0, 99),
)
def test_zero_exactly_where_the_selected_bands_agree(bands, wavelet, half, seed):
    x = noise(1, 1, *(2 * n for n in half), seed=seed)
    # y agrees with x in the selected bands and in no other.
    keep = mask(bands)
    other = noise(*dwt3(x, wavelet).shape, seed=seed + 100)
    y = idwt3(dwt3(x, wavelet) * keep + other * (1 - keep), wavelet)
    options = {"wavelet": wavelet, "levels": 1}
    assert detail_distance(x, y, bands=tuple(bands), **options).item() < 1e-24
    for band in set(BANDS) - bands:
        assert detail_distance(x, y, bands=(band,), **options).item() > 1e-4


@pytest.mark.parametrize("wavelet", ["haar", "db2", "bior2.2"])
@pytest.mark.parametrize("bands", [PUBLISHED, ("aad", "ddd"), ("dda",)], ids=len)
def test_zero_over_levels_where_all_of_them_agree_and_only_there(wavelet, bands):
    x = noise(1, 1, 24, 16, 32)
    pyramid = wavedec3(x, wavelet, levels=2)
    keep = mask(bands)[1:]
    free = [noise(*detail.shape, seed=9) * (1 - keep) for detail in pyramid.details]
    same = [d * keep + f for d, f in zip(pyramid.details, free, strict=True)]
    options = {"wavelet": wavelet, "levels": 2, "bands": bands}
    y = waverec3(Pyramid(pyramid.coarse + 1, tuple(same)), wavelet)
    assert detail_distance(x, y, **options).item() < 1e-24
    assert detail_distance(x, y, coarse_weight=1.0, **options).item() > 0.01
    for level in range(2):
        other = [d + (level == i) * keep for i, d in enumerate(same)]
        y = waverec3(Pyramid(pyramid.coarse, tuple(other)), wavelet)
        assert detail_distance(x, y, **options).item() > 0.01


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    size=st.tuples(*[st.integers(4, 11)] * 3),
    wavelet=st.sampled_from(["haar", "db2", "bior2.2"]),
    bands=st.sets(st.sampled_from(BANDS), min_size=1),
    convention=st.sampled_from(CONVENTIONS),
    scale=st.floats(0.1, 10),
)
def test_a_squared_norm_is_symmetric_nonnegative_and_quadratic(
    size, wavelet, bands, convention, scale
):
    x, y = noise(1, 1, *size), noise(1, 1, *size, seed=1)
    options = {"wavelet": wavelet, "bands": tuple(bands), "levels": 2, "convention": convention}
    distance = detail_distance(x, y, **options).item()
    assert distance >= 0
    assert detail_distance(y, x, **options).item() == pytest.approx(distance, rel=1e-12)
    scaled = detail_distance(scale * x, scale * y, **options).item()
    assert scaled == pytest.approx(scale**2 * distance, rel=1e-9)
    assert detail_distance(x, x, **options).item() == 0


@pytest.mark.parametrize("wavelet", ["bior2.2", "rbio3.1"])
def test_biorthogonal_loss_takes_the_coefficients_themselves(wavelet):
    x = noise(1, 1, 16, 16, 16)
    found = detail_distance(x, zeros(x), wavelet=wavelet, levels=1, bands=BANDS).item()
    assert found == pytest.approx(dwt3(x, wavelet).square().sum().item() / x.numel(), rel=1e-12)
    assert abs(found / x.square().mean().item() - 1) > 0.05  # Parseval does not hold


def test_odd_sizes_take_the_coefficients_of_the_extended_axis():
    x = noise(1, 1, 9, 11, 13)
    found = detail_distance(x, zeros(x), wavelet="db2", levels=2).item()
    expected = direct(x, wavelet="db2", levels=2, bands=PUBLISHED).item()
    assert found == pytest.approx(expected, rel=1e-12)


@each_convention
@pytest.mark.parametrize(
    ("size", "bands"), [((4, 4, 6), PUBLISHED), ((5, 4, 7), ("aad", "ddd"))], ids=["even", "odd"]
)
def test_gradcheck(convention, size, bands):
    x, y = noise(1, 1, *size).requires_grad_(), noise(1, 1, *size, seed=1).requires_grad_()

    def loss(x, y):
        options = {"wavelet": "db2", "levels": 2, "bands": bands, "convention": convention}
        return detail_distance(x, y, **options)

    assert torch.autograd.gradcheck(loss, (x, y))


# --- what autograd, precisions and layouts may ask ------------------------------------------------

# One selection that is cheap as a complement, one that is cheap as a sum.
SELECTIONS = [PUBLISHED, ("aad", "ddd")]
each_selection = pytest.mark.parametrize("bands", SELECTIONS, ids=["published", "two"])


@each_convention
@each_selection
def test_student_and_teacher_receive_opposite_gradients(convention, bands):
    x, y = noise(2, 2, 12, 9, 16), noise(2, 2, 12, 9, 16, seed=1)
    options = {"wavelet": "db2", "bands": bands, "convention": convention}
    value, (student, teacher) = gradients(lambda x, y: detail_distance(x, y, **options), x, y)
    alone = gradients(lambda x: detail_distance(x, y, **options), x)
    other = gradients(lambda y: detail_distance(x, y, **options), y)
    assert value == alone[0] == other[0]
    assert torch.equal(student, -teacher)
    assert torch.equal(student, alone[1][0])
    assert torch.equal(teacher, other[1][0])
    assert (student * (x - y)).sum().item() == pytest.approx(2 * value, rel=1e-10)  # Euler


@each_convention
@each_selection
def test_a_second_backward_gives_the_same_gradient_again(convention, bands):
    x, y = noise(1, 2, 12, 12, 12).requires_grad_(), noise(1, 2, 12, 12, 12, seed=1)
    loss = detail_distance(x, y, wavelet="db2", bands=bands, convention=convention)
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss, x, retain_graph=True)
    (scaled,) = torch.autograd.grad(3 * loss, x)
    assert torch.equal(first, kept)
    assert torch.equal(second, kept)
    assert torch.allclose(scaled, 3 * kept, rtol=1e-12)


@each_convention
def test_two_losses_of_the_same_features_do_not_disturb_each_other(convention):
    x, y = noise(1, 2, 12, 12, 12), noise(1, 2, 12, 12, 12, seed=1)
    kept = x.clone(), y.clone()

    def one(x):
        return detail_distance(x, y, wavelet="db2", convention=convention)

    def two(x):
        return detail_distance(x, y, wavelet="haar", bands=("aad", "ddd"), convention=convention)

    alone = [gradients(loss, x)[1][0] for loss in (one, two)]
    leaf = x.clone().requires_grad_()
    first, second = one(leaf), two(leaf)
    both = torch.autograd.grad(first + second, leaf, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(second, leaf)[0], alone[1])
    assert torch.equal(torch.autograd.grad(first, leaf)[0], alone[0])
    assert torch.allclose(both, alone[0] + alone[1], rtol=1e-12)
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])


@each_convention
def test_a_loss_of_nothing_to_learn_needs_no_graph_and_changes_no_number(convention):
    # Sizes that no other test uses: whatever is kept between calls is made under inference_mode.
    x, y = noise(1, 1, 26, 22, 18), noise(1, 1, 26, 22, 18, seed=1)
    options = {"wavelet": "sym3", "convention": convention}
    with torch.inference_mode():
        inference = detail_distance(x, y, **options)
    with torch.no_grad():
        quiet = detail_distance(x.requires_grad_(), y, **options)
    assert inference.is_inference()
    assert not quiet.requires_grad
    loss = detail_distance(x, y, **options)
    loss.backward()
    assert loss.item() == quiet.item() == inference.item()
    assert (x.grad * (x - y)).sum().item() == pytest.approx(2 * loss.item(), rel=1e-10)
    assert not detail_distance(x.detach(), y, **options).requires_grad


@each_convention
@each_selection
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_half_features_are_compared_in_float32_and_get_a_half_gradient(convention, bands, half):
    x, y = noise(1, 2, 12, 12, 12).to(half), noise(1, 2, 12, 12, 12, seed=1).to(half)
    leaf = x.clone().requires_grad_()
    options = {"wavelet": "db2", "bands": bands, "convention": convention}
    loss = detail_distance(leaf, y, **options)
    loss.backward()
    expected, (gradient,) = gradients(lambda x: detail_distance(x, y.float(), **options), x.float())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert leaf.grad.dtype == half
    assert torch.allclose(leaf.grad.float(), gradient.to(half).float(), rtol=0.01, atol=1e-6)


@each_convention
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_changes_neither_loss_nor_gradient(convention, half):
    x, y = noise(1, 2, 12, 12, 12).float(), noise(1, 2, 12, 12, 12, seed=1).float()
    options = {"wavelet": "db2", "convention": convention}
    expected, (gradient,) = gradients(lambda x: detail_distance(x, y, **options), x)
    leaf = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=half):
        loss = detail_distance(leaf, y, **options)
    loss.backward()
    assert (loss.dtype, leaf.grad.dtype) == (torch.float32, torch.float32)
    assert loss.item() == expected
    assert torch.equal(leaf.grad, gradient)


@each_convention
@each_selection
@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.transpose(2, 4).contiguous().transpose(2, 4),
        lambda x: x.to(memory_format=torch.channels_last_3d),
        lambda x: torch.cat([x, x], dim=1)[:, : x.shape[1]],
        lambda x: torch.stack([x, x], dim=-1)[..., 0],
    ],
    ids=["transposed", "channels_last_3d", "sliced", "strided"],
)
def test_memory_layout_changes_neither_loss_nor_gradient(convention, bands, layout):
    x, y = noise(2, 3, 10, 9, 12), noise(2, 3, 10, 9, 12, seed=1)
    options = {"wavelet": "db2", "bands": bands, "convention": convention}
    expected, (gradient,) = gradients(lambda x: detail_distance(x, y, **options), x)
    for teacher in (y, layout(y)):
        leaf = layout(x).requires_grad_()
        assert not leaf.is_contiguous()
        loss = detail_distance(leaf, teacher, **options)
        loss.backward()
        assert loss.item() == pytest.approx(expected, rel=1e-12)
        assert torch.allclose(leaf.grad, gradient, rtol=0, atol=1e-15)


@each_convention
def test_broadcast_views_are_read_but_not_written(convention):
    x, y = noise(1, 1, 12, 12, 12), noise(2, 3, 12, 12, 12, seed=1)
    options = {"wavelet": "db2", "convention": convention}
    wide = x.expand(2, 3, -1, -1, -1)
    expected, (gradient,) = gradients(lambda x: detail_distance(x, y, **options), wide.contiguous())
    leaf = x.clone().requires_grad_()
    loss = detail_distance(leaf.expand(2, 3, -1, -1, -1), y, **options)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert torch.allclose(leaf.grad, gradient.sum((0, 1), keepdim=True), rtol=0, atol=1e-14)


@each_convention
@each_selection
def test_the_loss_of_a_batch_is_the_mean_over_its_samples(convention, bands):
    x, y = noise(3, 2, 9, 12, 10), noise(3, 2, 9, 12, 10, seed=1)
    options = {"wavelet": "db2", "bands": bands, "convention": convention}
    whole, (gradient,) = gradients(lambda x: detail_distance(x, y, **options), x)
    single = [
        gradients(lambda x, i=i: detail_distance(x, y[i : i + 1], **options), x[i : i + 1])
        for i in range(3)
    ]
    assert whole == pytest.approx(np.mean([value for value, _ in single]), rel=1e-12)
    parts = torch.cat([part for _, (part,) in single]) / 3
    assert torch.allclose(gradient, parts, rtol=0, atol=1e-15)


@each_convention
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("channels", [0.5, 2, 4.5])
def test_the_loss_is_the_same_whatever_is_worked_on_at_a_time(convention, threads, channels):
    student, teacher = noise(2, 3, 12, 12, 12), noise(2, 7, 12, 12, 12, seed=1)
    method = DCD([3], [7], wavelet="db2", convention=convention).double()

    def found():
        leaf = student.clone().requires_grad_()
        method.zero_grad()
        loss = method(Output(leaf, (leaf,)), Output(teacher, (teacher,)))
        loss.backward()
        return loss.detach(), leaf.grad, method.adapters[0].weight.grad.clone()

    def worked_in(channels, threads):
        size = {"cpu": int(channels * 12**3 * 8 / threads)}
        with (
            mock.patch.object(dcd, "_BLOCK_BYTES", size),
            mock.patch.object(torch, "get_num_threads", return_value=threads),
        ):
            blocks = list(dcd._blocks(teacher, torch.float64))
            return blocks, found()

    (whole,), expected = worked_in(100, 1)
    assert teacher[whole].shape == teacher.shape
    blocks, parts = worked_in(channels, threads)
    seen = torch.zeros(2, 7)
    for block in blocks:
        seen[block] += 1
    assert len(blocks) > 2
    assert torch.equal(seen, torch.ones(2, 7))
    for one, other in zip(parts, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-15)


@each_convention
@each_selection
@pytest.mark.parametrize(("offset", "tolerance"), [(0.0, 1e-4), (100.0, 1e-3)])
def test_float32_agrees_with_float64_over_many_levels(convention, bands, offset, tolerance):
    x, y = offset + noise(1, 1, 64, 48, 32), noise(1, 1, 64, 48, 32, seed=1)
    x, y = x.float(), y.float()  # the same numbers for both
    options = {"wavelet": "haar", "levels": 5, "bands": bands, "convention": convention}
    (single, one), (double, two) = (
        gradients(lambda x, y: detail_distance(x, y, **options), x.to(t), y.to(t))
        for t in (torch.float32, torch.float64)
    )
    # A level multiplies an offset by √8: its rounding meets the detail of a few deep coefficients.
    assert single == pytest.approx(double, rel=3e-4 if offset else 1e-4)
    for found, expected in zip(one, two, strict=True):
        assert (found - expected).abs().max() < tolerance * expected.abs().max()


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(*[st.sampled_from([2, 4, 8, 12, 16, 24])] * 3),
    names=st.tuples(*[st.sampled_from(["haar", "db2", "sym4", "coif1"])] * 3),
    levels=st.integers(1, 3),
    bands=st.sets(st.sampled_from(BANDS), min_size=1),
    coarse_weight=st.sampled_from([0.0, 0.125, 1.0, 7.0]),
    seed=st.integers(0, 9),
)
def test_one_round_trip_is_the_same_as_level_by_level(
    size, names, levels, bands, coarse_weight, seed
):
    x = noise(2, *size, seed=seed)
    bands = tuple(sorted(bands))
    selection = Selection(names, levels, bands, coarse_weight, "orthonormal")
    selection = selection._replace(levels=usable_levels(size, selection))
    assume(selection.levels and diagonal.is_diagonal(size, selection))
    value, gradient = diagonal.energy(x.clone(), selection)
    with mock.patch.object(diagonal, "is_diagonal", return_value=False):
        expected, its_gradient = energy(x.clone(), selection)
    # The tables of sym4 are orthonormal to twelve digits; heavy weights take some of them.
    tolerance = 1e-9 if "sym4" in names else 1e-10
    assert value.item() == pytest.approx(expected.item(), rel=tolerance, abs=1e-12)
    assert torch.allclose(gradient, its_gradient, rtol=0, atol=1e-10 * (1 + coarse_weight))


def test_a_grid_may_be_any_sequence():
    selection = Selection(("db4",) * 3, 3, PUBLISHED, 0.0, "orthonormal")
    assert [usable_levels(size, selection) for size in ([16, 8, 7], (16, 8, 7))] == [2, 2]


@pytest.mark.parametrize("wavelet", ["haar", "db4"])
@pytest.mark.parametrize(("coarse_weight", "tolerance"), [(1e-3, 1e-5), (1e6, 1e-6)])
def test_no_weight_is_too_light_or_too_heavy_for_float32(wavelet, coarse_weight, tolerance):
    # Light: what the deepest level, of weight 64, adds to the norm is taken off again, and with it
    # go two of seven digits. Heavy: no such detour (HEAVIEST), only rounding.
    for seed in range(8):
        x = noise(1, 2, 32, 32, 32, seed=seed).float()
        single, double = (
            detail_distance(x.to(t), zeros(x.to(t)), wavelet=wavelet, coarse_weight=coarse_weight)
            for t in (torch.float32, torch.float64)
        )
        assert single.item() == pytest.approx(double.item(), rel=tolerance), seed


def test_the_gradient_of_a_projection_does_not_drift_in_float32():
    """Its sums run over all voxels, and grow where features are not of mean zero."""
    student, teacher = noise(1, 4, 64, 64, 64) + 0.5, noise(1, 8, 64, 64, 64, seed=1)
    method = DCD((4,), (8,))
    found = []
    for dtype in (torch.float32, torch.float64):
        same = copy.deepcopy(method).to(dtype)
        pair = (Output(torch.empty(0), (x.to(dtype),)) for x in (student, teacher))
        same(*pair).backward()
        found.append(same.adapters[0].weight.grad.double())
    assert (found[0] - found[1]).abs().max() < 1e-6 * found[1].abs().max()


@pytest.fixture
def no_values(monkeypatch):
    """A device whose tensors have shapes and no values: "meta".

    There .item(), float(), bool(), .cpu() and .tolist() raise, so a loss that runs on it never
    makes a GPU wait for the host. torch.autocast alone does not know the device.
    """
    real = torch.autocast

    def autocast(device_type, *rest, **options):
        return nullcontext() if device_type == "meta" else real(device_type, *rest, **options)

    monkeypatch.setattr(torch, "autocast", autocast)
    return "meta"


@each_convention
@each_selection
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_value_is_ever_read_back(convention, bands, dtype, no_values):
    x, y = (torch.zeros(2, 4, 32, 9, 16, dtype=dtype, device=no_values) for _ in range(2))
    x.requires_grad_()
    loss = detail_distance(x, y, bands=bands, convention=convention)
    loss.backward()
    assert (loss.shape, loss.dtype, loss.device.type) == ((), torch.float32, no_values)
    assert (x.grad.shape, x.grad.dtype) == (x.shape, dtype)
    with pytest.raises((RuntimeError, NotImplementedError)):
        loss.item()


def test_no_value_is_ever_read_back_by_the_module(no_values):
    for model in (DCD([2, 3], [4, 5]), DCD.released([2, 3], [4, 5])):
        model.to(no_values)
        student, teacher = (
            Output(torch.empty(0), tuple(stage.to(no_values) for stage in made.stages))
            for made in (outputs([2, 3], [16, 8]), outputs([4, 5], [16, 8]))
        )
        student.stages[0].requires_grad_()
        model(student, teacher).backward()
        assert student.stages[0].grad.shape == student.stages[0].shape


@each_convention
@pytest.mark.parametrize("shape", [(0, 2, 16, 16, 16), (1, 0, 16, 16, 16), (1, 2, 16, 0, 16)])
def test_features_without_a_voxel_are_refused(convention, shape):
    with pytest.raises(ContractError):
        detail_distance(torch.zeros(shape), torch.zeros(shape), convention=convention)


@pytest.mark.parametrize("size", [(1, 8, 8), (8, 8, 1)])
def test_the_released_loss_of_a_single_slice_is_refused(size):
    # Its synthesis returns one voxel less than an odd axis has: none, and the mean of none is NaN.
    with pytest.raises(ContractError):
        detail_distance(noise(1, 1, *size), noise(1, 1, *size, seed=1), convention="released")


COMPILED = """
import sys, warnings
import torch
from torch import nn
from dcd_core.dcd import DCD
from dcd_core.types import Output
warnings.simplefilter("ignore")  # dynamo warns of caches
class Trained(nn.Module):
    def __init__(self):
        super().__init__()
        self.student = nn.Conv3d(1, 2, 3, padding=1)
        self.method = DCD([2], [3], wavelet="db2")
    def forward(self, x, t):
        features = torch.relu(self.student(x))
        return 2 * self.method(Output(features, (features,)), Output(t, (t,)))
torch.manual_seed(0)
model = Trained()
compiled = torch.compile(model, backend=sys.argv[1])
for batch in (1, 1, 2):  # again, and with another shape
    x, t = torch.randn(batch, 1, 12, 10, 12), torch.randn(batch, 3, 12, 10, 12)
    for run in (model, compiled):
        loss = run(x, t)
        found = [loss, *torch.autograd.grad(loss, list(model.parameters()))]
        if run is model:
            expected = found
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
assert min(g.abs().max() for g in expected) > 1e-3
print("equal")
"""


def test_a_compiled_model_has_the_same_loss_and_gradient():
    # In a process of its own: the tests' type checker is not there for dynamo to trace through.
    package = Path(dcd_core.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED, "aot_eager"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout == "equal\n", done.stderr


# --- levels and short axes ------------------------------------------------------------------------


def test_an_axis_shorter_than_the_filter_passes_through():
    # db4 has 8 taps: D = 4 is left alone, so the bands that are high along D do not exist.
    x = noise(1, 2, 4, 16, 16)
    found = detail_distance(x, zeros(x), wavelet="db4", levels=1, bands=BANDS)
    assert found.item() == pytest.approx(x.square().mean().item(), rel=1e-12)
    assert detail_distance(x, zeros(x), levels=1, bands=("daa", "dad", "dda", "ddd")).item() == 0
    plane = pywt.dwt2(x.numpy(), "db4", mode="periodization", axes=(3, 4))
    expected = (plane[1][2] ** 2).sum() / x.numel()
    found = detail_distance(x, zeros(x), wavelet="db4", levels=1, bands=("add",))
    assert found.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", list(itertools.permutations((3, 8, 11))), ids=str)
@pytest.mark.parametrize("bands", SUBSETS, ids=len)
def test_a_short_axis_may_be_any_and_the_others_odd(size, bands):
    x = noise(1, 1, *size)
    short = size.index(3)
    axes = [2 + axis for axis in range(3) if axis != short]
    plane = pywt.dwtn(x.numpy(), "db2", mode="periodization", axes=axes)
    kept = {band[:short] + band[short + 1 :] for band in bands if band[short] == "a"}
    expected = sum((plane[band] ** 2).sum() for band in kept) / x.numel()
    found = detail_distance(x, zeros(x), wavelet="db2", levels=1, bands=bands)
    assert found.item() == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(
    ("size", "levels"), [(7, 0), (8, 1), (14, 1), (15, 2), (16, 2), (28, 2), (29, 3), (64, 3)]
)
def test_levels_end_where_the_filter_outgrows_the_grid(size, levels):
    model = DCD([1], [1], projection="none", wavelet="db4", levels=3)
    [stage] = model.per_stage(outputs([1], [size]), outputs([1], [size], seed=1))
    assert stage.levels == levels


def test_levels_are_averaged_over_those_in_use():
    x = noise(1, 1, 16, 16, 16)  # two levels of db4
    one, two, three = (detail_distance(x, zeros(x), levels=n).item() for n in (1, 2, 3))
    assert three == two != one
    details = wavedec3(x, "db4", levels=2).details
    energies = [detail[:, :, :6].square().sum().item() for detail in details]
    assert two == pytest.approx((energies[0] / 16**3 + energies[1] / 8**3) / 2, rel=1e-12)


def test_small_stages_drop_out_and_only_the_last_one_raises():
    model = DCD([1, 1], [1, 1], projection="none", wavelet="db4")
    student, teacher = outputs([1, 1], [16, 4]), outputs([1, 1], [16, 4], seed=7)
    first, second = model.per_stage(student, teacher)
    assert (first.levels, second.levels) == (2, 0)
    assert torch.equal(model(student, teacher), first.distance)
    small = DCD([1, 1], [1, 1], projection="none", stages=[1])
    with pytest.raises(ContractError, match="an axis of at least 8 voxels"):
        small(student, teacher)
    with pytest.raises(ContractError, match="an axis of at least 8 voxels"):
        detail_distance(noise(1, 1, 7, 7, 7), noise(1, 1, 7, 7, 7))


# --- the module -----------------------------------------------------------------------------------


def test_forward_is_the_mean_or_the_sum_over_stages():
    student, teacher = outputs([2, 3, 4], [16, 8, 8]), outputs([2, 3, 4], [16, 8, 8], seed=9)
    same = {"projection": "none", "wavelet": "db2"}
    mean = DCD([2, 3, 4], [2, 3, 4], **same)
    distances = [
        detail_distance(s, t, wavelet="db2")
        for s, t in zip(student.stages, teacher.stages, strict=True)
    ]
    assert [stage.distance for stage in mean.per_stage(student, teacher)] == distances
    assert torch.allclose(mean(student, teacher, None), torch.stack(distances).mean())
    total = DCD([2, 3, 4], [2, 3, 4], stage_reduction="sum", **same)
    assert torch.allclose(total(student, teacher), torch.stack(distances).sum())
    some = DCD([2, 3, 4], [2, 3, 4], stages=(2, 0), stage_reduction="sum", **same)
    assert torch.allclose(some(student, teacher), distances[2] + distances[0])


def test_released_is_the_sum_over_stages_behind_frozen_projections_with_bias():
    torch.manual_seed(3)
    model = DCD.released([2, 4, 5], [4, 4, 6])
    student = outputs([2, 4, 5], [12, 8, 6])
    teacher = outputs([4, 4, 6], [12, 8, 6], seed=5)
    assert isinstance(model.adapters[1], torch.nn.Identity)
    assert model.adapters[0].bias is not None
    assert [p for p in model.parameters() if p.requires_grad] == []
    expected = 0.0
    for project, s, t in zip(model.adapters, student.stages, teacher.stages, strict=True):
        difference = (project(s) - t).double()
        expected += released_reference(difference, "db4", 3, PUBLISHED).item()
    assert model(student, teacher).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("channels", [(4, 8), (8, 4)], ids=["widening", "narrowing"])
@pytest.mark.parametrize("kind", ["learned", "frozen", "orthogonal"])
def test_projections(kind, channels):
    model = DCD([channels[0]], [channels[1]], projection=kind)
    (weight,) = model.parameters()
    assert weight.shape == (channels[1], channels[0], 1, 1, 1)
    assert weight.requires_grad == (kind == "learned")
    assert model.adapters[0].bias is None
    matrix = weight.detach().flatten(1)
    gram = matrix.T @ matrix if channels[0] <= channels[1] else matrix @ matrix.T
    identity = torch.allclose(gram, torch.eye(4), atol=1e-5)
    assert identity == (kind == "orthogonal")


def test_learned_projection_receives_a_gradient_and_frozen_passes_one_on():
    teacher = outputs([8], [8], seed=1)
    for kind in ("learned", "frozen", "orthogonal"):
        torch.manual_seed(0)
        model = DCD([4], [8], projection=kind)
        student = outputs([4], [8])
        student.stages[0].requires_grad_()
        model(student, teacher).backward()
        assert student.stages[0].grad.abs().max() > 0
        assert (model.adapters[0].weight.grad is not None) == (kind == "learned")


def methods(kind, student, teacher):
    if kind == "released":
        return DCD.released(student, teacher)
    return DCD(student, teacher, projection=kind)


KINDS = ["learned", "frozen", "orthogonal", "released"]


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_round_trip_and_deepcopy(kind):
    student, teacher = outputs([2, 3], [8, 8]), outputs([4, 4], [8, 8], seed=4)
    torch.manual_seed(0)
    first, second = (methods(kind, [2, 3], [4, 4]) for _ in range(2))
    expected = first(student, teacher)
    assert not torch.equal(expected, second(student, teacher))
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(second(student, teacher), expected)
    twin = copy.deepcopy(first)
    assert torch.equal(twin(student, teacher), expected)
    with torch.no_grad():
        twin.adapters[0].weight.zero_()
    assert torch.equal(first(student, teacher), expected)
    assert [p.requires_grad for p in twin.parameters()] == [
        p.requires_grad for p in first.parameters()
    ]


def test_without_projections_there_is_nothing_to_save_or_train():
    model = DCD([2, 3], [2, 3], projection="none")
    assert len(model.state_dict()) == len(list(model.parameters())) == 0


class Squared(torch.nn.Module):
    def forward(self, logits, target):
        return (logits - target).square().mean()


def segmenter(*channels):
    """A network of one convolution per stage, the last two the logits; not more than is needed."""
    widths = [1, *channels]
    network = torch.nn.Sequential(
        *(torch.nn.Conv3d(i, o, 3, padding=1) for i, o in itertools.pairwise(widths))
    )
    return Segmenter(network, [str(i) for i in range(len(channels))], channels)


@pytest.mark.parametrize("kind", KINDS)
def test_every_trainable_tensor_reaches_the_optimizer_and_moves(kind):
    torch.manual_seed(0)
    method = methods(kind, [2, 3], [4, 4])
    distiller = Distiller(segmenter(2, 3), segmenter(4, 4), method, Squared())
    optimizer = torch.optim.SGD(distiller.trainable(), lr=1.0)
    before = {name: p.detach().clone() for name, p in distiller.named_parameters()}
    image, target = noise(1, 1, 16, 16, 16).float(), torch.ones(1, 1, 16, 16, 16).long()
    losses = distiller(image, target, distil=True)
    (losses.segmentation + losses.distillation).backward()
    optimizer.step()
    moved = {n for n, p in distiller.named_parameters() if not torch.equal(p, before[n])}
    expected = {name for name in before if name.startswith("student.")}
    if kind == "learned":
        expected |= {name for name in before if name.startswith("method.")}
    assert moved == expected
    # The frozen ones are the same after loading: they are saved with the rest.
    assert {n for n in before if n.startswith("method.")} <= set(distiller.trained_state())


def test_autocast_and_half_features_are_compared_in_float32():
    model = DCD([2], [3], wavelet="db2")
    student, teacher = outputs([2], [8]), outputs([3], [8], seed=2)
    expected = model(student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(student, teacher)
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)
    half = Output(student.logits, tuple(s.bfloat16() for s in student.stages))
    assert model(half, teacher).item() == pytest.approx(expected.item(), rel=0.02)


def test_per_axis_wavelets_are_kept():
    model = DCD([1], [1], wavelet=("haar", "db4", "db4"), projection="none")
    student, teacher = outputs([1], [(4, 16, 16)]), outputs([1], [(4, 16, 16)], seed=1)
    expected = detail_distance(student.stages[0], teacher.stages[0], wavelet=("haar", "db4", "db4"))
    assert torch.equal(model(student, teacher), expected)


# --- refusals -------------------------------------------------------------------------------------


def test_other_grid_batch_or_channels_name_the_stage():
    model = DCD([1, 2], [1, 2], projection="none")
    student = outputs([1, 2], [16, 8])
    for shape in [(1, 2, 8, 8, 9), (2, 2, 8, 8, 8), (1, 1, 8, 8, 8)]:
        teacher = student._replace(stages=(student.stages[0], torch.zeros(shape)))
        with pytest.raises(ContractError, match=r"encoder stage 1: got student \(1, 2, 8, 8, 8\)"):
            model(student, teacher)
    with pytest.raises(ContractError, match="encoder stage 0"):
        model(student, outputs([1, 2], [12, 8]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wavelet": "db0"}, "wavelet: got 'db0'"),
        ({"levels": 0}, "levels: got 0"),
        ({"bands": ("aad", "xyz")}, "bands: got"),
        ({"bands": ()}, "bands: got"),
        ({"bands": ("aad", "aad")}, "distinct names"),
        ({"coarse_weight": -0.1}, "coarse_weight: got -0.1"),
        ({"coarse_weight": math.nan}, "coarse_weight: got nan"),
        ({"coarse_weight": 0.1, "convention": "released"}, "0 in the released convention"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options, message):
    x = noise(1, 1, 8, 8, 8)
    with pytest.raises(ContractError, match=message):
        detail_distance(x, x, **options)
    with pytest.raises(ContractError, match=message):
        DCD([1], [1], **options)


def test_unequal_shapes_are_refused():
    with pytest.raises(ContractError, match=r"the student's shape \(1, 1, 8, 8, 8\)"):
        detail_distance(noise(1, 1, 8, 8, 8), noise(1, 2, 8, 8, 8))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([1, 2], [1]), {}, "2 in the student, 1 in the teacher"),
        (([1], [1]), {"stages": [1]}, "indices from 0 to 0"),
        (([1], [1]), {"stages": []}, "stages: got"),
        (([2], [3]), {"projection": "none"}, "2 student and 3 teacher channels"),
    ],
    ids=str,
)
def test_stages_and_projections_out_of_range_are_refused(arguments, options, message):
    with pytest.raises(ContractError, match=message):
        DCD(*arguments, **options)


# --- the weight of the loss -----------------------------------------------------------------------


def test_kd_weight_closed_form():
    def weight(epoch):
        return kd_weight(epoch, peak=0.2, start=10, ramp=40)

    assert [weight(epoch) for epoch in (0, 9.999, 10)] == [0, 0, 0]
    assert weight(20) == pytest.approx(0.2 * (1 - math.sqrt(0.5)) / 2)
    assert weight(30) == pytest.approx(0.1)
    assert weight(40) == pytest.approx(0.2 * (1 + math.sqrt(0.5)) / 2)
    assert [weight(epoch) for epoch in (50, 51, 1e9)] == [0.2, 0.2, 0.2]
    assert kd_weight(4, peak=0.2, start=5, ramp=0) == 0
    assert kd_weight(5, peak=0.2, start=5, ramp=0) == 0.2


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.floats(0, 200), st.floats(0, 5), st.floats(0, 50), st.floats(0, 100))
def test_kd_weight_never_falls(epoch, step, start, ramp):
    before, after = (kd_weight(e, peak=1.0, start=start, ramp=ramp) for e in (epoch, epoch + step))
    assert 0 <= before <= after <= 1
