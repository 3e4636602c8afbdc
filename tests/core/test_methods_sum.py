"""Several methods at once: each part is what it is alone, and pulls as hard as it would alone."""

import copy
from dataclasses import replace

import pytest
import torch
from outputs import labels, leaves, output
from torch import nn
from training import CHANNELS, TINY, WIDE, Batches, Interrupted, distiller, run

from dcd_core.method import Method
from dcd_core.methods import Sum, build
from dcd_core.train.balance import encoder_parameters, gradient_ratio
from dcd_core.train.loop import Run
from dcd_core.types import ContractError

OPTIONS = {"dcd": {"wavelet": "haar"}}


def made(name="logits + dcd", **options):
    torch.manual_seed(0)
    return build(name, CHANNELS, WIDE, **{**OPTIONS, **options})


def test_the_losses_are_those_of_the_parts_alone():
    both, arguments = made(), (leaves(output(CHANNELS)), output(WIDE, seed=9), labels())
    losses = both(*arguments)
    for part, loss in zip(both.parts, losses, strict=True):
        assert torch.equal(loss, part(*arguments))
    assert [type(part).__name__ for part in both.parts] == ["LogitsKD", "DCD"]
    assert (both.needs_teacher, both.needs_logits, both.regions) == (True, True, False)
    assert not Sum([build("dcd", CHANNELS, WIDE)]).needs_logits
    made(dcd={"levels": 2, "wavelet": "haar"}, logits={"temperature": 4.0})


def test_each_part_is_balanced_by_its_own_gradient(tmp_path):
    """One step with a sum is one with the gradients of both parts, each at a fifth."""
    recipe = replace(TINY, kd_start=0.0, kd_ramp=0.0, clip=1e9, optimizer="sgd", weight_decay=0.0)
    training = Run(distiller(made()), recipe, tmp_path)
    training.start(Batches(recipe))
    before = copy.deepcopy(training.distiller)
    training.advance(Batches(recipe))
    image, target = Batches(recipe)[0]
    losses = before(image, target, distil=True)
    encoder = encoder_parameters(before.student, image)
    ratios = [gradient_ratio(losses.segmentation, part, encoder) for part in losses.distillation]
    assert training.state.ratios == pytest.approx(ratios, rel=1e-4)
    assert ratios[0] != pytest.approx(ratios[1], rel=0.1)
    total = losses.segmentation + sum(
        0.2 * ratio * part for ratio, part in zip(ratios, losses.distillation, strict=True)
    )
    total.backward()
    for one, other in zip(training.distiller.trainable(), before.trainable(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-6)


def test_a_history_has_the_columns_of_every_part_and_goes_on_after_an_interruption(tmp_path):
    whole = run(tmp_path / "a", method=made())
    with pytest.raises(Interrupted):
        run(tmp_path / "b", method=made(), fail_at=5)
    resumed = run(tmp_path / "b", method=made())
    for of in ("", "_2"):
        late = whole.history[whole.history.step > 5]
        assert (late["relative_weight" + of] > 0).all()
        assert late["distillation" + of].notna().all()
        columns = [name + of for name in ("distillation", "weight", "relative_weight")]
        assert whole.history[columns].equals(resumed.history[columns])
    assert late.relative_weight.to_numpy() == pytest.approx(late.relative_weight_2.to_numpy())
    assert any(name.startswith("parts.1.") for name in whole.method)


class Taught(Method):
    """A method that counts the batches it is prepared on."""

    def __init__(self, regions=None):
        super().__init__()
        self.regions, self.seen = regions, 0

    def prepare(self, teacher, batches):
        self.seen = len(list(batches))


@pytest.mark.unchecked
def test_all_parts_are_prepared_on_all_batches():
    parts = [Taught(), Taught()]
    Sum(parts).prepare(nn.Identity(), iter([(torch.zeros(1), torch.zeros(1))] * 3))
    assert [part.seen for part in parts] == [3, 3]


def test_what_makes_no_sum_is_refused():
    for name, options, said in (
        ("logits + dcb", {}, "'dcd'"),
        ("dcd + dcd", {}, "dcd twice"),
        ("logits + ", {}, "part of"),
        ("logits + at", {"dcd": {}}, "option of 'logits \\+ at'"),
        ("logits + dcd", {"dcd": 2}, "options by part"),
        ("logits + dcd", {"dcd": {"level": 2}}, "'levels'"),
    ):
        with pytest.raises(ContractError, match=said):
            build(name, CHANNELS, WIDE, **options)
    with pytest.raises(ContractError, match="logits of the parts"):
        Sum([Taught(True), Taught(False)])
