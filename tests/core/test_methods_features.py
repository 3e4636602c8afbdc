"""Methods on encoder features, and controls, against oracles: numpy, scipy, DCD, closed forms."""

import numpy as np
import pytest
import torch
from outputs import noise, output, staged
from scipy.ndimage import gaussian_filter
from scipy.special import rel_entr, softmax

from dcd_core.dcd import DCD, PUBLISHED
from dcd_core.methods import build
from dcd_core.types import Output
from dcd_core.wavelet import BANDS

NARROW, WIDE = (4, 6), (8, 12)


def double(channels, **options):
    return output(channels, dtype=torch.float64, **options)


def pair():
    return double(NARROW), double(WIDE, seed=9)


def made(name, student=NARROW, teacher=WIDE, **options):
    """The method in float64, with the same weights every time."""
    torch.manual_seed(0)
    return build(name, student, teacher, **options).double()


def of_one(name, features, **options):
    """The loss of unadapted features against a teacher of zeros."""
    channels = (features.shape[1],)
    method = made(name, channels, channels, adapters="none", **options)
    return method(staged(features), staged(torch.zeros_like(features))).item()


def adapted(method, student):
    """What the adapters make of the student's stages, by numpy."""
    weights = (a.weight.detach().flatten(1).numpy() for a in method.adapters)
    return [
        np.einsum("ts,bsdhw->btdhw", w, s.numpy())
        for w, s in zip(weights, student.stages, strict=True)
    ]


def differences(method, student, teacher):
    return [a - t.numpy() for a, t in zip(adapted(method, student), teacher.stages, strict=True)]


@pytest.mark.parametrize("name", ["feature-mse", "fitnets"])
def test_regression_is_the_mean_square_per_stage(name):
    method, (student, teacher) = made(name), pair()
    expected = np.mean([np.square(d).mean() for d in differences(method, student, teacher)])
    assert method(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_fitnets_may_standardise_the_teacher_over_batch_and_voxels():
    method, (student, teacher) = made("fitnets", standardise=True), pair()
    expected = []
    for a, t in zip(adapted(method, student), (t.numpy() for t in teacher.stages), strict=True):
        mean, std = (f((0, 2, 3, 4), keepdims=True) for f in (t.mean, t.std))
        expected.append(np.square(a - (t - mean) / std).mean())
    moved = Output(teacher.logits, tuple(100 * t + 7 for t in teacher.stages))
    for same in (teacher, moved):
        assert method(student, same).item() == pytest.approx(np.mean(expected), rel=1e-4)
    assert method(student, staged(*map(torch.ones_like, teacher.stages))).isfinite()


def test_attention_equals_numpy_and_is_a_mean_over_samples():
    method, student, teacher = made("at"), double(NARROW, batch=3), double(WIDE, seed=9, batch=3)
    expected = []
    for both in zip(student.stages, teacher.stages, strict=True):
        maps = [np.square(f.numpy()).mean(1).reshape(3, -1) for f in both]
        s, t = (q / np.linalg.norm(q, axis=1, keepdims=True) for q in maps)
        expected.append(np.square(s - t).sum(1).mean())
    louder = Output(student.logits, tuple(10 * s for s in student.stages))
    for same in (student, louder):
        assert method(same, teacher).item() == pytest.approx(np.mean(expected), rel=1e-10)


def test_attention_survives_an_empty_map():
    student = torch.zeros(1, 3, 2, 2, 2, requires_grad=True)
    value = build("at", (3,), (2,))(staged(student), staged(torch.ones(1, 2, 2, 2, 2)))
    value.backward()
    assert value.item() == pytest.approx(1)
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_cwd_of_features_equals_scipy_and_divides_by_the_teachers_channels(temperature):
    method, (student, teacher) = made("cwd-features", temperature=temperature), pair()
    expected = []
    for a, t in zip(adapted(method, student), teacher.stages, strict=True):
        p, q = (softmax(f.reshape(*f.shape[:2], -1) / temperature, axis=2) for f in (a, t.numpy()))
        expected.append(temperature**2 * rel_entr(q, p).sum() / (2 * t.shape[1]))
    assert method(student, teacher).item() == pytest.approx(np.mean(expected), rel=1e-10)


def without_blur(x, sigma):
    return x - gaussian_filter(x, sigma, mode="reflect", axes=(2, 3, 4))


def above(x, cutoff):
    frequencies = [np.abs(np.fft.fftfreq(n)) >= cutoff for n in x.shape[2:]]
    keep = np.logical_or.reduce(np.meshgrid(*frequencies, indexing="ij"))
    return np.fft.ifftn(np.fft.fftn(x, axes=(2, 3, 4)) * keep, axes=(2, 3, 4)).real


FILTERS = {
    "gaussian-highpass": ("sigma", without_blur, (1.0, 0.4, 3.0)),
    "fourier-highpass": ("cutoff", above, (0.25, 0.1, 0.5)),
}
each_filter = pytest.mark.parametrize("name", FILTERS)


@each_filter
def test_high_pass_equals_the_oracle_applied_to_the_adapted_difference(name):
    option, oracle, widths = FILTERS[name]
    student, teacher = pair()
    for width in widths:
        method = made(name, **{option: width})
        filtered = [oracle(d, width) for d in differences(method, student, teacher)]
        expected = np.mean([np.square(d).mean() for d in filtered])
        assert method(student, teacher).item() == pytest.approx(expected, rel=1e-9)


@each_filter
@pytest.mark.parametrize("size", [(1, 4, 5), (7, 2, 3)])
def test_high_pass_of_odd_and_tiny_grids_by_default(name, size):
    _, oracle, (default, *_) = FILTERS[name]
    x = noise(1, 2, *size, dtype=torch.float64)
    expected = np.square(oracle(x.numpy(), default)).mean()
    assert of_one(name, x) == pytest.approx(expected, rel=1e-9)


def test_coarse_band_finest_band_and_published_bands_add_up_to_the_mse():
    parts = [made(name, levels=1)(*pair()).item() for name in ("aaa-only", "ddd-only", "dcd")]
    assert min(parts) > 0.01
    assert sum(parts) == pytest.approx(made("feature-mse")(*pair()).item(), rel=1e-9)


def test_random_bands_are_drawn_once_and_are_as_many_as_the_published_ones():
    drawn = [build("random-bands", NARROW, WIDE, draw=seed).bands for seed in range(200)]
    assert drawn[3] == build("random-bands", NARROW, WIDE, draw=3).bands
    assert len(set(drawn)) == 27
    assert PUBLISHED not in drawn
    assert all(len(set(bands) & set(BANDS)) == len(PUBLISHED) for bands in drawn)
    assert sum("aaa" in bands for bands in set(drawn)) == 21


def test_random_bands_are_dcd_with_these_bands_and_the_other_options_given():
    options = {"wavelet": "haar", "levels": 2, "stages": [1], "stage_reduction": "sum"}
    options |= {"projection": "none", "convention": "released"}
    control = made("random-bands", WIDE, WIDE, draw=4, **options)
    arguments = double(WIDE), double(WIDE, seed=9)
    same = DCD(WIDE, WIDE, bands=control.bands, **options)
    assert torch.equal(control(*arguments), same(*arguments))
