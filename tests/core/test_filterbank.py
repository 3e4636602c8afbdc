"""Compiled filter banks: one bank against PyWavelets, all of them against matrices in float64."""

from __future__ import annotations

import shutil
import sys
from unittest import mock

import numpy as np
import pytest
import pywt
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dcd_core.dcd import PUBLISHED, detail_distance
from dcd_core.wavelet import BANDS, Selection, compiled, diagonal, energy, usable_levels
from dcd_core.wavelet.banks import Bank, correlation, expansion, periodized

DISCRETE = pywt.wavelist(kind="discrete")
NAMES = ["haar", "db2", "db4", "sym5", "coif2", "db10", "bior2.2", "bior3.1", "rbio1.5"]
KINDS = [periodized, correlation, expansion]
built = pytest.mark.skipif(
    not compiled.serves(torch.empty(0)), reason="dcd_core was installed without a C compiler"
)
some_bands = st.sets(st.sampled_from(BANDS), min_size=1).map(lambda chosen: tuple(sorted(chosen)))


def noise(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def relative(found, expected):
    return ((found.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


def separable(x, banks, band):
    """One band of volumes (c, d, h, w) by matrices in float64."""
    matrices = [torch.from_numpy(b.matrix(letter)) for b, letter in zip(banks, band, strict=True)]
    return torch.einsum("cdhw,id,jh,kw->cijk", x.double(), *matrices)


def test_it_is_built_where_there_is_a_compiler():
    if sys.platform == "linux" and shutil.which("cc"):
        assert compiled.serves(torch.empty(0))


# --- one bank -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DISCRETE)
def test_a_periodized_bank_is_that_of_pywavelets(name):
    taps = pywt.Wavelet(name).dec_len
    for n in (taps, taps + 1, taps + 2, 2 * taps + 3):
        found = periodized(n, name).matrix("ad")
        expected = np.concatenate(pywt.dwt(np.eye(n), name, mode="periodization", axis=0))
        assert np.abs(found - expected).max() < 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["haar", "db4", "bior3.3"])
@pytest.mark.parametrize("n", [2, 5, 8, 13])
def test_the_axis_lies_within_its_border(kind, name, n):
    bank = kind(n, name)
    within = bank.source[bank.lead : bank.lead + bank.samples]
    assert np.array_equal(within, np.arange(bank.samples))
    assert bank.source.max() < n
    assert len(bank.source) == bank.step * (bank.coefficients - 1) + bank.filters.shape[1]


def test_an_axis_too_short_for_its_filter_passes_through():
    assert np.array_equal(periodized(7, "db4").matrix("a"), np.eye(7))
    assert periodized(7, "db4").letters == "a"


def test_orthonormal_is_measured():
    found = [periodized(n, name).orthonormal for n, name in [(8, "db4"), (9, "db4"), (7, "db4")]]
    assert found == [True, False, True]  # odd: the last sample counts twice; 7: untouched
    assert not periodized(64, "dmey").orthonormal
    assert not periodized(8, "bior2.2").orthonormal


# --- split and join -------------------------------------------------------------------------------


@built
@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(*[st.integers(1, 40)] * 3),
    names=st.tuples(*[st.sampled_from(NAMES)] * 3),
    kind=st.sampled_from(KINDS),
    bands=some_bands,
    volumes=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_split_and_join_are_products_of_matrices(size, names, kind, bands, volumes, seed):
    banks = [kind(n, name) for n, name in zip(size, names, strict=True)]
    assume(all(bank.samples for bank in banks))
    bands = [b for b in bands if all(x in k.letters for x, k in zip(b, banks, strict=True))]
    assume(bands)
    x = noise(volumes, *(bank.samples for bank in banks), seed=seed)
    found = compiled.split(x, banks, bands)
    for band, one in zip(bands, found, strict=True):
        assert relative(one, separable(x, banks, band)) < 2e-6
    back = torch.full_like(x, torch.nan)  # written, not added to
    compiled.join(found, banks, bands, back)
    matrices = [
        [torch.from_numpy(k.matrix(x)) for x, k in zip(b, banks, strict=True)] for b in bands
    ]
    expected = sum(
        torch.einsum("cijk,id,jh,kw->cdhw", one.double(), *axes)
        for one, axes in zip(found, matrices, strict=True)
    )
    assert relative(back, expected) < 2e-6


@built
def test_the_longest_filters_fit():
    banks = [periodized(n, name) for n, name in [(102, "coif17"), (76, "db38"), (66, "dmey")]]
    x = noise(1, 102, 76, 66)
    found = compiled.split(x, banks, BANDS)
    for band, one in zip(BANDS, found, strict=True):
        assert relative(one, separable(x, banks, band)) < 5e-6


@built
def test_filters_of_different_lengths_meet_in_one_volume():
    banks = [periodized(6, "db4"), periodized(20, "haar"), periodized(30, "db10")]
    assert [bank.step for bank in banks] == [1, 2, 2]
    x = noise(3, 6, 20, 30)
    bands = ["aaa", "ada", "add"]
    for band, one in zip(bands, compiled.split(x, banks, bands), strict=True):
        assert relative(one, separable(x, banks, band)) < 2e-6


# --- energies -------------------------------------------------------------------------------------


@built
@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(*[st.sampled_from([2, 4, 8, 12, 16, 24, 40])] * 3),
    names=st.tuples(*[st.sampled_from(["haar", "db2", "db4", "coif1"])] * 3),
    levels=st.integers(1, 3),
    bands=some_bands,
    coarse_weight=st.sampled_from([0.0, 0.125, 1.0, 7.0, 1e5]),
    seed=st.integers(0, 9),
)
def test_energy_is_that_of_matrices(size, names, levels, bands, coarse_weight, seed):
    selection = Selection(names, levels, bands, coarse_weight, "orthonormal")
    selection = selection._replace(levels=usable_levels(size, selection))
    assume(selection.levels and diagonal.is_diagonal(size, selection))
    x = noise(3, *size, seed=seed)
    expected, its_gradient = diagonal.energy(x.double(), selection)
    room = x.clone()
    value, gradient = energy(room, selection)
    assert gradient.data_ptr() == room.data_ptr()
    # A difference of norms, in which the heaviest weight (HEAVIEST at most) takes its digits.
    weight = min(8 ** (selection.levels - 1) * max(1.0, coarse_weight), diagonal.HEAVIEST)
    assert abs(value.item() - expected.item()) < (1e-5 + 1e-7 * weight) * expected.item() + 1e-4
    assert (gradient.double() - its_gradient).abs().max() < 5e-6 * max(1, its_gradient.abs().max())


@built
def test_a_level_adds_up_bands_or_takes_the_others_away():
    grid = ((16, 16, 16), Selection(("haar",) * 3, 2, PUBLISHED, 0.0, "orthonormal"))
    names = [
        [band for band, wanted in zip(BANDS, level.reached, strict=True) if wanted]
        for level in compiled._levels(*grid)[0]
    ]
    assert names == [["aaa", "ddd"]] * 2
    one = grid[1]._replace(bands=("add",))
    (first, last), _ = compiled._levels(grid[0], one)
    assert [first.base, last.base] == [0, 0]
    assert [*first.reached] == [1, 0, 0, 1, 0, 0, 0, 0]  # aaa, for what lies deeper
    assert [*last.reached] == [0, 0, 0, 1, 0, 0, 0, 0]


@built
@pytest.mark.parametrize("convention", ["orthonormal", "released"])
@pytest.mark.parametrize("wavelet", ["haar", "db4", "bior2.2"])
def test_threads_do_not_change_a_digit(convention, wavelet):
    x, y = noise(1, 7, 16, 20, 24), noise(1, 7, 16, 20, 24, seed=1)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            leaf = x.clone().requires_grad_()
            with mock.patch.dict("dcd_core.dcd._BLOCK_BYTES", {"cpu": 1 << 40}):
                value = detail_distance(leaf, y, wavelet=wavelet, convention=convention)
            value.backward()
            found.append(leaf.grad)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, found[0]) for one in found)


@built
@pytest.mark.parametrize("wavelet", ["haar", "db4", "sym4", "coif3"])
def test_a_constant_leaves_next_to_nothing(wavelet):
    x = torch.full((1, 1, 32, 32, 32), 100.0, requires_grad=True)
    value = detail_distance(x, torch.zeros(1, 1, 32, 32, 32), wavelet=wavelet)
    value.backward()
    assert value.item() < 1e-12 * 100**2
    assert x.grad.sum().abs() < 5e-6 * 2 * 100  # beside that of plain MSE


@pytest.mark.parametrize("name", ["db2", "db4", "sym4", "db10"])
def test_rounded_taps_keep_the_sums_that_tell_a_constant_from_detail(name):
    exact = periodized(24, name).filters
    found = compiled._rounded(exact)
    assert found.dtype == np.float32
    assert np.abs(found - exact).max() < 2e-7
    for parity in (0, 1):
        assert np.abs((found.astype(float) - exact)[:, parity::2].sum(axis=1)).max() < 1e-8


def test_taps_that_are_zero_stay_so_and_exact_ones_are_kept():
    filters = periodized(24, "bior2.2").filters
    assert np.array_equal(compiled._rounded(filters) == 0, filters == 0)
    released = correlation(24, "db4").filters  # float32 as they come
    assert np.array_equal(compiled._rounded(released), released)


@built
def test_what_is_not_finite_stays_so():
    for bad in (torch.nan, torch.inf):
        x = noise(1, 2, 16, 16, 16)
        x[0, 0, 3, 4, 5] = bad
        assert not detail_distance(x, torch.zeros_like(x)).isfinite()


@built
def test_memory_that_runs_out_is_an_error():
    library = mock.Mock()
    library.energies.return_value = 1
    with (
        mock.patch.object(compiled, "_library", return_value=library),
        pytest.raises(MemoryError, match=r"\(16, 16, 16\)"),
    ):
        detail_distance(noise(1, 1, 16, 16, 16), torch.zeros(1, 1, 16, 16, 16))


# --- without it -----------------------------------------------------------------------------------


@built
@pytest.mark.parametrize("convention", ["orthonormal", "released"])
@pytest.mark.parametrize("wavelet", ["haar", "db4", "bior2.2", ("haar", "db2", "db2")])
@pytest.mark.parametrize("size", [(16, 16, 16), (17, 12, 9)])
def test_matrices_give_the_same_without_a_compiler(convention, wavelet, size):
    x, y = noise(2, 3, *size), noise(2, 3, *size, seed=1)
    found = []
    for library in (compiled._library(), None):
        with mock.patch.object(compiled, "_library", return_value=library):
            leaf = x.clone().requires_grad_()
            value = detail_distance(leaf, y, wavelet=wavelet, convention=convention)
            value.backward()
            found.append((value.item(), leaf.grad))
    (one, its), (other, theirs) = found
    assert one == pytest.approx(other, rel=1e-5)
    assert relative(its, theirs.double()) < 2e-6


def test_a_package_without_the_library_has_none():
    with mock.patch.object(compiled, "find_spec", return_value=None):
        assert compiled._library.__wrapped__() is None


def test_only_float32_on_a_cpu_is_served():
    assert not compiled.serves(torch.empty(0, dtype=torch.float64))
    assert not compiled.serves(torch.empty(0, device="meta"))


def test_banks_are_told_apart_by_identity():
    assert periodized(16, "db4") is periodized(16, "db4")
    assert isinstance(hash(periodized(16, "db4")), int)
    assert Bank(np.ones((1, 1)), np.arange(3), 3, 0, 1) != Bank(
        np.ones((1, 1)), np.arange(3), 3, 0, 1
    )
