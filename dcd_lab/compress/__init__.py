"""Compression without a teacher: channels that are left out, and a penalty that empties them.

What a distilled student must beat is the teacher itself, cut down to the student's size. `prune`
removes whole channels, so that what remains is an ordinary, narrower network; trained before with
`ReweightedGroupLasso`, the network has channels that will not be missed. Afterwards it is trained
on, alone or with a distillation method: a pruned network is a `Segmenter` like any other.
"""

from dcd_lab.compress.groups import Group, Slice, channel_groups, squared_norms
from dcd_lab.compress.lasso import ReweightedGroupLasso
from dcd_lab.compress.prune import prune

__all__ = [
    "Group",
    "ReweightedGroupLasso",
    "Slice",
    "channel_groups",
    "prune",
    "squared_norms",
]
