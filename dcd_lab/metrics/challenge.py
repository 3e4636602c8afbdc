"""The official scores of a task, whichever challenge it comes from."""

from __future__ import annotations

import numpy as np

from dcd_core.types import BRATS, Task
from dcd_lab.metrics.brats import brats2024
from dcd_lab.metrics.isles import isles2022
from dcd_lab.metrics.masks import Spacing


def challenge(
    pred: np.ndarray, true: np.ndarray, task: Task, spacing_mm: Spacing
) -> list[dict[str, str | int | float]]:
    """`brats2024` or `isles2022` of two label volumes (i, j, k): a row per region of the task.

    Raises:
        ContractError: as the two do.
    """
    if task.name == BRATS.name:
        return brats2024(pred, true, spacing_mm)
    (region,) = task.regions
    return [{"region": region, **isles2022(pred, true, spacing_mm)}]
