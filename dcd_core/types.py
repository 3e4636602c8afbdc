"""The vocabulary: shapes, cases, and the error for all that a user can mend."""

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


UNLABELLED = -1
"""Target of every voxel of a sample whose label nobody knows: it can be distilled on alone."""


class Output(NamedTuple):
    """Logits (b, k, d, h, w), encoder features, and in training logits of coarser heads, `deep`."""

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
    """Training batches by step: an image (b, c, d, h, w) with an integer target (b, 1, d, h, w).

    The target of a sample without a label is `UNLABELLED` throughout.
    """

    def __getitem__(self, step: int, /) -> tuple[Tensor, Tensor]:
        """The batch of a step, the same every time it is asked for."""


Precision: TypeAlias = Literal["auto", "32-true", "bf16-mixed"]
"""Of convolutions; "auto" is bfloat16 where the processor has it, float32 elsewhere."""
