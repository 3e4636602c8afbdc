"""DCD: golden values of the released loss, an independent slow reference, and exact identities."""

from __future__ import annotations

import copy
import io
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import pywt
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dcd_core.dcd import DCD, PUBLISHED, detail_distance, kd_weight
from dcd_core.types import ContractError, Output
from dcd_core.wavelet import BANDS, dwt3, idwt3, taps, wavedec3

GOLDEN = sorted((Path(__file__).parent / "golden" / "released_loss").glob("*.npz"))
ORTHOGONAL = ["haar", "db2", "db4", "sym4", "coif1"]
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


def golden(path):
    """The arrays of one fixture, its student in float64 with a gradient, its options."""
    arrays = dict(np.load(path))
    meta = json.loads(str(arrays.pop("meta")))
    options = {
        "wavelet": meta["wavelet"],
        "levels": meta["levels"],
        "bands": [BANDS[i] for i in meta["bands"]],
        "convention": "released",
    }
    return arrays, options


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)], ids=["f64", "f32"]
)
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_released_loss_and_gradient_are_the_golden_ones(path, dtype, tolerance):
    arrays, options = golden(path)
    student = torch.tensor(arrays["student"], dtype=dtype, requires_grad=True)
    projected = student
    if "projection_weight" in arrays:
        weight, bias = (
            torch.tensor(arrays[f"projection_{part}"], dtype=dtype) for part in ("weight", "bias")
        )
        projected = F.conv3d(student, weight, bias)
    loss = detail_distance(projected, torch.tensor(arrays["teacher"], dtype=dtype), **options)
    loss.backward()
    assert loss.item() == pytest.approx(float(arrays["loss"]), rel=tolerance)
    error = np.abs(student.grad.numpy() - arrays["grad_student"]).max()
    assert error < tolerance * np.abs(arrays["grad_student"]).max()


def test_there_are_nine_golden_cases():
    assert len(GOLDEN) == 9


@pytest.mark.parametrize("size", [(8, 8, 8), (7, 10, 9), (4, 5, 6)])
@pytest.mark.parametrize("wavelet", ["haar", "db3", "coif1", "bior1.3", "rbio2.2"])
def test_released_convention_equals_an_independent_reference(wavelet, size):
    x = noise(2, 2, *size)
    for levels, bands in itertools.product((1, 3), SUBSETS):
        expected = released_reference(x, wavelet, levels, bands)
        found = detail_distance(
            x, zeros(x), wavelet=wavelet, levels=levels, bands=bands, convention="released"
        )
        assert found.item() == pytest.approx(expected.item(), rel=1e-10)


def test_released_gradient_equals_that_of_the_reference():
    x, other = noise(1, 2, 9, 8, 7).requires_grad_(), noise(1, 2, 9, 8, 7, seed=1)
    options = {"wavelet": "db4", "levels": 3, "bands": PUBLISHED}
    found = detail_distance(x, other, convention="released", **options)
    (expected,) = torch.autograd.grad(released_reference(x - other, **options), x)
    assert torch.allclose(torch.autograd.grad(found, x)[0], expected, rtol=0, atol=1e-12)


# --- identities of the orthonormal convention -----------------------------------------------------


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


@pytest.mark.parametrize("wavelet", ORTHOGONAL)
def test_all_bands_of_one_level_are_the_mean_squared_error(wavelet):
    x, y = noise(2, 3, 8, 10, 12), noise(2, 3, 8, 10, 12, seed=1)
    found = detail_distance(x, y, wavelet=wavelet, levels=1, bands=BANDS)
    assert found.item() == pytest.approx(F.mse_loss(x, y).item(), rel=1e-12)


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


def test_an_offset_does_not_drown_detail_in_float32():
    # ||x||^2 - ||aaa||^2 - ||ddd||^2 would be off by hundreds of times the result, and negative.
    x = 100 + 0.1 * noise(1, 4, 32, 32, 32)
    single, double = (
        detail_distance(x.to(dtype), zeros(x).to(dtype)).item()
        for dtype in (torch.float32, torch.float64)
    )
    assert single == pytest.approx(double, rel=1e-4)


@pytest.mark.parametrize("wavelet", ORTHOGONAL)
@pytest.mark.parametrize("bands", [PUBLISHED, ("aad",), BANDS[:7]], ids=len)
def test_coefficient_form_equals_masked_reconstruction_form(wavelet, bands):
    x = noise(1, 2, 16, 8, 12)
    masked = idwt3(dwt3(x, wavelet) * mask(bands), wavelet)
    found = detail_distance(x, zeros(x), wavelet=wavelet, levels=1, bands=bands)
    # pywt's taps of sym4 are orthonormal to ten digits.
    assert found.item() == pytest.approx(masked.square().mean().item(), rel=1e-9)


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


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    size=st.tuples(*[st.integers(4, 11)] * 3),
    wavelet=st.sampled_from(["haar", "db2", "bior2.2"]),
    bands=st.sets(st.sampled_from(BANDS), min_size=1),
    convention=st.sampled_from(["orthonormal", "released"]),
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


@pytest.mark.parametrize("convention", ["orthonormal", "released"])
@pytest.mark.parametrize(
    ("size", "bands"), [((4, 4, 6), PUBLISHED), ((5, 4, 7), ("aad", "ddd"))], ids=["even", "odd"]
)
def test_gradcheck(convention, size, bands):
    x, y = noise(1, 1, *size).requires_grad_(), noise(1, 1, *size, seed=1).requires_grad_()

    def loss(x, y):
        options = {"wavelet": "db2", "levels": 2, "bands": bands, "convention": convention}
        return detail_distance(x, y, **options)

    assert torch.autograd.gradcheck(loss, (x, y))


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
    assert isinstance(model.projections[1], torch.nn.Identity)
    assert model.projections[0].bias is not None
    assert [p for p in model.parameters() if p.requires_grad] == []
    expected = 0.0
    for project, s, t in zip(model.projections, student.stages, teacher.stages, strict=True):
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
    assert model.projections[0].bias is None
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
        assert (model.projections[0].weight.grad is not None) == (kind == "learned")


def test_state_dict_round_trip_and_deepcopy():
    student, teacher = outputs([2, 3], [8, 8]), outputs([4, 4], [8, 8], seed=4)
    torch.manual_seed(0)
    first, second = DCD([2, 3], [4, 4]), DCD([2, 3], [4, 4])
    assert not torch.equal(first(student, teacher), second(student, teacher))
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(first(student, teacher), second(student, teacher))
    twin = copy.deepcopy(first)
    with torch.no_grad():
        twin.projections[0].weight.zero_()
    assert first.projections[0].weight.abs().max() > 0


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
