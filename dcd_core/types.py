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
    """Return a case in the types that `Case` names; ContractError unless all of it fits its image.

    NumPy would stretch a label of one slice over all, cut one of another grid as it comes, store
    the label 300 as 44, and drop imaginary parts.
    """
    if not isinstance(case, Case):
        raise ContractError("case", type(case).__name__, "a types.Case", "data.read")
    what, attempt = f"case {case.id}", "data.read, which verifies all of it"
    image, label = case.image, case.label
    if not _is_array(image, "fiub") or image.ndim != 4 or 0 in image.shape[1:]:
        expected = "(c, i, j, k) real numbers in a NumPy array, with voxels"
        raise ContractError(what, f"an image {_described(image)}", expected, attempt)
    if label is not None:
        if not _is_array(label, "iub") or label.shape != image.shape[1:]:
            expected = f"whole numbers {image.shape[1:]}, as the image"
            raise ContractError(what, f"a label {_described(label)}", expected, attempt)
        if label.dtype.itemsize > 1 or label.dtype.kind == "i":
            low, high = int(label.min()), int(label.max())
            if low < 0 or high > 255:
                raise ContractError(what, f"labels {low} to {high}", "labels 0 to 255", attempt)
        label = label.astype(np.uint8, copy=False)
    with np.errstate(over="ignore"):  # beyond float32 becomes inf
        image = image.astype(np.float32, copy=False)
    return case._replace(image=image, label=label, affine=_checked_affine(case, what, attempt))


def _checked_affine(case: Case, what: str, attempt: str) -> Float[np.ndarray, "4 4"]:
    try:
        affine = np.asarray(case.affine, np.float64)
        spacing_mm = np.asarray(case.spacing_mm, np.float64)
    except (TypeError, ValueError):
        affine = spacing_mm = np.empty(0)
    lengths = np.zeros(3)
    if affine.shape == (4, 4) and spacing_mm.shape == (3,) and np.isfinite(affine).all():
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not (lengths > 0).all() or not np.allclose(spacing_mm, lengths, rtol=1e-3, atol=0):
        got = f"spacing_mm {case.spacing_mm} and an affine of {lengths.tolist()} mm"
        raise ContractError(what, got, "the same lengths, above 0", attempt)
    if abs(np.linalg.det(affine[:3, :3])) < 1e-6 * lengths.prod() or any(affine[3] != (0, 0, 0, 1)):
        raise ContractError(what, f"an affine {affine.tolist()}", "one with an inverse", attempt)
    return affine


def _is_array(x: object, kinds: str) -> bool:
    masked = isinstance(x, np.ma.MaskedArray)  # its mask would be dropped
    return isinstance(x, np.ndarray) and not masked and x.dtype.kind in kinds


def _described(x: object) -> str:
    return f"{getattr(x, 'shape', '')} of {getattr(x, 'dtype', type(x).__name__)}"


@runtime_checkable
class Batches(Protocol):
    """Training batches by step: an image (b, c, d, h, w) with an integer target (b, 1, d, h, w).

    The target of a sample without a label is `UNLABELLED` throughout.
    """

    def __getitem__(self, step: int, /) -> tuple[Tensor, Tensor]:
        """The batch of a step, the same every time it is asked for."""


Precision: TypeAlias = Literal["auto", "32-true", "bf16-mixed"]
"""Of convolutions; "auto" is bfloat16 where the processor has it, float32 elsewhere."""
