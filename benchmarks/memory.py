"""Peak extra memory of one loss, measured in a process that does nothing else.

`tracemalloc` does not see what PyTorch allocates. Linux keeps the peak of a process's resident
memory and sets it back on request, so nothing is sampled and nothing missed; `ru_maxrss` would not
do, as a child inherits that of its parent. A GPU's allocator keeps its own peak.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from contenders import Grid, contenders, features, training_pass
from peers import Layout

from dcd_lab.deploy.cost import resident_bytes

CLEAR = Path("/proc/self/clear_refs")


def extra_bytes(grid: Grid, name: str, layout: Layout, device: torch.device) -> float:
    """Bytes that a contender needs at its peak beyond features that exist; its gradient counts.

    nan on a CPU whose system keeps no such record. Raises RuntimeError with the child's last words.
    """
    if device.type == "cuda":  # its allocator knows what is in use, whatever ran before
        return _needed(grid, name, layout, device)
    if not CLEAR.exists():
        return float("nan")
    asked = json.dumps([grid, name, layout, torch.get_num_threads()])
    done = alone(__file__, asked)
    if done.returncode:
        raise RuntimeError(f"memory of {name} on {grid.name}:\n{done.stderr}")
    return float(done.stdout)


def alone(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A script in a process of its own, whose peak is that of one call and of nothing before it.

    All but the smallest blocks go back to the system once they are free: none that preparing left
    behind is there to be used again, unseen.
    """
    return subprocess.run(
        [sys.executable, script, *arguments],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 16)},
        capture_output=True,
        text=True,
    )


def peak(call: Callable[[], object], device: torch.device) -> int:
    """Bytes needed at the peak of a call beyond those in use before it; its results count.

    Once per process on a CPU: memory that an earlier call gave back to the allocator, but not to
    the system, would be missing.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    CLEAR.write_text("5", "ascii")
    before = resident_bytes("VmHWM")
    call()
    return resident_bytes("VmHWM") - before


def _needed(grid: Grid, name: str, layout: Layout, device: torch.device) -> int:
    loss = contenders(grid.wavelet, layout)[name]
    # Libraries load and thread pools start on the first call; they are not memory of this grid.
    training_pass(loss, *features((1, 2, 8, 8, 8), device))()
    student, teacher = features(grid.shape, device)
    return peak(training_pass(loss, student, teacher), device)


def _child(asked: str) -> int:
    (shape, wavelet), name, layout, threads = json.loads(asked)
    torch.set_num_threads(threads)
    return _needed(Grid(shape, wavelet), name, layout, torch.device("cpu"))


if __name__ == "__main__":
    print(_child(sys.argv[1]))
