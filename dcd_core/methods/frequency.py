"""Detail by other wavelet methods: L1 of the detail bands, with or without masks of interest."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from dcd_core.errors import Check, NotNegative, Positive, at_least
from dcd_core.method import Examples, Narrow, Scalar, StageMethod, TaskLoss
from dcd_core.methods.masks import overlap
from dcd_core.models import Segmenter, evaluating
from dcd_core.types import ContractError, Output, Volume
from dcd_core.wavelet import Pyramid, wavedec3, waverec3
from dcd_core.wavelet.transform import MOST_LEVELS

Masks = list[Float[Tensor, "_ _ 7 _ _ _"]]
"""Per level, finest first: masks (b, tokens, 7, d, h, w), 0 to 1, of the seven detail bands."""


class PromptFreeFreeKD(StageMethod):
    """The adapted student has the teacher's detail bands, every coefficient alike.

        sum_stages sum_(l = 1..J) mean |W_l(a - t)|,
        W_l the detail bands of level l of the Haar transform.

    Source: the control of FreeKD that masks nothing.
    3D change: seven detail bands for three; J from 1 to 3, 2^J a quarter of the shortest side.
    With the third axis coefficients of what is constant along it are 2^(l/2) times as large at
    level l. Stages 1 to 4 for five maps of a pyramid.
    Differs from the authors' code: no mask, and no plain MSE of weight 5 beside it.
    Options: `levels` at most. `weight` 1 belongs to these sums, as theirs does.
    """

    weight: ClassVar[float] = 1.0
    usual = slice(1, 5)
    stage_reduction = "sum"
    levels: Annotated[int, Check(at_least, 1, MOST_LEVELS)] = 3

    def usable_levels(self, size: Sequence[int]) -> int:
        return max(1, min(self.levels, (min(size) // 4).bit_length() - 1))

    def stage(self, index: int, student: Narrow, teacher: Volume, target: Tensor | None) -> Scalar:
        student = self.adapters[index](student)
        levels = self.usable_levels(teacher.shape[2:])
        masks = self.masks(index, teacher, levels)

        def distance(s: Tensor, t: Tensor) -> Tensor:
            details = wavedec3(s - t, "haar", levels=levels).details
            pairs = zip(masks, details, strict=True)
            return torch.stack([(m * d.abs()).sum() / d[0, 0].numel() for m, d in pairs]).sum()

        total = self.in_chunks(distance, student, teacher, dim=1)
        return total / (teacher.shape[0] * teacher.shape[1])

    def masks(self, index: int, teacher: Volume, levels: int) -> Masks:
        return [teacher.new_ones((1, 1, 7, 1, 1, 1))] * levels


class FreeKD(PromptFreeFreeKD):
    """The adapted student has the teacher's detail where prompts learnt on the teacher look.

        sum_stages sum_(l = 1..J) mean_tokens mean |M_l * W_l(a - t)|,
        M_l = sigmoid(P_l . W_l(t)), masks per token, band and voxel, W_l as in PromptFreeFreeKD,
        P_l prompts, one vector of the teacher's channels per token.

    Before, prompts learn on the frozen teacher (`train_prompts`): its features are rebuilt from
    their coarse band and their detail times mean_tokens M, the rest of the network reads them, and
    task loss + diversity * mean_(two tokens) dice of their masks falls.

    Source: Zhang, Huang, Liu, Jiang, Cheng, Zhang, CVPR 2024, arXiv 2311.12079.
    3D change: as in PromptFreeFreeKD.
    Differs from the authors' code: each of the seven bands has masks of its own, where theirs takes
    levels for orientations and a level's sum for all its bands; no plain MSE of weight 5 beside it.
    While prompts learn, theirs mask the coarse band as well and add the masks of all tokens: six of
    one half treble a feature. The position-aware weights of the paper are in neither.
    Options: `tokens`, `diversity` and `rate` of the prompts' training; `levels`. `weight` 1.
    """

    tokens: Annotated[int, Check(at_least, 2)] = 6
    diversity: NotNegative = 0.5
    rate: Positive = 1e-3

    def __init__(self, *channels: Sequence[int], **options: Any) -> None:
        super().__init__(*channels, **options)
        for i, (_, w) in enumerate(self.channels):
            self.register_buffer(f"prompts_{i}", torch.randn(self.levels, self.tokens, w) / w**0.5)
        self.trained: Tensor
        self.register_buffer("trained", torch.zeros((), dtype=torch.bool))

    def prepare(
        self, teacher: Segmenter, batches: Examples, task_loss: TaskLoss | None = None
    ) -> None:
        """Train the prompts, unless they are."""
        if not self.trained:
            self.train_prompts(teacher, batches, task_loss)

    def train_prompts(
        self, teacher: Segmenter, batches: Examples, task_loss: TaskLoss | None = None
    ) -> list[float]:
        """Train the prompts by Adam, a step per batch of `prepare`; the losses, step by step."""
        task_loss = task_loss or dice_and_cross_entropy
        prompts = [p.clone().requires_grad_() for p in self.prompts()]
        optimizer = torch.optim.Adam(prompts, lr=self.rate)
        losses = []
        for image, target in batches:
            image, target = (x.to(prompts[0].device) for x in (image, target))
            output, spread = self.masked(teacher, image, prompts)
            loss = task_loss(output.logits, target) + self.diversity * spread
            optimizer.zero_grad()
            loss.backward(inputs=prompts)  # the teacher's weights get no gradient
            optimizer.step()
            losses.append(loss.item())
        if not losses:
            raise ContractError("batches", "none", "one at least", "a list, not a spent iterator")
        for kept, learnt in zip(self.prompts(), prompts, strict=True):
            kept.copy_(learnt.detach())
        self.trained.fill_(True)
        return losses

    def distance(self, student: Output, teacher: Output, target: Tensor | None) -> Scalar:
        if not self.trained:
            attempt = "method.prepare(teacher, batches) first, or 'freekd-prompt-free'"
            raise ContractError("prompts", "as drawn", "prompts trained on the teacher", attempt)
        return super().distance(student, teacher, target)

    def masks(self, index: int, teacher: Volume, levels: int) -> Masks:
        return [m.mean(1, keepdim=True) for m in masks_of(teacher, self.prompts()[index], levels)]

    def prompts(self) -> list[Tensor]:
        """Those of each stage in use (levels, tokens, channels)."""
        return [self.get_buffer(f"prompts_{i}") for i in range(len(self.stages))]

    def masked(
        self, teacher: Segmenter, image: Tensor, prompts: Sequence[Tensor]
    ) -> tuple[Output, Scalar]:
        """What a teacher answers where prompts mask its stages, and how much the masks overlap."""
        overlaps: list[Tensor] = []

        def edit(index: int, module: nn.Module, inputs: Any, features: Tensor) -> Tensor:
            levels = self.usable_levels(features.shape[2:])
            masks = masks_of(features, prompts[index], levels)
            overlaps.extend(overlap(m.flatten(2)) for m in masks)
            coarse, details = wavedec3(features, "haar", levels=levels)
            kept = [d * m.mean(1, keepdim=True) for d, m in zip(details, masks, strict=True)]
            d, h, w = features.shape[2:]
            return waverec3(Pyramid(coarse, tuple(kept)), "haar", size=(d, h, w))

        with ExitStack() as stack:
            stack.enter_context(evaluating(teacher))
            for index, number in enumerate(self.stages):
                module = teacher.network.get_submodule(teacher.stages[number])
                stack.enter_context(module.register_forward_hook(partial(edit, index)))
            output = teacher(image)
        return output, torch.stack(overlaps).mean()


def masks_of(features: Volume, prompts: Float[Tensor, "l t c"], levels: int) -> Masks:
    """Masks (b, tokens, 7, d, h, w) of the detail bands of `levels` levels."""
    # Prompts act on channels and the transform on space: few tokens are transformed, not channels.
    asked = [torch.einsum("tc,bcdhw->btdhw", p, features) for p in prompts[:levels]]
    return [wavedec3(x, "haar", levels=i).details[-1].sigmoid() for i, x in enumerate(asked, 1)]


def dice_and_cross_entropy(logits: Volume, target: Tensor) -> Scalar:
    """Cross-entropy plus 1 - mean Dice of the foreground classes over the batch.

    Labels (b, 1, d, h, w) below 0 do not count. Raises ContractError for one that is no class.
    """
    labels, classes = target[:, 0].long(), logits.shape[1]
    counts = labels >= 0
    if labels.max() >= classes:
        expected = f"classes 0 to {classes - 1}, or below 0 where ignored"
        attempt = "train_prompts(teacher, batches, task_loss) with the teacher's own loss"
        raise ContractError("labels to train prompts on", int(labels.max()), expected, attempt)
    truth = one_hot(labels.clamp(min=0), classes).movedim(-1, 1) * counts[:, None]
    p = logits.softmax(1) * counts[:, None]
    both, each = (x.sum((0, 2, 3, 4)) for x in (p * truth, p + truth))
    dice = (2 * both + 1e-5) / (each + 1e-5)
    error = cross_entropy(logits, labels.masked_fill(~counts, -1), ignore_index=-1, reduction="sum")
    return error / counts.sum().clamp(min=1) + 1 - dice[1:].mean()
