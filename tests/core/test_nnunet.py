"""Networks that nnU-Net trained come back whole or not at all, and no file runs anything."""

import os

import pytest
import torch
from nnunet import BLOCKS, CHANNELS, network_of, plans_of, write
from outputs import noise

from dcd_core.infer import predict
from dcd_core.models import from_nnunet, load, save
from dcd_core.types import ContractError

PLAIN = "PlainConvUNet"
IMAGE = noise(1, 2, 16, 16, 16, seed=1)
REGIONS = {"background": 0, "whole": [1, 2], "core": [1]}


def changed(**changes):
    plans = plans_of(PLAIN)
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    for key, value in changes.items():
        part = architecture if key in architecture else architecture["arch_kwargs"]
        part[key] = value
    return plans


def refused(folder, message, **content):
    """A folder of a plain network with other content is refused with this message."""
    write(folder, network_of(PLAIN), **content)
    with pytest.raises(ContractError, match=message):
        from_nnunet(folder)


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("configuration", ["3d_fullres", "3d_large"])
def test_a_trained_network_says_what_it_said_in_nnunet(kind, configuration, tmp_path):
    network = network_of(kind)
    # A parallel training writes its weights with a prefix.
    prefixed = {f"module.{key}": value for key, value in network.state_dict().items()}
    weights = {"network_weights": prefixed} if configuration == "3d_large" else {}
    model = from_nnunet(write(tmp_path / "run", network, configuration=configuration, **weights))
    skips = network.eval().encoder(IMAGE)
    output = model(IMAGE)
    assert not model.training
    for one, expected in zip((output.logits, *output.deep), network(IMAGE), strict=True):
        assert torch.equal(one, expected)
    assert model.channels == tuple(CHANNELS)
    assert all(torch.equal(a, b) for a, b in zip(output.stages, skips, strict=True))


def test_regions_are_no_classes(tmp_path):
    """nnU-Net gives each a sigmoid; read as classes, they would be wrong without an error."""
    model = from_nnunet(write(tmp_path / "run", network_of(PLAIN, classes=2), labels=REGIONS))
    assert model.regions
    assert model(IMAGE).logits.shape[1] == 2
    again = load(save(model, tmp_path / "model.safetensors"))
    with pytest.raises(ContractError, match="overlapping regions, a sigmoid each"):
        predict(again, IMAGE[0].numpy(), patch=(16, 16, 16))
    assert not from_nnunet(write(tmp_path / "other", network_of(PLAIN))).regions


class Harmful:
    """What an unpickled file could do."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_cannot_run_anything(tmp_path):
    made = tmp_path / "made"
    refused(tmp_path / "run", r"final\.pth, unreadable \(UnpicklingError\)", logging=Harmful(made))
    assert not made.exists()


def test_a_file_that_is_missing_or_damaged_is_named(tmp_path):
    for name in ("plans.json", "dataset.json", "fold_0/checkpoint_final.pth"):
        folder = write(tmp_path / name, network_of(PLAIN))
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ContractError, match=f"{name}, unreadable"):
            from_nnunet(folder)
        for text in (b"hello world", b"\x80\x02."):
            (folder / name).write_bytes(text)
            with pytest.raises(ContractError, match=f"{name}, unreadable"):
                from_nnunet(folder)
        (folder / name).unlink()
        with pytest.raises(ContractError, match=rf"{name}, unreadable \(FileNotFoundError\)"):
            from_nnunet(folder)
    folder = write(tmp_path / "whole", network_of(PLAIN))
    plans = (folder / "plans.json").read_text("utf-8")
    (folder / "plans.json").write_text(plans.replace("1e-05", "1e-04"), "utf-8")
    with pytest.raises(ContractError, match=r"another architecture in plans\.json"):
        from_nnunet(folder)
    (folder / "plans.json").write_text(plans, "utf-8")
    with pytest.raises(ContractError, match=r"fold_all/checkpoint_best\.pth"):
        from_nnunet(folder, fold="all", checkpoint="checkpoint_best.pth")


def test_every_weight_must_match_and_be_finite(tmp_path):
    name = "encoder.stages.1.0.convs.0.conv.bias"
    weights = network_of(PLAIN).state_dict()
    absent = {key: w for key, w in weights.items() if key != name}
    refused(tmp_path / "absent", rf"(?s)does not fit.*{name}", network_weights=absent)
    name = "decoder.seg_layers.0.weight"
    infinite = {**weights, name: weights[name] * torch.inf}
    refused(tmp_path / "infinite", f"not finite in network.{name}", network_weights=infinite)
    wider = changed(features_per_stage=[4, 6, 10])
    refused(tmp_path / "wider", r"(?s)does not fit its plans.*size mismatch", plans=wider)
    refused(tmp_path / "none", r"'decoder\.seg_layers\.0\.bias'", network_weights={})


@pytest.mark.parametrize(
    ("plans", "message"),
    [
        ({"configurations": {"3d_fullres": {}}}, "'architecture'.*nnU-Net 2.5 or later"),
        ({"configurations": {"2d": {}}}, "KeyError: '3d_fullres'"),
        ({"configurations": {"3d_fullres": {"inherits_from": "3d_fullres"}}}, "'3d_fullres'"),
        (changed(conv_op="torch.nn.modules.conv.Conv2d"), "Conv2d.*the arch_kwargs of a 3D"),
        (changed(n_stages=4), "4 stages; expected Conv3d and 3 stages"),
        (changed(nonlin="os.system"), "'os.system'; expected a module of torch.nn"),
        (changed(nonlin="torch.nn.NoSuch"), "'torch.nn.NoSuch'"),
        (changed(n_conv_per_step=[1, 1]), "unexpected keyword argument 'n_conv_per_step'"),
        (changed(network_class_name="a.VNet"), r"network: got 'VNet'.*'ResidualEncoderUNet'"),
    ],
)
def test_plans_that_do_not_serve_are_refused(plans, message, tmp_path):
    refused(tmp_path / "run", message, plans=plans)
