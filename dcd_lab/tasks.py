"""The segmentation tasks of the experiment.

Glioma (BraTS 2024) and stroke (ISLES 2022) have public data and a challenge. Three further tasks
exist as phantoms alone: stroke in CT, solid lesions in ultrasound, vessels in MR angiography.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from dcd_core.errors import ContractError


class Task(NamedTuple):
    """A segmentation task: its channels and labels in file order, its regions as label sets."""

    name: str
    channels: tuple[str, ...]
    labels: tuple[str, ...]
    regions: Mapping[str, tuple[int, ...]]


def checked_task(task: Task) -> Task:
    """Return a task; ContractError for its name, or anything else."""
    if not isinstance(task, Task):
        raise ContractError("task", repr(task), "a Task", "tasks.TASKS['isles2022']")
    return task


# BraTS 2024 GLI: label 4 is the resection cavity and belongs to neither WT nor TC
# (de Verdier et al., arXiv 2405.18368, 2024).
_REGIONS = {"WT": (1, 2, 3), "TC": (1, 3), "NETC": (1,), "SNFH": (2,), "ET": (3,), "RC": (4,)}
BRATS = Task(
    "brats2024",
    ("t1n", "t1c", "t2w", "t2f"),
    ("background", "NETC", "SNFH", "ET", "RC"),
    MappingProxyType(_REGIONS),
)
# ISLES 2022 (Hernandez Petzsche et al., Scientific Data, 2022).
_CHANNELS, _LABELS = ("dwi", "adc", "flair"), ("background", "lesion")
ISLES = Task("isles2022", _CHANNELS, _LABELS, MappingProxyType({"lesion": (1,)}))
PUBLIC: Mapping[str, Task] = MappingProxyType({task.name: task for task in (BRATS, ISLES)})
"""The tasks that have public data, and scores of a challenge."""


def _simulated(name: str, channel: str, region: str) -> Task:
    return Task(name, (channel,), ("background", region), MappingProxyType({region: (1,)}))


CT_STROKE = _simulated("ct-stroke", "ct", "lesion")
ULTRASOUND = _simulated("ultrasound", "us", "lesion")
VESSELS = _simulated("vessels", "tof", "vessel")
SIMULATED: Mapping[str, Task] = MappingProxyType(
    {task.name: task for task in (CT_STROKE, ULTRASOUND, VESSELS)}
)
TASKS: Mapping[str, Task] = MappingProxyType({**PUBLIC, **SIMULATED})
