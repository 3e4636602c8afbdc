"""Networks that nnU-Net planned and trained: a teacher that somebody has already, for example.

Source: Isensee et al., nnU-Net, Nature Methods 18, 2021; files as nnU-Net 2.5 and later write them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from dcd_core.errors import require
from dcd_core.models.segmenter import Segmenter, recorded, refuse_not_finite
from dcd_core.storage import read_torch
from dcd_core.types import ContractError

# The types in nnU-Net's log of losses; PyTorch reads tensors and plain Python values anyway.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMBERS: list[Any] = [np.dtype, *(type(np.dtype(n)) for n in ("float32", "float64", "int64"))]
_NUMBERS += [(_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]


@recorded
def planned(
    in_channels: int,
    classes: int,
    *,
    channels: Sequence[int],
    network: str,
    options: Mapping[str, Any],
    deep_supervision: bool = False,
    regions: bool = False,
) -> Segmenter:
    """A U-Net as the plans of nnU-Net describe it, with new weights.

    `network`: "PlainConvUNet", "ResidualEncoderUNet" or another U-Net of the package
    dynamic_network_architectures; `options`: its `arch_kwargs` in plans.json, but for the features
    per stage, which are `channels`. With `deep_supervision` every decoder stage returns logits;
    with `regions` it is trained on regions, and `classes` counts those. The stem is no stage.
    Raises ContractError for another network, or one that is not 3D.
    """
    require("planned", "dynamic_network_architectures")
    from dynamic_network_architectures.architectures import unet

    kind = getattr(unet, network, None)
    if not network.endswith("UNet") or kind is None:
        known = sorted(name for name in vars(unet) if name.endswith("UNet"))
        raise ContractError("network", repr(network), f"one of {known}", "a U-Net of nnU-Net")
    arguments = {key: _named(value) for key, value in options.items()}
    arguments |= {"input_channels": in_channels, "num_classes": classes}
    arguments |= {"features_per_stage": list(channels), "deep_supervision": deep_supervision}
    if arguments.get("conv_op") is not nn.Conv3d or arguments.get("n_stages") != len(channels):
        got = f"{options.get('conv_op')}, {options.get('n_stages')} stages"
        expected = f"Conv3d and {len(channels)} stages, as many as channels"
        raise ContractError("options", got, expected, "the arch_kwargs of a 3D configuration")
    try:
        unet_3d = kind(**arguments)
    except TypeError as error:  # its text names the argument
        raise ContractError("options", error, f"those of {network}", "newer plans") from None
    if not deep_supervision:
        unet_3d.decoder.seg_layers = unet_3d.decoder.seg_layers[-1:]  # the others never run
    unet_3d.apply(unet_3d.initialize)
    stages = [f"encoder.stages.{i}" for i in range(len(channels))]
    return Segmenter(unet_3d, stages, channels, regions=regions)


def from_nnunet(
    folder: str | Path, *, fold: int | str = 0, checkpoint: str = "checkpoint_final.pth"
) -> Segmenter:
    """A segmenter that nnU-Net trained, with its weights, in eval mode.

    `folder`: what nnU-Net names <trainer>__<plans>__<configuration>, with plans.json, dataset.json
    and, in fold_<fold>, the `checkpoint`. Nothing in it is executed. Images must be prepared as
    nnU-Net prepared its own. Raises ContractError for files that are missing, damaged, of other
    networks, or of an nnU-Net before 2.5, and unless every weight matches and is finite.
    """
    return read_trained(folder, fold=fold, checkpoint=checkpoint).model


class Trained(NamedTuple):
    """What a training of nnU-Net left: a network, plans.json, dataset.json, a configuration."""

    model: Segmenter
    plans: dict[str, Any]
    dataset: dict[str, Any]
    configuration: str


def read_trained(folder: str | Path, *, fold: int | str, checkpoint: str) -> Trained:
    """The segmenter as `from_nnunet` returns it, and what it was trained by; the same errors."""
    path = Path(folder) / f"fold_{fold}" / checkpoint
    plans, dataset = (read_file(Path(folder) / name) for name in ("plans.json", "dataset.json"))
    content = read_file(path)
    try:
        trained = content["init_args"]
        architecture = configured(plans, trained["configuration"])["architecture"]
        copied = configured(trained.get("plans", plans), trained["configuration"])
        if copied["architecture"] != architecture:
            raise KeyError("another architecture in plans.json")
        weights = {key.removeprefix("module."): w for key, w in content["network_weights"].items()}
        options = dict(architecture["arch_kwargs"])
        model = planned(
            classes=len(weights["decoder.seg_layers.0.bias"]),
            in_channels=next(w.shape[1] for w in weights.values() if w.ndim > 2),  # the stem
            channels=options.pop("features_per_stage"),
            network=architecture["network_class_name"].rpartition(".")[2],
            options=options,
            deep_supervision=True,  # as it was trained: its weights are those of all stages
            # A label that is a list of several is a region.
            regions=any(isinstance(x, list) and len(x) > 1 for x in dataset["labels"].values()),
        )
        model.network.load_state_dict(weights, strict=True)
    except ContractError:
        raise
    except Exception as error:  # something is absent or of another kind, or weights do not match
        got = f"{path}, which does not fit its plans ({type(error).__name__}: {error})"
        expected = "plans and weights of one network, as nnU-Net 2.5 or later writes them"
        attempt = "the weights' own folder, or planning and training with a newer nnU-Net"
        raise ContractError("nnU-Net's files", got, expected, attempt) from None
    refuse_not_finite(model, path)
    return Trained(model.eval(), plans, dataset, trained["configuration"])


def configured(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration with all that it inherits from others."""
    others, merged = dict(plans["configurations"]), {"inherits_from": name}
    while (following := merged.pop("inherits_from", None)) is not None:
        merged = {**others.pop(following), **merged}  # each once, so that a circle ends
    return merged


def _named(value: Any) -> Any:
    """The class that an option names; of PyTorch's modules alone, as plans may be anybody's."""
    if not isinstance(value, str):
        return value
    module = getattr(nn, value.rpartition(".")[2], None)
    if not value.startswith("torch.nn.") or module is None:
        raise ContractError("options", repr(value), "a module of torch.nn", "plans of nnU-Net")
    return module


def read_file(path: Path) -> dict[str, Any]:
    """A JSON file or checkpoint of nnU-Net; nothing is executed. ContractError if damaged."""
    try:
        if path.suffix == ".json":
            return dict(json.loads(path.read_text("utf-8")))
        with torch.serialization.safe_globals(_NUMBERS):
            return dict(read_torch(path))
    except Exception as error:  # there are half a dozen types for a damaged file
        got = f"{path}, unreadable ({type(error).__name__})"
        expected = "<trainer>__<plans>__<configuration> with plans.json, dataset.json, fold_<fold>"
        attempt = "another folder, fold or checkpoint"
        raise ContractError("nnU-Net's files", got, expected, attempt) from None
