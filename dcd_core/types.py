"""The vocabulary: shapes, cases, and the error for all that a user can mend."""

from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
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


def dense(what: str, x: Tensor, axes: str = "b c d h w") -> Tensor:
    """Return `x`, as a tensor that gradients may pass, where it came out of inference mode.

    ContractError unless it is a dense tensor of real numbers with these axes and at least one voxel
    along the last three: others would end in an error of PyTorch, or in numbers of something else.
    """
    if not isinstance(x, Tensor):
        raise ContractError(what, type(x).__name__, "a torch.Tensor", "torch.as_tensor(x)")
    if x.layout != torch.strided or x.is_meta or x.is_quantized or x.is_complex():
        got, attempt = f"{x.dtype}, {x.layout}, on {x.device}", "x.to_dense(), or x.real and x.imag"
        raise ContractError(what, got, "real numbers in a dense tensor", attempt)
    if x.ndim != len(axes.split()) or 0 in x.shape[-3:]:
        expected = f"({', '.join(axes.split())}), a voxel along each axis at least"
        raise ContractError(what, tuple(x.shape), expected, "x[:, None] or x[None]")
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or not x.is_inference():
        return x
    return x.clone()


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


def checked_case(case: Case) -> Case:
    """Return a case; ContractError unless label, spacing and affine are those of its image.

    NumPy would stretch a label of one slice over all, and cut one of another grid as it comes.
    """
    what, attempt = f"case {case.id}", "data.read, which verifies all of it"
    size, label = np.shape(case.image), case.label
    if len(size) != 4 or 0 in size[1:]:
        raise ContractError(what, f"an image {size}", "(c, i, j, k), with voxels", attempt)
    if label is not None and (label.shape != size[1:] or label.dtype.kind not in "iub"):
        got = f"a label {label.shape} of {label.dtype}"
        raise ContractError(what, got, f"whole numbers {size[1:]}, as the image", attempt)
    affine, spacing_mm = np.asarray(case.affine, float), np.asarray(case.spacing_mm, float)
    usable = affine.shape == (4, 4) and np.isfinite(affine).all()
    lengths = np.linalg.norm(affine[:3, :3], axis=0) if usable else np.zeros(3)
    if not (lengths > 0).all() or not np.allclose(spacing_mm, lengths, rtol=1e-3, atol=0):
        got = f"spacing_mm {case.spacing_mm} and an affine of {lengths.tolist()} mm"
        raise ContractError(what, got, "the same lengths, above 0", attempt)
    return case


@runtime_checkable
class Batches(Protocol):
    """Training batches by step: an image (b, c, d, h, w) with an integer target (b, 1, d, h, w).

    The target of a sample without a label is `UNLABELLED` throughout.
    """

    def __getitem__(self, step: int, /) -> tuple[Tensor, Tensor]:
        """The batch of a step, the same every time it is asked for."""


Precision: TypeAlias = Literal["auto", "32-true", "bf16-mixed"]
"""Of convolutions; "auto" is bfloat16 where the processor has it, float32 elsewhere."""
