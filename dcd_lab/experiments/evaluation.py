"""Evaluation: the threshold chosen on the val cases, and the scores of the test cases."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import UInt8

from dcd_core.infer import choose_threshold, decide, predict
from dcd_core.models import Segmenter
from dcd_core.train import Recipe
from dcd_core.types import Case
from dcd_lab.data import Cohort, read_label
from dcd_lab.data.prediction import to_native
from dcd_lab.metrics import challenge, lesions, score
from dcd_lab.tasks import TASKS

VERSION = 1
"""Of prediction, threshold and metrics. Raise it by hand when a change alters what they give."""
_LESION_COLUMNS = ("case", "lesion", "volume_ml", "dice")


class Evaluation(NamedTuple):
    """Two tables: `scores` (row: case, region) and `lesions` (row: case, lesion of the truth)."""

    scores: pd.DataFrame
    lesions: pd.DataFrame


def choose(student: Segmenter, cohort: Cohort, recipe: Recipe) -> tuple[float, float]:
    """The threshold that is best on the val cases, and their mean foreground Dice under it."""
    return choose_threshold(
        student,
        cohort.cases("val"),
        patch=recipe.patch,
        overlap=recipe.overlap,
        precision=recipe.precision,
    )


def predicted(
    student: Segmenter, threshold: float, case: Case, prepared: Case, recipe: Recipe
) -> UInt8[np.ndarray, "i j k"]:
    """The label volume of a case that is scored, on the case's own grid, from `prepared`."""
    probabilities = predict(
        student,
        prepared.image,
        patch=recipe.patch,
        overlap=recipe.overlap,
        precision=recipe.precision,
    )
    return decide(to_native(probabilities.cpu().numpy(), prepared, case), threshold)


def evaluate(student: Segmenter, threshold: float, cohort: Cohort, recipe: Recipe) -> Evaluation:
    """Score a segmenter on the test cases, on their own grids, as the challenges do.

    The labels are those of `predict_case`, made from the prepared cases on disk, because many
    networks are scored on the same ones. Patch, overlap and precision are those of `recipe`;
    `threshold` is the foreground probability from which a voxel counts.
    """
    task = TASKS[cohort.task]
    rows: list[dict[str, object]] = []
    of_lesions: list[dict[str, object]] = []
    for case, prepared in zip(
        map(read_label, cohort.scans("test")), cohort.cases("test"), strict=True
    ):
        assert case.label is not None
        label = predicted(student, threshold, case, prepared, recipe)
        official = challenge(label, case.label, task, case.spacing_mm)
        ours = score(label, case.label, task, case.spacing_mm)
        # Of columns that both have, ours is kept: its worst distance is that of the case's volume.
        for theirs, row in zip(official, ours, strict=True):
            rows.append({"case": case.id, **theirs, **row})
        for lesion in lesions(label > 0, case.label > 0, case.spacing_mm):
            of_lesions.append({"case": case.id, **lesion})
    return Evaluation(pd.DataFrame(rows), pd.DataFrame(of_lesions, columns=list(_LESION_COLUMNS)))
