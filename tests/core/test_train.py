"""Train: closed forms of the recipe, who owns which tensor, a loop that survives interruption."""

from __future__ import annotations

import ast
import copy
import dataclasses
import inspect
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from training import CHANNELS, TINY, TUNE, WIDE, Interrupted, distiller, patches, run

from dcd_core import methods, train
from dcd_core.dcd import DCD, kd_weight
from dcd_core.models import dynunet, resenc
from dcd_core.train import EMA, Distiller, Losses, Recipe, fit, read_fit, segmentation_loss
from dcd_core.train import loop as loop_module
from dcd_core.train.balance import encoder_parameters, equal_weight, gradient_ratio
from dcd_core.train.loop import diverged
from dcd_core.types import ContractError, Output


def same_weights(one, two):
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# --- recipe ---------------------------------------------------------------------------------------


def test_every_recipe_field_is_read():
    """Some line of the package, validation aside, takes the field from a recipe."""
    read = set()
    for module in (train.recipe, train.loop, train.jobs):
        tree = ast.parse(inspect.getsource(module))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
                node.body = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = ast.unparse(node.value)
                if owner.endswith("recipe") or (owner == "self" and module is train.recipe):
                    read.add(node.attr)
    assert {field.name for field in dataclasses.fields(Recipe)} <= read


def test_learning_rate_warms_up_then_falls_along_half_a_cosine():
    recipe = Recipe(steps=110, warmup=10, learning_rate=1e-2)
    assert [recipe.rate(s) for s in (0, 4, 9)] == pytest.approx([1e-3, 5e-3, 1e-2])
    assert recipe.rate(10) == 1e-2
    assert recipe.rate(35) == pytest.approx(1e-2 * (1 + math.sqrt(0.5)) / 2)
    assert recipe.rate(60) == pytest.approx(5e-3)
    assert recipe.rate(110) == pytest.approx(0, abs=1e-18)
    assert Recipe(steps=10, warmup=0).rate(0) == Recipe().learning_rate


def test_polynomial_schedule_has_the_power_of_nnu_net():
    recipe = Recipe(steps=100, warmup=0, learning_rate=1e-2, schedule="poly")
    for step in (0, 25, 50, 99):
        assert recipe.rate(step) == pytest.approx(1e-2 * (1 - step / 100) ** 0.9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "positive counts"),
        ({"batch": 0}, "positive counts"),
        ({"checkpoint_every": 0}, "positive counts"),
        ({"foreground": 1.1}, "shares"),
        ({"ema": 1.0}, "shares"),
        ({"kd_start": 0.8, "kd_ramp": 0.3}, "sum of at most 1"),
        ({"kd_start": -0.1}, "sum of at most 1"),
        ({"optimizer": "adam"}, "optimizer: got 'adam'"),
        ({"schedule": "step"}, "schedule: got 'step'"),
        ({"kd_balance": "auto"}, "kd_balance: got 'auto'"),
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


def test_optimizers_are_those_of_the_recipe():
    parameters = [nn.Parameter(torch.zeros(1))]
    adamw = Recipe(learning_rate=1e-3, weight_decay=0.1).build_optimizer(parameters)
    assert isinstance(adamw, torch.optim.AdamW)
    assert (adamw.defaults["lr"], adamw.defaults["weight_decay"]) == (1e-3, 0.1)
    sgd = Recipe(optimizer="sgd").build_optimizer(parameters)
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.99, True)


# --- averaged weights -----------------------------------------------------------------------------


def ema_by_hand(values, decay):
    """The average after each update, from the values at the start and at every update."""
    average, history = values[0], []
    for t, value in enumerate(values[1:]):
        d = min(decay, (1 + t) / (10 + t))
        average = d * average + (1 - d) * value
        history.append(average)
    return history


@pytest.mark.parametrize("decay", [0.0, 0.15, 0.99])
def test_ema_closed_form(decay):
    model = nn.Linear(1, 1, bias=False)
    values = [1.0, 3.0, -2.0, 5.0, 0.5]
    nn.init.constant_(model.weight, values[0])
    ema, found = EMA(model, decay), []
    for value in values[1:]:
        nn.init.constant_(model.weight, value)
        ema.update(model)
        found.append(ema.model.weight.item())
    assert found == pytest.approx(ema_by_hand(values, decay), rel=1e-6)


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


def test_everything_trainable_is_listed_projections_included():
    made = distiller()
    listed = {id(p) for p in made.trainable()}
    assert listed == {id(p) for p in [*made.student.parameters(), *made.method.parameters()]}
    assert len(made.method.adapters) == 3
    frozen = DCD(CHANNELS, WIDE, wavelet="haar", projection="frozen")
    made = distiller(frozen)
    assert {id(p) for p in made.trainable()} == {id(p) for p in made.student.parameters()}


def test_teacher_stays_frozen_and_in_eval_mode():
    made = distiller().train()
    assert made.student.training
    assert made.method.training
    assert not any(module.training for module in made.teacher.modules())
    assert not any(p.requires_grad for p in made.teacher.parameters())
    assert not made.eval().student.training


def test_trained_state_leaves_the_teacher_out_and_comes_back():
    made, other = distiller(), distiller(seed=1)
    state = made.trained_state()
    assert {name.split(".")[0] for name in state} == {"student", "method"}
    teacher = copy.deepcopy(other.teacher)
    other.load_trained_state(state)
    assert same_weights(other.student, made.student)
    assert same_weights(other.method, made.method)
    assert same_weights(other.teacher, teacher)
    with pytest.raises(KeyError, match="differ"):
        distiller("none").load_trained_state(state)
    with pytest.raises(KeyError, match="differ"):
        distiller().load_trained_state({k: v for k, v in state.items() if "method" not in k})


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_logits_of_regions_are_not_read_as_those_of_classes(which):
    """Nor the other way about: as many channels, but a sigmoid each."""
    made = distiller("none")
    of = {"student": made.student, "teacher": dynunet(1, 2, channels=WIDE)}
    of[which].regions = True
    with pytest.raises(ContractError, match=f"logits of the {which}: got overlapping regions"):
        Distiller(of["student"], of["teacher"], methods.build("logits", CHANNELS, WIDE))
    Distiller(of["student"], of["teacher"], DCD(CHANNELS, WIDE, wavelet="haar"))  # reads none
    by_region = methods.build("logits", CHANNELS, WIDE, regions=True)
    with pytest.raises(ContractError, match="got classes of one softmax; expected overlapping"):
        Distiller(of["student"], of["teacher"], by_region)
    for network in of.values():
        network.regions = True
    assert Distiller(of["student"], of["teacher"], by_region).method is by_region


def test_losses_are_those_of_student_and_method():
    made = distiller()
    image, target = patches()[0]
    losses = made(image, target, distil=True)
    student = made.student(image)
    assert torch.equal(losses.segmentation, segmentation_loss()(student.logits, target))
    teacher = Output(torch.empty(0), made.teacher(image).stages)
    assert torch.equal(losses.distillation, made.method(student, teacher))
    assert made(image, target, distil=False) == Losses(losses.segmentation, None)
    assert distiller("none")(image, target, distil=True).distillation is None


def test_deep_supervision_halves_the_weight_of_every_coarser_head():
    torch.manual_seed(0)
    student = resenc(1, 2, channels=(2, 2, 4), blocks=(1, 1, 1), deep_supervision=True).train()
    image, target = patches()[0]
    out = student(image)
    assert len(out.deep) == 1
    coarse = target[:, :, ::2, ::2, ::2]
    for weight in (0.5, 0.0, 2.0):
        found = Distiller(student, deep_weights=weight)(image, target, distil=False).segmentation
        loss = segmentation_loss()
        expected = loss(out.logits, target) + weight * loss(out.deep[0], coarse)
        assert found.item() == pytest.approx(expected.item() / (1 + weight), rel=1e-5)


class Logits(nn.Module):
    """A method on logits."""

    needs_logits = True

    def forward(self, student, teacher, target):
        return (student.logits - teacher.logits).square().mean()


def calls(teacher):
    """Count the forward passes of the first and the last module of a DynUNet."""
    counts = {"encoder": 0, "decoder": 0}

    def count(name):
        def hook(*_):
            counts[name] += 1

        return hook

    teacher.network.input_block.register_forward_hook(count("encoder"))
    teacher.network.output_block.register_forward_hook(count("decoder"))
    return counts


@pytest.mark.parametrize("method", ["dcd", Logits()], ids=["features", "logits"])
def test_teacher_runs_only_while_it_counts_and_only_as_far_as_needed(method, tmp_path):
    made = distiller(method)
    counts, before = calls(made.teacher), copy.deepcopy(made.teacher)
    fit(made, patches(), TUNE, TINY, run_dir=tmp_path)
    # Steps 0 to 7, weight 0 until step 2 and still 0 there: the cosine starts at 0.
    weights = [kd_weight(step, peak=0.2, start=2, ramp=2) for step in range(8)]
    running = sum(weight > 0 for weight in weights)
    assert running == 5
    assert counts == {"encoder": running, "decoder": running if method != "dcd" else 0}
    assert same_weights(made.teacher, before)


# --- the loop -------------------------------------------------------------------------------------


def test_fit_writes_and_returns_one_whole_run(tmp_path):
    result = run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "fit.json",
        "history.csv",
        "method.safetensors",
        "student.safetensors",
    ]
    history = result.history
    assert list(history["step"]) == list(range(1, 9))
    assert list(history["learning_rate"]) == pytest.approx([TINY.rate(s) for s in range(8)])
    assert history["distillation"].isna().tolist() == [True] * 3 + [False] * 5
    assert (history["weight"][:3] == 0).all()
    assert (history["weight"][3:] > 0).all()
    assert (history["gradient_norm"] > 0).all()
    assert not result.student.training
    assert 0 < result.threshold < 1
    assert 0 <= result.tune_dice <= 1
    facts = json.loads((tmp_path / "fit.json").read_text("utf-8"))
    assert Recipe(**{**facts["recipe"], "patch": tuple(facts["recipe"]["patch"])}) == TINY


def test_method_and_student_are_both_trained(tmp_path):
    made, fresh = distiller(), distiller()
    fit(made, patches(), TUNE, TINY, run_dir=tmp_path)
    for now, then in zip(made.trainable(), fresh.trainable(), strict=True):
        assert not torch.equal(now, then)


def test_the_state_of_the_method_is_kept_as_the_last_step_left_it(tmp_path):
    made = distiller()
    result = fit(made, patches(), TUNE, TINY, run_dir=tmp_path)
    for kept in (result.method, read_fit(tmp_path).method):
        again = distiller().method
        again.load_state_dict(kept)
        assert same_weights(again, made.method)
    with torch.no_grad():
        made.method.adapters[0].weight.zero_()
    assert all(value.abs().max() > 0 for value in result.method.values())


def test_without_a_method_there_is_no_state_of_one(tmp_path):
    run(tmp_path)
    with pytest.raises(Interrupted):  # nor is there one of an older run
        run(tmp_path, method="none", fail_at=1, resume=False)
    assert run(tmp_path, method="none").method == {}
    assert read_fit(tmp_path).method == {}


def test_equal_seeds_give_equal_runs_and_the_global_generator_is_left_alone(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    made = distiller()
    torch.manual_seed(5)
    one = fit(made, patches(), TUNE, TINY, run_dir=tmp_path / "one")
    assert torch.equal(torch.get_rng_state(), before)
    two = run(tmp_path / "two")
    assert same_weights(one.student, two.student)
    other = dataclasses.replace(TINY, seed=1)
    assert not same_weights(one.student, run(tmp_path / "three", other).student)


class Masked(nn.Module):
    """A method that draws at random, as masked distillation does."""

    def forward(self, student, teacher, target):
        keep = torch.rand_like(student.stages[0]) < 0.5
        return (student.stages[0] * keep).square().mean()


@pytest.mark.parametrize("fail_at", [1, 3, 7])
@pytest.mark.parametrize("method", ["dcd", Masked()], ids=["dcd", "random method"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_by_bit(method, fail_at, tmp_path):
    whole = run(tmp_path / "whole", method=method)
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", method=method, fail_at=fail_at)
    # A checkpoint every third step; before the first there is none.
    assert (tmp_path / "cut" / "checkpoint.pt").is_file() == (fail_at >= 3)
    resumed = run(tmp_path / "cut", method=method, ambient=17)
    assert same_weights(whole.student, resumed.student)
    assert (whole.threshold, whole.tune_dice) == (resumed.threshold, resumed.tune_dice)
    columns = [name for name in whole.history if name != "seconds"]
    pd.testing.assert_frame_equal(whole.history[columns], resumed.history[columns])
    assert not (tmp_path / "cut" / "checkpoint.pt").exists()


def test_a_finished_run_is_read_back_without_training(tmp_path):
    first = run(tmp_path)
    again = run(tmp_path, fail_at=0)
    assert same_weights(first.student, again.student)
    assert (first.threshold, first.tune_dice) == (again.threshold, again.tune_dice)
    pd.testing.assert_frame_equal(first.history, again.history, rtol=1e-5)
    assert same_weights(read_fit(tmp_path).student, first.student)
    with pytest.raises(Interrupted):
        run(tmp_path, fail_at=0, resume=False)


def test_a_fresh_start_forgets_the_older_run(tmp_path):
    run(tmp_path)
    with pytest.raises(Interrupted):
        run(tmp_path, fail_at=1, resume=False)
    with pytest.raises(ContractError, match="no finished run"):
        read_fit(tmp_path)


def test_a_run_without_tune_cases_decides_at_one_half(tmp_path):
    result = fit(distiller("none"), patches(), [], TINY, run_dir=tmp_path)
    assert result.threshold == 0.5
    assert math.isnan(result.tune_dice)
    assert math.isnan(read_fit(tmp_path).tune_dice)


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", 0.5], ids=["empty", "text", "half"])
def test_a_damaged_checkpoint_is_refused_and_kept(damage, tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, fail_at=4)
    path = tmp_path / "checkpoint.pt"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage == 0.5 else damage)
    before = path.read_bytes()
    with pytest.raises(ContractError, match=r"checkpoint: got .*unreadable"):
        run(tmp_path)
    assert path.read_bytes() == before


def test_another_recipe_is_refused_half_way_and_at_the_end(tmp_path):
    other = dataclasses.replace(TINY, learning_rate=1e-3)
    with pytest.raises(Interrupted):
        run(tmp_path, fail_at=4)
    with pytest.raises(ContractError, match=r"checkpoint: .*made by another recipe"):
        run(tmp_path, other)
    run(tmp_path)
    with pytest.raises(ContractError, match=r"training run: .*made by another recipe"):
        run(tmp_path, other)
    run(tmp_path, other, resume=False)
    run(tmp_path, other)


def test_a_checkpoint_of_other_networks_is_refused(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, fail_at=4)
    with pytest.raises(ContractError, match="of another student or method"):
        run(tmp_path, method="none")
    made = Distiller(dynunet(1, 2, channels=(4, 6, 8)), dynunet(1, 2, channels=WIDE))
    made.method = DCD((4, 6, 8), WIDE, wavelet="haar")
    with pytest.raises(ContractError, match="of another student or method"):
        fit(made, patches(), TUNE, TINY, run_dir=tmp_path)


class NotANumber(nn.Module):
    """A loss that is not finite."""

    def forward(self, student, teacher, target):
        return student.stages[0].sum() * math.nan


@pytest.mark.parametrize("balance", ["gradient", "fixed"])
def test_a_loss_that_is_not_finite_stops_the_run_and_saves_the_batch(balance, tmp_path):
    recipe = dataclasses.replace(TINY, kd_balance=balance)
    with pytest.raises(FloatingPointError, match=r"step 3: segmentation \d.*distillation nan"):
        run(tmp_path, recipe, method=NotANumber())
    batch = torch.load(tmp_path / "offending-batch.pt", weights_only=True)
    image, target = patches()[3]
    assert batch["step"] == 3
    assert torch.equal(batch["image"], image)
    assert torch.equal(batch["target"], target)
    assert not (tmp_path / "fit.json").exists()
    assert diverged(tmp_path)
    with pytest.raises(Interrupted):
        run(tmp_path, recipe, fail_at=0, resume=False)
    assert not diverged(tmp_path)


def test_a_run_that_diverged_and_was_finished_later_has_not_diverged(tmp_path):
    with pytest.raises(FloatingPointError):
        run(tmp_path, method=NotANumber())
    (tmp_path / "checkpoint.pt").unlink()
    run(tmp_path)
    assert not diverged(tmp_path)


def test_read_fit_needs_a_finished_run(tmp_path):
    with pytest.raises(ContractError, match="no finished run"):
        read_fit(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"channels_last": True},
        {"optimizer": "sgd", "learning_rate": 1e-2, "schedule": "poly"},
        {"precision": "bf16-mixed"},
        {"kd_balance": "fixed"},
        {"ema": 0.0, "kd_start": 0.0, "kd_ramp": 0.0},
    ],
    ids=str,
)
def test_every_kind_of_recipe_trains(change, tmp_path):
    recipe = dataclasses.replace(TINY, steps=4, **change)
    result = run(tmp_path, recipe)
    assert np.isfinite(result.history["segmentation"]).all()
    if recipe.kd_balance == "fixed":
        expected = [kd_weight(s, peak=0.2, start=1, ramp=1) for s in range(4)]
        assert list(result.history["weight"]) == pytest.approx(expected)


def test_channels_last_changes_the_layout_not_the_result(tmp_path):
    one = run(tmp_path / "one")
    two = run(tmp_path / "two", dataclasses.replace(TINY, channels_last=True))
    columns = ["segmentation", "distillation"]
    pd.testing.assert_frame_equal(one.history[columns], two.history[columns], rtol=1e-2)
    assert all(p.is_contiguous() for p in two.student.parameters())


def test_averaged_weights_of_decay_zero_are_the_current_ones(tmp_path):
    made = distiller()
    result = fit(made, patches(), TUNE, dataclasses.replace(TINY, ema=0.0), run_dir=tmp_path)
    assert same_weights(result.student, made.student)


def test_gradients_are_clipped(tmp_path):
    made, recipe = distiller("none"), dataclasses.replace(TINY, steps=1, clip=1e-3, warmup=0)
    recipe = dataclasses.replace(recipe, optimizer="sgd", weight_decay=0.0, learning_rate=1.0)
    before = [p.detach().clone() for p in made.trainable()]
    fit(made, patches(), TUNE, recipe, run_dir=tmp_path)
    moved = [now - then for now, then in zip(made.trainable(), before, strict=True)]
    # Nesterov's first step is (1 + momentum) times the gradient.
    norm = torch.stack([d.norm() for d in moved]).norm().item()
    assert norm == pytest.approx(1.99e-3, rel=1e-3)


# --- the balance of the two losses ----------------------------------------------------------------


def quadratic(scale_segmentation, scale_distillation):
    weight = nn.Parameter(torch.ones(3))
    total = weight.sum()
    return Losses(scale_segmentation * total, scale_distillation * total), [weight]


def test_balance_is_the_ratio_of_the_gradient_norms():
    assert gradient_ratio(*quadratic(6.0, 2.0)) == pytest.approx(3.0)
    assert loop_module._smoothed(0.0, 3.0) == 3.0
    assert loop_module._smoothed(8.0, 3.0) == pytest.approx(0.8 * 8 + 0.2 * 3)


def test_a_vanishing_distillation_gradient_leaves_the_balance_alone():
    assert gradient_ratio(*quadratic(6.0, 0.0)) is None
    assert gradient_ratio(*quadratic(6.0, 1e-20)) is None
    assert loop_module._smoothed(8.0, None) == 8.0


def test_a_loss_that_misses_the_encoder_has_no_ratio():
    elsewhere = nn.Parameter(torch.ones(3))
    losses, encoder = quadratic(6.0, 2.0)
    losses = losses._replace(distillation=elsewhere.sum())
    assert gradient_ratio(losses, encoder) is None


def test_the_encoder_is_what_the_stages_depend_on():
    student = distiller("none").student
    found = encoder_parameters(student, patches()[0][0])
    names = {id(p): name for name, p in student.named_parameters()}
    inside = {names[id(p)] for p in found}
    decoder = set(names.values()) - inside
    assert {name.split(".")[1] for name in inside} == {"input_block", "downsamples", "bottleneck"}
    assert {name.split(".")[1] for name in decoder} == {"upsamples", "output_block"}


def test_equal_weight_is_the_median_ratio_and_trains_nothing():
    made, batches = distiller(), patches()
    before = [p.detach().clone() for p in made.trainable()]
    found = equal_weight(made, batches, batches=3)
    encoder = encoder_parameters(made.student, batches[0][0])
    each = [gradient_ratio(made(*batches[i], distil=True), encoder) for i in range(3)]
    assert found == pytest.approx(sorted(each)[1])
    assert all(torch.equal(a, b) for a, b in zip(before, made.trainable(), strict=True))


def test_a_method_that_never_pulls_has_no_equal_weight():
    class Silent(nn.Module):
        def forward(self, student, teacher, target):
            return 0 * student.stages[0].sum()

    with pytest.raises(ContractError, match="zero on all of 2 batches"):
        equal_weight(distiller(Silent()), patches(), batches=2)


@pytest.mark.parametrize("balance", ["gradient", "fixed"])
def test_the_pull_of_the_distillation_is_logged(balance, tmp_path):
    recipe = dataclasses.replace(TINY, kd_balance=balance)
    history = run(tmp_path, recipe).history
    assert (history["pull"][:3] == 0).all()
    assert (history["pull"][3:] > 0).all()
    if balance == "gradient":  # the pull that was asked for, whatever the loss
        assert history["pull"].max() == pytest.approx(recipe.kd_peak, rel=1e-4)


def test_with_balance_the_scale_of_a_method_does_not_matter(tmp_path):
    class Scaled(DCD):
        factor = 1.0

        def forward(self, student, teacher, target=None):
            return self.factor * super().forward(student, teacher, target)

    results = []
    for factor in (1.0, 1000.0):
        made = distiller(Scaled(CHANNELS, WIDE, wavelet="haar", projection="frozen"))
        made.method.factor = factor
        torch.manual_seed(1)
        for p in made.method.parameters():
            nn.init.normal_(p)
        folder = tmp_path / str(factor)
        results.append(fit(made, patches(), TUNE, TINY, run_dir=folder).history)
    one, thousand = results
    np.testing.assert_allclose(one["segmentation"], thousand["segmentation"], rtol=1e-3)
    np.testing.assert_allclose(one["weight"], 1000 * thousand["weight"], rtol=1e-3)


# --- a stored run ---------------------------------------------------------------------------------


STORED = {
    "segmentation": [1.41491, 1.32356, 1.33694, 1.21101, 1.27145, 1.13094, 1.12016, 1.24479],
    "distillation": [1.44109, 1.88388, 1.42407, 1.38041, 1.62098],
}


def test_a_tiny_run_repeats_its_stored_losses(tmp_path):
    """Regression: a change here is a change of training, wanted or not."""
    history = run(tmp_path).history
    assert history["segmentation"].tolist() == pytest.approx(STORED["segmentation"], rel=1e-3)
    assert history["distillation"][3:].tolist() == pytest.approx(STORED["distillation"], rel=1e-3)


def test_training_learns(tmp_path):
    recipe = dataclasses.replace(TINY, steps=40, learning_rate=1e-2, ema=0.9, warmup=5)
    result = run(tmp_path, recipe, method="none")
    assert result.tune_dice > 0.6
