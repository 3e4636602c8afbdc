"""What small networks might say about a patch: noise of any width, grid and precision."""

import torch

from dcd_core.types import Output


def noise(*shape, seed=0, dtype=torch.float32):
    """Standard normal numbers; the same for the same seed in every precision."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def drawn(*shape, seed=0, dtype=torch.float64):
    """The same numbers, in double precision unless told otherwise."""
    return noise(*shape, seed=seed, dtype=dtype)


def output(channels, *, size=16, classes=3, batch=2, seed=0, dtype=torch.float32, scale=1.0):
    """An `Output` with one stage per entry of `channels`, each on half the grid of the last."""
    stages = tuple(
        scale * noise(batch, c, *[size >> i] * 3, seed=seed + 1 + i, dtype=dtype)
        for i, c in enumerate(channels)
    )
    return Output(noise(batch, classes, size, size, size, seed=seed, dtype=dtype), stages)


def staged(*stages):
    """An `Output` of these stages, without logits."""
    return Output(stages[0].new_empty(0), stages)


def labels(*, size=16, classes=3, batch=2, seed=0):
    """Labels (b, 1, d, h, w), every class about as often."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(classes, (batch, 1, size, size, size), generator=generator)


def leaves(out):
    """The same output, every tensor of it a leaf that wants a gradient."""
    return Output(
        out.logits.detach().clone().requires_grad_(),
        tuple(s.detach().clone().requires_grad_() for s in out.stages),
    )
