"""Train: closed forms of the recipe, who owns which tensor, a loop that survives interruption."""

from __future__ import annotations

import ast
import copy
import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from training import CHANNELS, TINY, VAL, WIDE, Batches, Interrupted, distiller, run

from dcd_core import methods, models
from dcd_core.dcd import DCD, kd_weight
from dcd_core.models import dynunet, resenc
from dcd_core.train import EMA, Distiller, Recipe, diverged, fit, read_fit, segmentation_loss
from dcd_core.train.balance import encoder_parameters, gradient_ratio, smoothed
from dcd_core.train.distiller import Losses
from dcd_core.types import ContractError, Output


def same_weights(one, two):
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# --- recipe ---------------------------------------------------------------------------------------


def test_every_recipe_field_is_read(project):
    """Some line that trains takes the field from a recipe; the checks of its range do not count."""
    read = set()
    for path in [*project.glob("dcd_core/train/*.py"), *project.glob("dcd_lab/experiments/*.py")]:
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
                node.body = []
        attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        owners = ("recipe", "self") if path.name == "recipe.py" else ("recipe",)
        read |= {node.attr for node in attributes if ast.unparse(node.value).endswith(owners)}
    assert {field.name for field in dataclasses.fields(Recipe)} <= read


def test_learning_rate_warms_up_then_falls():
    recipe = Recipe(steps=110, warmup=10, learning_rate=1e-2)
    assert [recipe.rate(s) for s in (0, 4, 9, 10)] == pytest.approx([1e-3, 5e-3, 1e-2, 1e-2])
    assert recipe.rate(35) == pytest.approx(1e-2 * (1 + math.sqrt(0.5)) / 2)
    assert recipe.rate(110) == pytest.approx(0, abs=1e-18)
    poly = Recipe(steps=100, warmup=0, learning_rate=1e-2, schedule="poly")  # that of nnU-Net
    for step in (0, 25, 99):
        assert poly.rate(step) == pytest.approx(1e-2 * (1 - step / 100) ** 0.9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps: got 0; expected a whole number, at least 1"),
        pytest.param({"steps": 2.5}, "steps: got 2.5", marks=pytest.mark.unchecked),
        pytest.param({"batch": "2"}, "batch: got '2'", marks=pytest.mark.unchecked),
        pytest.param(
            {"learning_rate": None}, "learning_rate: got None", marks=pytest.mark.unchecked
        ),
        pytest.param({"patch": (8, 8.5, 8)}, "patch: got", marks=pytest.mark.unchecked),
        ({"seed": -1}, "seed: got -1"),
        ({"patch": (8, 8, 0)}, "patch: got"),
        ({"learning_rate": math.inf}, "learning_rate: got inf; expected a finite number above 0"),
        ({"kd_peak": math.nan}, "kd_peak: got nan"),
        ({"kd_peak": -0.1}, "kd_peak: got -0.1"),
        ({"foreground": 1.1}, "foreground: got 1.1"),
        ({"ema": 1.0}, r"ema: got 1.0; expected a share in \[0, 1\)"),
        ({"overlap": 1.5}, "overlap: got 1.5.*Try: the default of `overlap`"),
        ({"kd_start": 0.8, "kd_ramp": 0.3}, "sum of at most 1"),
        ({"optimizer": "adam"}, "optimizer: got 'adam'.*'adamw' or 'sgd'"),
        ({"precision": "16-mixed"}, "precision: got '16-mixed'"),
    ],
    ids=str,
)
def test_recipes_out_of_range_are_refused(change, message):
    # Past the type checker, as a params file would come.
    recipe = copy.copy(Recipe())
    for field, value in change.items():
        object.__setattr__(recipe, field, value)
    with pytest.raises(ContractError, match=message):
        recipe.__post_init__()


# --- averaged weights -----------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.15, 0.99])
def test_ema_closed_form(decay):
    model = nn.Linear(1, 1, bias=False)
    average = nn.init.constant_(model.weight, 1.0).item()
    ema = EMA(model, decay)
    for t, value in enumerate([3.0, -2.0, 5.0, 0.5]):
        nn.init.constant_(model.weight, value)
        ema.update(model)
        d = min(decay, (1 + t) / (10 + t))
        average = d * average + (1 - d) * value
        assert ema.model.weight.item() == pytest.approx(average, rel=1e-6)


def test_ema_averages_shared_modules_once():
    # DynUNet holds its blocks under two names in its state dict.
    model = dynunet(1, 2, channels=CHANNELS)
    names = model.state_dict()
    assert len(names) > len({value.data_ptr() for value in names.values()})
    ema = EMA(model, 0.99)
    start = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    ema.update(model)
    for before, after in zip(start, ema.model.parameters(), strict=True):
        assert torch.allclose(after, before + 0.9, rtol=0, atol=1e-6)
    assert not any(p.requires_grad for p in ema.model.parameters())
    assert not ema.model.training


def test_ema_copies_buffers_counters_included():
    model = nn.BatchNorm3d(2)
    ema = EMA(model, 0.99)
    model.train()(torch.randn(2, 2, 4, 4, 4) + 5)
    ema.update(model)
    assert torch.equal(ema.model.running_mean, model.running_mean)
    assert ema.model.num_batches_tracked.item() == 1


# --- the distiller --------------------------------------------------------------------------------


def test_everything_but_the_teacher_is_trained_adapters_included():
    made = distiller().train()
    listed = {id(p) for p in made.trainable()}
    assert listed == {id(p) for p in [*made.student.parameters(), *made.method.parameters()]}
    assert len(made.method.adapters) == 3
    assert made.student.training
    assert made.method.training
    assert not any(module.training for module in made.teacher.modules())
    assert not made.eval().student.training
    frozen = distiller(DCD(CHANNELS, WIDE, wavelet="haar", projection="frozen"))
    assert {id(p) for p in frozen.trainable()} == {id(p) for p in frozen.student.parameters()}


def test_trained_state_leaves_the_teacher_out_and_comes_back():
    made, other = distiller(), distiller(seed=1)
    state, teacher = made.trained_state(), copy.deepcopy(other.teacher)
    other.load_trained_state(state)
    assert same_weights(other.student, made.student)
    assert same_weights(other.method, made.method)
    assert same_weights(other.teacher, teacher)
    with pytest.raises(KeyError, match="differ"):
        distiller("none").load_trained_state(state)
    with pytest.raises(KeyError, match="differ"):
        distiller().load_trained_state({k: v for k, v in state.items() if "method" not in k})


@pytest.mark.parametrize("which", [0, 1], ids=["student", "teacher"])
def test_logits_of_regions_are_not_read_as_those_of_classes(which):
    """And the other way round: the number of channels is the same, but each is a sigmoid."""
    pair = [dynunet(1, 2, channels=channels) for channels in (CHANNELS, WIDE)]
    of_classes, of_regions = (
        methods.build("logits", CHANNELS, WIDE, regions=regions) for regions in (False, True)
    )
    pair[which].regions = True
    with pytest.raises(ContractError, match="got overlapping regions"):
        Distiller(*pair, of_classes)
    with pytest.raises(ContractError, match="got classes of one softmax; expected overlapping"):
        Distiller(*pair, of_regions)
    Distiller(*pair, DCD(CHANNELS, WIDE))  # reads no logits
    pair[1 - which].regions = True
    assert Distiller(*pair, of_regions).method is of_regions


def test_losses_are_those_of_student_and_method():
    made = distiller()
    image, target = Batches()[0]
    losses = made(image, target, distil=True)
    student = made.student(image)
    assert torch.equal(losses.segmentation, segmentation_loss()(student.logits, target))
    teacher = Output(torch.empty(0), made.teacher(image).stages)
    assert torch.equal(losses.distillation, made.method(student, teacher))
    assert made(image, target, distil=False) == Losses(losses.segmentation, None)
    assert distiller("none")(image, target, distil=True).distillation is None


def test_deep_supervision_halves_the_weight_of_every_coarser_head():
    student = resenc(1, 2, channels=(2, 2, 4), blocks=(1, 1, 1), deep_supervision=True).train()
    image, target = Batches()[0]
    out, loss = student(image), segmentation_loss()
    coarse = loss(out.deep[0], target[:, :, ::2, ::2, ::2])
    for weight in (0.5, 0.0, 2.0):
        made = Distiller(student, deep_weights=weight)(image, target, distil=False)
        expected = (loss(out.logits, target) + weight * coarse) / (1 + weight)
        assert made.segmentation.item() == pytest.approx(expected.item(), rel=1e-5)


class Logits(methods.Method):
    """A method of logits."""

    needs_logits = True

    def distance(self, student, teacher, target):
        return (student.logits - teacher.logits).square().mean()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dcd", Logits()], ids=["features", "logits"])
def test_teacher_runs_only_while_it_counts_and_only_as_far_as_needed(method, tmp_path):
    made = distiller(method)
    calls, before = [], copy.deepcopy(made.teacher)
    for name in ("input_block", "output_block"):
        part = made.teacher.network.get_submodule(name)
        part.register_forward_hook(lambda *_, name=name: calls.append(name))
    fit(made, Batches(), VAL, TINY, run_dir=tmp_path)
    # Steps 0 to 7, weight 0 until step 2 and still 0 there: the cosine starts at 0.
    running = sum(kd_weight(step, peak=0.2, start=2, ramp=2) > 0 for step in range(8))
    assert running == 5
    assert calls.count("input_block") == running
    assert calls.count("output_block") == (running if method != "dcd" else 0)
    assert same_weights(made.teacher, before)


# --- the loop -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One uninterrupted run that many tests look at: its folder, its distiller, its result."""
    folder, made = tmp_path_factory.mktemp("whole"), distiller()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    result = fit(made, Batches(), VAL, TINY, run_dir=folder)
    assert torch.equal(torch.get_rng_state(), before)  # the global generator is left alone
    return folder, made, result


def same_run(one, two):
    assert same_weights(one.student, two.student)
    assert (one.threshold, one.val_dice) == (two.threshold, two.val_dice)
    columns = [name for name in one.history if name != "seconds"]
    pd.testing.assert_frame_equal(one.history[columns], two.history[columns], rtol=1e-5)


@pytest.mark.slow
def test_fit_writes_and_returns_one_whole_run(whole):
    folder, made, result = whole
    files = ["fit.json", "history.csv", "method.safetensors", "student.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == files
    history = result.history
    assert list(history["step"]) == list(range(1, 9))
    assert list(history["learning_rate"]) == pytest.approx([TINY.rate(s) for s in range(8)])
    assert history["distillation"].isna().tolist() == [True] * 3 + [False] * 5
    for column in ("weight", "relative_weight"):
        assert (history[column][:3] == 0).all()
        assert (history[column][3:] > 0).all()
    # The relative weight that was asked for, whatever the loss.
    assert history["relative_weight"].max() == pytest.approx(TINY.kd_peak, rel=1e-4)
    assert (history["gradient_norm"] > 0).all()
    assert not result.student.training
    assert 0 < result.threshold < 1
    assert 0 <= result.val_dice <= 1
    facts = json.loads((folder / "fit.json").read_text("utf-8"))
    assert Recipe(**{**facts["recipe"], "patch": tuple(facts["recipe"]["patch"])}) == TINY
    # Student and method are trained; the method is kept as the last step left it.
    for now, then in zip(made.trainable(), distiller().trainable(), strict=True):
        assert not torch.equal(now, then)
    for kept in (result.method, read_fit(folder).method):
        again = distiller().method
        again.load_state_dict(kept)
        assert same_weights(again, made.method)


@pytest.mark.slow
def test_a_finished_run_is_read_back_without_training(whole):
    folder, _, result = whole
    for again in (run(folder, fail_at=0), read_fit(folder)):
        same_run(result, again)
    other = dataclasses.replace(TINY, learning_rate=1e-3)
    with pytest.raises(ContractError, match="made by another recipe"):
        run(folder, other)


class Masked(nn.Module):
    """A method that draws at random, as masked distillation does."""

    def forward(self, student, teacher, target):
        keep = torch.rand_like(student.stages[0]) < 0.5
        return (student.stages[0] * keep).square().mean()


@pytest.mark.slow
@pytest.mark.parametrize(("method", "fail_at"), [("dcd", 1), ("dcd", 7), (Masked(), 4)], ids=str)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_by_bit(method, fail_at, whole, tmp_path):
    expected = whole[2] if method == "dcd" else run(tmp_path / "whole", method=method)
    folder = tmp_path / "cut"
    with pytest.raises(Interrupted):
        run(folder, method=method, fail_at=fail_at)
    # A checkpoint every third step; before the first there is none.
    assert (folder / "checkpoint.pt").is_file() == (fail_at >= 3)
    same_run(expected, run(folder, method=method, ambient=17))
    assert not (folder / "checkpoint.pt").exists()


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """The folder of a run that was lost at step 4, with the checkpoint of step 3."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(Interrupted):
        run(folder, fail_at=4)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", 0.5], ids=["empty", "text", "half"])
def test_a_damaged_checkpoint_is_refused_and_kept(damage, interrupted, tmp_path):
    content = (interrupted / "checkpoint.pt").read_bytes()
    before = content[: len(content) // 2] if damage == 0.5 else damage
    (tmp_path / "checkpoint.pt").write_bytes(before)
    with pytest.raises(ContractError, match=r"checkpoint\.pt, unreadable"):
        run(tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.slow
def test_a_run_without_its_student_is_trained_again_and_a_changed_one_is_refused(tmp_path):
    expected = run(tmp_path)
    (tmp_path / "student.safetensors").unlink()
    (tmp_path / ".checkpoint.pt.half.pt").touch()  # as a killed process leaves it
    same_run(expected, run(tmp_path))
    assert not list(tmp_path.glob(".*"))
    facts = (tmp_path / "fit.json").read_text("utf-8")
    (tmp_path / "fit.json").write_text(
        facts.replace('"threshold": 0.', '"threshold": 0.0'), "utf-8"
    )
    with pytest.raises(ContractError, match=r"was changed or removed.*Try: removing that folder"):
        run(tmp_path)
    (tmp_path / "fit.json").write_text(facts, "utf-8")
    (tmp_path / "method.safetensors").unlink()
    with pytest.raises(ContractError, match="was changed or removed"):
        read_fit(tmp_path)


@pytest.mark.slow
def test_a_checkpoint_of_another_recipe_or_other_networks_is_refused(interrupted):
    with pytest.raises(ContractError, match="made by another recipe"):
        run(interrupted, dataclasses.replace(TINY, learning_rate=1e-3))
    with pytest.raises(ContractError, match="of another student or method"):
        run(interrupted, method="none")
    with pytest.raises(ContractError, match="of another student or method"):
        run(interrupted, method=DCD(CHANNELS, WIDE, wavelet="haar", projection="frozen"))


@pytest.mark.slow
def test_a_fresh_start_forgets_the_older_run(tmp_path):
    run(tmp_path)
    with pytest.raises(Interrupted):
        run(tmp_path, method="none", fail_at=1, resume=False)
    with pytest.raises(ContractError, match="no finished run"):
        read_fit(tmp_path)
    result = fit(distiller("none"), Batches(), [], TINY, run_dir=tmp_path)
    assert result.method == read_fit(tmp_path).method == {}
    # Without val cases the decision is one half.
    assert result.threshold == 0.5
    assert math.isnan(read_fit(tmp_path).val_dice)


class NotANumber(nn.Module):
    """A loss that is not finite."""

    def forward(self, student, teacher, target):
        return student.stages[0].sum() * math.nan


class Cusp(nn.Module):
    """A finite loss, 0, whose gradient is not finite: the root of 0."""

    def forward(self, student, teacher, target):
        return (0 * student.stages[0]).abs().sqrt().sum()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "value", "balance"), [(NotANumber(), "nan", "gradient"), (Cusp(), "0.0", "fixed")]
)
def test_what_is_not_finite_stops_the_run_and_keeps_the_batch(method, value, balance, tmp_path):
    recipe = dataclasses.replace(TINY, kd_balance=balance)
    message = rf"step 3: segmentation \d.*distillation {value}, gradient norm nan"
    with pytest.raises(FloatingPointError, match=message):
        run(tmp_path, recipe, method=method)
    batch = torch.load(tmp_path / "offending-batch.pt", weights_only=True)
    assert batch.pop("step") == 3
    assert all(map(torch.equal, batch.values(), Batches()[3]))
    assert diverged(tmp_path)
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert checkpoint["state"]["step"] == 3
    assert all(w.isfinite().all() for w in checkpoint["distiller"].values())
    (tmp_path / "checkpoint.pt").unlink()
    run(tmp_path, recipe)  # finished later
    assert not diverged(tmp_path)
    with pytest.raises(Interrupted):
        run(tmp_path, recipe, fail_at=0, resume=False)
    assert not diverged(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"channels_last": True}, {"precision": "bf16-mixed"}], ids=str)
def test_layout_and_precision_change_no_more_than_rounding(change, whole, tmp_path):
    other = run(tmp_path, dataclasses.replace(TINY, **change))
    one, two = (h[["segmentation", "distillation"]] for h in (whole[2].history, other.history))
    pd.testing.assert_frame_equal(one, two, rtol=0.05)
    assert not one.equals(two)
    assert all(p.is_contiguous() for p in other.student.parameters())


@pytest.mark.slow
def test_gradients_are_clipped_and_an_average_of_decay_zero_is_the_current_one(tmp_path):
    recipe = dataclasses.replace(TINY, steps=1, clip=1e-3, warmup=0, ema=0.0)
    recipe = dataclasses.replace(recipe, optimizer="sgd", weight_decay=0.0, learning_rate=1.0)
    made = distiller("none")
    before = [p.detach().clone() for p in made.trainable()]
    result = fit(made, Batches(), VAL, recipe, run_dir=tmp_path)
    moved = [now - then for now, then in zip(made.trainable(), before, strict=True)]
    # Nesterov's first step is (1 + momentum) times the gradient.
    norm = torch.stack([d.norm() for d in moved]).norm().item()
    assert norm == pytest.approx(1.99e-3, rel=1e-3)
    models.halve(made.student)
    assert same_weights(result.student, made.student)


@pytest.mark.slow
def test_training_learns(tmp_path):
    recipe = dataclasses.replace(TINY, steps=40, learning_rate=1e-2, ema=0.9, warmup=5)
    assert run(tmp_path, recipe, method="none").val_dice > 0.6


# --- the balance of the two losses ----------------------------------------------------------------


def test_balance_is_the_ratio_of_the_gradient_norms():
    weight, elsewhere = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))

    def ratio(distillation):
        return gradient_ratio(6 * weight.sum(), distillation, [weight])

    assert ratio(2 * weight.sum()) == pytest.approx(3.0)
    for vanishing in (0 * weight.sum(), 1e-20 * weight.sum(), elsewhere.sum()):
        assert ratio(vanishing) is None
    assert smoothed(0.0, 3.0) == 3.0
    assert smoothed(8.0, 3.0) == pytest.approx(0.8 * 8 + 0.2 * 3)
    assert smoothed(8.0, None) == 8.0
    assert smoothed(0.0, None) == 0.0


def test_the_encoder_is_what_the_stages_depend_on():
    student = distiller("none").student
    names = {id(p): name.split(".")[1] for name, p in student.named_parameters()}
    inside = {names.pop(id(p)) for p in encoder_parameters(student, Batches()[0][0])}
    assert inside == {"input_block", "downsamples", "bottleneck"}
    assert set(names.values()) == {"upsamples", "output_block"}


class Scaled(DCD):
    """The loss of DCD, a thousand times as large."""

    def forward(self, student, teacher, target=None):
        return 1000 * super().forward(student, teacher, target)


@pytest.mark.slow
def test_with_balance_the_scale_of_a_method_does_not_matter(tmp_path):
    one, thousand = (
        run(tmp_path / kind.__name__, method=kind(CHANNELS, WIDE, projection="frozen")).history
        for kind in (DCD, Scaled)
        if torch.manual_seed(1)
    )
    np.testing.assert_allclose(one["segmentation"], thousand["segmentation"], rtol=1e-3)
    np.testing.assert_allclose(one["weight"], 1000 * thousand["weight"], rtol=1e-3)
