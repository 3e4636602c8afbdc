"""Damage to files, and what came of it: refused in words, survived without a change, or wrong."""

import os
import random
import shutil
from collections import Counter

import numpy as np
import pandas as pd
import torch

from dcd_core.types import ContractError

MANY = os.environ.get("DCD_FAULTS") == "1"
"""`make faults` causes all of them, `make test` some."""


def flip(content, rng):
    """The content with one bit changed."""
    changed, bit = bytearray(content), rng.randrange(8 * len(content))
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def cut(content, rng):
    """The content without its end."""
    return content[: rng.randrange(len(content))]


DAMAGE = {"bit": (flip, 50 if MANY else 8), "cut": (cut, 20 if MANY else 4)}
"""Ways to damage a file, and how often each is tried on every kind."""


def same(one, other):
    """Whether two values are equal to the last bit; NaN equals NaN."""
    if isinstance(one, dict):
        return [*one] == [*other] and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, pd.DataFrame):
        return one.equals(other)
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return one == other or (one != one and other != other)


def cause(pristine, name, read, damage, scratch):
    """Damage the file `name`, a pattern, of a folder many times; how often `read(folder)` did what.

    Also what was raised that is no ContractError.
    """
    spoil, times = DAMAGE[damage]
    rng, outcomes, raw = random.Random(f"{name} {damage}"), Counter(caused=times), []
    shutil.copytree(pristine, scratch / "whole")
    truth = read(scratch / "whole")
    file = next(pristine.rglob(name))
    for turn in range(times):
        folder = scratch / str(turn)
        shutil.copytree(pristine, folder)
        (folder / file.relative_to(pristine)).write_bytes(spoil(file.read_bytes(), rng))
        try:
            outcomes["survived" if same(read(folder), truth) else "wrong"] += 1
        except ContractError:
            outcomes["refused"] += 1
        except Exception as error:
            raw.append(f"{type(error).__name__}: {error}")
        shutil.rmtree(folder)
    return outcomes, raw
