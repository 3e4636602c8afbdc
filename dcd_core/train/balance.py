"""Balance: the gradient of a distillation loss on the student's encoder, beside the segmentation's.

The value of a loss does not say how much it counts, its gradient does. Methods are compared at
equal ratios of gradient norms, taken over the encoder, the only part that all of them reach.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dcd_core.models import Segmenter
from dcd_core.train.processes import ALONE, Processes
from dcd_core.types import Volume

BALANCE_EVERY = 20
"""Steps between measurements of the gradient ratio; each costs about two more backward passes."""
SILENT = 1e-12
"""A distillation gradient below this share of the segmentation's counts as none."""


def encoder_parameters(student: Segmenter, image: Volume) -> list[nn.Parameter]:
    """The weights that the encoder stages of an image (b, c, d, h, w) depend on."""
    known = [p for p in student.parameters() if p.requires_grad]
    image = image.to(known[0].device)
    with torch.enable_grad():
        total = torch.stack([stage.float().sum() for stage in student.encode(image)]).sum()
    gradients = torch.autograd.grad(total, known, allow_unused=True)
    return [p for p, gradient in zip(known, gradients, strict=True) if gradient is not None]


def gradient_ratio(
    segmentation: Tensor,
    distillation: Tensor,
    encoder: Sequence[nn.Parameter],
    processes: Processes = ALONE,
) -> float | None:
    """Norm of the segmentation gradient over that of the distillation gradient; the graph is kept.

    Both losses are scalars of one batch, not yet weighted; `encoder` as from `encoder_parameters`.
    The ratio is the weight at which both gradients are equally large: 0.2 times it makes that of
    the distillation a fifth of the other. None where the distillation has no gradient.
    """
    norms = []
    for loss in (segmentation, distillation):
        gradients = torch.autograd.grad(loss, encoder, retain_graph=True, allow_unused=True)
        each = [processes.mean(g).float().norm() for g in gradients if g is not None]
        norms.append(torch.stack(each).norm().item() if each else 0.0)
    norm, norm_of_distillation = norms
    return None if norm_of_distillation <= SILENT * norm else norm / norm_of_distillation


def smoothed(previous: float, ratio: float | None) -> float:
    """The running ratio of the gradient norms, 0 before the first; without a new one it stays."""
    if ratio is None or previous == 0:
        return ratio or previous
    return 0.8 * previous + 0.2 * ratio
