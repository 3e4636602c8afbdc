"""Models: one interface around every U-Net, weights that come back whole or not at all."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from networks import builders
from torch import nn

from dcd_core import models
from dcd_core.dcd import DCD
from dcd_core.models import Segmenter, build, dynunet, load, parameters, resenc, save, shrink, swin
from dcd_core.types import ContractError, Output

CHANNELS = (4, 6, 8)
BUILDERS = builders(CHANNELS)
EACH = pytest.mark.parametrize("make", BUILDERS.values(), ids=BUILDERS)


def patch(*, channels=2, n=16, seed=0):
    return torch.randn(1, channels, n, n, n, generator=torch.Generator().manual_seed(seed))


def hooks(model):
    return [
        name
        for name, module in model.named_modules()
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    ]


# --- networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "count"), [((32, 64, 128, 256), 25_892_162), ((8, 16, 32, 64), 1_620_818)]
)
def test_parameter_counts_of_teacher_and_student(channels, count):
    with torch.device("meta"):
        model = resenc(3, 2, channels=channels)
    assert parameters(model) == count


@EACH
def test_output_has_the_documented_shapes(make):
    model = make().eval()
    logits, stages, deep = model(patch())
    assert logits.shape == (1, 3, 16, 16, 16)
    assert [tuple(s.shape) for s in stages] == [
        (1, 4, 16, 16, 16),
        (1, 6, 8, 8, 8),
        (1, 8, 4, 4, 4),
    ]
    assert deep == ()
    assert model.channels == CHANNELS


@EACH
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_encode_gives_the_stages_of_forward_bit_by_bit(make, training):
    model = make().train(training)
    whole = model(patch()).stages
    alone = model.encode(patch())
    assert len(whole) == len(alone) == 3
    assert all(torch.equal(one, two) for one, two in zip(whole, alone, strict=True))


def test_encode_stops_before_the_decoder():
    model = resenc(2, 3, channels=CHANNELS)
    ran = []
    for name, module in model.network.named_children():
        for part in module.modules():
            part.register_forward_hook(lambda *_, name=name: ran.append(name))
    model.encode(patch())
    assert set(ran) == {"stem", "encoder"}
    model(patch())
    assert set(ran) == {"stem", "encoder", "up", "decoder", "heads"}


@EACH
def test_no_hook_is_left_behind(make):
    model = make()
    model(patch())
    model.encode(patch())
    with pytest.raises(RuntimeError):
        model(patch(channels=5))
    with pytest.raises(RuntimeError):
        model.encode(patch(channels=5))
    assert hooks(model) == []


@EACH
def test_stages_receive_gradients(make):
    model = make()
    out = model(patch())
    gradients = torch.autograd.grad(out.logits.square().mean(), out.stages)
    assert all(g.abs().max() > 0 for g in gradients)


def test_deep_supervision_speaks_in_training_only():
    model = BUILDERS["deep"]()
    deep = model.train()(patch()).deep
    assert [tuple(z.shape) for z in deep] == [(1, 3, 8, 8, 8)]
    assert model.eval()(patch()).deep == ()
    assert resenc(2, 3, channels=CHANNELS).train()(patch()).deep == ()
    four = resenc(1, 2, channels=(2, 2, 2, 2), blocks=(1,) * 4, deep_supervision=True).train()
    assert [z.shape[2] for z in four(patch(channels=1)).deep] == [8, 4]


def test_training_and_eval_agree_on_the_logits_of_deep_supervision():
    model = BUILDERS["deep"]()
    assert torch.equal(model.train()(patch()).logits, model.eval()(patch()).logits)


def test_residual_blocks_per_stage_are_those_of_nnu_net():
    with torch.device("meta"):
        model = resenc(1, 2, channels=(2, 2, 2, 2, 2, 2))
    assert [len(stage) for stage in model.network.encoder] == [1, 3, 4, 6, 6, 6]


@EACH
def test_a_deep_copy_shares_nothing(make):
    model = make().eval()
    twin = copy.deepcopy(model)
    assert torch.equal(model(patch()).logits, twin(patch()).logits)
    mine = {p.data_ptr() for p in model.parameters()}
    assert not mine & {p.data_ptr() for p in twin.parameters()}
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert model(patch()).logits.abs().max() > 0
    # DynUNet registers its blocks under two names: the copy must have kept them one.
    assert len(list(twin.parameters())) == len(list(model.parameters()))


def test_any_network_can_be_wrapped():
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 2, 1))
    out = Segmenter(network, ["1"], [4])(patch(channels=1))
    assert out.logits.shape == (1, 2, 16, 16, 16)
    assert out.stages[0].shape == (1, 4, 16, 16, 16)
    assert out.stages[0].min() == 0


def test_a_transformer_encoder_is_distilled_through_the_same_interface(tmp_path):
    """Question of the reviewers: other multi-resolution encoders than convolutional ones."""
    torch.manual_seed(0)
    small, large = (12, 24, 48, 96, 192), (24, 48, 96, 192, 384)
    student, teacher = swin(2, 3, channels=small), swin(2, 3, channels=large).eval()
    image = patch(n=64)
    output = student(image)
    assert output.logits.shape == (1, 3, 64, 64, 64)
    assert [tuple(s.shape[1:]) for s in output.stages] == [
        (width, n, n, n) for width, n in zip(small, (32, 16, 8, 4, 2), strict=True)
    ]
    with torch.no_grad():
        guide = Output(torch.empty(0), teacher.encode(image))
        alone = student.encode(image)
    assert all(torch.equal(a, b) for a, b in zip(output.stages, alone, strict=True))
    loss = DCD(small, large)
    assert [stage.levels for stage in loss.per_stage(output, guide)] == [3, 2, 1, 0, 0]
    loss(output, guide).backward()
    # What lies between the image and the deepest aligned stage, and nothing behind it.
    reached = {name for name, p in student.network.named_parameters() if p.grad is not None}
    assert {name.split(".")[1] for name in reached} == {"patch_embed", "layers1", "layers2"}
    again = load(save(student.eval(), tmp_path / "swin.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(again.encode(image), alone, strict=True))


# --- names, widths --------------------------------------------------------------------------------


def test_build_is_the_function_of_that_name():
    torch.manual_seed(0)
    one = build("resenc", 2, 3, channels=[4, 6], blocks=[1, 1])
    torch.manual_seed(0)
    two = resenc(2, 3, channels=(4, 6), blocks=(1, 1))
    assert one.spec == two.spec
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert set(models.ARCHITECTURES) == {"dynunet", "resenc", "swin", "planned", "pruned"}


def test_unknown_architecture_lists_the_known_ones():
    with pytest.raises(ContractError, match=r"architecture: got 'unet'.*dynunet.*resenc"):
        build("unet", 1, 2)


@pytest.mark.parametrize(
    ("channels", "factor", "floor", "expected"),
    [
        ((32, 64, 128, 256), 4, 8, (8, 16, 32, 64)),
        ((16, 32, 64), 4, 8, (8, 8, 16)),
        ((16, 32, 64), 4, 2, (4, 8, 16)),
        ((33, 64), 2, 1, (16, 32)),
        ((16, 32), 1, 8, (16, 32)),
    ],
)
def test_shrink_divides_down_to_the_floor(channels, factor, floor, expected):
    assert shrink(channels, factor, floor) == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: shrink((8, 16), 0), "factor, floor"),
        (lambda: shrink((8, 16), 2, 0), "factor, floor"),
        (lambda: dynunet(1, 2, channels=(8, 8)), "at least 3 positive widths"),
        (lambda: resenc(1, 2, channels=(8, 0)), "at least 2 positive widths"),
        (lambda: resenc(1, 2, channels=(8, 8), blocks=(1, 1, 1)), "one count per stage"),
        (lambda: swin(1, 2, channels=(12, 24, 48, 96)), "five, each twice the one before"),
        (lambda: swin(1, 2, channels=(8, 16, 32, 64, 128)), "the first a multiple of 12"),
        (lambda: swin(1, 2, heads=(3, 6, 12)), "four divisors"),
        (lambda: swin(1, 2, heads=(3, 6, 12, 25)), "four divisors"),
        (lambda: Segmenter(nn.Conv3d(1, 2, 1), ["head"], [2]), r"\['head'\]"),
        (lambda: Segmenter(nn.Conv3d(1, 2, 1), [""], [2, 2]), "one number per stage"),
    ],
)
def test_unfit_arguments_are_refused(call, message):
    with pytest.raises(ContractError, match=message):
        call()


# --- files ----------------------------------------------------------------------------------------


@EACH
def test_saved_weights_come_back_bit_by_bit(make, tmp_path):
    model = make().eval()
    path = save(model, tmp_path / "new" / "model.safetensors")
    again = load(path)
    assert not again.training
    assert again.spec == model.spec
    assert list(path.parent.iterdir()) == [path]
    assert torch.equal(again(patch()).logits, model(patch()).logits)
    mine, theirs = model.state_dict(), again.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_channels_last_weights_are_saved_like_others(tmp_path):
    model = BUILDERS["dynunet"]().eval()
    expected = model(patch()).logits
    model.to(memory_format=torch.channels_last_3d)
    again = load(save(model, tmp_path / "model.safetensors"))
    assert torch.equal(again(patch()).logits, expected)


@pytest.mark.parametrize("kind", sorted(BUILDERS))
def test_equal_models_make_equal_files(tmp_path, kind):
    model = BUILDERS[kind]()
    files = {save(model, tmp_path / f"{i}.safetensors").read_bytes() for i in range(8)}
    assert len(files) == 1
    assert (
        save(load(tmp_path / "0.safetensors"), tmp_path / "again.safetensors").read_bytes() in files
    )


def test_saving_replaces_a_file_and_a_failure_keeps_it(tmp_path, monkeypatch):
    path = save(BUILDERS["resenc"](), tmp_path / "model.safetensors")
    before = path.read_bytes()
    save(BUILDERS["resenc"](), path)
    assert path.read_bytes() != before
    before = path.read_bytes()

    def fail(model, target, **_):
        with open(target, "wb") as file:
            file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_model", fail)
    with pytest.raises(OSError, match="disk full"):
        save(BUILDERS["resenc"](), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, -4], ids=str)
def test_a_file_cut_short_is_refused(keep, tmp_path):
    path = save(BUILDERS["dynunet"](), tmp_path / "model.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(ContractError, match="unreadable"):
        load(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ContractError, match="nothing at"):
        load(tmp_path / "none.safetensors")


def test_files_without_or_with_another_architecture_are_refused(tmp_path):
    from safetensors.torch import save_file

    weights = {"w": torch.zeros(2)}
    path = tmp_path / "model.safetensors"
    save_file(weights, path)
    with pytest.raises(ContractError, match="unreadable"):
        load(path)
    spec = dict(BUILDERS["resenc"]().spec)
    for wrong, message in [
        ({**spec, "architecture": "vnet"}, "architecture: got 'vnet'"),
        ({**spec, "attention": True}, "unreadable"),
        (spec, "unreadable"),
    ]:
        save_file(weights, path, metadata={"spec": json.dumps(wrong)})
        with pytest.raises(ContractError, match=message):
            load(path)


def test_weights_of_other_widths_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    path = save(resenc(2, 3, channels=(4, 6), blocks=(1, 1)), tmp_path / "model.safetensors")
    spec = resenc(2, 3, channels=(4, 8), blocks=(1, 1)).spec
    save_file(load_file(path), path, metadata={"spec": json.dumps(spec)})
    with pytest.raises(ContractError, match="unreadable"):
        load(path)


def test_a_segmenter_without_spec_cannot_be_saved(tmp_path):
    model = Segmenter(nn.Conv3d(1, 2, 1), [""], [2])
    with pytest.raises(ContractError, match="without spec"):
        save(model, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []
