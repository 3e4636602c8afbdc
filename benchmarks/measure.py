"""Clocks: calls that take turns, copies and matrix products to compare them with."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

Call = Callable[[], object]


def interleaved(
    calls: Mapping[str, Call], rounds: Mapping[str, int], device: torch.device, *, seed: int = 0
) -> dict[str, list[float]]:
    """Milliseconds of every call of every contender, all of them taking turns.

    `rounds`: how often each is called; those with fewer sit out rounds, evenly spaced. The order
    within a round is drawn anew, so that nobody always follows the one who empties the caches, and
    a slow minute of the machine meets everybody. Warm up before.
    """
    order, draw = list(calls), random.Random(seed)
    longest = max(rounds.values())
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(longest):
        draw.shuffle(order)
        for name in order:
            if (turn + 1) * rounds[name] // longest > turn * rounds[name] // longest:
                found[name].append(clock(calls[name], device))
    return found


def clock(call: Call, device: torch.device) -> float:
    """Milliseconds of one call; on a GPU until its work is done, not until it is queued."""
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return 1e3 * (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(samples_ms: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of some timings, in milliseconds, to four digits."""
    low, middle, high = (float(f"{q:.4g}") for q in np.percentile(samples_ms, [25, 50, 75]))
    return {"time_ms": middle, "low_ms": low, "high_ms": high}


def copying(values: int, device: torch.device) -> Call:
    """A copy of float32 numbers between two tensors that exist: 8 bytes moved per number."""
    source = torch.randn(values, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def multiplying(m: int, k: int, n: int, device: torch.device) -> Call:
    """One float32 matrix product (m, k) by (k, n): 2 m k n operations."""
    a, b = torch.randn(m, k, device=device), torch.randn(k, n, device=device)
    out = torch.empty(m, n, device=device)
    return lambda: torch.matmul(a, b, out=out)
