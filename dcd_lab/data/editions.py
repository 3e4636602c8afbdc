"""Editions: what the label numbers of a file mean depends on the year, never on the values.

The value 4 was enhancing tumour up to 2022, did not exist in 2023 and is the resection cavity since
2024. Nothing in a file tells the year, so the caller names the edition of a data set. Labels that
have been read carry the numbers of 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from jaxtyping import Float32, UInt8

from dcd_core.types import ContractError
from dcd_lab.tasks import BRATS, ISLES, SIMULATED

_FOUR_CLASSES = {0: 0, 1: 1, 2: 2, 3: 1, 4: 3}  # 1 necrosis, 3 non-enhancing core: both NETC
_ET_IS_FOUR = {0: 0, 1: 1, 2: 2, 4: 3}
_ET_IS_THREE = {0: 0, 1: 1, 2: 2, 3: 3}
_WITH_CAVITY = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4}
_NUMBERS: Mapping[str, Mapping[int, Mapping[int, int]]] = MappingProxyType(
    {
        BRATS.name: dict.fromkeys(range(2013, 2017), _FOUR_CLASSES)
        | dict.fromkeys(range(2017, 2023), _ET_IS_FOUR)
        | {2023: _ET_IS_THREE, 2024: _WITH_CAVITY, 2025: _WITH_CAVITY},
        ISLES.name: {2022: {0: 0, 1: 1}},
        **{name: {1: {0: 0, 1: 1}} for name in SIMULATED},
    }
)
OWN: Mapping[str, int] = MappingProxyType(
    {BRATS.name: 2024, ISLES.name: 2022, **dict.fromkeys(SIMULATED, 1)}
)
"""The edition whose label numbers each task uses, and which `write` writes. A simulated task has
one, which is no year."""


def numbering(task: str, edition: int) -> Mapping[int, int]:
    """Return the label values that files of an edition hold, each with its value in the task.

    Raises ContractError for a year whose numbering is not known.
    Source: de Verdier et al., arXiv 2405.18368, 2024 (2024); Menze et al., IEEE TMI, 2015 (2013);
    Bakas et al., arXiv 1811.02629, 2018 (from 2017 on).
    """
    known = _NUMBERS[task]
    if edition not in known:
        years = f"one of {', '.join(map(str, known))}"
        attempt = f"edition={OWN[task]}, or the year the labels were published for"
        raise ContractError(f"edition of {task}", edition, years, attempt)
    return known[edition]


def renumbered(
    stored: Float32[np.ndarray, "i j k"], task: str, edition: int, name: str
) -> UInt8[np.ndarray, "i j k"]:
    """Return a stored label in the numbers of its task; values are rounded to whole numbers.

    Raises ContractError, which calls the label `name`, for values that the edition does not have.
    """
    numbers, whole = numbering(task, edition), np.round(stored)
    values, counts = np.unique(whole, return_counts=True)
    unknown = ~np.isin(values, list(numbers))
    if unknown.any():
        voxels = f"{counts[unknown].sum()} voxels of {_listed(values[unknown])}"
        expected = f"only {_listed(np.array([*numbers]))} ({task}, edition {edition})"
        attempt = "name the edition the labels come from, or correct these voxels"
        raise ContractError(name, f"labels {_listed(values)} ({voxels})", expected, attempt)
    table = np.zeros(max(numbers) + 1, np.uint8)
    table[list(numbers)] = list(numbers.values())
    return table[whole.astype(np.uint8)]


def _listed(values: np.ndarray) -> str:
    return ", ".join(f"{value:g}" for value in values)
