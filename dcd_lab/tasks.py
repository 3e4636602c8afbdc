"""The segmentation tasks of the experiment: glioma (BraTS 2024) and stroke (ISLES 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Task(NamedTuple):
    """A segmentation task: its channels and labels in file order, its regions as label sets."""

    name: str
    channels: tuple[str, ...]
    labels: tuple[str, ...]
    regions: Mapping[str, tuple[int, ...]]


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
TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in (BRATS, ISLES)})
