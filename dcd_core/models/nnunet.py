"""Networks that nnU-Net planned and trained, read as they are: a teacher you have already, say.

Source: Isensee et al., nnU-Net, Nature Methods 18, 2021; files as nnU-Net 2.5 and later write them.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import nn

from dcd_core.errors import require
from dcd_core.models.segmenter import Segmenter, spec_of
from dcd_core.types import ContractError

# What nnU-Net's log of losses is made of; tensors and plain Python values are read anyhow.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMBERS: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float32", "float64", "int64")),
]


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
    dynamic_network_architectures; `options`: its arguments as in plans.json, `arch_kwargs`, but for
    the features per stage, which are `channels`. With `deep_supervision` every decoder stage
    returns logits; with `regions` it is trained on regions, and `classes` counts those. Stages are
    those of its encoder, the stem apart. Raises ContractError for another network, or one that is
    not 3D.
    """
    require("nnunet", "dynamic_network_architectures")
    from dynamic_network_architectures.architectures import unet

    kind = getattr(unet, network, None)
    if not network.endswith("UNet") or kind is None:
        known = sorted(name for name in vars(unet) if name.endswith("UNet"))
        raise ContractError("network", repr(network), f"one of {known}", "a U-Net of nnU-Net")
    found = {key: _named(value) for key, value in options.items()}
    if found.get("conv_op") is not nn.Conv3d or found.get("n_stages") != len(channels):
        raise ContractError(
            "options",
            f"{options.get('conv_op')}, {options.get('n_stages')} stages",
            f"Conv3d and {len(channels)} stages, as many as channels {tuple(channels)}",
            "the arch_kwargs of a 3D configuration",
        )
    found |= {
        "input_channels": in_channels,
        "num_classes": classes,
        "features_per_stage": list(channels),
        "deep_supervision": deep_supervision,
    }
    try:
        inspect.signature(kind).bind(**found)
    except TypeError as error:  # its words name the argument
        raise ContractError(
            "options", f"{error} of {network}", "its arguments", "plans of the installed version"
        ) from None
    made = kind(**found)
    if not deep_supervision:
        made.decoder.seg_layers = made.decoder.seg_layers[-1:]  # the others would never run
    made.apply(made.initialize)
    spec = spec_of(
        "planned",
        in_channels,
        classes,
        channels,
        network=network,
        options=dict(options),
        deep_supervision=deep_supervision,
        regions=regions,
    )
    stages = [f"encoder.stages.{i}" for i in range(len(channels))]
    return Segmenter(made, stages, channels, spec, regions=regions)


def from_nnunet(
    folder: str | Path, *, fold: int | str = 0, checkpoint: str = "checkpoint_final.pth"
) -> Segmenter:
    """A segmenter that nnU-Net trained, with its weights, in eval mode.

    `folder`: what nnU-Net names <trainer>__<plans>__<configuration>, with plans.json, dataset.json
    and, in fold_<fold>, the `checkpoint`. Nothing in the checkpoint is executed: what is not a
    tensor or a plain value is refused. Every weight must match. Images must be prepared as nnU-Net
    prepared its own. Raises ContractError for files that are missing, damaged, of other networks,
    or of an nnU-Net before 2.5.
    """
    folder = Path(folder)
    plans, dataset = (_json(folder / name) for name in ("plans.json", "dataset.json"))
    path = folder / f"fold_{fold}" / checkpoint
    content = _unpickled(path)
    try:
        configuration = content["init_args"]["configuration"]
        weights = {key.removeprefix("module."): w for key, w in content["network_weights"].items()}
        architecture = _configured(plans, configuration)["architecture"]
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
    except KeyError as error:
        raise ContractError(
            "nnU-Net's files",
            f"no {error} in {folder}",
            "those that nnU-Net 2.5 or later writes",
            "planning and training with a newer nnU-Net",
        ) from None
    except RuntimeError as error:  # PyTorch's word for weights that do not match
        raise ContractError(
            "weights",
            f"{path}, of another network ({error})",
            "those of plans.json",
            "its own folder",
        ) from None
    return model.eval()


def _configured(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration with all that it inherits from others."""
    found: dict[str, Any] = {}
    others, following = dict(plans["configurations"]), name
    while following is not None:
        entry = others.pop(following)  # each once: a circle ends here
        found = {**entry, **found}
        following = entry.get("inherits_from")
    return found


def _named(value: Any) -> Any:
    """The class that an option names; of PyTorch's modules alone, as plans may be anybody's."""
    if not isinstance(value, str):
        return value
    found = getattr(nn, value.rpartition(".")[2], None)
    if not value.startswith("torch.nn.") or found is None:
        raise ContractError("options", repr(value), "a module of torch.nn", "plans of nnU-Net")
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    return found


def _unpickled(path: Path) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, UnpicklingError, RuntimeError, EOFError) as error:
        raise _unreadable(path, error) from None
    return found


def _unreadable(path: Path, error: Exception) -> ContractError:
    return ContractError(
        "nnU-Net's files",
        f"{path}, unreadable ({type(error).__name__})",
        "a folder <trainer>__<plans>__<configuration>, with plans.json, dataset.json and "
        "fold_<fold>/<checkpoint>",
        "another folder, fold or checkpoint",
    )
