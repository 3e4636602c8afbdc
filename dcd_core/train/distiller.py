"""The distiller: student, frozen teacher and method in one module that owns all that is trained."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dcd_core.errors import not_negative
from dcd_core.method import Method, check_target
from dcd_core.models import Segmenter
from dcd_core.train.processes import ALONE
from dcd_core.types import UNLABELLED, ContractError, Output, dense

_MEANINGS = {False: "classes of one softmax", True: "overlapping regions, a sigmoid each"}


class Losses(NamedTuple):
    """The two losses of a batch; `distillation` is None while its weight is 0.

    Both are scalars, but the distillation by a `Sum` of methods has a loss for each of them (n,).
    """

    segmentation: Tensor
    distillation: Tensor | None


class Distiller(nn.Module):
    """A student in training, with or without a teacher.

    `method`: a `Method`, or any module `forward(student: Output, teacher: Output, target) ->
    scalar`, which is then treated by the defaults of `Method`; None for the undistilled student.
    `seg_loss`: (logits (b, k, d, h, w), target (b, 1, d, h, w)) -> scalar. The teacher is frozen
    and in eval mode. Only its encoder runs, unless the method has `needs_logits`; without `distil`
    it does not run. ContractError where method and networks disagree on `regions` or classes.
    """

    def __init__(
        self,
        student: Segmenter,
        teacher: Segmenter | None = None,
        method: nn.Module | None = None,
        seg_loss: nn.Module | None = None,
        *,
        deep_weights: float = 0.5,
    ) -> None:
        super().__init__()
        traits = method if isinstance(method, Method) else Method
        reads = traits.regions
        networks = [student] if teacher is None else [student, teacher]
        for network in networks:
            if not isinstance(network, Segmenter):
                got = type(network).__name__
                raise ContractError("student, teacher", got, "Segmenters", "models.Segmenter(...)")
        if method is not None and not isinstance(method, nn.Module):
            got = repr(method)
            raise ContractError("method", got, "a module, or None", "methods.build(name, ...)")
        if teacher is not None and {*map(id, student.parameters())} & {
            *map(id, teacher.parameters())
        }:
            # Freezing the teacher would freeze the student, which would never learn.
            got, attempt = "weights that both have", "copy.deepcopy(student) as the teacher"
            raise ContractError("student, teacher", got, "weights of their own", attempt)
        if reads is not None and any(network.regions != reads for network in networks):
            expected = f"{_MEANINGS[reads]}, as {type(method).__name__} reads them"
            attempt = "a method of features, or regions=True where both networks are of regions"
            raise ContractError("logits", _MEANINGS[not reads], expected, attempt)
        self.student = student
        self.teacher = None if teacher is None else teacher.requires_grad_(False).eval()
        self.method = method
        self.needs_teacher, self.needs_logits = traits.needs_teacher, traits.needs_logits
        self.seg_loss = segmentation_loss() if seg_loss is None else seg_loss
        self.of_classes = seg_loss is None
        self.deep_weights = not_negative("deep_weights", deep_weights)
        self.processes = ALONE

    def train(self, mode: bool = True) -> "Distiller":
        """Training mode for all but the teacher."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(self, image: Tensor, target: Tensor, *, distil: bool) -> Losses:
        """Losses of a batch: image (b, c, d, h, w), integer target (b, 1, d, h, w).

        Samples whose target is `UNLABELLED` throughout have no part in the segmentation loss. They
        are distilled on, as all others; a batch with such samples gives the method no target.
        Of several `processes` each is given the whole batch, and returns the losses of the whole.
        Raises ContractError where no sample has a label.
        """
        alone = self.teacher is None and self.needs_teacher
        distil = distil and self.method is not None and not alone
        check_target(target, Output(dense("image", image), ()))
        known = _labelled(target)
        whole = bool(known.all())
        if not (distil or whole):
            image, target, whole = image[known], target[known], True
        image = self.processes.part(image)
        student = self.student(image)
        student = self.processes.whole(student if distil else student._replace(stages=()))
        logits = [z if whole else z[known] for z in (student.logits, *student.deep)]
        segmentation = self._segmentation(logits, target if whole else target[known])
        if not distil or self.method is None:
            return Losses(segmentation, None)
        teacher = Output(image.new_empty((0,)), ())
        if self.teacher is not None:
            self.teacher.eval()  # whoever set it to train: its statistics must not move
            teacher = self.processes.whole(self.teacher.observed(image, logits=self.needs_logits))
        return Losses(segmentation, self.method(student, teacher, target if whole else None))

    def trainable(self) -> list[nn.Parameter]:
        """Every tensor the optimizer must have: the student's and the method's own."""
        return [p for p in self.parameters() if p.requires_grad]

    def trained_state(self) -> dict[str, Tensor]:
        """State of student and method; the frozen teacher has its own file."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("teacher.")}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Inverse of `trained_state`, strict on everything but the teacher."""
        missing, unexpected = self.load_state_dict(state, strict=False)
        wrong = [n for n in (*missing, *unexpected) if not n.startswith("teacher.")]
        if wrong:
            raise KeyError(f"checkpoint and model differ in {wrong[:5]}")

    def _segmentation(self, logits: Sequence[Tensor], target: Tensor) -> Tensor:
        """The loss of a batch, of its `logits` on all grids, finest first."""
        if self.of_classes:
            _refuse_unknown(target, logits[0].shape[1])
        weights = [self.deep_weights**i for i in range(len(logits))]
        total = logits[0].new_zeros((), dtype=torch.float32)
        for weight, z in zip(weights, logits, strict=True):
            y = target
            if z.shape[2:] != y.shape[2:]:  # nearest neighbour: labels stay whole
                y = nn.functional.interpolate(y.float(), z.shape[2:]).to(target.dtype)
            total = total + weight * self.seg_loss(z.float(), y)
        return total / sum(weights)


def _labelled(target: Tensor) -> Tensor:
    """Which samples (b,) have a label; ContractError if none has."""
    known = (target != UNLABELLED).flatten(1).any(1)
    if not known.any():
        attempt = "batches with some labelled samples, as data.Patches makes them"
        raise ContractError("target", "no label in the batch", "one sample with a label", attempt)
    return known


def _refuse_unknown(target: Tensor, classes: int) -> None:
    """Raise ContractError for a label that is no class: a GPU would stop for good at it."""
    if classes < 2:  # a softmax of one class is 1 everywhere
        raise ContractError("classes of the student", classes, "at least two", "a `seg_loss`")
    low, high = (int(x) for x in target.aminmax())
    if low < 0 or high >= classes:
        attempt = "labels of this task, or a seg_loss of your own that ignores some"
        raise ContractError("labels", f"{low} to {high}", f"classes 0 to {classes - 1}", attempt)


def segmentation_loss() -> nn.Module:
    """Dice plus cross-entropy over a softmax, Dice over the batch's foreground, as in nnU-Net.

    Source: Isensee et al., Nature Methods 18, 2021; MONAI's DiceCELoss.
    """
    from monai.losses import DiceCELoss

    return DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)
