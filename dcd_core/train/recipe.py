"""Recipes: every number of a training run, with the reason beside its default."""

import copy
import json
import math
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from dcd_core.errors import (
    Check,
    Count,
    CountOrNone,
    Flag,
    NotNegative,
    Part,
    Positive,
    Share,
    checks,
    share,
    whole,
    within,
)
from dcd_core.types import Precision, Size3


@dataclass(frozen=True)
class Recipe:
    """How one segmenter is trained. Every field is read; nothing else decides the outcome."""

    steps: Count = 1000
    """Optimizer steps: the budget, equal for all methods under comparison."""
    seed: CountOrNone = 0
    """Initial weights and batches; equal seeds pair the methods."""
    patch: Annotated[Size3, Check(whole, 1, 3)] = (32, 32, 32)
    """Voxels along (D, H, W); divisible by the network's total stride."""
    batch: Count = 2
    foreground: Part = 1 / 3
    """Share of patches centred on foreground, as in nnU-Net; more breeds false positives."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW learns within a thousand steps; nnU-Net's SGD (momentum .99) needs a hundredfold."""
    learning_rate: Positive = 3e-3
    weight_decay: NotNegative = 1e-2
    schedule: Literal["cosine", "poly"] = "cosine"
    """Cosine to zero, or nnU-Net's polynomial decay of power .9."""
    warmup: CountOrNone = 50
    """Steps of linear warm-up; AdamW's second moments need a few dozen to settle."""
    clip: Positive = 12.0
    """Largest gradient norm, as in nnU-Net."""
    ema: Share = 0.99
    """Decay of the averaged weights that are tested; averaging brings seeds closer together."""
    kd_peak: NotNegative = 0.2
    """Final weight of the distillation loss (see `kd_balance`)."""
    kd_start: Part = 0.1
    """Share of the steps without distillation; the teacher does not even run before."""
    kd_ramp: Part = 0.2
    """Share of the steps over which the weight rises along half a cosine."""
    kd_balance: Literal["gradient", "fixed"] = "gradient"
    """"gradient": the weight is the ratio of the gradient norms (distillation / segmentation) on
    the student's encoder; "fixed": it multiplies the loss. Both log that ratio."""
    kd_prepare: CountOrNone = 50
    """Batches on which a method may learn of the teacher alone, before the first step."""
    deep_weights: NotNegative = 0.5
    """Deep supervision: each coarser head counts this much of the next finer one."""
    overlap: Share = 0.25
    """Of the windows when val and test cases are predicted; .5 is finer, three times as slow."""
    precision: Precision = "auto"
    """"auto" is bfloat16 where the processor has it, float32 elsewhere."""
    channels_last: Flag = False
    """Memory format; on CPUs it speeds up narrow networks and slows down wide ones."""
    checkpoint_every: Count = 200
    """Steps between checkpoints: at most this much work is lost."""

    def __post_init__(self) -> None:
        for name, check in checks(type(self)).items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        shares = self.kd_start, self.kd_ramp
        within("kd_start, kd_ramp", shares, sum(shares) <= 1, "a sum of at most 1")

    def plain(self) -> dict[str, Any]:
        """The fields in types of JSON, as they come back from a file."""
        return dict(json.loads(json.dumps(asdict(self))))

    def build_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer over everything trainable, adapters included."""
        rate, decay = self.learning_rate, self.weight_decay
        if self.optimizer == "adamw":
            return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
        return torch.optim.SGD(parameters, rate, momentum=0.99, nesterov=True, weight_decay=decay)

    def rate(self, step: int) -> float:
        """Learning rate at a step: warm-up, then the schedule down to zero at the last step."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        if self.schedule == "poly":
            return self.learning_rate * (1 - done) ** 0.9
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


class EMA:
    """Exponential moving average of a model's weights.

    The decay is min(decay, (1 + t) / (10 + t)) at update t = 0, 1, ..., so that the random start
    does not linger in the average. Buffers are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = share("decay", decay)
        self.steps = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the current weights by one step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        # Not state_dict(): DynUNet lists its blocks twice there, and they would be averaged twice.
        mine: list[Tensor] = list(self.model.parameters())
        theirs: list[Tensor] = list(model.parameters())
        torch._foreach_lerp_(mine, theirs, 1 - decay)
        # Buffers are copied: running statistics are averages already, and counters are integers.
        for kept, current in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(current)
