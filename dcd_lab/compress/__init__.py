"""Compression without a teacher: channels that are left out, and a penalty that prepares for it.

A distilled student competes with the teacher itself, cut down to the student's size. `prune`
removes whole channels; a narrower `Segmenter` remains, which is trained on, alone or with a
distillation method. Training with `ReweightedGroupLasso` before makes unneeded channels small.
"""

from dcd_lab.compress.channels import pruned
from dcd_lab.compress.groups import Group, Slice, channel_groups, squared_norms
from dcd_lab.compress.lasso import ReweightedGroupLasso
from dcd_lab.compress.prune import prune

__all__ = ["Group", "ReweightedGroupLasso", "Slice", "channel_groups", "prune", "pruned"]
__all__ += ["squared_norms"]
