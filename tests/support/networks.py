"""One small network of every kind that `models` builds: two channels in, three classes out."""

from dcd_core.models import dynunet, planned, resenc


def options_of_plans(depth, **changes):
    """Options of a network with as many stages, as nnU-Net's plans have them."""
    return {
        "n_stages": depth,
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * depth,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (depth - 1),
        "n_conv_per_stage_decoder": [1] * (depth - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
        **changes,
    }


def builders(channels):
    """Makers by name, of networks with three stages of these `channels`."""
    return {
        "dynunet": lambda: dynunet(2, 3, channels=channels),
        "plain": lambda: dynunet(2, 3, channels=channels, residual=False),
        "resenc": lambda: resenc(2, 3, channels=channels, blocks=(1, 2, 1)),
        "deep": lambda: resenc(2, 3, channels=channels, blocks=(1, 1, 1), deep_supervision=True),
        "planned": lambda: planned(
            2,
            3,
            channels=channels,
            network="ResidualEncoderUNet",
            options=options_of_plans(len(channels), n_blocks_per_stage=[1, 2, 1]),
        ),
    }
