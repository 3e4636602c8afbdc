"""Networks that nnU-Net trained come back whole or not at all, and no file runs anything."""

from __future__ import annotations

import os

import pytest
import torch
from nnunet import BLOCKS, CHANNELS, network_of, options_of, plans_of, write

from dcd_core.dcd import DCD
from dcd_core.infer import predict
from dcd_core.models import from_nnunet, load, planned, save
from dcd_core.types import ContractError

NETWORKS = pytest.mark.parametrize("kind", BLOCKS)
REGIONS = {"background": 0, "whole": [1, 2], "core": [1]}


def image():
    return torch.randn(1, 2, 16, 16, 16, generator=torch.Generator().manual_seed(1))


def changed(**changes):
    plans = plans_of("PlainConvUNet")
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    for key, value in changes.items():
        place = architecture if key in architecture else architecture["arch_kwargs"]
        place[key] = value
    return plans


@NETWORKS
@pytest.mark.parametrize("configuration", ["3d_fullres", "3d_large"])
def test_a_trained_network_says_what_it_said_in_nnunet(kind, configuration, tmp_path):
    network = network_of(kind)
    model = from_nnunet(write(tmp_path / "run", network, configuration=configuration))
    skips = network.eval().encoder(image())
    output = model(image())
    assert not model.training
    for found, expected in zip((output.logits, *output.deep), network(image()), strict=True):
        assert torch.equal(found, expected)
    assert model.channels == tuple(CHANNELS)
    assert all(torch.equal(a, b) for a, b in zip(output.stages, skips, strict=True))


def test_it_teaches_and_is_saved_like_any_other(tmp_path):
    teacher = from_nnunet(write(tmp_path / "run", network_of("ResidualEncoderUNet")))
    student = planned(
        2,
        3,
        channels=(2, 3, 4),
        network="ResidualEncoderUNet",
        options=options_of("ResidualEncoderUNet"),
    )
    loss = DCD(student.channels, teacher.channels, wavelet="haar")
    loss(student(image()), teacher(image())).backward()
    assert all(p.grad is not None for p in student.network.encoder.stem.parameters())
    again = load(save(teacher, tmp_path / "teacher.safetensors"))
    assert torch.equal(again(image()).logits, teacher(image()).logits)


def test_weights_of_a_parallel_training_lose_their_prefix(tmp_path):
    network = network_of("PlainConvUNet")
    prefixed = {f"module.{key}": value for key, value in network.state_dict().items()}
    model = from_nnunet(write(tmp_path / "run", network, network_weights=prefixed))
    assert torch.equal(model(image()).logits, network.eval()(image())[0])


def test_regions_are_no_classes(tmp_path):
    """nnU-Net gives each a sigmoid; read as classes, they would be wrong without a word."""
    network = network_of("PlainConvUNet", classes=2)
    model = from_nnunet(write(tmp_path / "run", network, labels=REGIONS))
    assert model.regions
    assert model(image()).logits.shape[1] == 2
    again = load(save(model, tmp_path / "model.safetensors"))
    with pytest.raises(ContractError, match="overlapping regions, a sigmoid each"):
        predict(again, image()[0].numpy(), patch=(16, 16, 16))
    assert not from_nnunet(write(tmp_path / "other", network_of("PlainConvUNet"))).regions


class Harmful:
    """What an unpickled file could do."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_cannot_run_anything(tmp_path):
    made = tmp_path / "made"
    folder = write(tmp_path / "run", network_of("PlainConvUNet"), logging=Harmful(made))
    with pytest.raises(
        ContractError, match=r"checkpoint_final\.pth, unreadable \(UnpicklingError\)"
    ):
        from_nnunet(folder)
    assert not made.exists()


@pytest.mark.parametrize("missing", ["plans.json", "dataset.json", "fold_0/checkpoint_final.pth"])
def test_a_file_that_is_missing_or_damaged_is_named(missing, tmp_path):
    folder = write(tmp_path / "run", network_of("PlainConvUNet"))
    content = (folder / missing).read_bytes()
    (folder / missing).write_bytes(content[: len(content) // 2])
    with pytest.raises(ContractError, match=f"{missing}, unreadable"):
        from_nnunet(folder)
    (folder / missing).unlink()
    with pytest.raises(ContractError, match=rf"{missing}, unreadable \(FileNotFoundError\)"):
        from_nnunet(folder)
    with pytest.raises(ContractError, match=r"fold_all/checkpoint_best\.pth"):
        from_nnunet(
            write(tmp_path / "whole", network_of("PlainConvUNet")),
            fold="all",
            checkpoint="checkpoint_best.pth",
        )


def test_every_weight_must_match(tmp_path):
    weights = network_of("PlainConvUNet").state_dict()
    del weights["encoder.stages.1.0.convs.0.conv.bias"]
    folder = write(tmp_path / "run", network_of("PlainConvUNet"), network_weights=weights)
    with pytest.raises(
        ContractError, match=r"(?s)of another network.*stages\.1\.0\.convs\.0\.conv\.bias"
    ):
        from_nnunet(folder)
    plans = changed(features_per_stage=[4, 6, 10])
    folder = write(tmp_path / "wider", network_of("PlainConvUNet"), plans=plans)
    with pytest.raises(ContractError, match=r"(?s)of another network.*size mismatch"):
        from_nnunet(folder)


def test_a_flat_network_is_refused(tmp_path):
    flat = {"conv_op": "torch.nn.modules.conv.Conv2d", "kernel_sizes": [[3, 3]] * 3}
    weights = {
        key: w.flatten(3)[..., 0] if w.ndim == 5 else w
        for key, w in network_of("PlainConvUNet").state_dict().items()
    }
    network = network_of("PlainConvUNet")
    folder = write(tmp_path / "run", network, plans=changed(**flat), network_weights=weights)
    with pytest.raises(ContractError, match="the arch_kwargs of a 3D configuration"):
        from_nnunet(folder)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    folder = write(tmp_path / "run", network_of("PlainConvUNet"), network_weights={})
    with pytest.raises(ContractError, match=r"no 'decoder\.seg_layers\.0\.bias'"):
        from_nnunet(folder)


@pytest.mark.parametrize(
    ("plans", "message"),
    [
        ({"configurations": {"3d_fullres": {}}}, "no 'architecture'.*nnU-Net 2.5 or later"),
        ({"configurations": {"2d": {}}}, "no '3d_fullres'"),
        ({"configurations": {"3d_fullres": {"inherits_from": "3d_fullres"}}}, "no '3d_fullres'"),
        (changed(conv_op="torch.nn.modules.conv.Conv2d"), "Conv2d.*the arch_kwargs of a 3D"),
        (changed(n_stages=4), "4 stages; expected Conv3d and 3 stages"),
        (changed(nonlin="os.system"), "'os.system'; expected a module of torch.nn"),
        (changed(nonlin="torch.nn.NoSuch"), "'torch.nn.NoSuch'"),
        (changed(n_conv_per_step=[1, 1]), "unexpected keyword argument 'n_conv_per_step' of Plain"),
        (changed(network_class_name="a.VNet"), r"network: got 'VNet'.*'ResidualEncoderUNet'"),
    ],
)
def test_plans_that_do_not_serve_are_refused(plans, message, tmp_path):
    folder = write(tmp_path / "run", network_of("PlainConvUNet"), plans=plans)
    with pytest.raises(ContractError, match=message):
        from_nnunet(folder)
