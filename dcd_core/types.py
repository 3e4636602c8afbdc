"""The vocabulary: shapes, cases, tasks, and the error for all that a user can mend."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from dcd_core.errors import ContractError as ContractError

Volume: TypeAlias = Float[Tensor, "b c d h w"]
"""A batch of feature maps or logits: batch, channels, depth, height, width."""

Stages: TypeAlias = tuple[Float[Tensor, "_ _ _ _ _"], ...]
"""Encoder features, finest first; every stage has its own channels and grid."""

Size3: TypeAlias = tuple[int, int, int]
"""Extent of a volume along (D, H, W), in voxels."""


class Output(NamedTuple):
    """What every segmenter returns: logits (b, k, d, h, w), encoder features, and `deep`.

    That is the logits of the deep-supervision heads, finest first; empty in eval mode.
    """

    logits: Tensor
    stages: Stages
    deep: tuple[Tensor, ...] = ()


class Case(NamedTuple):
    """One subject at one time point, all channels on one grid.

    `image` in the file's own intensity units; `label` None when the case is unlabelled;
    `spacing_mm` along (i, j, k); `affine`: voxel index to scanner millimetres (RAS+).
    """

    id: str
    image: Float32[np.ndarray, "c i j k"]
    label: UInt8[np.ndarray, "i j k"] | None
    spacing_mm: tuple[float, float, float]
    affine: Float[np.ndarray, "4 4"]


@runtime_checkable
class Batches(Protocol):
    """Training batches by step: an image (b, c, d, h, w) with an integer target (b, 1, d, h, w)."""

    def __getitem__(self, step: int, /) -> tuple[Tensor, Tensor]:
        """The batch of a step, the same every time it is asked for."""


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


Precision: TypeAlias = Literal["auto", "32-true", "bf16-mixed"]
"""Of convolutions; "auto" is bfloat16 where the processor has it, float32 elsewhere."""
