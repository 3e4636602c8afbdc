"""What nnU-Net leaves of a training: networks as it builds them, folders as it writes them."""

import json

import numpy as np
import torch
from dynamic_network_architectures.architectures import unet
from networks import options_of_plans
from torch import nn

CHANNELS = [4, 6, 8]
LABELS = {"background": 0, "core": 1, "oedema": 2}
BLOCKS = {"PlainConvUNet": "n_conv_per_stage", "ResidualEncoderUNet": "n_blocks_per_stage"}


def options_of(kind):
    return options_of_plans(3, **{BLOCKS[kind]: [1, 2, 1]})


def network_of(kind, *, classes=3):
    """As nnU-Net builds it: classes in the place of their names, deep supervision for training."""
    real = {
        "conv_op": nn.Conv3d,
        "norm_op": nn.InstanceNorm3d,
        "nonlin": nn.LeakyReLU,
        "features_per_stage": CHANNELS,
    }
    torch.manual_seed(0)
    return getattr(unet, kind)(
        input_channels=2,
        num_classes=classes,
        deep_supervision=True,
        **(options_of(kind) | real),
    )


def plans_of(kind):
    architecture = {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind}",
        "arch_kwargs": options_of(kind) | {"features_per_stage": CHANNELS},
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    return {
        "configurations": {
            "3d_fullres": {"patch_size": [16, 16, 16], "architecture": architecture},
            "3d_large": {"inherits_from": "3d_fullres", "batch_size": 4},
        }
    }


def write(folder, network, *, plans=None, labels=LABELS, configuration="3d_fullres", **more):
    """The folder of a trained network, in the words of nnU-Net's trainer."""
    (folder / "fold_0").mkdir(parents=True)
    plans = plans or plans_of(type(network).__name__)
    (folder / "plans.json").write_text(json.dumps(plans))
    dataset = {"channel_names": {"0": "DWI", "1": "ADC"}, "labels": labels}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.99, nesterov=True)
    checkpoint = {
        "network_weights": network.state_dict(),
        "optimizer_state": optimizer.state_dict(),
        "grad_scaler_state": None,
        "logging": {
            "train_losses": [np.float32(-0.1), np.float64(-0.2)],
            "dice_per_class_or_region": [[np.float64(0.5), np.float32(0.4)]],
            "epochs": [np.int64(2)],
            "lrs": [0.01],
        },
        "_best_ema": np.float64(0.5),
        "current_epoch": 2,
        "init_args": {
            "plans": plans,
            "configuration": configuration,
            "fold": 0,
            "dataset_json": dataset,
            "device": torch.device("cuda"),
        },
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
        **more,
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return folder
