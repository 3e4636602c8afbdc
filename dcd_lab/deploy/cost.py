"""What a network costs: parameters, multiplications, memory and time of one forward pass."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from dcd_core.models import Segmenter, evaluating, parameters
from dcd_core.types import ContractError
from dcd_lab import pool
from dcd_lab.deploy.export import Exported

_CLEAR = Path("/proc/self/clear_refs")


class Cost(NamedTuple):
    """The cost of one forward pass."""

    parameters: int  # of PyTorch's modules: 0 for a network that another runtime executes
    macs: int  # multiply-accumulates, counted as the parameters are
    peak_mib: float  # memory of weights and activations at the worst moment; nan if not recorded
    latency_ms: float  # median
    low_ms: float  # quartiles
    high_ms: float
    threads: int  # of the time
    device: str


def cost(
    model: Segmenter, shape: Sequence[int], *, threads: int | None = None, rounds: int = 11
) -> Cost:
    """What one forward pass of a batch of `shape` (b, c, d, h, w) costs, without gradients.

    On the device of the model, in float32; on a CPU with `threads`, PyTorch's own number if None (a
    network that another runtime executes has those of `load`). The time is that of `rounds` passes
    after one that warms up. Raises ContractError for counts below 1.
    """
    if rounds < 1 or (threads is not None and threads < 1):
        raise ContractError("rounds, threads", (rounds, threads), "at least 1", "rounds=11")
    used = threads or torch.get_num_threads()
    with pool.threads(used):
        samples = latency_ms(model, shape, rounds=rounds)
    low, middle, high = np.percentile(samples, [25, 50, 75]).tolist()
    peak, device = peak_mib(model, shape, threads=used), str(next(model.parameters()).device)
    return Cost(parameters(model), macs(model, shape), peak, middle, low, high, used, device)


@torch.inference_mode()
def macs(model: nn.Module, shape: Sequence[int]) -> int:
    """Multiply-accumulates of products and convolutions in a forward pass, as PyTorch counts them.

    Elementwise work is not counted, although it takes time on a CPU, that of norms above all.
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

    On a CPU: the resident memory of a fresh process beyond that of the libraries, whose peak Linux
    records; what another runtime loads to compile the network counts. nan on other systems. On a
    GPU: what its allocator gave. Raises ContractError with the last words of a process that failed.
    """
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        before = torch.cuda.memory_allocated(device)
        with torch.inference_mode():
            model(torch.zeros(*shape, device=device))
        return (torch.cuda.max_memory_allocated(device) - before + weights) / 2**20
    if not _CLEAR.exists():
        return float("nan")
    # The modules that layers come from are imported first: the memory of libraries does not count.
    homes = {m.runtime if isinstance(m, Exported) else type(m).__module__ for m in model.modules()}
    used = threads or torch.get_num_threads()
    # A notebook may have changed its path. In the package `cost` is the function, not the module.
    call = f"import sys, importlib; sys.path[:] = {sys.path!r}; "
    call += "importlib.import_module('dcd_lab.deploy.cost')._child()"
    with TemporaryDirectory() as folder:
        file = Path(folder, "model.pickle")
        file.write_bytes(pickle.dumps(model))
        given = [str(file), ",".join(sorted(homes)), str(used), *map(str, shape)]
        done = subprocess.run([sys.executable, "-c", call, *given], capture_output=True, text=True)
    if done.returncode:
        words = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        attempt = "a smaller shape, as the system ends processes that memory is too small for"
        raise ContractError("process that measures memory", words, "one that ends well", attempt)
    return float(done.stdout.split()[-1]) / 2**20


def resident_bytes(which: Literal["VmRSS", "VmHWM"]) -> int:
    """Memory that this process holds ("VmRSS") or has held at most ("VmHWM"), on Linux.

    Unlike `ru_maxrss`, which begins at the peak of the process that started this one.
    """
    status = Path("/proc/self/status").read_text("ascii", errors="replace")
    line = next(line for line in status.splitlines() if line.startswith(f"{which}:"))
    return 1024 * int(line.split()[1])


@torch.inference_mode()
def _child() -> None:
    """Print the bytes needed: called in a process of its own, with what to measure as arguments."""
    path, homes, threads, *shape = sys.argv[1:]
    for home in homes.split(","):
        importlib.import_module(home)
    torch.set_num_threads(int(threads))
    # Kernels load and thread pools start on the first call.
    nn.Conv3d(4, 4, 3)(torch.zeros(1, 4, 8, 8, 8))
    before = resident_bytes("VmRSS")
    model = pickle.loads(Path(path).read_bytes()).eval()
    patch = torch.zeros(*map(int, shape))
    _CLEAR.write_text("5", "ascii")  # the peak is counted from here: without reading the file
    model(patch)
    print(resident_bytes("VmHWM") - before)
