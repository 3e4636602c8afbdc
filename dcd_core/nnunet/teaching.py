"""Teacher and method beside the student: what they compute, and what a checkpoint keeps of them."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcd_core.method import Method
from dcd_core.methods import build
from dcd_core.models import Segmenter
from dcd_core.models.nnunet import read_trained
from dcd_core.nnunet.plans import architecture_of, check_teacher, student_plans
from dcd_core.nnunet.settings import Settings
from dcd_core.types import ContractError, Output


class Teaching:
    """The frozen teacher and the method that compares a student with it; neither if it is "none".

    ContractError for a teacher that is missing, damaged or of other data or plans, and for options
    that the method does not know. Of the teacher only the encoder runs, unless logits are compared.
    """

    def __init__(
        self,
        settings: Settings,
        plans: Mapping[str, Any],
        configuration: str,
        fold: int | str,
        dataset: Mapping[str, Any],
    ) -> None:
        self.method: Method | None = None
        self.adapters: list[nn.Parameter] = []
        self.identity = settings.identity()
        if settings.method == "none":
            return
        if not settings.teacher:
            expected, attempt = "the folder of a trained network", "DCD_NNUNET_TEACHER=<folder>"
            raise ContractError("teacher", "none", expected, attempt)
        fold = fold if settings.fold is None else settings.fold
        trained = read_trained(settings.teacher, fold=fold, checkpoint=settings.checkpoint)
        check_teacher(trained, plans, configuration, dataset)
        self.teacher: Segmenter = trained.model.requires_grad_(False)
        student = architecture_of(student_plans(plans, configuration, settings), configuration)
        channels = student["arch_kwargs"]["features_per_stage"]
        options = settings.method_options(regions=self.teacher.regions)
        self.method = build(settings.method, channels, self.teacher.channels, **options)
        self.adapters = [p for p in self.method.parameters() if p.requires_grad]
        with Path(settings.teacher, f"fold_{fold}", settings.checkpoint).open("rb") as file:
            self.identity["hash of the teacher"] = hashlib.file_digest(file, "sha256").hexdigest()

    def to(self, device: torch.device) -> None:
        """Move both."""
        if self.method is not None:
            self.method.to(device)
            self.teacher.to(device)

    def prepare(
        self,
        batches: Iterable[tuple[Tensor, Sequence[Tensor]]],
        loss: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        """Let the method learn of the teacher by nnU-Net's loss; of targets the finest is read."""
        if self.method is not None:
            finest = ((data, targets[0]) for data, targets in batches)
            self.method.prepare(self.teacher, finest, loss)

    def loss(
        self,
        data: Tensor,
        target: Tensor,
        stages: Sequence[Tensor],
        heads: Sequence[Tensor],
        manager: Any,
    ) -> Tensor:
        """The distillation loss of a batch, a scalar; `manager` is nnU-Net's of labels."""
        assert self.method is not None
        teacher = self.teacher.observed(data, logits=self.method.needs_logits)
        student = Output(heads[0], tuple(stages), tuple(heads[1:]))
        loss: Tensor = self.method(student, teacher, labels_of(target, manager))
        return loss

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, in types that load without executing anything."""
        method = {} if self.method is None else self.method.state_dict()
        return {"method": method, "identity": self.identity}

    def check(self, state: Mapping[str, Any], file: str) -> None:
        """Raise ContractError unless a state is of the same settings and teacher."""
        theirs = state.get("identity", {})
        for key, value in self.identity.items():
            if theirs.get(key) != value:
                got, attempt = f"{key} {theirs.get(key)} in {file}", "a training without --c"
                attempt = f"the settings it was begun with, or {attempt}"
                raise ContractError("checkpoint", got, f"{key} {value}", attempt)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the method's state; strict."""
        if self.method is not None:
            self.method.load_state_dict(state["method"])


def labels_of(target: Tensor, manager: Any) -> Tensor:
    """Labels (b, 1, d, h, w) of a target of nnU-Net: -1 where it ignores, regions put together.

    `manager` has `has_regions`, `foreground_regions`, `regions_class_order` and `ignore_label`.
    """
    if not manager.has_regions:
        labels = target.long()
        return labels.masked_fill(labels == (manager.ignore_label or -1), -1)
    labels = torch.zeros_like(target[:, :1], dtype=torch.long)
    for index, label in enumerate(manager.regions_class_order):
        labels[target[:, index : index + 1] > 0] = label  # as nnU-Net puts predictions together
    ignored = target[:, len(manager.foreground_regions) :] > 0
    return labels.masked_fill(ignored.any(1, keepdim=True), -1)
