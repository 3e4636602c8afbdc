"""Work in several processes: every result arrives, errors stop the rest, none is left behind."""

import os
import subprocess
import sys

import psutil
import pytest

from dcd_core.types import ContractError
from dcd_lab.pool import each


def square(x):
    return x * x, os.getpid()


def refuse(x):
    raise ContractError("item", x, "none", "nothing")


def end(x):
    os.kill(os.getpid(), 9)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_result_arrives(workers):
    results = list(each(square, range(7), workers=workers))
    assert sorted(x for x, _ in results) == [x * x for x in range(7)]
    assert (os.getpid() in {pid for _, pid in results}) == (workers == 1)


def test_an_error_in_a_worker_arrives_whole():
    with pytest.raises(ContractError, match="got 0; expected none"):
        list(each(refuse, [0, 0, 0], workers=2))


def test_a_worker_that_was_killed_is_told():
    with pytest.raises(ContractError, match="fewer workers"):
        list(each(end, [0, 1], workers=2))


class Unreadable:
    """An item that no worker can read."""

    def __reduce__(self):
        return int, ("no number",)


def test_a_pool_that_breaks_otherwise_is_told_in_words():
    with pytest.raises(ContractError, match="worker process: got"):
        list(each(square, [Unreadable(), Unreadable()], workers=2))


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells children on Linux only")
def test_workers_end_with_a_parent_that_is_killed():
    code = (
        "import os, sys, time; from dcd_lab.pool import each\n"
        "def work(x): print('at work', flush=True); time.sleep(600)\n"
        "list(each(work, [1, 2], workers=2))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert [parent.stdout.readline() for _ in range(2)] == ["at work\n"] * 2
    family = psutil.Process(parent.pid).children(recursive=True)
    assert len(family) >= 2
    parent.kill()
    parent.communicate()
    assert psutil.wait_procs(family, timeout=30)[1] == []
