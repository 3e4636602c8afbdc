"""The loss of a step of training, as MONAI's trainer calls it."""

from torch import Tensor, nn

from dcd_core.dcd import kd_weight
from dcd_core.train import gradient_ratio
from dcd_core.train.distiller import Losses


class BalancedLoss:
    """Segmentation plus distillation, whose gradient is a `ratio` of the other on the `encoder`.

    `steps`: of the whole training; `start` and `ramp`: shares of it without distillation, and in
    which the ratio rises. It is measured again `every` few steps, since features grow.
    """

    def __init__(
        self,
        encoder: list[nn.Parameter],
        steps: int,
        ratio: float,
        start: float,
        ramp: float,
        every: int = 20,
    ) -> None:
        self.encoder, self.steps, self.every = encoder, steps, every
        self.ratio, self.start, self.ramp = ratio, start * steps, ramp * steps
        self.step, self.equal = 0, 0.0

    def __call__(self, losses: Losses, target: Tensor) -> Tensor:
        loss, distillation = losses
        assert distillation is not None  # the trainer asks for it
        share = kd_weight(self.step, peak=self.ratio, start=self.start, ramp=self.ramp)
        if self.step % self.every == 0:
            self.equal = gradient_ratio(loss, distillation, self.encoder) or self.equal
        self.step += 1
        return loss + share * self.equal * distillation
