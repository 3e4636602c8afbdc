"""What a network costs: parameters, multiplications, memory and time of one forward pass."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from dcd_core.models import Segmenter, evaluating, parameters
from dcd_core.types import ContractError
from dcd_lab.deploy.export import Exported

_CLEAR = Path("/proc/self/clear_refs")


class Cost(NamedTuple):
    """The cost of one forward pass.

    `parameters` and `macs` (multiply-accumulates) are those of PyTorch's modules, 0 for a network
    that another runtime executes. `peak_mib`: memory of weights and activations at the worst
    moment, nan where the system keeps no record. `latency_ms`, `low_ms`, `high_ms`: median and
    quartiles. `threads` and `device` are those of the time.
    """

    parameters: int
    macs: int
    peak_mib: float
    latency_ms: float
    low_ms: float
    high_ms: float
    threads: int
    device: str


def cost(
    model: Segmenter, shape: Sequence[int], *, threads: int | None = None, rounds: int = 11
) -> Cost:
    """What one forward pass of a batch of `shape` (b, c, d, h, w) costs, without gradients.

    On the device of the model, in float32; on a CPU with so many `threads`, PyTorch's own number if
    None. A network that another runtime executes has its threads from `load`. The time is that of
    `rounds` passes after one that warms up. Raises ContractError for counts below 1.
    """
    if rounds < 1 or (threads is not None and threads < 1):
        raise ContractError("rounds, threads", (rounds, threads), "at least 1", "rounds=11")
    with _threads(threads):
        samples = latency_ms(model, shape, rounds=rounds)
        low, middle, high = np.percentile(samples, [25, 50, 75]).tolist()
        used = torch.get_num_threads()
    device = next(model.parameters()).device
    return Cost(
        parameters(model),
        macs(model, shape),
        peak_mib(model, shape, threads=used),
        middle,
        low,
        high,
        used,
        str(device),
    )


@torch.inference_mode()
def macs(model: nn.Module, shape: Sequence[int]) -> int:
    """Multiply-accumulates of a forward pass of `shape`, those of products and convolutions.

    Transposed convolutions count as PyTorch counts them. Elementwise work is not counted: on a CPU
    it takes time all the same, norms above all.
    """
    from torch.utils.flop_counter import FlopCounterMode

    device = next(model.parameters()).device
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(*shape, device=device))
    return int(counter.get_total_flops()) // 2


@torch.inference_mode()
def latency_ms(model: nn.Module, shape: Sequence[int], *, rounds: int = 11) -> list[float]:
    """Milliseconds of each of `rounds` passes over noise of `shape`, after one that warms up."""
    device = next(model.parameters()).device
    patch = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(device)
    samples = []
    with evaluating(model):
        for _ in range(rounds + 1):
            start = time.perf_counter()
            model(patch)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            samples.append(1e3 * (time.perf_counter() - start))
    return samples[1:]


def peak_mib(model: nn.Module, shape: Sequence[int], *, threads: int | None = None) -> float:
    """MiB that weights and activations of one forward pass of `shape` take at the worst moment.

    On a CPU the resident memory of a fresh process beyond that of the libraries; Linux keeps its
    peak, so that nothing is sampled and nothing missed. What another runtime loads to compile the
    network counts. nan on other systems. On a GPU what its allocator handed out.
    Raises RuntimeError with the last words of a process that failed.
    """
    device = next(model.parameters()).device
    if device.type == "cuda":
        return _peak_cuda(model, shape, device)
    if not _CLEAR.exists():
        return float("nan")
    with TemporaryDirectory() as folder:
        asked = Path(folder, "asked.pickle")
        asked.write_bytes(pickle.dumps(model))
        # Where the layers come from is imported first: libraries are no network's memory.
        homes = {type(module).__module__ for module in model.modules()}
        homes |= {module.runtime for module in model.modules() if isinstance(module, Exported)}
        used = threads or torch.get_num_threads()
        given = [str(asked), ",".join(sorted(homes)), str(used), *map(str, shape)]
        # What can be imported here can be imported there: a notebook may have moved its path.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        # `dcd_lab.deploy.cost` is the function once the package is imported.
        call = "import importlib; importlib.import_module('dcd_lab.deploy.cost')._child()"
        done = subprocess.run(
            [sys.executable, "-c", call, *given], capture_output=True, text=True, env=environment
        )
    if done.returncode:
        raise RuntimeError(f"the process that measures memory failed:\n{done.stderr}")
    return float(done.stdout.split()[-1]) / 2**20


def resident_bytes(which: Literal["VmRSS", "VmHWM"]) -> int:
    """Memory that this process holds ("VmRSS") or has held at most ("VmHWM"), on Linux.

    Unlike `ru_maxrss`, which begins at the peak of the process that started this one.
    """
    status = Path("/proc/self/status").read_text("ascii", errors="replace")
    line = next(line for line in status.splitlines() if line.startswith(f"{which}:"))
    return 1024 * int(line.split()[1])


def _peak_cuda(model: nn.Module, shape: Sequence[int], device: torch.device) -> float:
    torch.cuda.reset_peak_memory_stats(device)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    before = torch.cuda.memory_allocated(device)
    with torch.inference_mode():
        model(torch.zeros(*shape, device=device))
    return (torch.cuda.max_memory_allocated(device) - before + weights) / 2**20


def _child() -> None:
    """Print the bytes needed; run in a process of its own, which asks for them in its arguments."""
    path, homes, threads, *shape = sys.argv[1:]
    for home in homes.split(","):
        importlib.import_module(home)
    torch.set_num_threads(int(threads))
    with torch.inference_mode():
        # Kernels load and thread pools start on the first call.
        nn.Conv3d(4, 4, 3)(torch.zeros(1, 4, 8, 8, 8))
        before = resident_bytes("VmRSS")
        model = pickle.loads(Path(path).read_bytes()).eval()
        patch = torch.zeros(*map(int, shape))
        _CLEAR.write_text("5", "ascii")  # the peak starts anew: reading the file is none of it
        model(patch)
    print(resident_bytes("VmHWM") - before)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
