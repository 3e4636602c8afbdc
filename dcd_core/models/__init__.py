"""Teacher and student: one wrapper around any U-Net, so that every method sees the same thing.

`Segmenter` collects the features of each encoder stage; its `encode` stops after the deepest one.
`unets` has the networks that come wrapped, `nnunet` those that nnU-Net planned and trained; `files`
builds them by name, saves and loads them.
"""

from dcd_core.models.files import ARCHITECTURES, build, halve, load, save
from dcd_core.models.nnunet import from_nnunet, planned
from dcd_core.models.segmenter import Segmenter, evaluating, parameters
from dcd_core.models.unets import BLOCKS, dynunet, resenc, shrink, swin

__all__ = ["ARCHITECTURES", "BLOCKS", "Segmenter", "build", "dynunet", "evaluating", "from_nnunet"]
__all__ += ["halve", "load", "parameters", "planned", "resenc", "save", "shrink", "swin"]
