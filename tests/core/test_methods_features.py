"""Methods on encoder features, and controls, against oracles: numpy, scipy, DCD, closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from outputs import noise, output
from scipy.ndimage import gaussian_filter
from scipy.special import rel_entr, softmax

from dcd_core.dcd import DCD, PUBLISHED
from dcd_core.methods import build
from dcd_core.types import ContractError, Output
from dcd_core.wavelet import BANDS

NARROW, WIDE = (4, 6), (8, 12)
STAGED = ("feature-mse", "fitnets", "at", "cwd-features", "gaussian-highpass", "fourier-highpass")
ADAPTING = tuple(name for name in STAGED if name != "at")
NONE = torch.empty(0)


def double(channels, **options):
    return output(channels, dtype=torch.float64, **options)


def made(name, student=NARROW, teacher=WIDE, **options):
    """The method in float64, with the same weights every time."""
    torch.manual_seed(0)
    return build(name, student, teacher, **options).double()


def alone(features):
    """An output with one stage."""
    return Output(NONE.to(features.dtype), (features,))


def adapted(method, student):
    """What the adapters make of the student's stages, by numpy."""
    weights = (a.weight.detach().flatten(1).numpy() for a in method.adapters)
    return [
        np.einsum("ts,bsdhw->btdhw", w, s.numpy())
        for w, s in zip(weights, student.stages, strict=True)
    ]


def differences(method, student, teacher):
    return [a - t.numpy() for a, t in zip(adapted(method, student), teacher.stages, strict=True)]


# --- all ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STAGED)
def test_the_loss_is_the_mean_over_the_chosen_stages(name):
    student, teacher = output(WIDE), output(WIDE, seed=9)
    options = {} if name == "at" else {"adapters": "none"}

    def value(stages):
        return build(name, WIDE, WIDE, stages=stages, **options)(student, teacher).item()

    assert value(None) == pytest.approx((value([0]) + value([1])) / 2)
    assert value([0]) != pytest.approx(value([1]))
    for stages in ([2], [-1], []):
        with pytest.raises(ContractError, match="stages: got"):
            value(stages)


@pytest.mark.parametrize("name", STAGED)
def test_networks_of_unequal_depth_are_refused(name):
    with pytest.raises(ContractError, match="encoder stages: got 1 in the student, 2"):
        build(name, (4,), WIDE)


@pytest.mark.parametrize("name", ADAPTING)
def test_adapters_are_trained_unless_frozen_and_none_needs_equal_channels(name):
    assert [tuple(p.shape[:2]) for p in made(name).parameters()] == [(8, 4), (12, 6)]
    assert all(p.requires_grad for p in made(name).parameters())
    for kind in ("frozen", "orthogonal"):
        assert not any(p.requires_grad for p in made(name, adapters=kind).parameters())
    assert not list(made(name, WIDE, WIDE, adapters="none").parameters())
    assert len(list(made(name, WIDE, WIDE).parameters())) == 2  # equal channels are adapted too
    with pytest.raises(ContractError, match="projection 'none'"):
        made(name, adapters="none")


# --- regression -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["feature-mse", "fitnets"])
def test_regression_is_the_mean_square_per_stage(name):
    method, student, teacher = made(name), double(NARROW), double(WIDE, seed=9)
    expected = np.mean([np.square(d).mean() for d in differences(method, student, teacher)])
    assert method(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_feature_mse_is_dcd_with_all_bands_and_one_level():
    dcd, mse = (
        made(name, **o) for name, o in (("dcd", {"levels": 1, "bands": BANDS}), ("feature-mse", {}))
    )
    arguments = double(NARROW), double(WIDE, seed=9)
    assert mse(*arguments).item() == pytest.approx(dcd(*arguments).item(), rel=1e-9)


def test_fitnets_may_standardise_the_teacher_over_batch_and_voxels():
    method = made("fitnets", standardise=True)
    student, teacher = double(NARROW), double(WIDE, seed=9)
    expected = []
    for a, t in zip(adapted(method, student), (t.numpy() for t in teacher.stages), strict=True):
        mean, std = (f((0, 2, 3, 4), keepdims=True) for f in (t.mean, t.std))
        expected.append(np.square(a - (t - mean) / std).mean())
    assert method(student, teacher).item() == pytest.approx(np.mean(expected), rel=1e-4)
    moved = Output(teacher.logits, tuple(100 * t + 7 for t in teacher.stages))
    assert method(student, moved).item() == pytest.approx(np.mean(expected), rel=1e-4)
    silent = Output(teacher.logits, tuple(torch.ones_like(t) for t in teacher.stages))
    assert method(student, silent).isfinite()


# --- attention ------------------------------------------------------------------------------------


def test_attention_closed_form():
    # All of the student's attention is on one voxel of eight, the teacher's on all alike.
    student = torch.zeros(1, 3, 2, 2, 2)
    student[0, 1, 0, 0, 0] = -5
    found = build("at", (3,), (2,))(alone(student), alone(torch.ones(1, 2, 2, 2, 2)))
    assert found.item() == pytest.approx(2 - 2 / math.sqrt(8))


def test_attention_equals_numpy_and_is_a_mean_over_samples():
    method, student, teacher = made("at"), double(NARROW, batch=3), double(WIDE, seed=9, batch=3)
    expected = []
    for pair in zip(student.stages, teacher.stages, strict=True):
        maps = [np.square(f.numpy()).mean(1).reshape(3, -1) for f in pair]
        s, t = (q / np.linalg.norm(q, axis=1, keepdims=True) for q in maps)
        expected.append(np.square(s - t).sum(1).mean())
    assert method(student, teacher).item() == pytest.approx(np.mean(expected), rel=1e-10)
    louder = Output(student.logits, tuple(10 * s for s in student.stages))
    assert method(louder, teacher).item() == pytest.approx(np.mean(expected), rel=1e-10)


def test_attention_has_nothing_to_train_and_survives_an_empty_map():
    method = build("at", (3,), (2,))
    assert not list(method.parameters())
    student = torch.zeros(1, 3, 2, 2, 2, requires_grad=True)
    found = method(alone(student), alone(torch.ones(1, 2, 2, 2, 2)))
    found.backward()
    assert found.item() == pytest.approx(1)
    assert student.grad.isfinite().all()


# --- channel-wise ---------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_cwd_of_features_equals_scipy_and_divides_by_the_teachers_channels(temperature):
    method = made("cwd-features", temperature=temperature)
    student, teacher = double(NARROW), double(WIDE, seed=9)
    expected = []
    for a, t in zip(adapted(method, student), teacher.stages, strict=True):
        p, q = (softmax(f.reshape(*f.shape[:2], -1) / temperature, axis=2) for f in (a, t.numpy()))
        expected.append(temperature**2 * rel_entr(q, p).sum() / (2 * t.shape[1]))
    assert method(student, teacher).item() == pytest.approx(np.mean(expected), rel=1e-10)


# --- controls: filters without a wavelet ----------------------------------------------------------


def without_blur(x, sigma):
    return x - gaussian_filter(x, sigma, mode="reflect", axes=(2, 3, 4))


def above(x, cutoff):
    frequencies = [np.abs(np.fft.fftfreq(n)) >= cutoff for n in x.shape[2:]]
    keep = np.logical_or.reduce(np.meshgrid(*frequencies, indexing="ij"))
    return np.fft.ifftn(np.fft.fftn(x, axes=(2, 3, 4)) * keep, axes=(2, 3, 4)).real


FILTERS = {
    "gaussian-highpass": ("sigma", without_blur, (0.4, 1.0, 3.0)),
    "fourier-highpass": ("cutoff", above, (0.1, 0.25, 0.5)),
}
each_filter = pytest.mark.parametrize("name", FILTERS)


@each_filter
@pytest.mark.parametrize("turn", range(3))
def test_high_pass_equals_the_oracle_applied_to_the_adapted_difference(name, turn):
    option, oracle, widths = FILTERS[name]
    method, student, teacher = (
        made(name, **{option: widths[turn]}),
        double(NARROW),
        double(WIDE, seed=9),
    )
    filtered = [oracle(d, widths[turn]) for d in differences(method, student, teacher)]
    expected = np.mean([np.square(d).mean() for d in filtered])
    assert method(student, teacher).item() == pytest.approx(expected, rel=1e-9)


@each_filter
@pytest.mark.parametrize("size", [(1, 4, 5), (7, 2, 3)])
def test_high_pass_of_odd_and_tiny_grids(name, size):
    _, oracle, _ = FILTERS[name]
    x = noise(1, 2, *size, dtype=torch.float64)
    default = {"gaussian-highpass": 1.0, "fourier-highpass": 0.25}[name]
    found = made(name, (2,), (2,), adapters="none")(alone(x), alone(torch.zeros_like(x)))
    assert found.item() == pytest.approx(np.square(oracle(x.numpy(), default)).mean(), rel=1e-9)


@each_filter
def test_a_constant_is_no_detail(name):
    x = torch.full((1, 2, 6, 8, 9), 3.0, dtype=torch.float64)
    method = made(name, (2,), (2,), adapters="none")
    assert method(alone(x), alone(torch.zeros_like(x))) < 1e-20


def test_fourier_high_pass_is_the_energy_of_the_spectrum():
    x = noise(1, 2, 8, 8, 8, dtype=torch.float64)
    found = made("fourier-highpass", (2,), (2,), adapters="none")(
        alone(x), alone(torch.zeros_like(x))
    )
    power = np.abs(np.fft.fftn(x.numpy(), axes=(2, 3, 4), norm="ortho")) ** 2
    low = np.abs(np.fft.fftfreq(8)) < 0.25
    power[:, :, *np.ix_(low, low, low)] = 0
    assert found.item() == pytest.approx(power.sum() / x.numel(), rel=1e-12)


def test_the_default_blur_halves_the_power_where_a_first_level_divides():
    wave = torch.cos(torch.arange(64, dtype=torch.float64) * math.pi / 2)
    x = wave.expand(1, 1, 8, 8, 64)
    found = made("gaussian-highpass", (1,), (1,), adapters="none")(
        alone(x), alone(torch.zeros_like(x))
    )
    assert found.item() / x.square().mean().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gaussian-highpass", {"sigma": 0.0}, "sigma: got 0"),
        ("fourier-highpass", {"cutoff": -0.1}, "cutoff: got -0.1"),
        ("fourier-highpass", {"cutoff": 0.6}, "cutoff: got 0.6; expected at most 0.5"),
    ],
)
def test_filters_that_keep_nothing_or_all_are_refused(name, options, message):
    with pytest.raises(ContractError, match=message):
        build(name, NARROW, WIDE, **options)


# --- controls: other bands ------------------------------------------------------------------------


def test_coarse_band_finest_band_and_published_bands_add_up_to_the_mse():
    arguments = double(NARROW), double(WIDE, seed=9)
    parts = [made(name, levels=1)(*arguments).item() for name in ("aaa-only", "ddd-only", "dcd")]
    assert min(parts) > 0.01
    assert sum(parts) == pytest.approx(made("feature-mse")(*arguments).item(), rel=1e-9)


def test_random_bands_are_drawn_once_and_are_as_many_as_the_published_ones():
    drawn = [build("random-bands", NARROW, WIDE, draw=seed).bands for seed in range(200)]
    assert drawn[3] == build("random-bands", NARROW, WIDE, draw=3).bands
    assert len(set(drawn)) == 27
    assert PUBLISHED not in drawn
    assert all(len(set(bands) & set(BANDS)) == len(PUBLISHED) for bands in drawn)
    assert sum("aaa" in bands for bands in set(drawn)) == 21


def test_random_bands_are_dcd_with_these_bands_and_the_other_options_given():
    options = {"wavelet": "haar", "levels": 2, "stages": [1], "stage_reduction": "sum"}
    control = made("random-bands", WIDE, WIDE, projection="none", draw=4, **options)
    arguments = double(WIDE), double(WIDE, seed=9)
    same = DCD(WIDE, WIDE, projection="none", bands=control.bands, **options)
    assert torch.equal(control(*arguments), same(*arguments))
    released = made("random-bands", WIDE, WIDE, projection="none", convention="released", draw=4)
    assert released(*arguments) != made("random-bands", WIDE, WIDE, projection="none", draw=4)(
        *arguments
    )


@pytest.mark.parametrize("name", ["aaa-only", "ddd-only", "random-bands"])
def test_a_control_does_not_let_its_bands_be_chosen(name):
    with pytest.raises(ContractError, match=f"option of {name}: got 'bands'"):
        build(name, NARROW, WIDE, bands=BANDS)
    assert build(name, NARROW, WIDE, wavelet="haar", levels=1).levels == 1
