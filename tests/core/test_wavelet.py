"""Wavelet: equal to PyWavelets for every family, boundary mode and size, and differentiable."""

from __future__ import annotations

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcd_core.types import ContractError
from dcd_core.wavelet import BANDS, Pyramid, dwt3, idwt3, max_level, wavedec3, waverec3

DISCRETE = pywt.wavelist(kind="discrete")
# At least one wavelet of each discrete family, short and long.
WAVELETS = [
    "haar", "db2", "db4", "db8", "sym4", "sym5", "coif1", "coif2",
    "bior1.3", "bior2.2", "bior3.5", "rbio2.4", "dmey",
]  # fmt: skip
ORTHOGONAL = ["haar", "db2", "db4", "sym5", "coif1"]
SIZES = [(8, 8, 8), (9, 7, 5), (6, 11, 16), (2, 3, 2)]
# These two continue a slope beyond the border. Where the filter is longer than the volume, large
# numbers then cancel, and the float32 of PyWavelets itself misses 1e-6 of the result.
EXTRAPOLATING = ("smooth", "antireflect")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


def noise(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def relative(found, expected):
    """Largest difference over the largest expected value."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-300)


def pywt_bands(x, wavelet, mode):
    """(b, c, 8, d', h', w') from pywt, bands in the order of BANDS."""
    bands = pywt.dwtn(x.double().numpy(), wavelet, mode=mode, axes=(2, 3, 4))
    return np.stack([bands[band] for band in BANDS], axis=2)


def pywt_volume(bands, wavelet, mode):
    """(b, c, d, h, w) from pywt, the inverse of `pywt_bands`."""
    there = {band: bands[:, :, i] for i, band in enumerate(BANDS)}
    return pywt.idwtn(there, wavelet, mode=mode, axes=(2, 3, 4))


def largest_summand(x, name, mode):
    """The largest sum of |taps| times |x| in `dwtn`, what rounding errors are measured by."""
    for axis in (2, 3, 4):
        one = np.abs(np.concatenate(pywt.dwt(np.eye(x.shape[axis]), name, mode, axis=0)))
        x = np.moveaxis(np.tensordot(one, np.abs(x), (1, axis)), 0, axis)
    return x.max()


# --- against PyWavelets ---------------------------------------------------------------------------


def test_bands_are_numbered_4d_2h_w():
    assert ["".join("ad"[i >> shift & 1] for shift in (2, 1, 0)) for i in range(8)] == list(BANDS)


def test_wavelets_under_test_cover_every_discrete_family():
    def families(names):
        return {pywt.Wavelet(name).short_family_name for name in names}

    assert families(WAVELETS) == families(pywt.wavelist(kind="discrete"))


@pytest.mark.parametrize("mode", pywt.Modes.modes)
@pytest.mark.parametrize("name", WAVELETS)
def test_one_level_and_back_equal_pywt(name, mode):
    for size in SIZES:
        x = noise(1, 2, *size)
        bands = dwt3(x, name, mode)
        expected = pywt_bands(x, name, mode)
        assert relative(bands, expected) < TOLERANCE[torch.float64]
        back = pywt_volume(expected, name, mode)
        assert relative(idwt3(bands, name, mode), back) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("name", DISCRETE)
def test_every_discrete_wavelet_equals_pywt_in_every_mode(name):
    turn = DISCRETE.index(name)
    for shift, mode in enumerate(pywt.Modes.modes):
        size = SIZES[(turn + shift) % len(SIZES)]
        x = noise(1, 1, *size, seed=turn)
        expected = pywt_bands(x, name, mode)
        bands, back = dwt3(x, name, mode), pywt_volume(expected, name, mode)
        assert relative(bands, expected) < 1e-12, mode
        assert relative(idwt3(bands, name, mode), back) < 1e-12, mode
        # Back exactly as far as pywt: dmey alone is a truncated filter and reconstructs coarsely.
        inside = tuple(slice(0, n) for n in (1, 1, *size))
        oracle = relative(back[inside], x)
        assert abs(relative(idwt3(bands, name, mode, size=size), x) - oracle) < 1e-10, mode
        assert oracle < (0.1 if name == "dmey" else 1e-8), mode


@pytest.mark.parametrize("name", DISCRETE)
def test_every_discrete_wavelet_equals_pywt_in_float32(name):
    turn = DISCRETE.index(name)
    # Three of the nine modes for each wavelet, so that each mode meets every third wavelet.
    for mode in pywt.Modes.modes[turn % 3 :: 3]:
        size = SIZES[turn % len(SIZES)]
        x = noise(1, 1, *size, dtype=torch.float32, seed=turn)
        expected, bands = pywt_bands(x, name, mode), dwt3(x, name, mode)
        assert bands.dtype == torch.float32
        if mode in EXTRAPOLATING:
            error = np.abs(bands.numpy() - expected).max()
            assert error < 1e-6 * largest_summand(x.double().numpy(), name, mode), mode
            continue
        assert relative(bands, expected) < TOLERANCE[torch.float32], mode
        back = idwt3(torch.tensor(expected, dtype=torch.float32), name, mode)
        assert back.dtype == torch.float32
        assert relative(back, pywt_volume(expected, name, mode)) < TOLERANCE[torch.float32], mode


@pytest.mark.parametrize("mode", pywt.Modes.modes)
@pytest.mark.parametrize("name", ["haar", "db4", "sym5", "coif1", "bior3.5", "rbio2.4"])
# pywt warns where a level outgrows the volume; both of us go on.
@pytest.mark.filterwarnings("ignore:Level value of:UserWarning")
def test_pyramid_and_back_equal_pywt(name, mode):
    for size in [(16, 16, 16), (17, 12, 23)]:
        x = noise(1, 1, *size)
        pyramid = wavedec3(x, name, levels=3, mode=mode)
        expected = pywt.wavedecn(x.numpy(), name, mode=mode, level=3, axes=(2, 3, 4))
        assert relative(pyramid.coarse, expected[0]) < TOLERANCE[torch.float64]
        for found, level in zip(pyramid.details, reversed(expected[1:]), strict=True):
            assert relative(found, np.stack([level[b] for b in BANDS[1:]], 2)) < 1e-12
        back = pywt.waverecn(expected, name, mode=mode, axes=(2, 3, 4))
        assert relative(waverec3(pyramid, name, mode), back) < TOLERANCE[torch.float64]
        assert relative(waverec3(pyramid, name, mode, size=size), x) < 1e-10


@pytest.mark.filterwarnings("ignore:Level value of:UserWarning")
@pytest.mark.parametrize("name", ["haar", "db4", "bior2.2", ("haar", "db2", "sym4")], ids=str)
def test_pyramid_in_float32_equals_pywt(name):
    x = noise(2, 1, 17, 12, 23, dtype=torch.float32)
    pyramid = wavedec3(x, name, levels=3, mode="symmetric")
    expected = pywt.wavedecn(x.double().numpy(), name, mode="symmetric", level=3, axes=(2, 3, 4))
    assert relative(pyramid.coarse, expected[0]) < TOLERANCE[torch.float32]
    for found, level in zip(pyramid.details, reversed(expected[1:]), strict=True):
        assert found.dtype == torch.float32
        assert relative(found, np.stack([level[b] for b in BANDS[1:]], 2)) < 1e-6
    assert relative(waverec3(pyramid, name, "symmetric", size=(17, 12, 23)), x) < 1e-6


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


def test_the_order_of_the_axes_matters():
    names, x = ("haar", "db4", "bior2.2"), noise(2, 1, 6, 9, 12)
    assert relative(idwt3(dwt3(x, names), names, size=(6, 9, 12)), x) < 1e-12
    assert not np.allclose(dwt3(x, names), dwt3(x, names[::-1]))


@pytest.mark.parametrize("name", WAVELETS)
def test_max_level_equals_pywt(name):
    for size in [(64, 64, 64), (20, 48, 64), (3, 90, 90), (128, 15, 128)]:
        assert max_level(size, name) == pywt.dwtn_max_level(size, name)
    assert max_level(40, name) == pywt.dwtn_max_level((40, 40, 40), name)


def test_max_level_of_mixed_wavelets_is_that_of_the_shortest_axis():
    assert max_level((8, 64, 64), ("haar", "db4", "db4")) == 3
    assert max_level((8, 64, 64), "db4") == 0


# --- properties -----------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    size=st.tuples(*[st.integers(2, 9)] * 3),
    name=st.sampled_from([name for name in WAVELETS if name != "dmey"]),
    mode=st.sampled_from(pywt.Modes.modes),
)
def test_reconstruction_is_perfect(size, name, mode):
    x = noise(1, 1, *size)
    assert relative(idwt3(dwt3(x, name, mode), name, mode, size=size), x) < 1e-10


@settings(max_examples=20, deadline=None, derandomize=True)
@given(size=st.tuples(*[st.integers(1, 6)] * 3), name=st.sampled_from(ORTHOGONAL))
def test_orthonormal_transform_keeps_energy_on_even_sizes(size, name):
    x = noise(1, 1, *(2 * n for n in size))
    assert dwt3(x, name).square().sum().item() == pytest.approx(x.square().sum().item(), rel=1e-10)


@pytest.mark.parametrize("name", ORTHOGONAL)
def test_inverse_of_an_orthonormal_transform_is_its_adjoint(name):
    x = noise(1, 2, 8, 6, 10).requires_grad_()
    y = noise(1, 2, 8, 4, 3, 5, seed=1)
    inner = (dwt3(x, name) * y).sum()
    (adjoint,) = torch.autograd.grad(inner, x)  # A^T y
    assert inner.item() == pytest.approx((x * adjoint).sum().item(), rel=1e-12)
    assert relative(adjoint, idwt3(y, name)) < 1e-12


@pytest.mark.parametrize("mode", pywt.Modes.modes)
@pytest.mark.parametrize("name", ["db3", "bior2.4", ("haar", "sym4", "rbio1.3")], ids=str)
def test_adjoint(name, mode):
    x, y = noise(1, 1, 5, 6, 9).requires_grad_(), noise(1, 1, 5, 6, 9, seed=1)
    bands = dwt3(x, name, mode)
    other = noise(*bands.shape, seed=2)
    (adjoint,) = torch.autograd.grad(bands, x, other)
    left, right = (dwt3(y, name, mode) * other).sum(), (y * adjoint).sum()
    assert left.item() == pytest.approx(right.item(), rel=1e-11)
    inverse = other.requires_grad_()
    back = idwt3(inverse, name, mode)
    (adjoint,) = torch.autograd.grad(back, inverse, torch.ones_like(back))
    assert back.sum().item() == pytest.approx((inverse * adjoint).sum().item(), rel=1e-11)


def test_transform_is_linear():
    x, y = noise(1, 1, 7, 6, 5), noise(1, 1, 7, 6, 5, seed=1)
    mixed = dwt3(2 * x - 3 * y, "db2", "smooth")
    assert relative(mixed, 2 * dwt3(x, "db2", "smooth") - 3 * dwt3(y, "db2", "smooth")) < 1e-12


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


# --- layouts, precisions and modes of torch -------------------------------------------------------


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.transpose(2, 4).contiguous().transpose(2, 4),
        lambda x: x.to(memory_format=torch.channels_last_3d),
        lambda x: torch.cat([x, x], dim=4)[..., : x.shape[4]],
        lambda x: x[:1].expand(2, -1, -1, -1, -1),
    ],
    ids=["transposed", "channels_last_3d", "sliced", "expanded"],
)
def test_memory_layout_does_not_matter(layout):
    x = noise(2, 3, 6, 7, 8)
    y = layout(x)
    bands = dwt3(y.contiguous(), "db2")
    assert not y.is_contiguous()
    assert relative(dwt3(y, "db2"), bands) < 1e-14
    turned = bands.transpose(3, 5).contiguous().transpose(3, 5)
    assert relative(idwt3(turned, "db2", size=(6, 7, 8)), y) < 1e-12
    coarse, details = wavedec3(y, "db2", levels=2)
    turned = Pyramid(layout(coarse), tuple(d.transpose(3, 4) for d in details))
    turned = turned._replace(details=tuple(d.contiguous().transpose(3, 4) for d in turned.details))
    plain = Pyramid(turned.coarse.contiguous(), details)
    assert relative(waverec3(turned, "db2"), waverec3(plain, "db2")) < 1e-14


def test_gradient_does_not_depend_on_the_memory_layout():
    x, weights = noise(2, 3, 6, 7, 8), noise(2, 3, 8, 3, 4, 4, seed=1)
    plain = x.clone().requires_grad_()
    last = x.to(memory_format=torch.channels_last_3d).requires_grad_()
    turned = x.transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    for leaf in (plain, last, turned):
        (dwt3(leaf, "db2") * weights).sum().backward()
    assert relative(last.grad, plain.grad) < 1e-14
    assert relative(turned.grad, plain.grad) < 1e-14


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
    assert relative(back, x) < TOLERANCE[torch.float32]
    assert relative(up, x) < TOLERANCE[torch.float32]
    assert torch.equal(dwt3(x.to(half)), dwt3(x.to(half).float()))
    assert torch.equal(idwt3(expected.to(half)), idwt3(expected.to(half).float()))


def test_gradient_under_autocast_is_that_of_float32():
    x = noise(1, 2, 8, 8, 8, dtype=torch.float32).requires_grad_()
    (expected,) = torch.autograd.grad(dwt3(x).square().sum(), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = dwt3(x).square().sum()
    assert torch.equal(torch.autograd.grad(loss, x)[0], expected)
    feature = x.detach().bfloat16().requires_grad_()
    dwt3(feature).square().sum().backward()
    assert feature.grad.dtype == torch.bfloat16


def test_training_works_after_first_use_under_inference_mode():
    # Sizes that no other test uses: whatever is kept between calls is made here.
    x = noise(1, 1, 46, 42, 50)
    with torch.inference_mode():
        idwt3(dwt3(x, "sym6"), "sym6")
    x.requires_grad_()
    bands = dwt3(x, "sym6")
    bands.square().sum().backward(retain_graph=True)
    assert relative(x.grad, 2 * x.detach()) < 1e-10
    (through,) = torch.autograd.grad(idwt3(bands, "sym6").sum(), x)
    assert relative(through, np.ones(x.shape)) < 1e-10


def test_a_second_transform_makes_no_matrix_again(monkeypatch):
    x = noise(1, 1, 8, 8, 8)
    first = idwt3(dwt3(x, "db3"), "db3")
    for name in ("dwt", "idwt", "dwtn", "idwtn"):
        monkeypatch.setattr(pywt, name, None)
    for name in ("from_numpy", "tensor", "as_tensor"):  # nor a copy of one to the device
        monkeypatch.setattr(torch, name, None)
    assert torch.equal(idwt3(dwt3(x, "db3"), "db3"), first)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["db99", "gaus1", "", "morl"])
def test_unknown_or_continuous_wavelet_is_refused(name):
    with pytest.raises(ContractError, match="a discrete wavelet of PyWavelets"):
        dwt3(noise(1, 1, 4, 4, 4), name)


def test_two_wavelet_names_are_refused():
    with pytest.raises(ContractError, match=r"one per axis \(D, H, W\)"):
        dwt3(noise(1, 1, 4, 4, 4), ("haar", "db2"))


def test_unknown_mode_is_refused():
    x = noise(1, 1, 4, 4, 4)
    with pytest.raises(ContractError, match="mode: got 'mirror'"):
        dwt3(x, "haar", "mirror")
    with pytest.raises(ContractError, match="mode: got 'mirror'"):
        idwt3(dwt3(x, "haar"), "haar", "mirror")


def test_an_axis_of_one_voxel_cannot_be_reflected():
    x = noise(1, 1, 1, 4, 4)
    for mode in pywt.Modes.modes:
        if mode.endswith("reflect"):
            with pytest.raises(ContractError, match="one voxel"):
                dwt3(x, "haar", mode)
        else:
            assert relative(dwt3(x, "haar", mode), pywt_bands(x, "haar", mode)) < 1e-12


@pytest.mark.parametrize("levels", [0, -1])
def test_levels_below_one_are_refused(levels):
    with pytest.raises(ContractError, match=f"levels: got {levels}"):
        wavedec3(noise(1, 1, 4, 4, 4), levels=levels)


def test_size_beyond_the_reconstruction_is_refused():
    bands = dwt3(noise(1, 1, 7, 8, 8), "haar")
    assert idwt3(bands, "haar").shape == (1, 1, 8, 8, 8)
    with pytest.raises(ContractError, match=r"at most \(8, 8, 8\)"):
        idwt3(bands, "haar", size=(9, 8, 8))
    with pytest.raises(ContractError, match="size of the inverse"):
        waverec3(Pyramid(bands[:, :, 0], (bands[:, :, 1:],)), "haar", size=(8, 8, 10))
