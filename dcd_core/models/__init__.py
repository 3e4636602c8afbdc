"""Teacher and student: one wrapper around any U-Net, so that every method sees the same thing.

Distillation needs the features of each encoder stage, finest first, and nothing else about a
network. `Segmenter` collects them from named submodules during the forward pass; `encode` stops as
soon as the deepest one is there, because a teacher's decoder teaches nothing to a feature loss.

`unets` has the networks that come wrapped, `nnunet` those that nnU-Net planned and trained,
`architectures` builds them by name, `files` saves and loads them, and `channels` cuts them for
pruning.
"""

from dcd_core.models.architectures import ARCHITECTURES, build, pruned
from dcd_core.models.channels import channel_axis, cut
from dcd_core.models.files import load, save
from dcd_core.models.nnunet import from_nnunet, planned
from dcd_core.models.segmenter import Segmenter, evaluating, parameters
from dcd_core.models.unets import BLOCKS, dynunet, resenc, shrink, swin

__all__ = [
    "ARCHITECTURES",
    "BLOCKS",
    "Segmenter",
    "build",
    "channel_axis",
    "cut",
    "dynunet",
    "evaluating",
    "from_nnunet",
    "load",
    "parameters",
    "planned",
    "pruned",
    "resenc",
    "save",
    "shrink",
    "swin",
]
