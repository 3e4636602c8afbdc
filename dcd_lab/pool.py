"""Work shared out to processes that end when their parent does."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from dcd_core.types import ContractError

Item = TypeVar("Item")
Result = TypeVar("Result")

PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal a process gets when its parent ends."""


def each(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int
) -> Iterator[Result]:
    """Call `function` on every item in `workers` processes; yield the results as they come.

    Results arrive in any order. With one worker, or one item, the work is done in this process and
    in order. The cores are shared out: every worker computes with as many threads as its share.
    An error in a worker is raised here and stops the others; so does closing the iterator.
    Raises ContractError when a worker was killed.
    """
    items = list(items)
    if workers <= 1 or len(items) <= 1:
        yield from map(function, items)
        return
    import joblib
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    parallel = joblib.Parallel(
        n_jobs=min(workers, len(items)),
        backend="loky",  # a new interpreter: a forked one inherits locks of threads it lacks
        return_as="generator_unordered",
        max_nbytes=None,
    )
    parent = os.getpid()
    try:
        yield from parallel(joblib.delayed(_call)(function, item, parent) for item in items)
    except TerminatedWorkerError:
        raise ContractError(
            "worker process",
            "killed, which the system does when memory runs out",
            "one that ends by itself",
            "fewer workers; what is done is kept",
        ) from None


def _call(function: Callable[[Item], Result], item: Item, parent: int) -> Result:
    _end_with(parent)
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
