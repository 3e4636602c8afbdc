"""Arguments of any kind for the public functions of `dcd_core`: the oracle's value, or an error.

Of what was not spoilt the value is required; of the rest it is the oracle's, or a ContractError. No
other error may come, and no number where there is none: NaN in the input is never a finite loss.
"""

import json
import math
from dataclasses import asdict, fields

import numpy as np
import pytest
import pywt
import torch
from fuzz import (
    ANYTHING,
    NUMBERS,
    REFUSED,
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

from dcd_core import methods, models
from dcd_core.dcd import DCD, PUBLISHED, detail_distance, kd_weight
from dcd_core.infer import decide, predict
from dcd_core.methods.frequency import FreeKD
from dcd_core.models import Segmenter, dynunet
from dcd_core.train import EMA, Distiller, Recipe
from dcd_core.types import Output
from dcd_core.wavelet import BANDS, Pyramid, dwt3, idwt3, max_level, wavedec3, waverec3

pytestmark = pytest.mark.unchecked

WAVELETS = st.sampled_from([*EIGHT, ("haar", "db2", "db4"), pywt.Wavelet("db4")])
MODES = st.sampled_from(pywt.Modes.modes)
VOLUMES = mostly(shapes().flatmap(tensors))


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
    fuzzed(given, check, tally, long=1000)


NARROW, WIDE = (2, 3), (3, 3)


@st.composite
def outputs(draw, channels, *, size=8, sound=False):
    """What a network of two stages might say; unless `sound` one tensor may be of any kind."""
    sizes = [(1, 2, size, size, size)]
    sizes += [(1, c, *[size >> i] * 3) for i, c in enumerate(channels)]
    volumes = [draw(tensors(s, sound=True)) for s in sizes]
    if not sound and draw(st.integers(0, 2)) == 0:
        volumes[draw(st.integers(0, len(channels)))] = draw(VOLUMES)
    return Output(volumes[0], tuple(volumes[1:]))


def in_double(out):
    return Output(plain(out.logits), tuple(map(plain, out.stages)))


def trained(name, **chosen):
    torch.manual_seed(0)
    method = methods.build(name, NARROW, WIDE, **chosen)
    if isinstance(method, FreeKD):
        method.trained.fill_(True)
    return method


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_method_in_any_layout(name, tally):
    labels = torch.arange(512).reshape(1, 1, 8, 8, 8) % 2
    targets = mostly(st.just(labels), st.one_of(st.none(), shapes().flatmap(tensors), ANYTHING))

    def check(given):
        student, teacher, target, value = given
        chosen = {"wavelet": "haar"} if "wavelet" in methods.options_of(name) else {}
        method = trained(name, **chosen)
        found = tried(method, student, teacher, target)
        if found is REFUSED or not all(map(is_real, (*student.stages, *teacher.stages))):
            return found
        expected = tried(
            trained(name, **chosen).double(), in_double(student), in_double(teacher), target
        )
        assert expected is not REFUSED
        assert float(found) == pytest.approx(float(expected), rel=2e-2, abs=2e-4, nan_ok=True)
        if value is not None and target is labels:  # NaN everywhere in one of the two is no number
            broken = Output(
                *(torch.full_like(student.logits, value) for _ in range(1)),
                tuple(torch.full_like(stage, value) for stage in student.stages),
            )
            nothing = tried(method, broken, teacher, target)
            assert nothing is REFUSED or not math.isfinite(float(nothing))
        return found

    values = st.sampled_from([None, math.nan, math.inf])
    fuzzed(
        st.tuples(outputs(NARROW), outputs(WIDE), targets, values), check, tally, short=5, long=100
    )


def test_options_of_every_method(tally):
    def check(given):
        name, widths, chosen = given
        method = tried(methods.build, name, *widths, **chosen)
        if method is not REFUSED:
            json.dumps([p.shape for p in method.parameters()])
        return method

    known = {name: methods.options_of(name) for name in methods.METHODS}
    odd = {o: st.one_of(NUMBERS, ANYTHING) for o in {x for xs in known.values() for x in xs}}
    names = st.sampled_from([*methods.METHODS]).flatmap(
        lambda n: st.tuples(
            mostly(st.just(n)),
            st.tuples(*[mostly(st.just(WIDE))] * 2),
            st.fixed_dictionaries({}, optional={o: odd[o] for o in known[n]}),
        )
    )
    fuzzed(names, check, tally, short=100, long=3000)


def test_recipes(tally):
    def check(given):
        recipe = tried(Recipe, **given)
        if recipe is not REFUSED:
            assert Recipe(**json.loads(json.dumps(asdict(recipe)))) == recipe
            assert math.isfinite(recipe.rate(0))
        return recipe

    names = st.sampled_from([field.name for field in fields(Recipe)])
    given = st.dictionaries(names, st.one_of(NUMBERS, ANYTHING), min_size=1, max_size=2)
    fuzzed(given, check, tally, short=100, long=3000)


NETWORKS = {
    "dynunet": {"channels": [(2, 2, 2)], "residual": [True, False]},
    "resenc": {"channels": [(2, 3)], "blocks": [None, (1, 1)], "deep_supervision": [True, False]},
    "planned": {"channels": [(2, 2)], "network": ["PlainConvUNet"], "options": [{}]},
    "unet": {},
}


def test_networks_of_any_description(tally):
    def check(given):
        name, counts, chosen = given
        known = NETWORKS.get(name, {}) if isinstance(name, str) else {}
        small = {option: known[option][0] for option in ("channels",) if option in known}
        model = tried(models.build, name, *counts, **small | chosen)
        if model is not REFUSED:
            image = torch.zeros(1, model.spec["in_channels"], 8, 8, 8)
            assert len(model(image).stages) == len(model.channels)
            assert json.loads(json.dumps(model.spec)) == model.spec
        return model

    small = st.one_of(st.integers(-1, 3), ANYTHING.filter(lambda x: not isinstance(x, np.ndarray)))
    given = st.sampled_from([*NETWORKS]).flatmap(
        lambda n: st.tuples(
            mostly(st.just(n)), st.tuples(*[mostly(st.just(2), small)] * 2), options(NETWORKS[n])
        )
    )
    fuzzed(given, check, tally, short=20, long=200)


def voxelwise():
    """A network whose logits are twice the image and minus it."""
    conv = torch.nn.Conv3d(1, 2, 1, bias=False)
    conv.weight.data = torch.tensor([2.0, -1.0])[:, None, None, None, None]
    return Segmenter(conv, [""], [2])


def test_predictions(tally):
    model = voxelwise()

    def check(given):
        image, chosen = given
        found = tried(
            predict, model, image, **{"patch": (4, 4, 4), "precision": "32-true", **chosen}
        )
        if found is not REFUSED:
            array = image.detach().float().numpy() if isinstance(image, torch.Tensor) else image
            x = np.asarray(array, np.float32)
            logits = torch.from_numpy(np.concatenate([2 * x, -x])).softmax(0)
            assert torch.allclose(found, logits, atol=1e-3)
        return found

    kinds = st.sampled_from(["f4", "f8", "f2", ">f4", "i2", "u1", "?", "c8", "O", "U3"])
    arrays = st.tuples(shapes(4, 6).map(lambda s: (1, *s[1:])), kinds).map(
        lambda given: np.random.default_rng(0).integers(0, 2, given[0]).astype(given[1])
    )
    images = st.one_of(arrays, shapes(4, 6).map(lambda s: (1, *s[1:])).flatmap(tensors), ANYTHING)
    chosen = options(
        {
            "patch": [(4, 4, 4), (3, 5, 2)],
            "overlap": [0.0, 0.5],
            "batch": [1, 3],
            "mirror": [False, True],
            "precision": ["32-true", "auto"],
        }
    )
    fuzzed(st.tuples(images, chosen), check, tally, long=1000)


def test_decisions_and_averages(tally):
    def check(given):
        probability, threshold, decay = given
        label = tried(decide, np.array([[[[1 - probability]]], [[[probability]]]]), threshold)
        if label is not REFUSED:
            assert label.item() == int(probability > threshold)
            assert math.isfinite(probability)
        return tried(EMA, torch.nn.Linear(1, 1), decay)

    odd = st.one_of(NUMBERS, ANYTHING)
    values = st.one_of(st.floats(0, 1), st.sampled_from([math.nan, math.inf]))
    given = st.tuples(values, mostly(st.floats(0, 1), odd), mostly(st.floats(0, 0.9), odd))
    fuzzed(given, check, tally)


def test_batches_to_train_on(tally):
    made = Distiller(
        dynunet(1, 2, channels=(2, 2, 2)),
        dynunet(1, 2, channels=(2, 2, 2)),
        DCD((2, 2, 2), (2, 2, 2), wavelet="haar"),
    )

    def check(given):
        image, target = given
        losses = tried(made, image, target, distil=True)
        if losses is not REFUSED:
            assert target.min() >= 0
            assert target.max() <= 1
            assert target.shape == image.shape
        return losses

    images = mostly(st.just((1, 1, 8, 8, 8)).flatmap(tensors), VOLUMES)
    labels = st.integers(0, 3).map(
        lambda n: torch.arange(512).reshape(1, 1, 8, 8, 8) % (n + 1) - n // 3
    )
    fuzzed(st.tuples(images, mostly(labels, VOLUMES)), check, tally)
