"""Compress: channels that go leave the rest untouched; the penalty is its formula and bites."""

import copy
import json

import numpy as np
import pytest
import torch
from networks import builders, options_of_plans
from torch import nn

from dcd_core import models
from dcd_core.models import dynunet, parameters, planned
from dcd_core.types import ContractError, Output
from dcd_lab.compress import ReweightedGroupLasso, channel_groups, prune, squared_norms
from dcd_lab.compress.channels import channel_axis, cut

pytest.importorskip("torch_pruning", reason="needs the extra [compress]")

CHANNELS = (8, 12, 16)
BUILDERS = builders(CHANNELS)
EACH = pytest.mark.parametrize("make", BUILDERS.values(), ids=BUILDERS)


def patch(n=16, seed=0):
    return torch.randn(1, 2, n, n, n, generator=torch.Generator().manual_seed(seed))


def made(make):
    """A network whose norms and biases are as random as its weights."""
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(0.3 * torch.randn_like(weight))
    return model


@EACH
def test_every_weight_between_two_channels_is_in_two_groups(make):
    """Every row and column of every convolution, but for the image's and the classes' own."""
    model, held = make(), {}
    for group in channel_groups(model, patch()):
        for layer, side, at in group.slices:
            assert len(at) == group.size
            held.setdefault((layer, side), []).extend(at)
    for name, layer in model.network.named_modules():
        if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
            for side, width, free in (("in", layer.in_channels, 2), ("out", layer.out_channels, 3)):
                expected = [] if width == free else list(range(width))
                assert sorted(held.get((name, side), [])) == expected, (name, side)
        elif isinstance(layer, nn.InstanceNorm3d):
            assert sorted(held[name, "out"]) == list(range(layer.num_features)), name


@EACH
def test_what_is_cut_changes_nothing_if_it_was_zero(make):
    """The oracle of the dependency graph: channels that write zeros may go, wherever they lead."""
    model, draw, kept = made(make), np.random.default_rng(0), {}
    silenced = copy.deepcopy(model)
    for group in channel_groups(model, patch()):
        gone = set(draw.choice(group.size, 3, replace=False).tolist())
        for name, side, at in group.slices:
            whole = kept.setdefault(name, {}).setdefault(side, set())
            whole ^= {at[i] for i in range(group.size) if i not in gone}
            layer = silenced.network.get_submodule(name)
            for weight in layer.parameters(recurse=False):
                axis = channel_axis(layer, weight, side)
                if side == "out":
                    weight.data.index_fill_(axis, torch.tensor([at[i] for i in gone]), 0)
    cut(model.network, {n: {s: sorted(i) for s, i in k.items()} for n, k in kept.items()})
    for mode in (False, True):
        mine, theirs = (each.train(mode)(patch(seed=1)) for each in (model, silenced))
        for one, two in zip((mine.logits, *mine.deep), (theirs.logits, *theirs.deep), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_the_norm_of_a_channel_is_that_of_all_its_weights():
    model = made(lambda: dynunet(2, 3, channels=(4, 5, 6), residual=False))
    groups = {group.slices[0].layer: group for group in channel_groups(model, patch())}
    block = model.network.input_block
    held = (block.conv1.conv.weight, block.norm1.weight, block.norm1.bias)
    expected = block.conv2.conv.weight.square().sum((0, 2, 3, 4))
    expected = expected + sum(weight.square().reshape(4, -1).sum(1) for weight in held)
    torch.testing.assert_close(squared_norms(model, groups["input_block.conv1.conv"]), expected)


def test_a_layer_that_cannot_be_cut_is_named():
    layers = nn.Conv3d(2, 4, 1), nn.Conv3d(4, 4, 1, groups=2), nn.Conv3d(4, 3, 1)
    model = models.Segmenter(nn.Sequential(*layers), ["0"], [4])
    with pytest.raises(ContractError, match=r"layer 1.*ungrouped"):
        channel_groups(model, patch(4))
    model.network.append(nn.Sigmoid())
    with pytest.raises(ContractError, match="last layer of every head"):
        channel_groups(model, patch(4))


@EACH
@pytest.mark.parametrize(("divisor", "tolerance"), [(5, 0.25), (2, 0.05)])
def test_a_pruned_network_has_its_size_and_comes_back_from_its_file(
    make, divisor, tolerance, tmp_path
):
    model = made(make).requires_grad_(False)
    before, wanted = copy.deepcopy(model.state_dict()), parameters(model) // 2
    small = prune(model, patch(), parameters=wanted, divisor=divisor, tolerance=tolerance)
    assert abs(parameters(small) - wanted) <= tolerance * wanted
    widths = [m.out_channels for m in small.network.modules() if isinstance(m, nn.Conv3d)]
    # Classes are not channels, and a group that lost nothing keeps its remainder.
    assert all(width % divisor == 0 or width in (3, *CHANNELS) for width in widths)
    output = small.train()(patch())
    assert output.logits.shape == (1, 3, 16, 16, 16)
    assert small.channels == tuple(stage.shape[1] for stage in output.stages)
    assert len(output.deep) == len(model.train()(patch()).deep)
    assert all(p.requires_grad for p in small.parameters()), "to be trained on"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    again = models.load(models.save(small, tmp_path / "small.safetensors"))
    assert again.spec == small.spec == json.loads(json.dumps(small.spec))
    assert torch.equal(again(patch()).logits, small.eval()(patch()).logits)


def test_a_pruned_network_is_pruned_again_and_keeps_its_kind_of_logits(tmp_path):
    options = options_of_plans(3, n_blocks_per_stage=[1, 2, 1])
    model = planned(
        2, 3, channels=CHANNELS, network="ResidualEncoderUNet", options=options, regions=True
    )
    once = prune(model, patch(), parameters=parameters(model) * 2 // 3, divisor=2)
    twice = prune(once, patch(), parameters=parameters(model) // 3, divisor=2).eval()
    again = models.load(models.save(twice, tmp_path / "small.safetensors"))
    assert all(each.regions for each in (once, twice, again))
    assert again.spec["base"]["architecture"] == "pruned"
    assert again.spec["base"]["base"]["channels"] == list(CHANNELS)
    assert torch.equal(again(patch()).logits, twice(patch()).logits)


def test_the_least_channels_go():
    model = made(BUILDERS["plain"])
    block, least = model.network.input_block, [2, 5]
    with torch.no_grad():  # what writes, normalises and reads these two all but vanishes
        for weight in (block.conv1.conv.weight, block.norm1.weight, block.norm1.bias):
            weight[least] *= 1e-3
        block.conv2.conv.weight[:, least] *= 1e-3
    size, kept = parameters(model), [0, 1, 3, 4, 6, 7]
    # Two channels of conv1, its norm (2 numbers each), and the columns of conv2; no bias.
    gone = 2 * (2 * 27 + 2 + 8 * 27)
    small = prune(model, patch(), parameters=size - gone, divisor=2, tolerance=0)
    assert parameters(small) == size - gone
    assert small.spec["kept"] == {
        "input_block.conv1.conv": {"out": kept},
        "input_block.norm1": {"out": kept},
        "input_block.conv2.conv": {"in": kept},
    }
    weight = small.network.input_block.conv1.conv.weight
    assert torch.equal(weight, block.conv1.conv.weight[kept])


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


NOTHING = Output(torch.empty(0), ())


def two_layers():
    """A network of one group of three channels."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(2, 3, 1, bias=False), nn.Conv3d(3, 3, 1, bias=False))
    return models.Segmenter(network, ["0"], [3])


def test_the_penalty_is_its_formula():
    model = two_layers()
    one, head = (layer.weight for layer in model.network)
    penalty = ReweightedGroupLasso(model, patch(4), every=2, stages=2, strength=0.3, eps=0.01)
    seen = []
    for step in range(6):
        seen.append((one.square().sum((1, 2, 3, 4)) + head.square().sum((0, 2, 3, 4))).detach())
        # P follows at steps 0 and 2 and stays for the rest: two stages.
        factors = 1 / (seen[0 if step < 2 else 2] + 0.01)
        torch.testing.assert_close(penalty(NOTHING, NOTHING), 0.3 * (factors * seen[-1]).sum())
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(0.9)
    penalty.eval()
    gradient = torch.autograd.grad(penalty(NOTHING, NOTHING), one)[0]
    assert penalty.calls == 6, "evaluation counts no step"
    torch.testing.assert_close(gradient, 0.6 * factors[:, None, None, None, None] * one)


def test_counts_and_strengths_are_checked():
    for wrong in ({"every": 0}, {"stages": 0}, {"strength": 0.0}, {"eps": 0.0}):
        with pytest.raises(ContractError, match="every=steps"):
            ReweightedGroupLasso(two_layers(), patch(4), **{"every": 1, **wrong})
