"""Compress: channels that go leave the rest untouched; the penalty is its formula and bites."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from networks import builders
from torch import nn

from dcd_core import models
from dcd_core.dcd import DCD
from dcd_core.models import dynunet, parameters, resenc
from dcd_core.train import Distiller, Recipe, fit
from dcd_core.types import ISLES, Case, ContractError, Output
from dcd_lab.compress import ReweightedGroupLasso, channel_groups, prune, squared_norms
from dcd_lab.data import Cohort, Patches, write
from dcd_lab.experiments import Job, run

pytest.importorskip("torch_pruning", reason="needs the extra [compress]")

CHANNELS = (8, 12, 16)
BUILDERS = builders(CHANNELS)
EACH = pytest.mark.parametrize("make", BUILDERS.values(), ids=BUILDERS)
RECIPE = Recipe(
    steps=6,
    patch=(8, 8, 8),
    warmup=1,
    kd_peak=1.0,
    kd_start=0.0,
    kd_ramp=0.0,
    kd_balance="fixed",
    precision="32-true",
    checkpoint_every=2,
)


def patch(n=16, seed=0, batch=1):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 2, n, n, n, generator=draw)


def made(make, seed=0):
    """A network whose norms and biases are as random as its weights."""
    torch.manual_seed(seed)
    model = make()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(0.3 * torch.randn_like(weight))
    return model


def case(seed):
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((2, 12, 12, 12), dtype=np.float32)
    label = np.zeros((12, 12, 12), np.uint8)
    label[3:8, 3:8, 3:8] = 1
    image[0] += 3 * label
    return Case(f"case{seed}", image, label, (1.0, 1.0, 1.0), np.eye(4))


CASES = [case(seed) for seed in range(2)]


def patches():
    return Patches(CASES, patch=RECIPE.patch, batch=2, seed=0, foreground=0.5)


# --- groups ---------------------------------------------------------------------------------------


@EACH
def test_every_weight_between_two_channels_is_in_two_groups(make):
    """Every row and column of every convolution, but for the image's and the classes' own."""
    model = make()
    held = {}
    for group in channel_groups(model, patch()):
        for layer, side, at in group.slices:
            assert len(at) == group.size
            held.setdefault((layer, side), []).extend(at)
    for name, layer in model.network.named_modules():
        if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
            for side, width, free in (
                ("in", layer.in_channels, 2),
                ("out", layer.out_channels, 3),
            ):
                expected = [] if width == free else list(range(width))
                assert sorted(held.get((name, side), [])) == expected, (name, side)
        elif isinstance(layer, nn.InstanceNorm3d):
            assert sorted(held[name, "out"]) == list(range(layer.num_features)), name


@EACH
def test_what_is_cut_changes_nothing_if_it_was_zero(make):
    """The oracle of the dependency graph: channels that write zeros may go, wherever they lead."""
    model, draw = made(make), np.random.default_rng(0)
    groups = channel_groups(model, patch())
    kept = {}
    silenced = copy.deepcopy(model)
    for group in groups:
        gone = set(draw.choice(group.size, 3, replace=False).tolist())
        for name, side, at in group.slices:
            whole = kept.setdefault(name, {}).setdefault(side, set())
            whole ^= {at[i] for i in range(group.size) if i not in gone}
            layer = silenced.network.get_submodule(name)
            for weight in layer.parameters(recurse=False):
                axis = models.channel_axis(layer, weight, side)
                if side == "out":
                    weight.data.index_fill_(axis, torch.tensor([at[i] for i in gone]), 0)
    models.cut(model.network, {n: {s: sorted(i) for s, i in k.items()} for n, k in kept.items()})
    for mode in (False, True):
        mine, theirs = (each.train(mode)(patch(seed=1)) for each in (model, silenced))
        assert len(mine.deep) == len(theirs.deep)
        for one, two in zip((mine.logits, *mine.deep), (theirs.logits, *theirs.deep), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_the_norm_of_a_channel_is_that_of_all_its_weights():
    model = made(lambda: dynunet(2, 3, channels=(4, 5, 6), residual=False))
    network = model.network
    [group] = [
        group
        for group in channel_groups(model, patch())
        if group.slices[0].layer == "input_block.conv1.conv"
    ]
    first, norm = network.input_block.conv1.conv.weight, network.input_block.norm1
    second = network.input_block.conv2.conv.weight
    expected = [
        (first[i] ** 2).sum() + norm.weight[i] ** 2 + norm.bias[i] ** 2 + (second[:, i] ** 2).sum()
        for i in range(4)
    ]
    torch.testing.assert_close(squared_norms(model, group), torch.stack(expected))


def test_a_layer_that_cannot_be_cut_is_named():
    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Conv3d(2, 4, 1)
            self.two = nn.Conv3d(4, 4, 1, groups=2)
            self.head = nn.Conv3d(4, 3, 1)

        def forward(self, x):
            return self.head(self.two(self.one(x)))

    model = models.Segmenter(Grouped(), ["one"], [4])
    with pytest.raises(ContractError, match="ungrouped"):
        channel_groups(model, patch(4))
    model.network.forward = lambda x: model.network.head(model.network.one(x)) + 0
    with pytest.raises(ContractError, match="last layer of every head"):
        channel_groups(model, patch(4))


def test_what_is_not_installed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("dcd_core.errors.find_spec", lambda name: None)
    with pytest.raises(ContractError, match=r"no torch_pruning.*dcd-core\[compress\]"):
        prune(dynunet(2, 3, channels=CHANNELS), patch(), parameters=1000)


# --- pruning --------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize(("divisor", "tolerance"), [(5, 0.25), (4, 0.05), (2, 0.05)])
def test_the_size_is_met_in_whole_blocks(make, divisor, tolerance):
    model = made(make)
    before = copy.deepcopy(model.state_dict())
    wanted = parameters(model) // 2
    small = prune(model, patch(), parameters=wanted, divisor=divisor, tolerance=tolerance)
    assert abs(parameters(small) - wanted) <= tolerance * wanted
    widths = [m.out_channels for m in small.network.modules() if isinstance(m, nn.Conv3d)]
    # Classes are not channels, and a group that lost nothing keeps its remainder.
    assert all(width % divisor == 0 or width in (3, *CHANNELS) for width in widths)
    output = small.train()(patch())
    assert output.logits.shape == (1, 3, 16, 16, 16)
    assert small.stages == model.stages
    assert small.channels == tuple(stage.shape[1] for stage in output.stages)
    assert len(output.deep) == len(model.train()(patch()).deep)
    assert all(p.requires_grad for p in small.parameters())
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@EACH
def test_a_pruned_network_comes_back_from_its_file(make, tmp_path):
    model = made(make)
    once = prune(model, patch(), parameters=parameters(model) * 2 // 3, divisor=2)
    twice = prune(once, patch(), parameters=parameters(model) // 3, divisor=2).eval()
    for small in (once.eval(), twice):
        again = models.load(models.save(small, tmp_path / "small.safetensors"))
        assert again.spec == small.spec == json.loads(json.dumps(small.spec))
        assert again.channels == small.channels
        for one, two in zip(again(patch()).stages, small(patch()).stages, strict=True):
            assert torch.equal(one, two)
        assert torch.equal(again(patch()).logits, small(patch()).logits)
    assert twice.spec["base"]["architecture"] == "pruned"
    assert twice.spec["base"]["base"]["channels"] == list(CHANNELS)


def test_the_least_channels_go():
    model = made(BUILDERS["plain"])
    conv = model.network.input_block.conv1.conv
    with torch.no_grad():  # what writes, normalises and reads these two all but vanishes
        for weight, axis in (
            (conv.weight, 0),
            (model.network.input_block.norm1.weight, 0),
            (model.network.input_block.norm1.bias, 0),
            (model.network.input_block.conv2.conv.weight, 1),
        ):
            weight.index_copy_(
                axis, torch.tensor([2, 5]), weight.index_select(axis, torch.tensor([2, 5])) * 1e-3
            )
    size = parameters(model)
    # Two channels of conv1, its norm (2 numbers each), and the columns of conv2; no bias.
    gone = 2 * (2 * 27 + 2 + 8 * 27)
    small = prune(model, patch(), parameters=size - gone, divisor=2, tolerance=0)
    assert parameters(small) == size - gone
    assert small.spec["kept"] == {
        "input_block.conv1.conv": {"out": [0, 1, 3, 4, 6, 7]},
        "input_block.norm1": {"out": [0, 1, 3, 4, 6, 7]},
        "input_block.conv2.conv": {"in": [0, 1, 3, 4, 6, 7]},
    }
    assert torch.equal(small.network.input_block.conv1.conv.weight, conv.weight[[0, 1, 3, 4, 6, 7]])


def test_a_size_out_of_reach_is_refused():
    model = BUILDERS["resenc"]()
    with pytest.raises(ContractError, match="divisor below 8"):
        prune(model, patch(), parameters=500)
    with pytest.raises(ContractError, match="within 5%"):
        prune(model, patch(), parameters=2 * parameters(model))
    with pytest.raises(ContractError, match="at least 1"):
        prune(model, patch(), parameters=1000, divisor=0)
    model.spec = None
    with pytest.raises(ContractError, match="without spec"):
        prune(model, patch(), parameters=1000)


# --- the penalty ----------------------------------------------------------------------------------


def two_channels():
    """A network of one group of three channels; weights known."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Conv3d(2, 3, 1, bias=False)
            self.head = nn.Conv3d(3, 3, 1, bias=False)

        def forward(self, x):
            return self.head(self.one(x))

    return models.Segmenter(Two(), ["one"], [3])


def test_the_penalty_is_its_formula():
    torch.manual_seed(0)
    model = two_channels()
    penalty = ReweightedGroupLasso(model, patch(4), every=2, stages=2, strength=0.3, eps=0.01)

    def closed(weights, norms):
        return 0.3 * sum(n / (w + 0.01) for n, w in zip(norms, weights, strict=True))

    def norms():
        one, head = (
            m.weight.detach().double().numpy() for m in (model.network.one, model.network.head)
        )
        return [(one[i] ** 2).sum() + (head[:, i] ** 2).sum() for i in range(3)]

    output, seen = model(patch(4)), []
    for _ in range(6):
        seen.append(norms())
        found = penalty(output, output, None)
        # P follows at steps 0 and 2 and stays for the rest: two stages.
        reference = seen[0] if len(seen) <= 2 else seen[2]
        assert found.item() == pytest.approx(closed(reference, seen[-1]), rel=1e-5)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(0.9)
    penalty.eval()
    penalty(output, output, None)
    assert penalty.calls == 6
    gradient = torch.autograd.grad(penalty(output, output), model.network.one.weight)[0]
    expected = 0.6 * penalty.penalties[:, None, None, None, None] * model.network.one.weight
    torch.testing.assert_close(gradient, expected)


def test_reweighting_empties_channels_that_a_fixed_penalty_only_shrinks():
    """Descent on a pull to the start plus the penalty: small groups go, large ones stay."""
    ends, nothing = {}, Output(torch.empty(0), ())
    for stages in (1, 4):
        torch.manual_seed(0)
        model = two_channels()
        with torch.no_grad():
            for i, scale in enumerate((0.1, 0.3, 1.0)):
                model.network.one.weight[i] *= scale
                model.network.head.weight[:, i] *= scale
        penalty = ReweightedGroupLasso(model, patch(4), every=50, stages=stages, strength=0.01)
        start = [weight.detach().clone() for weight in model.parameters()]
        before = penalty.norms().detach()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(400):
            pull = sum(
                (w - s).square().sum() for w, s in zip(model.parameters(), start, strict=True)
            )
            optimizer.zero_grad()
            (pull + penalty(nothing, nothing)).backward()
            optimizer.step()
        ends[stages] = (penalty.norms().detach() / before).tolist()
    fixed, reweighted = ends[1], ends[4]
    assert reweighted[0] < 0.1 * fixed[0]
    assert reweighted[2] > 0.85
    assert reweighted[2] == pytest.approx(fixed[2], abs=0.02)


def test_counts_and_strengths_are_checked():
    for wrong in ({"every": 0}, {"stages": 0}, {"strength": 0.0}, {"eps": 0.0}):
        with pytest.raises(ContractError, match="every=steps"):
            ReweightedGroupLasso(two_channels(), patch(4), **{"every": 1, **wrong})


def sparse(recipe, folder, *, strength=1e-2, train=None, resume=True):
    torch.manual_seed(0)
    student = dynunet(2, 2, channels=(4, 4, 8), residual=False)
    penalty = ReweightedGroupLasso(student, patch(8), every=2, stages=3, strength=strength)
    distiller = Distiller(student, None, penalty)
    return fit(distiller, train or patches(), [], recipe, run_dir=folder, resume=resume)


def test_the_penalty_trains_without_a_teacher_and_owns_no_weight(tmp_path):
    result = sparse(RECIPE, tmp_path / "a")
    assert set(result.method) == {"penalties", "calls"}
    assert result.method["calls"] == RECIPE.steps
    assert result.history["distillation"].gt(0).all()
    assert result.history["weight"].eq(1).all()
    off = dataclasses.replace(RECIPE, kd_peak=0.0)
    without = sparse(off, tmp_path / "b")
    assert without.history["distillation"].isna().all()

    def size(fit):
        return sum(p.square().sum() for p in fit.student.parameters()).item()

    strong = sparse(dataclasses.replace(RECIPE, kd_peak=100.0), tmp_path / "c")
    assert size(strong) < size(without)


def test_an_interrupted_penalty_goes_on_where_it_was(tmp_path):
    class Failing(Patches):
        def __getitem__(self, step):
            if step == 5:
                raise KeyboardInterrupt
            return super().__getitem__(step)

    failing = Failing(CASES, patch=RECIPE.patch, batch=2, seed=0, foreground=0.5)
    with pytest.raises(KeyboardInterrupt):
        sparse(RECIPE, tmp_path / "a", train=failing)
    resumed, whole = sparse(RECIPE, tmp_path / "a"), sparse(RECIPE, tmp_path / "b")
    assert torch.equal(resumed.method["penalties"], whole.method["penalties"])
    for one, two in zip(resumed.student.parameters(), whole.student.parameters(), strict=True):
        assert torch.equal(one, two)


# --- afterwards -----------------------------------------------------------------------------------


def test_a_pruned_student_is_distilled(tmp_path):
    torch.manual_seed(0)
    teacher = resenc(2, 2, channels=(8, 8, 16), blocks=(1, 1, 1))
    student = prune(teacher, patch(8), parameters=parameters(teacher) // 3, divisor=2)
    assert student.channels != teacher.channels
    method = DCD(student.channels, teacher.channels, wavelet="haar", levels=1)
    recipe = dataclasses.replace(RECIPE, steps=2)
    before = [p.detach().clone() for p in student.parameters()]
    result = fit(Distiller(student, teacher, method), patches(), [], recipe, run_dir=tmp_path)
    assert result.history["distillation"].gt(0).all()
    assert all(
        not torch.equal(one, two)
        for one, two in zip(before, student.parameters(), strict=True)
        if one.ndim > 1
    )
    again = models.load(tmp_path / "student.safetensors")
    assert again.spec == student.spec
    assert torch.equal(again(patch(8)).logits, result.student(patch(8)).logits)


def stroke(seed, id):
    """A lesion bright on DWI, dark on ADC, in a block of tissue."""
    rng = np.random.default_rng(seed)
    image = np.zeros((3, 14, 14, 14), np.float32)
    image[:, 2:12, 2:12, 2:12] = 1 + 0.1 * rng.standard_normal((3, 10, 10, 10), dtype=np.float32)
    label = np.zeros((14, 14, 14), np.uint8)
    label[4:8, 4:8, 4:8] = 1
    image[0] += label
    image[1] -= 0.5 * label
    return Case(id, image, label, (2.0, 2.0, 2.0), np.diag([2.0, 2.0, 2.0, 1.0]))


def test_jobs_penalise_prune_and_distil(workspace):
    """The comparison as jobs: teacher, penalty, and the pruned network trained on with DCD."""
    ids = tuple(f"sub-strokecase000{number}" for number in range(1, 4))
    write([stroke(seed, id) for seed, id in enumerate(ids)], workspace / "cases", task=ISLES)
    cohort = Cohort(ISLES.name, workspace / "cases", ids[:1], ids[1:2], ids[2:], None, "tiny")
    model = {"architecture": "dynunet", "channels": [4, 8, 8], "residual": False}
    teacher = Job("teacher", cohort, model, RECIPE, teacher_floor=0.0)
    run(teacher)
    start = teacher.folder / "student.safetensors"

    sparse = dataclasses.replace(
        teacher,
        label="sparse",
        start=start,
        method="group-lasso",
        options={"every": 2, "stages": 2, "strength": 1.0},
    )
    run(sparse)
    assert sparse.result().history["distillation"].gt(0).all()
    assert sparse.result().method["calls"] == RECIPE.steps

    dense = sparse.result().student
    small = prune(dense, torch.zeros(1, 3, 8, 8, 8), parameters=parameters(dense) // 2, divisor=2)
    file = models.save(small, workspace / "small.safetensors")
    tuned = Job(
        "tuned",
        cohort,
        {},
        RECIPE,
        method="dcd",
        options={"wavelet": "haar", "levels": 1},
        teacher=teacher,
        teacher_floor=0.0,
        start=file,
    )
    before = tuned.identity
    run(tuned)
    assert tuned.result().student.spec == small.spec
    assert set(tuned.read()["region"]) == set(ISLES.regions)
    models.save(teacher.result().student, file)
    assert tuned.identity != before, "another network in the same file is another job"
    with pytest.raises(ContractError, match="nothing at"):
        _ = dataclasses.replace(tuned, start=workspace / "absent").identity
