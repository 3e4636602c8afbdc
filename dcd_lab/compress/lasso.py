"""The reweighted group lasso: a penalty under which small channels vanish and large ones stay."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from dcd_core.method import Method
from dcd_core.models import Segmenter
from dcd_core.types import ContractError, Output, Volume
from dcd_lab.compress.groups import channel_groups, squared_norms


class ReweightedGroupLasso(Method):
    """The sum over channels g of P_g ||W_g||^2, P_g = 1 / (||W_g||^2 + eps), times `strength`.

    W_g is all that belongs to a channel: what writes, normalises and reads it. The P_g are computed
    from the weights every `every` training steps, `stages` times in all, first at step 0. So small
    channels are shrunk more than large ones. `example` (1, c, d, h, w): any patch of the student.

    Give it to `train.Distiller` in the place of a distillation method, without a teacher, with
    kd_balance="fixed", kd_peak=1, kd_start=0, kd_ramp=0 in the recipe, so that `strength` is its
    weight. Raises ContractError for counts below 1 or numbers that are not positive.

    Source: Ma et al., BLK-REW, arXiv 2001.08357, 2020; Niu et al., RT3D, AAAI 2021, arXiv
    2007.09835 (3D networks); Candès et al., Enhancing Sparsity by Reweighted l1 Minimization,
    J. Fourier Anal. Appl. 14, 2008.
    """

    needs_teacher: bool = False
    penalties: Float[Tensor, " n"]
    calls: Tensor

    def __init__(
        self,
        student: Segmenter,
        example: Volume,
        *,
        every: int,
        strength: float = 1e-4,
        stages: int = 4,
        eps: float = 1e-3,
    ) -> None:
        super().__init__()
        if min(every, stages) < 1 or min(strength, eps) <= 0:
            got, expected = (every, stages, strength, eps), "counts of at least 1, positive numbers"
            attempt = "every=steps // 4, stages=4, strength=1e-4, eps=1e-3"
            raise ContractError("every, stages, strength, eps", got, expected, attempt)
        self.every, self.strength, self.stages, self.eps = every, strength, stages, eps
        # In a tuple, so that its weights are not this module's: they would be saved twice.
        self._student = (student,)
        self.groups = channel_groups(student, example)
        self.register_buffer("penalties", torch.ones(sum(group.size for group in self.groups)))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.reweight()

    def distance(self, student: Output, teacher: Output, target: Tensor | None) -> Tensor:
        """The penalty, a scalar; in training mode every call is a step."""
        if self.training:
            stage, rest = divmod(int(self.calls), self.every)
            if rest == 0 and stage < self.stages:
                self.reweight()
            self.calls += 1
        return self.strength * (self.penalties * self.norms()).sum()

    def norms(self) -> Float[Tensor, " n"]:
        """||W_g||^2 of all channels, group by group."""
        return torch.cat([squared_norms(self._student[0], group) for group in self.groups])

    @torch.no_grad()
    def reweight(self) -> None:
        """Set the P_g from the weights as they are now."""
        self.penalties.copy_(1 / (self.norms() + self.eps))
