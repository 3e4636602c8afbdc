"""Evaluation: the test cases of a cohort, predicted and scored on their own grids."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from dcd_core.data import Cohort, read
from dcd_core.infer import predict_case
from dcd_core.metrics import challenge, lesions, score
from dcd_core.models import Segmenter
from dcd_core.train.recipe import Recipe
from dcd_core.types import TASKS

_LESION_COLUMNS = ("case", "lesion", "volume_ml", "dice")


class Evaluation(NamedTuple):
    """Two tables: `scores` (row: case, region) and `lesions` (row: case, lesion of the truth)."""

    scores: pd.DataFrame
    lesions: pd.DataFrame


def evaluate(student: Segmenter, threshold: float, cohort: Cohort, recipe: Recipe) -> Evaluation:
    """Score a segmenter on the test cases, where the challenges look at them.

    Patch, overlap and precision are those of `recipe`; `threshold` is the foreground probability
    from which a voxel counts.
    """
    task = TASKS[cohort.task]
    rows: list[dict[str, object]] = []
    found: list[dict[str, object]] = []
    for case in map(read, cohort.scans("test")):
        assert case.label is not None
        label = predict_case(
            student,
            case,
            task,
            patch=recipe.patch,
            threshold=threshold,
            spacing_mm=cohort.spacing_mm,
            overlap=recipe.overlap,
            precision=recipe.precision,
        )
        official = challenge(label, case.label, task, case.spacing_mm)
        ours = score(label, case.label, task, case.spacing_mm)
        # Of columns that both have, ours is kept: its worst distance is that of the case's volume.
        for theirs, row in zip(official, ours, strict=True):
            rows.append({"case": case.id, **theirs, **row})
        for lesion in lesions(label > 0, case.label > 0, case.spacing_mm):
            found.append({"case": case.id, **lesion})
    return Evaluation(pd.DataFrame(rows), pd.DataFrame(found, columns=list(_LESION_COLUMNS)))
