"""Models: one interface around every U-Net; all weights of a file come back, or it is refused."""

import json
from pathlib import Path

import pytest
import torch
from networks import builders
from safetensors.torch import load_file, save_file
from torch import nn

from dcd_core.dcd import DCD
from dcd_core.models import Segmenter, build, dynunet, load, parameters, resenc, save, shrink, swin
from dcd_core.types import ContractError, Output

CHANNELS = (4, 6, 8)
BUILDERS = builders(CHANNELS)
EACH = pytest.mark.parametrize("make", BUILDERS.values(), ids=BUILDERS)


def patch(*, channels=2, n=16, seed=0):
    return torch.randn(1, channels, n, n, n, generator=torch.Generator().manual_seed(seed))


def equal(one, two):
    return len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_teacher_and_student_have_the_published_sizes():
    with torch.device("meta"):
        assert parameters(resenc(3, 2, channels=(32, 64, 128, 256))) == 25_892_162
        assert parameters(resenc(3, 2, channels=(8, 16, 32, 64))) == 1_620_818
        six = resenc(1, 2, channels=(2,) * 6)
    assert [len(stage) for stage in six.network.encoder] == [1, 3, 4, 6, 6, 6]  # as in nnU-Net


@EACH
def test_encode_gives_the_stages_of_forward_which_take_gradients_and_leave_no_hook(make):
    model = make()
    out = model(patch())
    assert out.logits.shape == (1, 3, 16, 16, 16)
    grids = [(4, 16, 16, 16), (6, 8, 8, 8), (8, 4, 4, 4)]
    assert [tuple(stage.shape[1:]) for stage in out.stages] == grids
    assert equal(out.stages, model.encode(patch()))
    gradients = torch.autograd.grad(out.logits.square().mean(), out.stages)
    assert all(g.abs().max() > 0 for g in gradients)
    for call in (model, model.encode):
        with pytest.raises(ContractError):
            call(patch(channels=5))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_encode_stops_before_the_decoder():
    model, ran = resenc(2, 3, channels=CHANNELS), []
    for name, module in model.network.named_children():
        for part in module.modules():
            part.register_forward_hook(lambda *_, name=name: ran.append(name))
    model.encode(patch())
    assert set(ran) == {"stem", "encoder"}
    model(patch())
    assert set(ran) == {"stem", "encoder", "up", "decoder", "heads"}


def test_deep_supervision_returns_heads_in_training_only():
    model = BUILDERS["deep"]()
    training, testing = model.train()(patch()), model.eval()(patch())
    assert [tuple(z.shape) for z in training.deep] == [(1, 3, 8, 8, 8)]
    assert testing.deep == ()
    assert torch.equal(training.logits, testing.logits)
    four = resenc(1, 2, channels=(2, 2, 2, 2), blocks=(1,) * 4, deep_supervision=True).train()
    assert [z.shape[2] for z in four(patch(channels=1)).deep] == [8, 4]


@pytest.mark.slow
def test_a_transformer_encoder_is_distilled_through_the_same_interface(tmp_path):
    """Question of the reviewers: other multi-resolution encoders than convolutional ones."""
    torch.manual_seed(0)
    small, large = (12, 24, 48, 96, 192), (24, 48, 96, 192, 384)
    student, teacher = swin(2, 3, channels=small), swin(2, 3, channels=large).eval()
    image = patch(n=64)
    output = student(image)
    assert output.logits.shape == (1, 3, 64, 64, 64)
    grids = list(zip(small, (32, 16, 8, 4, 2), strict=True))
    assert [tuple(stage.shape[1:3]) for stage in output.stages] == grids
    with torch.no_grad():
        guide, alone = Output(torch.empty(0), teacher.encode(image)), student.encode(image)
    assert equal(output.stages, alone)
    loss = DCD(small, large)
    assert [stage.levels for stage in loss.per_stage(output, guide)] == [3, 2, 1, 0, 0]
    loss(output, guide).backward()
    # What lies between the image and the deepest aligned stage, and nothing behind it.
    reached = {name for name, p in student.network.named_parameters() if p.grad is not None}
    assert {name.split(".")[1] for name in reached} == {"patch_embed", "layers1", "layers2"}
    again = load(save(student.eval(), tmp_path / "swin.safetensors"))
    assert equal(again.encode(image), alone)


def test_a_stage_is_kept_though_an_activation_in_place_follows():
    network = nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(inplace=True), nn.Conv3d(4, 2, 1))
    expected = network[0](patch(channels=1))
    model = Segmenter(network, ["0", "1"], [4, 4])
    out = model(patch(channels=1))
    for stages in (out.stages, model.encode(patch(channels=1))):
        assert equal(stages, (expected, expected.relu()))
    assert torch.equal(out.logits, network(patch(channels=1)))


class Returning(nn.Module):
    """A network that returns what a function makes of its features."""

    def __init__(self, function):
        super().__init__()
        self.stem, self.function = nn.Conv3d(1, 2, 3, padding=1), function

    def forward(self, x):
        return self.function(self.stem(x))


def test_heads_in_one_tensor_are_understood():
    """MONAI's DynUNet stacks the heads of deep supervision: (b, heads, k, d, h, w)."""
    out = Segmenter(Returning(lambda z: torch.stack([z, 2 * z], 1)), ["stem"], [2])(
        patch(channels=1)
    )
    assert equal((out.logits, *out.deep), (out.stages[0], 2 * out.stages[0]))


@pytest.mark.parametrize(
    "function",
    [
        lambda z: {"logits": z},
        lambda z: (z, torch.cat([z, z], 1)),  # logits and features
        lambda z: (z, [z]),
        lambda z: (z[..., ::2], z),  # coarsest first
        lambda z: z[0],
        lambda z: None,
    ],
    ids=["dict", "features", "nested", "order", "no batch", "none"],
)
def test_other_outputs_are_refused(function):
    with pytest.raises(ContractError, match="output of the network"):
        Segmenter(Returning(function), ["stem"], [2])(patch(channels=1))


def test_a_stage_that_does_not_run_is_refused():
    network = Returning(lambda z: z)
    network.idle = nn.Identity()
    with pytest.raises(ContractError, match=r"\['idle'\] did not run"):
        Segmenter(network, ["stem", "idle"], [2, 2]).encode(patch(channels=1))


def test_build_is_the_function_of_that_name():
    model = build("resenc", 2, 3, channels=[4, 6], blocks=[1, 1])
    assert model.spec == resenc(2, 3, channels=(4, 6), blocks=(1, 1)).spec
    with pytest.raises(ContractError, match=r"architecture: got 'unet'.*dynunet.*resenc"):
        build("unet", 1, 2)


def test_shrink_divides_down_to_the_floor():
    assert shrink((32, 64, 128, 256), 4) == (8, 16, 32, 64)
    assert shrink((16, 32, 64), 4, 8) == (8, 8, 16)
    assert shrink((33, 64), 2, 1) == (16, 32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: shrink((8, 16), 0), "factor: got 0"),
        (lambda: dynunet(1, 2, channels=(8, 8)), "at least 3 positive widths"),
        (lambda: resenc(1, 2, channels=(8, 0)), "channels: got 0"),
        (lambda: resenc(1, 2, channels=(8, 8), blocks=(1, 1, 1)), "one count per stage"),
        (lambda: swin(1, 2, channels=(12, 24, 48, 96)), "five, each twice the one before"),
        (lambda: swin(1, 2, channels=(8, 16, 32, 64, 128)), "the first a multiple of 12"),
        (lambda: swin(1, 2, heads=(3, 6, 12)), "four divisors"),
        (lambda: swin(1, 2, heads=(3, 6, 12, 25)), "four divisors"),
        (lambda: Segmenter(nn.Conv3d(1, 2, 1), ["head"], [2]), r"\('head',\)"),
        (lambda: Segmenter(nn.Conv3d(1, 2, 1), [""], [2, 2]), "one number of channels per stage"),
    ],
)
def test_unfit_arguments_are_refused(call, message):
    with pytest.raises(ContractError, match=message):
        call()


@EACH
def test_saved_weights_come_back_bit_by_bit_and_equal_models_make_equal_files(make, tmp_path):
    model = make().eval()
    path = save(model, tmp_path / "new" / "model.safetensors")
    again = load(path)
    assert not again.training
    assert again.spec == model.spec
    assert list(path.parent.iterdir()) == [path]
    mine, theirs = model.state_dict(), again.state_dict()
    assert mine.keys() == theirs.keys()
    assert equal(list(mine.values()), list(theirs.values()))
    assert torch.equal(again(patch()).logits, model(patch()).logits)
    other = save(again.to(memory_format=torch.channels_last_3d), tmp_path / "other.safetensors")
    assert other.read_bytes() == path.read_bytes()


def test_a_file_stays_whole_where_saving_over_it_fails(tmp_path, monkeypatch):
    path = save(BUILDERS["resenc"](), tmp_path / "model.safetensors")
    before = path.read_bytes()

    write = Path.write_bytes

    def fail(target, content):
        write(target, content[:100])
        raise OSError("the network disk went away")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="went away"):
        save(BUILDERS["resenc"](), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_missing_cut_short_or_of_another_architecture_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(ContractError, match="nothing at"):
        load(path)
    content = save(BUILDERS["dynunet"](), path).read_bytes()
    for length in (0, 7, 100, len(content) // 2, len(content) - 4):
        path.write_bytes(content[:length])
        with pytest.raises(ContractError, match="unreadable"):
            load(path)
    spec = dict(BUILDERS["resenc"]().spec)
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(ContractError, match="unreadable"):
        load(path)
    for wrong, message in [
        ({**spec, "architecture": "vnet"}, "architecture: got 'vnet'"),
        ({**spec, "attention": True}, "unreadable"),
        (spec, "unreadable"),
    ]:
        save_file({"w": torch.zeros(2)}, path, metadata={"spec": json.dumps(wrong)})
        with pytest.raises(ContractError, match=message):
            load(path)


def test_weights_of_other_widths_or_not_finite_are_refused(tmp_path):
    model = resenc(2, 3, channels=(4, 6), blocks=(1, 1))
    path = save(model, tmp_path / "model.safetensors")
    spec = resenc(2, 3, channels=(4, 8), blocks=(1, 1)).spec
    save_file(load_file(path), path, metadata={"spec": json.dumps(spec)})
    with pytest.raises(ContractError, match="unreadable"):
        load(path)
    nn.init.constant_(model.network.heads[0].bias, torch.nan)
    with pytest.raises(ContractError, match=r"not finite in network\.heads\.0\.bias"):
        load(save(model, path))


def test_a_segmenter_without_spec_cannot_be_saved(tmp_path):
    model = Segmenter(nn.Conv3d(1, 2, 1), [""], [2])
    with pytest.raises(ContractError, match="no `spec`"):
        save(model, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []
