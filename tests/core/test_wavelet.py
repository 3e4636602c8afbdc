"""Wavelet: equal to PyWavelets for every family, boundary mode and size, and differentiable."""

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import DISCRETE, EIGHT, pywt_bands, pywt_volume, relative
from outputs import drawn as noise

from dcd_core.types import ContractError
from dcd_core.wavelet import BANDS, Pyramid, dwt3, idwt3, max_level, wavedec3, waverec3

ORTHOGONAL = ["haar", "db2", "db4", "sym5", "coif1"]
SIZES = [(8, 8, 8), (9, 7, 5), (6, 11, 16), (2, 3, 2)]
# These two continue a slope beyond the border. Where the filter is longer than the volume, large
# numbers then cancel, and the float32 of PyWavelets itself misses 1e-6 of the result.
EXTRAPOLATING = ("smooth", "antireflect")


def largest_summand(x, name, mode):
    """The largest sum of |taps| times |x| in `dwtn`, what rounding errors are measured by."""
    for axis in (2, 3, 4):
        one = np.abs(np.concatenate(pywt.dwt(np.eye(x.shape[axis]), name, mode, axis=0)))
        x = np.moveaxis(np.tensordot(one, np.abs(x), (1, axis)), 0, axis)
    return x.max()


def test_bands_are_numbered_4d_2h_w():
    assert ["".join("ad"[i >> shift & 1] for shift in (2, 1, 0)) for i in range(8)] == list(BANDS)


def assert_pywt(name, mode, size, seed=0):
    """One level and back, in float64 and float32, as far as PyWavelets itself gets."""
    x = noise(1, 2, *size, seed=seed)
    expected = pywt_bands(x, name, mode)
    bands, back = dwt3(x, name, mode), pywt_volume(expected, name, mode)
    assert relative(bands, expected) < 1e-12, mode
    assert relative(idwt3(bands, name, mode), back) < 1e-12, mode
    # dmey alone is a truncated filter and reconstructs coarsely.
    cropped = idwt3(bands, name, mode, size=size)
    assert relative(cropped, x) < (0.1 if name == "dmey" else 1e-8), mode
    single = dwt3(x.float(), name, mode)
    assert single.dtype == torch.float32
    error = np.abs(single.numpy() - expected).max()
    extrapolated = mode in EXTRAPOLATING
    scale = largest_summand(x.numpy(), name, mode) if extrapolated else np.abs(expected).max()
    assert error < 1e-6 * scale, mode
    if not extrapolated:
        again = idwt3(torch.tensor(expected, dtype=torch.float32), name, mode)
        assert relative(again, back) < 1e-6, mode


@pytest.mark.parametrize("mode", pywt.Modes.modes)
@pytest.mark.parametrize("name", EIGHT)
def test_one_level_and_back_equal_pywt(name, mode):
    for size in SIZES:
        assert_pywt(name, mode, size)


@pytest.mark.slow
def test_every_discrete_wavelet_equals_pywt():
    for turn, name in enumerate(DISCRETE):
        # Three of the nine modes for each wavelet, so that each mode meets every third wavelet.
        for mode in pywt.Modes.modes[turn % 3 :: 3]:
            assert_pywt(name, mode, SIZES[turn % len(SIZES)], seed=turn)


@pytest.mark.parametrize("mode", pywt.Modes.modes)
@pytest.mark.parametrize("name", EIGHT)
# pywt warns where a level outgrows the volume; both of us go on.
@pytest.mark.filterwarnings("ignore:Level value of:UserWarning")
def test_pyramid_and_back_equal_pywt(name, mode):
    for size in [(16, 16, 16), (17, 12, 23)]:
        x = noise(1, 1, *size)
        pyramid = wavedec3(x, name, levels=3, mode=mode)
        expected = pywt.wavedecn(x.numpy(), name, mode=mode, level=3, axes=(2, 3, 4))
        assert relative(pyramid.coarse, expected[0]) < 1e-12
        for found, level in zip(pyramid.details, reversed(expected[1:]), strict=True):
            assert relative(found, np.stack([level[b] for b in BANDS[1:]], 2)) < 1e-12
        back = pywt.waverecn(expected, name, mode=mode, axes=(2, 3, 4))
        assert relative(waverec3(pyramid, name, mode), back) < 1e-12
        assert relative(waverec3(pyramid, name, mode, size=size), x) < 1e-10


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    size=st.tuples(*[st.integers(1, 12)] * 3),
    names=st.tuples(*[st.sampled_from(DISCRETE)] * 3),
    mode=st.sampled_from([mode for mode in pywt.Modes.modes if not mode.endswith("reflect")]),
)
def test_one_wavelet_per_axis_equals_pywt(size, names, mode):
    x = noise(2, 1, *size)
    expected = pywt_bands(x, names, mode)
    bands = dwt3(x, names, mode)
    assert relative(bands, expected) < 1e-12
    assert relative(idwt3(bands, list(names), mode), pywt_volume(expected, names, mode)) < 1e-12


@pytest.mark.parametrize("name", [*EIGHT, "dmey"])
def test_max_level_equals_pywt(name):
    for size in [(64, 64, 64), (20, 48, 64), (3, 90, 90), (128, 15, 128)]:
        assert max_level(size, name) == pywt.dwtn_max_level(size, name)
    assert max_level(40, name) == pywt.dwtn_max_level((40, 40, 40), name)
    assert max_level((8, 64, 64), ("haar", name, name)) <= 3


@pytest.mark.parametrize("name", ORTHOGONAL)
def test_an_orthonormal_transform_keeps_energy_and_its_inverse_is_its_adjoint(name):
    x = noise(1, 2, 8, 6, 10).requires_grad_()
    y = noise(1, 2, 8, 4, 3, 5, seed=1)
    bands = dwt3(x, name)
    assert bands.square().sum().item() == pytest.approx(x.square().sum().item(), rel=1e-10)
    (adjoint,) = torch.autograd.grad(bands, x, y)
    assert relative(adjoint, idwt3(y, name)) < 1e-12


@pytest.mark.parametrize("mode", pywt.Modes.modes)
def test_gradients(mode):
    x, names = noise(1, 1, 3, 4, 3).requires_grad_(), ("db2", "haar", "bior1.3")
    assert torch.autograd.gradcheck(lambda x: dwt3(x, names, mode), x, fast_mode=True)
    bands = dwt3(x, names, mode).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda b: idwt3(b, names, mode, size=(3, 4, 3)), bands)
    assert torch.autograd.gradcheck(
        lambda x: waverec3(wavedec3(x, "haar", levels=2, mode=mode), "haar", mode),
        x,
        fast_mode=True,
    )


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_and_autocast_are_computed_in_float32(half):
    x = noise(1, 2, 16, 16, 16, dtype=torch.float32)
    expected, pyramid = dwt3(x), wavedec3(x, levels=2)
    with torch.autocast("cpu", dtype=half):
        inside, back = dwt3(x), idwt3(expected)
        deep, up = wavedec3(x, levels=2), waverec3(pyramid)
    for tensor in (inside, back, *deep.details, deep.coarse, up):
        assert tensor.dtype == torch.float32
    assert torch.equal(inside, expected)
    assert torch.equal(deep.coarse, pyramid.coarse)
    assert relative(back, x) < 1e-6
    assert relative(up, x) < 1e-6
    assert torch.equal(dwt3(x.to(half)), dwt3(x.to(half).float()))
    assert torch.equal(idwt3(expected.to(half)), idwt3(expected.to(half).float()))


def test_an_axis_of_one_voxel_cannot_be_reflected():
    x = noise(1, 1, 1, 4, 4)
    for mode in pywt.Modes.modes:
        if mode.endswith("reflect"):
            with pytest.raises(ContractError, match="one voxel"):
                dwt3(x, "haar", mode)
        else:
            assert relative(dwt3(x, "haar", mode), pywt_bands(x, "haar", mode)) < 1e-12


X = noise(1, 1, 7, 8, 8)
HAAR = dwt3(X, "haar")
OWN_FILTERS = pywt.Wavelet("db4", filter_bank=pywt.Wavelet("haar").filter_bank)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *(
            (lambda name=name: dwt3(X, name), "a discrete wavelet of PyWavelets")
            for name in ("db99", "gaus1", "", "morl")
        ),
        (lambda: dwt3(X, "haar", "mirror"), "mode: got 'mirror'"),
        (lambda: idwt3(HAAR, "haar", "mirror"), "mode: got 'mirror'"),
        (lambda: wavedec3(X, levels=0), "levels: got 0"),
        (lambda: idwt3(HAAR, "haar", size=(9, 8, 8)), r"\(8, 8, 8\), or one less"),
        (lambda: idwt3(HAAR, "haar", size=(-1, 8, 8)), "size: got"),
        pytest.param(
            lambda: dwt3(X[0], "haar"), r"volume: got \(1, 7, 8, 8\)", marks=pytest.mark.unchecked
        ),
        pytest.param(
            lambda: dwt3(X + 1j * X, "haar"),
            "volume: got torch.complex",
            marks=pytest.mark.unchecked,
        ),
        (lambda: dwt3(X, OWN_FILTERS), "wavelet: got filters of its own"),
        (
            lambda: waverec3(Pyramid(HAAR[:, :, 0], (HAAR[:, :, 1:],)), "haar", size=(8, 8, 10)),
            "size: got",
        ),
    ],
)
def test_what_cannot_be_transformed_is_refused(call, message):
    with pytest.raises(ContractError, match=message):
        call()


def test_a_wavelet_of_pywt_is_taken_as_its_name():
    assert torch.equal(dwt3(X, pywt.Wavelet("db4")), dwt3(X, "db4"))
