"""Several methods at once: the student learns from the sum, each part at a weight of its own."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dcd_core.errors import nearest
from dcd_core.method import Examples, Method, TaskLoss
from dcd_core.models import Segmenter
from dcd_core.types import ContractError, Output


class Sum(Method):
    """Methods that act together; `forward` gives one loss for each of `parts`, in their order.

    `dcd_core.train.fit` weighs each of them as it would weigh that method alone: with the balance
    of gradients every part pulls at the encoder as hard as in a run of its own. Raises
    ContractError for parts that read logits differently.
    """

    def __init__(self, parts: Sequence[Method]) -> None:
        super().__init__()
        readings = {part.regions for part in parts} - {None}
        if len(readings) > 1:
            got = "classes of one softmax, and overlapping regions"
            raise ContractError("logits of the parts", got, "one of the two", "equal `regions`")
        self.parts = nn.ModuleList(parts)
        self.regions = next(iter(readings), None)
        self.needs_teacher = any(part.needs_teacher for part in parts)
        self.needs_logits = any(part.needs_logits for part in parts)

    def prepare(
        self, teacher: Segmenter, batches: Examples, task_loss: TaskLoss | None = None
    ) -> None:
        """Let every part learn from the teacher, all from the same batches."""
        kept, given = list(batches), () if task_loss is None else (task_loss,)
        for part in self.parts:  # a method of a reader's own may do without the loss
            cast(Method, part).prepare(teacher, kept, *given)

    def forward(
        self, student: Output, teacher: Output, target: Tensor | None = None
    ) -> Float[Tensor, " parts"]:
        """The losses of a batch (parts,), not weighted; ContractError as the parts raise it."""
        return torch.stack([part(student, teacher, target) for part in self.parts])


def parts_of(name: str, known: Iterable[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of each part of a sum that is written as "logits + dcd".

    `options` has those of a part under its name. Raises ContractError for a part that is not
    `known` or comes twice, and for options of anything else.
    """
    names, known = [part.strip() for part in name.split("+")], list(known)
    for part in names:
        if part not in known:
            raise ContractError(f"part of {name!r}", repr(part), "a method", nearest(part, known))
        if names.count(part) > 1:
            raise ContractError(f"parts of {name!r}", f"{part} twice", "each once", "another one")
    for part, own in options.items():
        if part not in names or not isinstance(own, Mapping):
            expected = f"options by part, such as {names[0]}={{...}}"
            raise ContractError(f"option of {name!r}", f"{part}={own!r}", expected, names[0])
    return {part: dict(options.get(part, {})) for part in names}
