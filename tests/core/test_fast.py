"""What makes the loss fast is equal to its definition: filters, matrices, blocks of channels."""

import copy
import shutil
import sys
from functools import partial

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from outputs import noise
from torch.utils._python_dispatch import TorchDispatchMode

from dcd_core.dcd import DCD, PUBLISHED, detail_distance
from dcd_core.types import Output
from dcd_core.wavelet import BANDS, Selection
from dcd_core.wavelet.energy import energy, usable_levels
from dcd_core.wavelet.fast import filters, gradient, matrices

built = pytest.mark.skipif(
    not filters.serves(torch.empty(0)), reason="dcd_core was installed without a C compiler"
)
each_convention = pytest.mark.parametrize("convention", ["orthonormal", "released"])
some_bands = st.one_of(
    st.sampled_from([PUBLISHED, BANDS[1:], BANDS, ("aaa",), ("ddd",)]),
    st.sets(st.sampled_from(BANDS), min_size=1).map(lambda chosen: tuple(sorted(chosen))),
)


def assert_equal_to_definition(part, x, selection, tolerance, weight):
    leaf = x.double()[None].requires_grad_()
    averaged = selection.level_weighting == "resolution"
    units = x.numel() * (selection.levels if averaged else 1)
    expected = units * energy(leaf, selection)
    (its_gradient,) = torch.autograd.grad(expected / 2, leaf)
    value, found = part(x.clone(), selection)
    assert value.dtype == found.dtype == x.dtype
    # A difference of norms, in which a heavy weight takes its digits.
    assert abs(value.item() - expected.item()) < (10 + weight) * tolerance * (1 + expected.item())
    assert (found - its_gradient[0]).abs().max() < 10 * tolerance * (1 + its_gradient.abs().max())


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    size=st.tuples(*[st.sampled_from([2, 4, 7, 8, 12, 16, 24, 40])] * 3),
    names=st.tuples(*[st.sampled_from(["haar", "db2", "db4", "coif1"])] * 3),
    levels=st.integers(1, 3),
    bands=some_bands,
    coarse_weight=st.sampled_from([0.0, 0.125, 1.0, 7.0, 1e5]),
    weighting=st.sampled_from(["resolution", "energy"]),
    seed=st.integers(0, 9),
)
def test_filters_and_matrices_are_the_definition(
    size, names, levels, bands, coarse_weight, weighting, seed
):
    selection = Selection(names, levels, bands, coarse_weight, "orthonormal", weighting)
    selection = selection._replace(levels=usable_levels(size, selection))
    assume(selection.levels and matrices.is_diagonal(size, selection))
    x = noise(3, *size, seed=seed)
    weight = 8 ** (selection.levels - 1) * max(1.0, coarse_weight)
    assert_equal_to_definition(matrices.energy, x.double(), selection, 1e-13, weight)
    light = min(weight, matrices.HEAVIEST)
    assert_equal_to_definition(matrices.energy, x, selection, 1e-6, light)
    if filters.serves(x):
        assert_equal_to_definition(filters.energy, x, selection, 1e-6, light)


@built
@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    size=st.tuples(*[st.integers(2, 20)] * 3),
    names=st.tuples(*[st.sampled_from(["haar", "db4", "coif1", "bior2.2", "rbio3.1"])] * 3),
    levels=st.integers(1, 3),
    bands=some_bands,
)
def test_released_filters_are_the_definition(size, names, levels, bands):
    selection = Selection(names, levels, bands, 0.0, "released")
    x = noise(3, *size)
    value, found = filters.released(x.clone(), selection)
    expected, wanted = gradient.by_autograd(x.double(), selection)
    # Tiny grids lose nearly all energy: what is left is rounding.
    assert abs(value.item() - expected.item()) < 1e-5 * expected.item() + 1e-5
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max() + 1e-6


def test_orthonormal_axes_are_measured():
    def served(n, name, convention="orthonormal"):
        selection = Selection(("haar", name, "haar"), 1, PUBLISHED, 0.0, convention)
        return matrices.is_diagonal((8, n, 8), selection)

    # An odd axis counts its last sample twice; an axis of 7 is too short for db4 and untouched.
    assert [served(8, "db4"), served(9, "db4"), served(7, "db4")] == [True, False, True]
    assert not any([served(64, "dmey"), served(8, "bior2.2"), served(8, "db4", "released")])


def test_the_filters_are_built_where_there_is_a_compiler():
    if sys.platform == "linux" and shutil.which("cc"):
        assert filters.serves(torch.empty(0))
    assert not filters.serves(torch.empty(0, dtype=torch.float64))
    assert not filters.serves(torch.empty(0, device="meta"))


@built
def test_threads_do_not_change_a_digit():
    x, y = noise(1, 7, 16, 20, 24), noise(1, 7, 16, 20, 24, seed=1)
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            leaf = x.clone().requires_grad_()
            detail_distance(leaf, y).backward()
            found.append(leaf.grad)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, found[0]) for one in found)


@built
@pytest.mark.parametrize("name", ["db2", "db4", "sym4", "db10"])
def test_rounded_taps_tell_a_constant_from_detail(name):
    leaf = torch.full((1, 1, 32, 32, 32), 100.0, requires_grad=True)
    value = detail_distance(leaf, torch.zeros(1, 1, 32, 32, 32), wavelet=name)
    value.backward()
    assert value.item() < 1e-12 * 100**2
    assert leaf.grad.sum().abs() < 5e-6 * 2 * 100  # beside that of plain MSE


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_so(bad):
    x = noise(1, 2, 16, 16, 16)
    x[0, 0, 3, 4, 5] = bad
    assert not detail_distance(x, torch.zeros_like(x)).isfinite()


@pytest.mark.parametrize("filtered", [True, False], ids=["filters", "matrices"])
@pytest.mark.parametrize("wavelet", ["haar", "db4"])
def test_no_weight_is_too_light_or_too_heavy_for_float32(wavelet, filtered, monkeypatch):
    if not filtered:
        monkeypatch.setattr(filters, "serves", lambda x: False)
    # Light: what the deepest level adds to the norm is taken off again, and with it go two of seven
    # digits. Heavy: there is no such detour (HEAVIEST), only rounding.
    for coarse_weight, tolerance in [(1e-3, 1e-5), (1e6, 1e-6)]:
        x = noise(1, 8, 32, 32, 32)
        loss = partial(detail_distance, wavelet=wavelet, coarse_weight=coarse_weight)
        single, double = (loss(z, torch.zeros_like(z)).item() for z in (x, x.double()))
        assert single == pytest.approx(double, rel=tolerance)


def measured(method, student, teacher):
    """The loss and its gradients by the student and by the first projection."""
    leaf = student.clone().requires_grad_()
    method.zero_grad()
    loss = method(Output(leaf, (leaf,)), Output(teacher, (teacher,)))
    loss.backward()
    return loss.detach(), leaf.grad, method.adapters[0].weight.grad.clone()


@each_convention
@pytest.mark.parametrize(("channels", "threads"), [(0.5, 1), (2, 3), (4.5, 2)])
def test_the_loss_is_the_same_whatever_is_worked_on_at_a_time(
    convention, channels, threads, monkeypatch
):
    student, teacher = (noise(2, c, 12, 12, 12, dtype=torch.float64, seed=c) for c in (3, 7))
    method = DCD([3], [7], wavelet="db2", convention=convention).double()
    bias = torch.nn.Parameter(noise(7, dtype=torch.float64))
    method.adapters[0].bias = bias
    monkeypatch.setattr(gradient, "BLOCK_BYTES", {"cpu": 1 << 40})
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    expected = [*measured(method, student, teacher), bias.grad.clone()]
    monkeypatch.setattr(gradient, "BLOCK_BYTES", {"cpu": int(channels * 12**3 * 8 / threads)})
    seen = torch.zeros(2, 7)
    blocks = list(gradient.blocks(teacher, torch.float64))
    for block in blocks:
        seen[block] += 1
    assert len(blocks) > 2
    assert torch.equal(seen, torch.ones(2, 7))
    for one, other in zip([*measured(method, student, teacher), bias.grad], expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-15)


class Largest(TorchDispatchMode):
    """The most numbers that an operator has written at once."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not func.is_view:
            self.numbers = max(self.numbers, result.numel())
        return result


@each_convention
@pytest.mark.parametrize("size", [(48, 48, 48), (47, 48, 48)])
def test_neither_projected_student_nor_difference_exists_as_a_whole(convention, size):
    student, teacher = noise(1, 4, *size).requires_grad_(), noise(1, 16, *size, seed=1)
    method = DCD([4], [16], convention=convention)
    with Largest() as largest:
        method(Output(student, (student,)), Output(teacher, (teacher,))).backward()
    # A zero-padded volume has more coefficients than voxels.
    most = {"orthonormal": 0.5, "released": 0.75}[convention]
    assert student.numel() <= largest.numbers <= most * teacher.numel()


def test_the_gradient_of_a_projection_does_not_drift_in_float32():
    """Its sums run over all voxels, and grow where features are not of mean zero."""
    student, teacher = noise(1, 4, 64, 64, 64) + 0.5, noise(1, 8, 64, 64, 64, seed=1)
    method = DCD((4,), (8,))
    single, double = (
        measured(copy.deepcopy(method).to(t), student.to(t), teacher.to(t))[2].double()
        for t in (torch.float32, torch.float64)
    )
    assert (single - double).abs().max() < 4e-7 * double.abs().max()


@pytest.mark.parametrize(
    ("convention", "weighting"),
    [("orthonormal", "resolution"), ("orthonormal", "energy"), ("released", "resolution")],
)
@pytest.mark.parametrize(
    ("size", "bands"), [((4, 4, 6), PUBLISHED), ((5, 4, 7), ("aad", "ddd"))], ids=["even", "odd"]
)
def test_first_and_second_derivatives_by_every_input(convention, weighting, size, bands):
    double = {"dtype": torch.float64}
    inputs = [noise(1, 2, *size, **double), noise(1, 3, *size, seed=1, **double)]
    inputs += [noise(3, 2, seed=2, **double), noise(3, seed=3, **double)]
    selection = Selection(("db2", "haar", "db2"), 2, bands, 0.0, convention, weighting)

    def loss(*inputs):
        return gradient.distance(*inputs, selection)

    leaves = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(loss, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(loss, leaves, fast_mode=True)


def test_the_gradient_of_a_squared_gradient_keeps_the_part_of_the_loss():
    x, y = (noise(1, 1, 8, 8, 8, dtype=torch.float64, seed=s) for s in (0, 1))
    x.requires_grad_()
    found = []
    for part in (
        detail_distance(x, y),
        energy(x - y, Selection(("db4",) * 3, 1, PUBLISHED, 0.0, "orthonormal")),
    ):
        (first,) = torch.autograd.grad(part + (x**3).mean(), x, create_graph=True)
        found += torch.autograd.grad(first.square().sum(), x)
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-14)
    (cube,) = torch.autograd.grad((x**3).mean(), x, create_graph=True)
    (alone,) = torch.autograd.grad(cube.square().sum(), x)
    assert (found[0] - alone).abs().max() > 1e-4
