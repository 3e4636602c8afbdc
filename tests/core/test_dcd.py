"""DCD: golden values of the released loss, PyWavelets as an oracle, and exact identities."""

import math
import subprocess
import sys
from contextlib import nullcontext
from functools import partial

import pytest
import pywt
import torch
import torch.nn.functional as F
from golden import RELEASED, assert_stored
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracles import DISCRETE, orthonormal_loss, released_loss, taps
from outputs import drawn as noise

from dcd_core.dcd import DCD, PUBLISHED, detail_distance
from dcd_core.types import ContractError, Output
from dcd_core.wavelet import BANDS, Pyramid, waverec3

ORTHOGONAL = ["haar", "db2", "db4", "sym5", "coif1"]
WEIGHTINGS = ["resolution", "energy"]
each_convention = pytest.mark.parametrize("convention", ["orthonormal", "released"])
some_bands = st.sets(st.sampled_from(BANDS), min_size=1).map(lambda chosen: tuple(sorted(chosen)))


def zeros(x):
    return torch.zeros_like(x)


def gradients(loss, *tensors):
    """The loss of leaves like `tensors`, a number, and its gradient in each of them."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    value = loss(*leaves)
    value.backward()
    return value.item(), [leaf.grad for leaf in leaves]


def outputs(channels, sizes, *, batch=1, seed=0, dtype=torch.float32):
    """An `Output` with one stage of noise per entry of channels and sizes."""
    stages = tuple(
        noise(batch, c, *([n] * 3 if isinstance(n, int) else n), dtype=dtype, seed=seed + i)
        for i, (c, n) in enumerate(zip(channels, sizes, strict=True))
    )
    return Output(torch.zeros(batch, 2, 1, 1, 1), stages)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)], ids=["f64", "f32"]
)
@pytest.mark.parametrize("path", RELEASED, ids=lambda path: path.stem)
def test_released_loss_and_gradient_are_the_golden_ones(path, dtype, tolerance):
    distance = partial(detail_distance, convention="released")
    assert_stored(path, distance, dtype=dtype, tolerance=tolerance)


def assert_released(size, wavelet, levels, bands, seed):
    x, y = noise(1, 2, *size, seed=seed), noise(1, 2, *size, seed=seed + 1)
    options = {"wavelet": wavelet, "levels": levels, "bands": bands}
    value, found = gradients(
        lambda x, y: detail_distance(x, y, convention="released", **options), x, y
    )
    expected, wanted = gradients(lambda x, y: released_loss(x - y, **options), x, y)
    # Tiny grids lose nearly all energy: what is left is the rounding of sums of order one.
    assert value == pytest.approx(expected, rel=1e-9, abs=1e-16)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-9 * other.abs().max() + 1e-16)
    return value


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    size=st.tuples(*[st.integers(2, 15)] * 3),
    wavelet=st.one_of(
        st.sampled_from(["haar", "db4", "coif1"]),
        st.tuples(*[st.sampled_from(["haar", "db2", "db4", "bior2.2", "rbio3.1"])] * 3),
    ),
    levels=st.integers(1, 4),
    bands=some_bands,
    seed=st.integers(0, 99),
)
def test_released_loss_and_gradient_of_any_case(size, wavelet, levels, bands, seed):
    assert_released(size, wavelet, levels, bands, seed)


def assert_orthonormal(
    size, wavelet, levels, bands, coarse_weight=0.0, level_weighting="resolution", seed=0
):
    x, y, v = (noise(2, 1, *size, seed=seed + shift) for shift in (0, 1, 2))
    options = {"wavelet": wavelet, "levels": levels, "bands": bands, "coarse_weight": coarse_weight}
    options["level_weighting"] = level_weighting
    expected, used = orthonormal_loss(x - y, **options)
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
    up, down = (orthonormal_loss(x - y + sign * v, **options)[0] for sign in (1, -1))
    assert (one * v).sum().item() == pytest.approx((up - down) / 2, rel=1e-8, abs=1e-10)
    assert torch.equal(one, -other)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    size=st.tuples(*[st.integers(1, 24)] * 3),
    wavelet=st.one_of(
        st.sampled_from([*ORTHOGONAL, "bior3.1", "rbio2.4", "dmey"]),
        st.tuples(*[st.sampled_from([*ORTHOGONAL, "bior2.2"])] * 3),
    ),
    levels=st.integers(1, 4),
    bands=some_bands,
    coarse_weight=st.sampled_from([0.0, 0.3]),
    level_weighting=st.sampled_from(WEIGHTINGS),
    seed=st.integers(0, 99),
)
def test_orthonormal_loss_levels_and_gradient_of_any_case(
    size, wavelet, levels, bands, coarse_weight, level_weighting, seed
):
    assert_orthonormal(size, wavelet, levels, bands, coarse_weight, level_weighting, seed)


@pytest.mark.slow
def test_every_discrete_wavelet_in_both_conventions():
    for turn, name in enumerate(DISCRETE):
        # On a grid shorter than the filter the released loss is next to nothing.
        size, names = [5, 4, 3], ["haar", "db2", "haar"]
        size[turn % 3], names[turn % 3] = 2 * taps(name) + turn % 2, name
        assert assert_released(tuple(size), tuple(names), 1, PUBLISHED, turn) > 1e-3
        n = max(taps(name), 12)
        assert_orthonormal((3, n + n % 4, 5), name, 3, BANDS[1:])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(size=st.tuples(*[st.integers(1, 32)] * 3), name=st.sampled_from(ORTHOGONAL))
def test_all_bands_of_one_level_are_the_mean_squared_error(size, name):
    # Periodization keeps the energy of even axes and of those that it leaves alone.
    grid = tuple(n + 1 if n >= taps(name) and n % 2 else n for n in size)
    assume(any(n >= taps(name) for n in grid))
    x, y = noise(2, 1, *grid), noise(2, 1, *grid, seed=1)
    expected = pytest.approx(F.mse_loss(x, y).item(), rel=1e-8)
    options = {"wavelet": name, "levels": 1}
    assert detail_distance(x, y, bands=BANDS, **options).item() == expected
    split = detail_distance(x, y, bands=BANDS[1:], coarse_weight=1.0, **options)
    assert split.item() == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("wavelet", ["haar", "db4", "sym4"])
def test_by_energy_detail_and_coarse_band_are_the_mean_squared_error(wavelet, levels, dtype):
    options = {"wavelet": wavelet, "levels": levels, "level_weighting": "energy"}
    # Every axis is split three times, but for the last of the second grid, which is too short.
    for grid in [(32, 40, 48), (40, 32, 1)]:
        x, y = (noise(2, 2, *grid, seed=seed).to(dtype) for seed in (0, 1))
        loss = partial(detail_distance, bands=BANDS[1:], coarse_weight=1.0, **options)
        value, (gradient, _) = gradients(loss, x, y)
        expected, (wanted, _) = gradients(F.mse_loss, x, y)
        exact = dtype == torch.float64
        assert value == pytest.approx(expected, rel=1e-10 if exact else 1e-5)
        assert (gradient - wanted).abs().max() < (1e-9 if exact else 1e-5) * wanted.abs().max()
        [stage] = DCD(
            [2], [2], projection="none", bands=BANDS[1:], coarse_weight=1.0, **options
        ).per_stage(Output(x, (x,)), Output(y, (y,)))
        assert (stage.distance.item(), stage.levels) == (value, levels)


@pytest.mark.parametrize("wavelet", ["haar", "db4"])
@pytest.mark.parametrize("level", [1, 2, 3])
def test_what_the_energy_of_one_band_counts_at_each_level(wavelet, level):
    """An energy E in band `add` of level l counts 8^(l-1) E / 3 |x_0|, or simply E / |x_0|."""
    details = [torch.zeros(1, 2, 7, n, n, n, dtype=torch.float64) for n in (16, 8, 4)]
    band = details[level - 1][:, :, BANDS.index("add") - 1]
    band.copy_(noise(*band.shape))
    energy = band.square().sum().item()
    x = waverec3(Pyramid(torch.zeros_like(details[-1][:, :, 0]), tuple(details)), wavelet)
    loss = partial(detail_distance, x, zeros(x), wavelet=wavelet)
    by_hand = energy / (2 * 32**3)
    assert loss(level_weighting="energy").item() == pytest.approx(by_hand, rel=1e-10)
    assert loss().item() == pytest.approx(8 ** (level - 1) * by_hand / 3, rel=1e-10)


@pytest.mark.parametrize("wavelet", ["db4", "bior2.2"])
def test_the_weightings_of_a_single_level_are_equal(wavelet):
    x, y = noise(1, 2, 12, 9, 16), noise(1, 2, 12, 9, 16, seed=1)
    one, other = (
        detail_distance(x, y, wavelet=wavelet, levels=1, level_weighting=w) for w in WEIGHTINGS
    )
    assert torch.equal(one, other)


@each_convention
def test_a_gradient_may_be_asked_for_again(convention):
    x, y = noise(1, 2, 12, 12, 12), noise(1, 2, 12, 12, 12, seed=1)
    loss = partial(detail_distance, teacher=y, wavelet="db2", convention=convention)
    value, (one,) = gradients(loss, x)
    leaf = x.clone().requires_grad_()
    first = loss(leaf)
    assert torch.equal(torch.autograd.grad(first, leaf, retain_graph=True)[0], one)
    assert torch.allclose(torch.autograd.grad(3 * first, leaf)[0], 3 * one, rtol=1e-12, atol=0)
    assert torch.equal(leaf, x)
    # Twice the value is the gradient along the difference, as of any quadratic form (Euler).
    assert (one * (x - y)).sum().item() == pytest.approx(2 * value, rel=1e-10)


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
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_half_features_and_autocast_are_compared_in_float32(convention, half):
    x, y = noise(1, 2, 12, 12, 12).to(half), noise(1, 2, 12, 12, 12, seed=1).to(half)
    loss = partial(detail_distance, wavelet="db2", convention=convention)
    expected, (gradient,) = gradients(lambda x: loss(x, y.float()), x.float())
    assert loss(x, y).dtype == torch.float32
    value, (narrow,) = gradients(lambda x: loss(x, y), x)
    assert value == pytest.approx(expected, rel=1e-6)
    assert torch.allclose(narrow.float(), gradient.to(half).float(), rtol=0.01, atol=1e-6)
    with torch.autocast("cpu", dtype=half):
        inside, (same,) = gradients(lambda x: loss(x, y.float()), x.float())
    assert inside == expected
    assert torch.equal(same, gradient)


@each_convention
@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.transpose(2, 4).contiguous().transpose(2, 4),
        lambda x: x.to(memory_format=torch.channels_last_3d),
        lambda x: torch.stack([x, x], dim=-1)[..., 0],
        lambda x: x[:1, :1].expand(2, 3, -1, -1, -1),
    ],
    ids=["transposed", "channels_last_3d", "strided", "broadcast"],
)
def test_memory_layout_changes_neither_loss_nor_gradient(convention, layout):
    x, y = noise(2, 3, 10, 9, 12), noise(2, 3, 10, 9, 12, seed=1)
    loss = partial(detail_distance, wavelet="db2", convention=convention)
    assert not layout(x).is_contiguous()
    expected, wanted = gradients(lambda x, y: loss(layout(x).contiguous(), y), x, y)
    value, found = gradients(lambda x, y: loss(layout(x), y), x, y)
    assert value == pytest.approx(expected, rel=1e-12)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-14)


@each_convention
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_float32_agrees_with_float64_over_many_levels(convention, offset):
    x, y = (offset + noise(1, 1, 64, 48, 32)).float(), noise(1, 1, 64, 48, 32, seed=1).float()
    loss = partial(detail_distance, wavelet="haar", levels=5, convention=convention)
    (single, (one,)), (double, (two,)) = (
        gradients(lambda x, t=t: loss(x, y.to(t)), x.to(t)) for t in (torch.float32, torch.float64)
    )
    # A level multiplies an offset by √8: its rounding meets the detail of a few deep coefficients.
    assert single == pytest.approx(double, rel=3e-4 if offset else 1e-4)
    assert (one - two).abs().max() < (1e-3 if offset else 1e-4) * two.abs().max()


def test_no_value_is_ever_read_back(monkeypatch):
    """Tensors on "meta" have shapes and no values: a read, for which a GPU would wait, raises."""
    real = torch.autocast

    def autocast(device_type, *rest, **options):
        return nullcontext() if device_type == "meta" else real(device_type, *rest, **options)

    monkeypatch.setattr(torch, "autocast", autocast)  # which does not know this device
    monkeypatch.setattr(torch.Tensor, "is_meta", property(lambda _: False))  # which is refused
    for model in (DCD([2, 3], [4, 5]), DCD.released([2, 3], [4, 5])):
        model.to("meta")
        student, teacher = (
            Output(torch.empty(0), tuple(stage.to("meta") for stage in made.stages))
            for made in (outputs([2, 3], [16, 9]), outputs([4, 5], [16, 9]))
        )
        student.stages[0].requires_grad_()
        loss = model(student, teacher)
        loss.backward()
        assert student.stages[0].grad.shape == student.stages[0].shape
        with pytest.raises((RuntimeError, NotImplementedError)):
            loss.item()


COMPILED = """
import torch
from dcd_core.dcd import DCD
from dcd_core.types import Output
student, method = torch.nn.Conv3d(1, 2, 3, padding=1), DCD([2], [3], wavelet="db2")
def loss(x, t):
    features = torch.relu(student(x))
    return 2 * method(Output(features, (features,)), Output(t, (t,)))
compiled = torch.compile(loss, backend="aot_eager")
for batch in (1, 2):  # with another shape
    x, t = torch.randn(batch, 1, 12, 10, 12), torch.randn(batch, 3, 12, 10, 12)
    weights = student.weight, method.adapters[0].weight
    plain, other = loss(x, t), compiled(x, t)
    found = [[value, *torch.autograd.grad(value, weights)] for value in (plain, other)]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
"""


@pytest.mark.slow
def test_a_compiled_model_has_the_same_loss_and_gradient(project):
    # In a process of its own: the tests' type checker is not there for dynamo to trace through.
    command = [sys.executable, "-c", COMPILED]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
        expected += released_loss((project(s) - t).double(), "db4", 3, PUBLISHED).item()
    assert model(student, teacher).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("channels", [(4, 8), (8, 4), (4, 4)], ids=["wider", "narrower", "equal"])
@pytest.mark.parametrize("kind", ["learned", "frozen", "orthogonal"])
def test_projections(kind, channels):
    model = DCD([channels[0]], [channels[1]], projection=kind)
    (weight,) = model.parameters()
    assert weight.shape == (channels[1], channels[0], 1, 1, 1)
    assert weight.requires_grad == (kind == "learned")
    assert model.adapters[0].bias is None
    matrix = weight.detach().flatten(1)
    gram = matrix.T @ matrix if channels[0] <= channels[1] else matrix @ matrix.T
    assert torch.allclose(gram, torch.eye(4), atol=1e-5) == (kind == "orthogonal")
    student = outputs([channels[0]], [8])
    student.stages[0].requires_grad_()
    model(student, outputs([channels[1]], [8], seed=1)).backward()
    assert student.stages[0].grad.abs().max() > 0
    assert (weight.grad is not None) == (kind == "learned")


def test_a_wavelet_per_axis_by_name_or_as_an_object():
    model = DCD([1], [1], wavelet=["haar", pywt.Wavelet("db4"), "db4"], projection="none")
    assert model.wavelet == ("haar", "db4", "db4")
    student, teacher = outputs([1], [(4, 16, 16)]), outputs([1], [(4, 16, 16)], seed=1)
    expected, _ = orthonormal_loss(
        (student.stages[0] - teacher.stages[0]).double(), model.wavelet, 3, PUBLISHED
    )
    assert model(student, teacher).item() == pytest.approx(expected, rel=1e-5)


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
        ({"level_weighting": "energy", "convention": "released"}, "'resolution' in the released"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options, message):
    x = noise(1, 1, 8, 8, 8)
    with pytest.raises(ContractError, match=message):
        detail_distance(x, x, **options)
    with pytest.raises(ContractError, match=message):
        DCD([1], [1], **options)


@each_convention
def test_unequal_or_empty_features_are_refused(convention):
    with pytest.raises(ContractError, match=r"the student's shape \(1, 1, 8, 8, 8\)"):
        detail_distance(noise(1, 1, 8, 8, 8), noise(1, 2, 8, 8, 8), convention=convention)
    with pytest.raises(ContractError, match="a voxel along each axis"):
        detail_distance(torch.zeros(1, 2, 16, 0, 16), torch.zeros(1, 2, 16, 0, 16))
    empty = [(0, 2, 16, 16, 16), (1, 0, 16, 16, 16)]
    if convention == "released":
        # Its synthesis returns an odd axis one voxel short: of one none, and their mean is NaN.
        empty.append((1, 1, 1, 8, 8))
    for shape in empty:
        with pytest.raises(ContractError, match="at least one voxel"):
            detail_distance(torch.zeros(shape), torch.zeros(shape), convention=convention)


@pytest.mark.unchecked
@pytest.mark.parametrize("convention", ["orthonormal", "released"])
def test_features_of_another_rank_or_type_are_refused(convention):
    complex_features = torch.complex(noise(1, 2, 16, 16, 16), noise(1, 2, 16, 16, 16))
    for other in (noise(1, 8, 8, 8), complex_features, noise(1, 2, 8, 8, 8).to_sparse()):
        with pytest.raises(ContractError, match=r"real numbers|expected \(b, c, d, h, w\)"):
            detail_distance(other, other, convention=convention)
