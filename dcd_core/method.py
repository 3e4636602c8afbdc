"""What all methods share: stages and their adapters, logits, labels, precision, bounded memory.

A method compares a student with its teacher and returns one number. All are called alike,
`method(student: Output, teacher: Output, target) -> scalar`, compute in float32 outside autocast,
read the teacher without a gradient, and own every tensor they train, so that a Distiller gives
those to the optimizer and to the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar, Literal, TypeAlias, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dcd_core.models import Segmenter
from dcd_core.types import ContractError, Output, Volume
from dcd_core.wavelet.transform import at_least_float32

Scalar = Float[Tensor, ""]
Labels = Int[Tensor, "b d h w"]
Narrow = Float[Tensor, "b _ d h w"]  # the grid of another volume, with channels of its own
Result = TypeVar("Result")

Adapters: TypeAlias = Literal["learned", "frozen", "orthogonal", "none"]
"""How student channels are brought to teacher channels: 1x1x1 convolutions, or not at all."""

CHUNK = 1 << 24
"""Numbers of a volume that are worked on at once, 64 MiB in float32."""


class Method(nn.Module):
    """A distillation loss. Subclasses say what they compare in `distance`.

    What a method needs is declared. `needs_teacher`: it cannot do without one. `needs_logits`: the
    teacher's decoder must run as well. `regions`: whether it reads logits as those of overlapping
    regions (True) or of classes (False); None, it reads none. `weight`: the published weight in
    this code's reduction, NaN where none was published.
    """

    needs_teacher: ClassVar[bool] = True
    needs_logits: ClassVar[bool] = False
    regions: bool | None = None
    weight: ClassVar[float] = math.nan

    def prepare(self, teacher: Segmenter, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """What must be learnt from the teacher alone; called once, before the first step.

        `batches`: images (b, c, d, h, w) with integer targets (b, 1, d, h, w), all of them used.
        Nothing, for most methods. What is learnt is a buffer, so that a checkpoint holds it, and a
        second call, after a restart say, changes nothing. The teacher stays as it is.
        """

    def forward(self, student: Output, teacher: Output, target: Tensor | None = None) -> Scalar:
        """The loss of a batch, a scalar; `target` (b, 1, d, h, w) integer, where it is needed."""
        with torch.autocast(student.logits.device.type, enabled=False):
            return self.distance(_in_float32(student), _in_float32(teacher, detach=True), target)

    def distance(self, student: Output, teacher: Output, target: Tensor | None) -> Scalar:
        """The same, in float32."""
        raise NotImplementedError


class StageMethod(Method):
    """A loss of encoder features: the mean of `stage` over the stages in use.

    `student_channels`, `teacher_channels`: channels per stage, finest first; `stages`: indices of
    those compared, None for `default_stages`. `adapters`: "learned", "frozen" or "orthogonal"
    1x1x1 convolutions from student to teacher channels, or "none", for methods that need none or
    equal channels.
    """

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        *,
        stages: Sequence[int] | None = None,
        adapters: Adapters = "learned",
    ) -> None:
        super().__init__()
        count = len(student_channels)
        if len(teacher_channels) != count:
            raise ContractError(
                "encoder stages",
                f"{count} in the student, {len(teacher_channels)} in the teacher",
                "equally many",
                "student channels = shrink(teacher channels, factor)",
            )
        self.stages = tuple(self.default_stages(count) if stages is None else stages)
        if not self.stages or any(not 0 <= i < count for i in self.stages):
            raise ContractError("stages", self.stages, f"indices 0 to {count - 1}", "stages=None")
        self.adapters = nn.ModuleList(
            self.adapter(student_channels[i], teacher_channels[i], adapters) for i in self.stages
        )

    @classmethod
    def default_stages(cls, count: int) -> Sequence[int]:
        """The stages compared unless told otherwise, of `count`."""
        return range(count)

    def adapter(self, student: int, teacher: int, kind: Adapters) -> nn.Module:
        """What brings `student` channels to `teacher` channels."""
        return adapter(student, teacher, kind)

    def distance(self, student: Output, teacher: Output, target: Tensor | None) -> Scalar:
        losses = [
            self.unadapted(index, s, t, target)
            for index, s, t in self.pairs(student, teacher)
            if self.compares(t.shape[2:])
        ]
        if not losses:
            raise ContractError(
                f"stages of {type(self).__name__}",
                f"grids {[tuple(teacher.stages[i].shape[2:]) for i in self.stages]}",
                "one that is compared at least",
                "deeper stages",
            )
        return torch.stack(losses).mean()

    def pairs(self, student: Output, teacher: Output) -> Iterator[tuple[int, Tensor, Tensor]]:
        """The stages in use: index among them, student features, teacher features.

        Raises ContractError where their batches or grids differ.
        """
        for index, number in enumerate(self.stages):
            s, t = student.stages[number], teacher.stages[number]
            if len(s) != len(t) or s.shape[2:] != t.shape[2:]:
                raise ContractError(
                    f"grid of encoder stage {number}",
                    f"student {tuple(s.shape)}, teacher {tuple(t.shape)}",
                    "the same batch and (D, H, W) in both",
                    "teacher and student with the same strides, fed the same patch",
                )
            yield index, s, t

    def compares(self, size: Sequence[int]) -> bool:
        """Whether a stage in use is compared on a grid (D, H, W): replaced where some are not."""
        return True

    def unadapted(
        self, index: int, student: Narrow, teacher: Volume, target: Tensor | None
    ) -> Scalar:
        """The loss of one stage, student as it is; replaced by methods that adapt in chunks."""
        return self.stage(index, self.adapters[index](student), teacher, target)

    def stage(self, index: int, student: Volume, teacher: Volume, target: Tensor | None) -> Scalar:
        """The loss of one stage, the `index`-th of those in use, student adapted."""
        raise NotImplementedError


class UnadaptedMethod(StageMethod):
    """A loss of encoder features taken within each network, whose channels may differ."""

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        *,
        stages: Sequence[int] | None = None,
    ) -> None:
        super().__init__(student_channels, teacher_channels, stages=stages, adapters="none")

    def adapter(self, student: int, teacher: int, kind: Adapters) -> nn.Module:
        return nn.Identity()


class LogitMethod(Method):
    """A loss of full-resolution logits (b, k, d, h, w).

    `regions`: the k channels are overlapping regions, each a sigmoid of its own, not classes of one
    softmax. `ignore`: label of voxels that do not count, None where all do.
    """

    needs_logits: ClassVar[bool] = True
    regions: bool = False

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        *,
        regions: bool = False,
        ignore: int | None = -1,
    ) -> None:
        super().__init__()
        self.regions, self.ignore = regions, ignore

    def distance(self, student: Output, teacher: Output, target: Tensor | None) -> Scalar:
        s, t = student.logits, teacher.logits
        if s.shape != t.shape:
            raise ContractError(
                "logits of the teacher",
                tuple(t.shape),
                f"the student's {tuple(s.shape)}",
                "two networks of one task on one patch, and a teacher whose decoder runs",
            )
        return self.logits(s, t, counted(target, self.ignore, s))

    def logits(self, student: Volume, teacher: Volume, counts: Bool[Tensor, "b d h w"]) -> Scalar:
        """The loss; `counts` says which voxels do."""
        raise NotImplementedError


def adapter(student: int, teacher: int, kind: str) -> nn.Module:
    """The 1x1x1 convolution from student to teacher channels; the identity for "none"."""
    if kind == "none":
        if student != teacher:
            raise ContractError(
                "adapter 'none'",
                f"{student} student and {teacher} teacher channels",
                "equal channels",
                "'learned'",
            )
        return nn.Identity()
    if kind not in ("learned", "frozen", "orthogonal"):
        raise ContractError(
            "adapter",
            repr(kind),
            "'learned', 'frozen', 'orthogonal' or 'none'",
            "'learned'",
        )
    project = nn.Conv3d(student, teacher, kernel_size=1, bias=False)
    if kind == "orthogonal":
        nn.init.orthogonal_(project.weight)
    return project.requires_grad_(kind == "learned")


def counted(target: Tensor | None, ignore: int | None, like: Volume) -> Bool[Tensor, "b d h w"]:
    """Which voxels of `like` (b, c, d, h, w) count: all, but for those labelled `ignore`."""
    if target is None or ignore is None:
        return like.new_ones((len(like), *like.shape[2:]), dtype=torch.bool)
    return target[:, 0] != ignore


def labels_at(target: Tensor | None, size: Sequence[int], method: str) -> Labels:
    """Labels (b, 1, d, h, w) on a coarser grid, nearest voxel; ContractError without any.

    Nearest as in the codes that are compared, although it drops lesions smaller than a voxel.
    """
    if target is None:
        raise ContractError(f"target of {method}", None, "labels", "forward(student, teacher, y)")
    if target.shape[2:] == tuple(size):
        return target[:, 0].long()
    moved = nn.functional.interpolate(target.float(), tuple(size), mode="nearest")
    return moved[:, 0].long()


def averaged(features: Volume, most: int) -> Float[Tensor, "b c _ _ _"]:
    """Means of features over a grid of regions, at most `most` of them along an axis."""
    d, h, w = (min(most, n) for n in features.shape[2:])
    return nn.functional.adaptive_avg_pool3d(features, (d, h, w))


def in_chunks(
    loss: Callable[..., Tensor], *volumes: Float[Tensor, "_ _ _ _ _"], dim: int = 2
) -> Tensor:
    """The sum of `loss`, a scalar sum of chunks of volumes along `dim`; chunks as in `each_chunk`.

    The volumes (b, c, d, h, w) are equally long along `dim`.
    """
    return torch.stack(each_chunk(loss, *volumes, dim=dim)).sum()


def each_chunk(
    function: Callable[..., Result], *volumes: Float[Tensor, "_ _ _ _ _"], dim: int = 2
) -> list[Result]:
    """What `function` makes of every chunk of volumes along `dim`, `CHUNK` numbers each at most.

    The volumes (b, c, d, h, w) are equally long along `dim`. While gradients are wanted a chunk is
    computed again on the way back, so that what it needs in between never exists for all of them at
    once; what `function` returns does.
    """
    size = volumes[0].shape[dim]
    step = max(1, CHUNK * size // max(v.numel() for v in volumes))
    parts = zip(*(v.split(step, dim) for v in volumes), strict=True)
    if step >= size or not torch.is_grad_enabled():
        return [function(*part) for part in parts]
    return [checkpoint(function, *part, use_reentrant=False) for part in parts]


def positive(what: str, value: float) -> float:
    """Return `value`; ContractError unless it is a finite number above 0."""
    if not 0 < value < math.inf:
        raise ContractError(what, value, "a finite number above 0", f"the default of `{what}`")
    return value


def _in_float32(output: Output, *, detach: bool = False) -> Output:
    def cast(x: Tensor) -> Tensor:
        return at_least_float32(x.detach() if detach else x)

    return Output(cast(output.logits), tuple(map(cast, output.stages)), ())
