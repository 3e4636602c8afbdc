"""Recipes: every number of a training run, with the reason beside its default."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from dcd_core.errors import at_least, finite, flag, one_of, share, whole, within
from dcd_core.types import Precision, Size3


@dataclass(frozen=True)
class Recipe:
    """How one segmenter is trained. Every field is read; nothing else decides the outcome."""

    steps: int = 1000
    """Optimizer steps: the budget, equal for all methods under comparison."""
    seed: int = 0
    """Initial weights and batches; equal seeds pair the methods."""
    patch: Size3 = (32, 32, 32)
    """Voxels along (D, H, W); divisible by the network's total stride."""
    batch: int = 2
    foreground: float = 1 / 3
    """Share of patches centred on foreground, as in nnU-Net; more breeds false positives."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW learns within a thousand steps; nnU-Net's SGD (momentum .99) needs a hundredfold."""
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    schedule: Literal["cosine", "poly"] = "cosine"
    """Cosine to zero, or nnU-Net's polynomial decay of power .9."""
    warmup: int = 50
    """Steps of linear warm-up; AdamW's second moments need a few dozen to settle."""
    clip: float = 12.0
    """Largest gradient norm, as in nnU-Net."""
    ema: float = 0.99
    """Decay of the averaged weights that are tested; averaging brings seeds closer together."""
    kd_peak: float = 0.2
    """Final weight of the distillation loss (see `kd_balance`)."""
    kd_start: float = 0.1
    """Share of the steps without distillation; the teacher does not even run before."""
    kd_ramp: float = 0.2
    """Share of the steps over which the weight rises along half a cosine."""
    kd_balance: Literal["gradient", "fixed"] = "gradient"
    """"gradient": the weight is the ratio of the gradient norms (distillation / segmentation) on
    the student's encoder; "fixed": it multiplies the loss. Both log that ratio."""
    kd_prepare: int = 50
    """Batches on which a method may learn of the teacher alone, before the first step."""
    deep_weights: float = 0.5
    """Deep supervision: each coarser head counts this much of the next finer one."""
    overlap: float = 0.25
    """Of the windows when val and test cases are predicted; .5 is finer, three times as slow."""
    precision: Precision = "auto"
    """"auto" is bfloat16 where the processor has it, float32 elsewhere."""
    channels_last: bool = False
    """Memory format; on CPUs it speeds up narrow networks and slows down wide ones."""
    checkpoint_every: int = 200
    """Steps between checkpoints: at most this much work is lost."""

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {name: at_least(name, getattr(self, name), 1) for name in _COUNTS}
        checked |= {name: at_least(name, getattr(self, name), 0) for name in _COUNTS_OR_NONE}
        for expected, (fits, names) in _RANGES.items():
            for name in names.split():
                value = finite(name, getattr(self, name), fits, expected)
                checked[name] = value if isinstance(value, int | float) else float(value)
        checked["patch"] = whole("patch", self.patch, count=3)
        flag("channels_last", self.channels_last)
        for name, value in checked.items():  # numbers of NumPy are no numbers for JSON
            object.__setattr__(self, name, value)
        shares = self.kd_start, self.kd_ramp
        within("kd_start, kd_ramp", shares, sum(shares) <= 1, "a sum of at most 1")
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal:
                one_of(name, getattr(self, name), *get_args(hint))

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


_COUNTS = ("steps", "batch", "checkpoint_every")
_COUNTS_OR_NONE = ("seed", "warmup", "kd_prepare")
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "a finite number above 0": (lambda x: x > 0, "learning_rate clip"),
    "a finite number, 0 or more": (lambda x: x >= 0, "weight_decay kd_peak deep_weights"),
    "a share in [0, 1]": (lambda x: 0 <= x <= 1, "foreground kd_start kd_ramp"),
    "a share in [0, 1)": (lambda x: 0 <= x < 1, "ema overlap"),
}


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
