"""What all methods share: stages and their adapters, targets, precision, bounded memory.

All methods are called alike, `method(student: Output, teacher: Output, target) -> scalar`, compute
in float32 outside autocast, read the teacher without a gradient, and own every tensor they train.

In the formulas of their docstrings s and t are features of student and teacher, a the adapted
student, b samples, c channels of the teacher, k classes, v voxels; mean is the one over all that is
not named. Stages in use are averaged unless a formula sums them. `weight` belongs to that sum.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dcd_core.errors import Check, at_least, checks, one_of, whole, within
from dcd_core.models import Segmenter
from dcd_core.types import ContractError, Output, Volume, dense

Scalar = Float[Tensor, ""]
Narrow = Float[Tensor, "b _ d h w"]  # the grid of another volume, with channels of its own
Examples: TypeAlias = Iterable[tuple[Tensor, Tensor]]  # images and targets of batches
TaskLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # of logits and a target, a scalar
Result = TypeVar("Result")

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
SMALL = 1e-6
"""A vector of a smaller norm has no direction: its gradient would be larger than 1e6."""

Adapters: TypeAlias = Literal["learned", "frozen", "orthogonal", "none"]
"""How student channels are brought to teacher channels: 1x1x1 convolutions, or not at all."""


class Method(nn.Module):
    """A distillation loss; subclasses say what they compare in `distance`.

    `needs_teacher`: it cannot do without one; `needs_logits`: the teacher's decoder must run as
    well; `regions`: it reads logits as overlapping regions (True), classes (False) or both (None);
    `weight`: the published one, NaN if unknown; `adapter_option`: the option that makes adapters;
    `decided`: options that the class sets itself; `chunk`: numbers worked on at once, 64 MiB.

    An option is an attribute whose annotation is a check of `dcd_core.errors`, `power: Positive =
    2.0`, or a keyword of the constructor.
    """

    needs_teacher: bool = True
    needs_logits: bool = False
    regions: bool | None = None
    weight: ClassVar[float] = math.nan
    adapter_option: ClassVar[str | None] = None
    decided: ClassVar[tuple[str, ...]] = ()
    chunk: int = 1 << 24

    def __init__(self, *channels: Sequence[int], **options: Any) -> None:  # `channels`: for stages
        known = checks(type(self))
        given = {name: options.pop(name, getattr(self, name)) for name in known}
        super().__init__(**options)
        for name, check in known.items():
            setattr(self, name, check(name, given[name]))

    @classmethod
    def options(cls) -> list[str]:
        """The options of these methods, with those of the bases that are not decided here."""
        names = [*checks(cls)]
        for constructor in [vars(kind).get("__init__") for kind in cls.__mro__]:
            if constructor is not None:
                keywords = inspect.signature(constructor).parameters.values()
                names += [p.name for p in keywords if p.kind is p.KEYWORD_ONLY]
                if all(p.kind is not p.VAR_KEYWORD for p in keywords):
                    break  # nothing is handed on to a base
        return [name for name in dict.fromkeys(names) if name not in cls.decided]

    def prepare(
        self, teacher: Segmenter, batches: Examples, task_loss: TaskLoss | None = None
    ) -> None:
        """Learn from the teacher what is needed before the first step, and keep it in buffers.

        `batches`: images (b, c, d, h, w), labels (b, 1, d, h, w), or what the teacher's own
        `task_loss` of logits and target reads. A second call changes nothing.
        """

    def forward(self, student: Output, teacher: Output, target: Tensor | None = None) -> Scalar:
        """The loss of a batch; ContractError unless `target` is None or labels (b, 1, d, h, w)."""
        check_inputs(student, teacher, target)
        dtype = self._precision(*student.stages, *teacher.stages, student.logits, teacher.logits)
        with torch.autocast(student.logits.device.type, enabled=False):
            s, t = _with(student, lambda x: x.to(dtype)), _with(teacher, lambda x: x.detach())
            return self.distance(s, _with(t, lambda x: x.to(dtype)), target)

    def _precision(self, *features: Tensor) -> torch.dtype:
        """What is computed in: float32, or float64 where the method or all it can read is."""
        kinds = {x.dtype for x in (*self.parameters(), *self.buffers()) if x.is_floating_point()}
        if not kinds:
            kinds = {torch.float64 if x.dtype == torch.float64 else torch.float32 for x in features}
        if not kinds <= {torch.float32, torch.float64}:
            got, attempt = f"{sorted(map(str, kinds))}", "method.float()"
            raise ContractError("weights of the method", got, "torch.float32", attempt)
        return max(kinds, key=lambda kind: kind.itemsize)

    def distance(self, student: Output, teacher: Output, target: Tensor | None) -> Scalar:
        """The same in float32."""
        raise NotImplementedError

    def in_chunks(
        self, loss: Callable[..., Tensor], *volumes: Float[Tensor, "_ _ _ _ _"], dim: int = 2
    ) -> Tensor:
        """The sum over chunks, made by `each_chunk`, of `loss`, a scalar sum."""
        return torch.stack(self.each_chunk(loss, *volumes, dim=dim)).sum()

    def each_chunk(
        self, function: Callable[..., Result], *volumes: Float[Tensor, "_ _ _ _ _"], dim: int = 2
    ) -> list[Result]:
        """What `function` makes of every chunk of volumes along `dim`, `chunk` numbers at most.

        Where gradients are wanted a chunk is computed again backward: only results are kept.
        """
        size = volumes[0].shape[dim]
        step = max(1, self.chunk * size // max(v.numel() for v in volumes))
        parts = zip(*(v.split(step, dim) for v in volumes), strict=True)
        if step >= size or not torch.is_grad_enabled():
            return [function(*part) for part in parts]
        return [checkpoint(function, *part, use_reentrant=False) for part in parts]


class StageMethod(Method):
    """A loss of encoder features: `stage` of every stage in use, reduced to their mean or sum.

    `student_channels`, `teacher_channels`: channels per stage, finest first; `stages`: indices of
    those compared, None for the `usual` ones. `adapters`: "learned", "frozen" or "orthogonal"
    1x1x1 convolutions without bias from student to teacher channels, or "none" for equal channels.
    """

    adapter_option: ClassVar[str | None] = "adapters"
    usual: ClassVar[slice] = slice(None)  # where no stage is left, the deepest is compared
    stage_reduction: str = "mean"  # or "sum"

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        *,
        stages: Sequence[int] | None = None,
        adapters: Adapters = "learned",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        student_channels = whole("student_channels", student_channels)
        teacher_channels = whole("teacher_channels", teacher_channels)
        count = len(student_channels)
        if len(teacher_channels) != count:
            got = f"{count} in the student, {len(teacher_channels)} in the teacher"
            raise ContractError("encoder stages", got, "equally many", "models.shrink(channels, 4)")
        usual = range(count)[self.usual] or range(count)[-1:]
        self.stages = whole("stages", usual if stages is None else stages, 0)
        known = 0 < len({*self.stages} & {*range(count)}) == len(self.stages)
        within("stages", self.stages, known, f"distinct indices from 0 to {count - 1}")
        # Channels of student and teacher, for each of the stages in use.
        self.channels = [(student_channels[i], teacher_channels[i]) for i in self.stages]
        kind = adapters if self.adapter_option else "none"
        self.adapters = nn.ModuleList(self.adapter(s, t, kind) for s, t in self.channels)

    def adapter(self, student: int, teacher: int, kind: Adapters) -> nn.Module:
        """What brings `student` channels to `teacher` channels."""
        one_of("adapters", kind, "learned", "frozen", "orthogonal", "none")
        if kind == "none":
            if student != teacher and self.adapter_option:
                got = f"{student} student and {teacher} teacher channels"
                raise ContractError("adapters 'none'", got, "equal channels", "'learned'")
            return nn.Identity()
        convolution = nn.Conv3d(student, teacher, kernel_size=1, bias=False)
        if kind == "orthogonal":
            nn.init.orthogonal_(convolution.weight)
        return convolution.requires_grad_(kind == "learned")

    def use_released_adapters(self) -> None:
        """Draw adapters as in DCD's release: frozen, with a bias, none between equal channels."""
        self.adapters = nn.ModuleList(
            nn.Identity() if s == t else nn.Conv3d(s, t, kernel_size=1).requires_grad_(False)
            for s, t in self.channels
        )

    def distance(self, student: Output, teacher: Output, target: Tensor | None) -> Scalar:
        losses = [
            self.stage(index, s, t, target)
            for index, s, t in self.pairs(student, teacher)
            if self.compares(t.shape[2:])
        ]
        if not losses:
            grids = [tuple(teacher.stages[i].shape[2:]) for i in self.stages]
            what = f"grids of the stages of {type(self).__name__}"
            raise ContractError(what, grids, "one that is compared at least", "deeper stages")
        return self.reduced(losses)

    def reduced(self, losses: list[Tensor]) -> Scalar:
        """The mean or the sum of the losses of stages."""
        total = torch.stack(losses)
        return total.mean() if self.stage_reduction == "mean" else total.sum()

    def pairs(self, student: Output, teacher: Output) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Index, student features and teacher features of the stages in use, once checked."""
        counts = len(student.stages), len(teacher.stages)
        for index, number in enumerate(self.stages):
            if number >= min(counts):
                expected = f"at least {number + 1} in both"
                raise ContractError("encoder stages", counts, expected, "stages=(0, ...) of them")
            what = f"features of encoder stage {number}"
            s, t = (dense(what, output.stages[number]) for output in (student, teacher))
            wanted = [(len(t), width, *t.shape[2:]) for width in self.channels[index]]
            if [s.shape, t.shape] != wanted or not len(t) or s.device != t.device:
                shapes = [f"{tuple(x.shape)} on {x.device}" for x in (s, t)]
                got = "student {}, teacher {}".format(*shapes)
                narrow, wide = self.channels[index]
                expected = f"{narrow} and {wide} channels of one batch on one grid"
                attempt = "the two networks it was built for, of equal strides, fed the same patch"
                raise ContractError(what, got, expected, attempt)
            yield index, s, t

    def compares(self, size: Sequence[int]) -> bool:
        """Whether a stage is compared on a grid (D, H, W); replaced where some are not."""
        return True

    def stage(self, index: int, student: Narrow, teacher: Volume, target: Tensor | None) -> Scalar:
        """The loss of one stage, the `index`-th of those in use; `adapters[index]` is its own."""
        raise NotImplementedError


class UnadaptedMethod(StageMethod):
    """A loss of encoder features taken within each network, whose channels may differ."""

    adapter_option: ClassVar[str | None] = None
    decided: ClassVar[tuple[str, ...]] = ("adapters",)


def check_inputs(student: Output, teacher: Output, target: Tensor | None) -> None:
    """Raise ContractError unless these are outputs of dense features and a target for them.

    Outputs may have no logits. A target is as `check_target` wants it.
    """
    for whose, output in {"student": student, "teacher": teacher}.items():
        if not isinstance(output, Output):
            got, expected = type(output).__name__, "an Output of logits and stages"
            raise ContractError(f"output of the {whose}", got, expected, "that of a Segmenter")
        for stage in output.stages:
            dense(f"features of the {whose}", stage)
        absent = isinstance(output.logits, Tensor) and not output.logits.numel()
        if not absent or output.logits.is_meta:
            dense(f"logits of the {whose}", output.logits)
    check_target(target, student)


def check_target(target: Tensor | None, output: Output) -> None:
    """Raise ContractError unless `target` is None or integer labels (b, 1, d, h, w) of a batch.

    They are on the grid of the logits, where there are some, and on the device of the features.
    """
    if target is None:
        return
    first, got = (*output.stages, output.logits)[0], type(target).__name__
    labels, wanted = isinstance(target, Tensor), (len(first), 1, first.device)
    if labels:
        got = f"{tuple(target.shape)} of {target.dtype}"
        labels = target.layout == torch.strided and target.ndim == 5 and target.dtype in INTEGERS
    if not labels or (*target.shape[:2], target.device) != wanted:
        expected = f"integer labels ({len(first)}, 1, D, H, W) on {first.device}"
        attempt = "target[:, None] where channels are missing, target.long() for other numbers"
        raise ContractError("target", got, expected, attempt)
    size, grid = target.shape[2:], output.logits.shape[2:]
    if not size.numel() or (output.logits.ndim == 5 and size != grid):
        expected = f"that of the logits, {tuple(grid)}"
        raise ContractError("grid of the target", tuple(size), expected, "labels of the same patch")


def label_or_none(what: str, label: int | None) -> int | None:
    """Return `label`; ContractError unless it is an int or None."""
    return None if label is None else at_least(what, label, -(2**31))


Ignored: TypeAlias = Annotated[int | None, Check(label_or_none)]
"""The label of voxels that do not count, None where all do."""


def averaged(features: Volume, most: int) -> Float[Tensor, "b c _ _ _"]:
    """Means of features over a grid of regions, at most `most` of them along an axis."""
    d, h, w = (min(most, n) for n in features.shape[2:])
    return nn.functional.adaptive_avg_pool3d(features, (d, h, w))


def directions(features: Tensor, dim: int) -> Tensor:
    """Unit vectors along `dim`; below a norm of `SMALL` zeros, which get no gradient."""
    size = torch.linalg.vector_norm(features, dim=dim, keepdim=True)
    return features / size.where(size > SMALL, torch.inf)


def _with(output: Output, change: Callable[[Tensor], Tensor]) -> Output:
    return Output(change(output.logits), tuple(map(change, output.stages)))
