"""Work shared out to processes that end when their parent does."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from dcd_core.types import ContractError
from dcd_lab.records import root

Item = TypeVar("Item")
Result = TypeVar("Result")

PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal a process gets when its parent ends."""


def each(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int
) -> Iterator[Result]:
    """Call `function` on every item in `workers` processes; yield the results as they come.

    Results arrive in any order. With one worker, or one item, the work is done in this process and
    in order. Workers share the threads of this process, and its project folder.
    An error in a worker is raised here and stops the others; so does closing the iterator.
    Raises ContractError when a worker was killed.
    """
    items = list(items)
    workers = min(workers, len(items))
    if workers <= 1:
        yield from map(function, items)
        return
    import joblib
    import torch
    from joblib.externals.loky.process_executor import BrokenProcessPool, TerminatedWorkerError

    share = max(1, min(torch.get_num_threads(), joblib.cpu_count()) // workers)
    # loky starts new interpreters: a forked one inherits locks of threads that it lacks.
    with joblib.parallel_config("loky", inner_max_num_threads=share):
        parallel = joblib.Parallel(
            workers, return_as="generator_unordered", batch_size=1, max_nbytes=None
        )
    call = joblib.delayed(partial(_call, function, parent=os.getpid(), project=str(root())))
    try:
        yield from parallel(call(item) for item in items)
    except BrokenProcessPool as error:
        got = "killed, which the system does when memory runs out"
        if not isinstance(error, TerminatedWorkerError):
            got = str(error).splitlines()[0]
        expected, attempt = "one that ends by itself", "fewer workers; what is done is kept"
        raise ContractError("worker process", got, expected, attempt) from None


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Have PyTorch work in `count` threads of a CPU; as many as before come back at the end."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _call(function: Callable[[Item], Result], item: Item, *, parent: int, project: str) -> Result:
    _end_with(parent)
    os.environ["DCD_ROOT"] = project  # a worker may be older than a change of it
    # The parent alone answers to Ctrl-C: it keeps what is done and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return function(item)


def _end_with(parent: int) -> None:
    """Let the system end this process as soon as its parent is gone, even by kill -9."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before the call above
        sys.exit(1)
