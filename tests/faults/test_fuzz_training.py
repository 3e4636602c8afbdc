"""Arguments of any kind for methods, recipes, networks, prediction and training.

Of what is sound the value is required: that of the same method in double precision, of the closed
form. Of the rest it is that, or a ContractError; NaN in the input is never a finite loss.
"""

import json
import math
from dataclasses import asdict, fields

import numpy as np
import pytest
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

from dcd_core import methods, models
from dcd_core.dcd import DCD
from dcd_core.infer import decide, predict
from dcd_core.methods.frequency import FreeKD
from dcd_core.models import Segmenter, dynunet
from dcd_core.train import EMA, Distiller, Recipe
from dcd_core.types import Output

pytestmark = pytest.mark.unchecked

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
        seen = student.logits, teacher.logits, *student.stages, *teacher.stages
        if found is REFUSED or not all(map(is_real, seen)):
            return found
        expected = tried(
            trained(name, **chosen).double(), in_double(student), in_double(teacher), target
        )
        assert expected is not REFUSED
        assert float(found) == pytest.approx(float(expected), rel=2e-2, abs=2e-4, nan_ok=True)
        if value is not None and target is labels:  # NaN everywhere in one of the two is no number
            logits, *stages = (
                torch.full_like(x, value, dtype=torch.float32)
                for x in (student.logits, *student.stages)
            )
            broken = Output(logits, tuple(stages))
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
    fuzzed(names, check, tally, short=100, long=1000)


def test_recipes(tally):
    def check(given):
        recipe = tried(Recipe, **given)
        if recipe is not REFUSED:
            assert Recipe(**json.loads(json.dumps(asdict(recipe)))) == recipe
            assert math.isfinite(recipe.rate(0))
        return recipe

    names = st.sampled_from([field.name for field in fields(Recipe)])
    given = st.dictionaries(names, st.one_of(NUMBERS, ANYTHING), min_size=1, max_size=2)
    fuzzed(given, check, tally, short=100, long=1000)


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
    fuzzed(given, check, tally, short=20, long=100)


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
    fuzzed(st.tuples(images, chosen), check, tally, long=500)


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
