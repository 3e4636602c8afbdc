"""Arguments of any kind for transforms and losses: the oracle's value, or an error.

Of what was not spoilt the value is required; of the rest it is the oracle's, or a ContractError. No
other error may come, and no number where there is none: NaN in the input is never a finite loss.
"""

import math

import numpy as np
import pytest
import pywt
import torch
from fuzz import (
    ANYTHING,
    NUMBERS,
    REFUSED,
    VOLUMES,
    fuzzed,
    is_real,
    mostly,
    options,
    plain,
    shapes,
    tensors,
    tried,
)
from hypothesis import strategies as st
from oracles import EIGHT, orthonormal_loss, pywt_bands, pywt_volume, released_loss

from dcd_core.dcd import PUBLISHED, detail_distance, kd_weight
from dcd_core.wavelet import BANDS, Pyramid, dwt3, idwt3, max_level, wavedec3, waverec3

pytestmark = pytest.mark.unchecked

WAVELETS = st.sampled_from([*EIGHT, ("haar", "db2", "db4"), pywt.Wavelet("db4")])
MODES = st.sampled_from(pywt.Modes.modes)


def agrees(found, expected):
    """Whether numbers are the oracle's, as exact as the type they are computed in."""
    assert found.shape == tuple(expected.shape)
    exact = 1e-9 if found.dtype == torch.float64 else 2e-4
    scale = max(1.0, np.abs(expected).max(initial=0))
    assert np.abs(found.detach().numpy() - expected).max(initial=0) < exact * scale


def by_pywt(oracle, found, x, *arguments):
    """Hold a result to PyWavelets, or see that neither has one."""
    if found is not REFUSED:
        agrees(found, oracle(plain(x), *arguments))
    return found


def test_one_level_of_a_transform(tally):
    def check(given):
        x, wavelet, mode = given
        found = tried(dwt3, x, wavelet, mode)
        sound = is_real(x) and x.ndim == 5 and 0 not in x.shape and isinstance(mode, str)
        if sound and mode in pywt.Modes.modes and isinstance(wavelet, pywt.Wavelet):
            one = min(x.shape[2:]) == 1 and mode.endswith("reflect")
            assert (found is REFUSED) == one
        return by_pywt(pywt_bands, found, x, wavelet, mode)

    fuzzed(st.tuples(VOLUMES, mostly(WAVELETS), mostly(MODES)), check, tally)


def test_the_inverse_of_one_level(tally):
    def check(given):
        x, wavelet, mode, size = given
        whole = tried(idwt3, x, wavelet, mode)
        by_pywt(lambda y, *rest: pywt_volume(y.numpy(), *rest), whole, x, wavelet, mode)
        found = tried(idwt3, x, wavelet, mode, size=size)
        if found is not REFUSED:
            d, h, w = found.shape[2:] if size is None else size
            assert torch.equal(found, whole[..., :d, :h, :w])
            assert all(n - 1 <= m <= n for m, n in zip((d, h, w), whole.shape[2:], strict=True))
        return found

    bands = mostly(shapes().map(lambda s: (*s[:2], 8, *s[2:])).flatmap(tensors))
    sizes = mostly(st.none(), st.one_of(ANYTHING, st.tuples(*[st.integers(0, 20)] * 3)))
    fuzzed(st.tuples(bands, mostly(WAVELETS), mostly(MODES), sizes), check, tally)


def test_pyramids(tally):
    def check(given):
        shape, wavelet, levels, mode, spoilt = given
        x = torch.randn(shape, dtype=torch.float64)
        pyramid = tried(wavedec3, x, wavelet, levels=levels, mode=mode)
        if pyramid is REFUSED:
            return pyramid
        expected = pywt.wavedecn(x.numpy(), wavelet, mode, len(pyramid.details), axes=(2, 3, 4))
        agrees(pyramid.coarse, expected[0])
        assert len(pyramid.details) == levels
        back = waverec3(pyramid, wavelet, mode, size=x.shape[2:])
        agrees(back, x.numpy())
        place, other = spoilt
        wrong = Pyramid(other if place == 0 else pyramid.coarse, pyramid.details)
        if place == 1:
            wrong = Pyramid(pyramid.coarse, (other, *pyramid.details[1:]))
        elif place == 2:
            wrong = Pyramid(pyramid.coarse, pyramid.details[::-1])
        found = tried(waverec3, wrong if place < 3 else other, wavelet, mode)
        if found is not REFUSED:
            parts = [
                {b: d[:, :, i].numpy() for i, b in enumerate(BANDS[1:])} for d in wrong.details
            ]
            known = [plain(wrong.coarse).numpy(), *parts[::-1]]
            agrees(found, pywt.waverecn(known, wavelet, mode, axes=(2, 3, 4)))
        return found

    long = st.tuples(*[st.integers(1, 2)] * 2, *[st.integers(2, 12)] * 3)
    spoilt = st.tuples(st.integers(0, 3), mostly(shapes(6, 4).flatmap(tensors), VOLUMES))
    names = WAVELETS.filter(lambda w: not isinstance(w, tuple))
    given = st.tuples(long, mostly(names), mostly(st.integers(1, 3)), mostly(MODES), spoilt)
    fuzzed(given, check, tally)


def test_levels_and_weights_of_any_numbers(tally):
    def check(given):
        size, wavelet, (epoch, peak, start, ramp) = given
        found = tried(max_level, size, wavelet)
        if found is not REFUSED:
            whole = (int(size),) * 3 if np.ndim(size) == 0 else tuple(size)
            names = (wavelet,) * 3 if isinstance(wavelet, str | pywt.Wavelet) else wavelet
            each = [pywt.dwt_max_level(n, w) for n, w in zip(whole, names, strict=True)]
            assert found == min(each)
        weight = tried(kd_weight, epoch, peak=peak, start=start, ramp=ramp)
        if weight is not REFUSED:
            assert 0 <= weight <= peak < math.inf
            assert weight == (peak if epoch >= start + ramp else weight if epoch >= start else 0)
        return weight

    sizes = mostly(st.one_of(st.integers(1, 90), st.tuples(*[st.integers(1, 90)] * 3)))
    numbers = st.tuples(*[mostly(st.floats(0, 50), st.one_of(NUMBERS, ANYTHING))] * 4)
    fuzzed(st.tuples(sizes, mostly(WAVELETS), numbers), check, tally)


LOSS = {
    "wavelet": ["haar", "db2", ("haar", "db2", "haar")],
    "levels": [1, 2, 3],
    "bands": [PUBLISHED, BANDS, ("aad",), ["ddd", "aaa"]],
    "coarse_weight": [0.0, 1.0, np.float32(0.5)],
    "convention": ["orthonormal", "released"],
    "level_weighting": ["resolution", "energy"],
}


def test_the_loss_of_one_stage(tally):
    def check(given):
        student, teacher, chosen = given
        found = tried(detail_distance, student, teacher, **chosen)
        if found is REFUSED:
            return found
        assert found.dtype in (torch.float32, torch.float64)
        wavelet, levels = chosen.get("wavelet", "db4"), int(chosen.get("levels", 3))
        bands, x = chosen.get("bands", PUBLISHED), plain(student) - plain(teacher)
        if chosen.get("convention") == "released":
            expected = released_loss(x, wavelet, levels, bands)
        else:
            rest = [chosen[n] for n in ("coarse_weight", "level_weighting") if n in chosen]
            names = ("coarse_weight", "level_weighting")
            given = {n: chosen[n] for n in names if n in chosen}
            assert len(rest) == len(given)
            expected, _ = orthonormal_loss(x, wavelet, levels, bands, **given)
        assert float(found) == pytest.approx(float(expected), rel=2e-3, abs=1e-6)
        return found

    pairs = shapes(most=20).flatmap(lambda s: st.tuples(*[tensors(s)] * 2))
    odd = st.tuples(VOLUMES, VOLUMES)
    given = mostly(pairs, odd).flatmap(lambda p: options(LOSS).map(lambda o: (*p, o)))
    fuzzed(given, check, tally)
