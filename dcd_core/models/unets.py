"""The U-Nets of teachers and students: plain, with a residual encoder, with a transformer encoder.

Source: Isensee et al., nnU-Net, Nature Methods 18, 2021 (plain), and MICCAI 2024, arXiv 2404.09556
(residual encoder); Hatamizadeh et al., arXiv 2201.01266; Cardoso et al., MONAI, arXiv 2211.02701.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from dcd_core.errors import at_least, flag, require, whole, within
from dcd_core.models.segmenter import Segmenter, recorded

BLOCKS = (1, 3, 4, 6, 6, 6)
"""Residual blocks per encoder stage in nnU-Net's ResEnc presets."""


@recorded
def dynunet(
    in_channels: int,
    classes: int,
    *,
    channels: Sequence[int] = (16, 32, 64, 128),
    residual: bool = True,
) -> Segmenter:
    """MONAI's DynUNet, the plain (or one-block residual) nnU-Net.

    `channels` per stage, finest first; the patch must be divisible by 2 ** (stages - 1).
    """
    from monai.networks.nets import DynUNet

    channels = _checked(in_channels, classes, channels, least=3)
    depth = len(channels)
    network = DynUNet(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=classes,
        kernel_size=[3] * depth,
        strides=[1] + [2] * (depth - 1),
        upsample_kernel_size=[2] * (depth - 1),
        filters=list(channels),
        res_block=flag("residual", residual),
    )
    middle = [f"downsamples.{i}" for i in range(depth - 2)]
    return Segmenter(network, ["input_block", *middle, "bottleneck"], channels)


@recorded
def resenc(
    in_channels: int,
    classes: int,
    *,
    channels: Sequence[int] = (32, 64, 128, 256),
    blocks: Sequence[int] | None = None,
    deep_supervision: bool = False,
) -> Segmenter:
    """The residual-encoder U-Net of nnU-Net's ResEnc presets, from MONAI's residual blocks.

    `blocks`: residual blocks per stage, `BLOCKS` by default. The stem is no stage. With
    `deep_supervision` the decoder stages return logits while training.
    """
    channels, deep = _checked(in_channels, classes, channels), flag("deep", deep_supervision)
    counts = whole("blocks", BLOCKS[: len(channels)] if blocks is None else blocks)
    within("blocks", counts, len(counts) == len(channels), "one count per stage")
    network = _ResidualEncoderUNet(in_channels, classes, channels, counts, deep)
    return Segmenter(network, [f"encoder.{i}" for i in range(len(channels))], channels)


@recorded
def swin(
    in_channels: int,
    classes: int,
    *,
    channels: Sequence[int] = (24, 48, 96, 192, 384),
    depths: Sequence[int] = (2, 2, 2, 2),
    heads: Sequence[int] = (3, 6, 12, 24),
    window: int = 7,
) -> Segmenter:
    """MONAI's Swin UNETR, whose encoder is a transformer of shifted windows.

    Stages are its patch embedding, on half the patch's grid, and its four layers, each on half the
    grid before and twice as wide, not normalised. `depths` and `heads`: blocks and attention heads
    of the layers; `window`: its edge in tokens. The patch must be divisible by 32, and 64 at least.
    """
    from monai.networks.nets import SwinUNETR

    require("lab", "einops")
    channels, heads = _checked(in_channels, classes, channels), whole("heads", heads)
    depths, window = whole("depths", depths), at_least("window", window, 1)
    doubled = channels == tuple(channels[0] * 2**i for i in range(5))
    divided = len(heads) == 4 and not any(c % n for c, n in zip(channels, heads, strict=False))
    fits = doubled and channels[0] % 12 == 0 and divided
    expected = "five, each twice the one before, the first a multiple of 12, and four divisors"
    within("channels, heads of swin", (channels, heads), fits, expected)
    network = SwinUNETR(
        in_channels=in_channels,
        out_channels=classes,
        feature_size=channels[0],
        depths=depths,
        num_heads=heads,
        window_size=window,
    )
    layers = [f"swinViT.layers{i}.0" for i in range(1, 5)]
    return Segmenter(network, ["swinViT.patch_embed", *layers], channels)


class _ResidualEncoderUNet(nn.Module):
    def __init__(
        self, inputs: int, classes: int, channels: Sequence[int], blocks: Sequence[int], deep: bool
    ) -> None:
        super().__init__()
        from monai.networks.blocks.dynunet_block import UnetResBlock, get_conv_layer

        norm = ("instance", {"affine": True})
        act = ("leakyrelu", {"inplace": True, "negative_slope": 0.01})
        conv = partial(get_conv_layer, 3, act=act, norm=norm, conv_only=False, bias=True)
        block = partial(UnetResBlock, 3, kernel_size=3, norm_name=norm, act_name=act)
        self.deep_supervision = deep
        self.stem = conv(inputs, channels[0])
        self.encoder = nn.ModuleList(
            nn.Sequential(
                block(channels[max(i - 1, 0)], width, stride=2 if i else 1),
                *(block(width, width, stride=1) for _ in range(blocks[i] - 1)),
            )
            for i, width in enumerate(channels)
        )
        pairs = list(pairwise(channels))
        self.up = nn.ModuleList(nn.ConvTranspose3d(low, fine, 2, 2) for fine, low in pairs)
        self.decoder = nn.ModuleList(conv(2 * fine, fine) for fine, _ in pairs)
        heads = channels[:-1] if deep else channels[:1]
        self.heads = nn.ModuleList(nn.Conv3d(fine, classes, 1) for fine in heads)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        x = self.stem(x)
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        logits = []
        for i in reversed(range(len(self.decoder))):
            x = self.decoder[i](torch.cat([self.up[i](x), skips[i]], dim=1))
            if i == 0 or (self.deep_supervision and self.training):
                logits.append(self.heads[i](x))
        return logits[::-1] if len(logits) > 1 else logits[0]


def shrink(channels: Sequence[int], factor: int, floor: int = 8) -> tuple[int, ...]:
    """Channels of the student: the teacher's divided by `factor`, never below `floor`."""
    factor, floor = at_least("factor", factor, 1), at_least("floor", floor, 1)
    return tuple(max(floor, width // factor) for width in whole("channels", channels))


def _checked(
    in_channels: int, classes: int, channels: Sequence[int], least: int = 2
) -> tuple[int, ...]:
    """The channels per stage, once all three are counts."""
    at_least("in_channels", in_channels, 1)
    at_least("classes", classes, 1)
    widths = whole("channels", channels)
    return within("channels", widths, len(widths) >= least, f"at least {least} positive widths")
