"""Clocks and counters: calls that take turns, copies to compare them with, what a call moves."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from dcd_core.wavelet import BANDS, Selection
from dcd_core.wavelet.fast import filters

Call = Callable[[], object]


def interleaved(
    calls: Mapping[str, Call],
    rounds: Mapping[str, int],
    device: torch.device,
    *,
    seed: int = 0,
    timer: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Milliseconds of every call of every contender, all of them taking turns.

    `rounds`: how often each is called; those with fewer sit out rounds, evenly spaced. The order
    within a round is drawn anew, so that nobody always follows the one who empties the caches, and
    a slow minute of the machine meets everybody. Warm up before. `timer`: seconds, of the wall.
    """
    order, draw = list(calls), random.Random(seed)
    longest = max(rounds.values())
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(longest):
        draw.shuffle(order)
        for name in order:
            if (turn + 1) * rounds[name] // longest > turn * rounds[name] // longest:
                found[name].append(clock(calls[name], device, timer))
    return found


def clock(
    call: Call, device: torch.device, timer: Callable[[], float] = time.perf_counter
) -> float:
    """Milliseconds of one call; on a GPU until its work is done, not until it is queued."""
    _wait(device)
    start = timer()
    call()
    _wait(device)
    return 1e3 * (timer() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def replaying(call: Call) -> Call:
    """A call captured in a CUDA graph: the device's work, launched at once by `replay`."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # libraries set themselves up outside of the capture
        call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def spread(samples_ms: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of some timings, in milliseconds, to four digits."""
    low, middle, high = (float(f"{q:.4g}") for q in np.percentile(samples_ms, [25, 50, 75]))
    return {"time_ms": middle, "low_ms": low, "high_ms": high}


def copying(values: int, device: torch.device) -> Call:
    """A copy of float32 numbers between two tensors that exist: 8 bytes moved per number."""
    source = torch.randn(values, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def multiplying(m: int, k: int, n: int, device: torch.device, *, count: int = 1) -> Call:
    """`count` float32 matrix products (m, k) by (k, n), the first always the same: in one call.

    Together they take 2 m k n count operations.
    """
    a, b = torch.randn(m, k, device=device), torch.randn(count, k, n, device=device)
    out = torch.empty(count, m, n, device=device)
    if count == 1:
        return lambda: torch.mm(a, b[0], out=out[0])
    return lambda: torch.bmm(a.expand(count, m, k), b, out=out)


def convolving(m: int, k: int, n: int, device: torch.device) -> Call:
    """The same product as a convolution of one voxel, the k channels innermost, into new memory."""
    a, b = torch.randn(m, k, 1, 1, device=device), torch.randn(n, k, device=device)
    voxels = b.view(1, 1, n, k).permute(0, 3, 1, 2)
    return lambda: torch.nn.functional.conv2d(voxels, a)


class Work(NamedTuple):
    """What a call asks of a machine: bytes read and written, operations of products."""

    bytes: int
    operations: int


def work(call: Call) -> Work:
    """Count one call, operator by operator as PyTorch dispatches it, caches ignored.

    Every operator reads its inputs and writes its outputs. Operations are the additions and
    multiplications of matrix products, convolutions and compiled filters; those of elementwise
    operators are not counted, and bound nothing.
    """
    compiled = _Filters()
    with FlopCounterMode(display=False) as products, _Traffic() as traffic, compiled.counted():
        call()
    return Work(traffic.bytes + compiled.bytes, products.get_total_flops() + compiled.operations)


class _Traffic(TorchDispatchMode):
    bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # Views move nothing, and memory that is only allocated is not written.
        if not func.is_view and "empty" not in func.name():
            written = tree_leaves(result)
            read = tree_leaves((args, {k: v for k, v in kwargs.items() if k != "out"}))
            tensors = [each for each in (*read, *written) if isinstance(each, torch.Tensor)]
            self.bytes += sum(each.numel() * each.element_size() for each in tensors)
        return result


class _Filters:
    """What the compiled filters do, of which PyTorch does not know."""

    bytes = 0
    operations = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count while this lasts."""
        measured = filters.energy

        def energy(x: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
            self.bytes += 2 * x.numel() * x.element_size()
            for level in filters.levels(tuple(x.shape[1:]), selection):
                self.operations += 2 * len(x) * _filtering(level)
            return measured(x, selection)

        with mock.patch.object(filters, "energy", energy):
            yield


def _filtering(level: filters.Level) -> int:
    """Operations of one direction, for one volume: along D, then H, then W, of what is reached."""
    d, h, w = level.axes
    lines = {
        4: d.taps * d.coefficients * h.samples * w.samples,
        2: h.taps * d.coefficients * h.coefficients * w.samples,
        1: w.taps * d.coefficients * h.coefficients * w.coefficients,
    }
    return 2 * sum(
        multiplied * any(level.reached[band : band + count])
        for count, multiplied in lines.items()
        for band in range(0, len(BANDS), count)
    )
