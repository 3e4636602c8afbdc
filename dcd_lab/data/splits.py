"""Splits: nnU-Net's five folds, by patient where a patient was scanned more than once."""

from __future__ import annotations

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dcd_core.errors import at_least, several
from dcd_core.storage import atomic
from dcd_core.types import ContractError


class Fold(NamedTuple):
    """Ids to train on and ids to validate on, both sorted."""

    train: tuple[str, ...]
    val: tuple[str, ...]


def folds(
    ids: Iterable[str],
    *,
    k: int = 5,
    seed: int = 12345,
    group: Callable[[str], str] | Mapping[str, str] | None = None,
) -> list[Fold]:
    """Split `ids` into `k` folds; without `group` these are nnU-Net's folds, id by id.

    `group` gives the patient of an id (`patient`, or a mapping). Then patients are split by the
    same rule, each with all its scans: on both sides these would make scores too high.
    Raises ContractError for an id given twice, or when there are fewer groups than folds.
    Source: Isensee et al., nnU-Net, Nature Methods, 2021.
    """
    names = sorted(_checked(several("ids", ids, "ids of scans")))
    k, seed = at_least("k", k, 2), at_least("seed", seed, 0, 2**32 - 1)
    owner = {name: _group_of(name, group) for name in names}
    groups = sorted(set(owner.values()))
    if not 2 <= k <= len(groups):
        attempt = "give more scans or ask for fewer folds"
        raise ContractError("folds", f"k={k}, {len(groups)} groups", "2 <= k <= groups", attempt)
    return [
        Fold(
            tuple(name for name in names if owner[name] not in held_out),
            tuple(name for name in names if owner[name] in held_out),
        )
        for held_out in _held_out(groups, k, seed)
    ]


def _checked(ids: tuple[str, ...]) -> tuple[str, ...]:
    """Return ids; ContractError unless they are text, and differ in more than case or Unicode form.

    One scan under two such names would be on both sides of a fold.
    """
    if wrong := [id for id in ids if not isinstance(id, str)]:
        raise ContractError("ids", f"{wrong[0]!r}", "text", "str(id)")
    plain = {id: unicodedata.normalize("NFKC", id).casefold().strip() for id in ids}
    count = Counter(map(plain.get, ids))
    if twice := [id for id in ids if count[plain[id]] > 1]:
        got = f"{sorted({*twice})} more than once, or alike but for case, spaces or Unicode form"
        raise ContractError("ids", got, "unique ids", "list each scan once")
    return ids


def _group_of(id: str, group: Callable[[str], str] | Mapping[str, str] | None) -> str:
    if group is None:
        return id
    if isinstance(group, Mapping) and id not in group:
        raise ContractError(
            "group", f"no patient of {id!r}", "one for every id", "a patient for it"
        )
    return group[id] if isinstance(group, Mapping) else group(id)


def _held_out(groups: list[str], k: int, seed: int) -> list[set[str]]:
    """Return the groups of each validation fold, as scikit-learn's shuffled KFold has them."""
    order = np.arange(len(groups))
    # The legacy generator is needed: it gives the folds that nnU-Net users already have.
    np.random.RandomState(seed).shuffle(order)
    # array_split makes the first n % k parts one longer, as KFold does.
    return [{groups[index] for index in part} for part in np.array_split(order, k)]


def shared(fold: Fold, group: Callable[[str], str] | Mapping[str, str]) -> list[str]:
    """The patients that a fold has on both sides, sorted; none where it was split by patient."""
    train, val = ({_group_of(id, group) for id in part} for part in fold)
    return sorted(train & val)


def write_splits(splits: Sequence[Fold], path: str | os.PathLike[str]) -> Path:
    """Write folds as nnU-Net's splits_final.json, whole or not at all; returns the path."""
    with atomic(path) as temporary:
        text = json.dumps([fold._asdict() for fold in splits], indent=2)
        temporary.write_text(text + "\n", "utf-8")
    return Path(path)
