"""Write what the page on cases shows in 3D: `python book/_ext/case_volumes.py`.

Three test cases of the stroke study, with their channels, the truth and what three recorded
networks of one seed predict: the teacher, the undistilled student and the DCD student. Which cases
is a rule, not a choice: all that have a value of the first endpoint of
`notebooks/params/endpoints.yml` are ranked by the method's mean over its seeds, equal ones by the
next endpoint; shown are the first, the middle and the last.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from case_files import MASKS, RANKS, WORDS, packed, write
from explorer_features import SEED, jobs, parameters, recorded
from scipy import ndimage

from dcd_core.train import Fit
from dcd_core.types import Case, ContractError
from dcd_lab import claims, data, experiments
from dcd_lab.experiments import evaluation, record
from dcd_lab.experiments.verify import CASE_TOLERANCE
from dcd_lab.metrics import dice
from dcd_lab.metrics.lesion import EDGES_ML
from dcd_lab.metrics.masks import CONNECT_26
from dcd_lab.tasks import ISLES

MARGIN = 2  # voxels around the head


def ranking(scores: pd.DataFrame, stated: claims.Plan) -> list[str]:
    """Return the ids of the cases that have the first endpoint, the worst for the method first."""
    own, columns = scores[scores.method == stated.method], list(stated.endpoints)
    means = own.groupby("case", as_index=False)[columns].mean().dropna(subset=columns[:1])
    return list(means.sort_values([*columns, "case"]).case)


def places(count: int) -> dict[str, int]:
    """Return which places of a ranking are shown, by name; the first is 0."""
    return dict(zip(RANKS, (0, (count - 1) // 2, count - 1), strict=True))


# --- volumes --------------------------------------------------------------------------------------


class Grid:
    """The box around a head, its axes ordered right, anterior, superior, as viewers count."""

    def __init__(self, inside: np.ndarray, affine: np.ndarray) -> None:
        """Take the box of all voxels that are `inside`, and a margin."""
        (self._box,) = ndimage.find_objects(
            ndimage.binary_dilation(inside, iterations=MARGIN).astype(np.uint8)
        )
        self._affine = affine

    def __call__(self, values: np.ndarray) -> Any:
        """Return a volume of the case on this grid, as an image of nibabel."""
        image = nib.Nifti1Image(values.astype(np.uint8), self._affine)
        return nib.as_closest_canonical(image.slicer[self._box])


def greys(channel: np.ndarray) -> np.ndarray:
    """Return a channel in 256 greys, its darkest and brightest voxels cut, black outside."""
    head = channel != 0
    low, high = np.quantile(channel[head], [0.01, 0.995])
    return (255 * np.clip((channel - low) / (high - low), 0, 1) * head).round()


def masks(volumes: dict[str, np.ndarray]) -> np.ndarray:
    """Return one volume: of each voxel, a bit for each of `MASKS`."""
    bits = [(volumes[name] > 0).astype(np.uint8) << bit for bit, name in enumerate(MASKS)]
    return np.bitwise_or.reduce(bits)


# --- scores and lesions ---------------------------------------------------------------------------


def table(job: experiments.Job, name: str, id: str) -> pd.DataFrame:
    """Return the recorded rows of a case: its scores, or its lesions."""
    kept = pd.read_csv(record.home() / job.folder.name / job.table(name).name)
    return kept[kept.case == id].reset_index(drop=True)


def threshold(job: experiments.Job) -> float:
    """Return the recorded threshold of a run."""
    file = record.home() / job.folder.name / job.threshold_file.name
    return float(json.loads(file.read_text("utf-8"))["threshold"])


def predicted(job: experiments.Job, fit: Fit, case: Case, prepared: Case) -> np.ndarray:
    """Return the label (i, j, k) that a run predicts; ContractError if it is not the scored one."""
    label = evaluation.predicted(fit.student, threshold(job), case, prepared, job.recipe)
    made, kept = dice(label, case.label), float(table(job, "scores", case.id).dice[0])
    if not abs(made - kept) <= CASE_TOLERANCE:
        got, expected = f"{made:.4f}", f"{kept:.4f}, as recorded, within {CASE_TOLERANCE}"
        what, attempt = f"Dice of {job.label}, {case.id}", "python notebooks/study.py verify"
        raise ContractError(what, got, expected, attempt)
    return label


def middle(mask: np.ndarray) -> list[int]:
    """Return the voxel of a mask that is nearest to its centre."""
    voxels = np.argwhere(mask)
    nearest = ((voxels - voxels.mean(0)) ** 2).sum(1).argmin()
    return [int(at) for at in voxels[nearest]]


def lesions(tables: dict[str, pd.DataFrame], numbers: np.ndarray) -> list[dict[str, Any]]:
    """Return the true lesions, the largest first: volume, a voxel inside, Dice of each network."""
    (first, *_), rows = tables.values(), []
    for row, number in enumerate(first.lesion):
        scores = {name: float(one.dice[row]) for name, one in tables.items()}
        at = middle(numbers == number)
        rows.append({"volume_ml": float(first.volume_ml[row]), "at": at, "dice": scores})
    return sorted(rows, key=lambda lesion: -lesion["volume_ml"])


# --- the scripts ----------------------------------------------------------------------------------


def shown(id: str, study: experiments.Study, stated: claims.Plan) -> dict[str, Any]:
    """Return one case as the page reads it, without its place in the ranking."""
    (scan,) = (scan for scan in study.cohort.scans("test") if scan.id == id)
    (prepared,) = (case for case in study.cohort.cases("test") if case.id == id)
    case, by_arm, (fits, runs) = data.read(scan), jobs(study), recorded(study)
    labels = {name: predicted(by_arm[name], fits[name], case, prepared) for name in WORDS}
    whole = masks({"truth": case.label, **labels})
    grid = Grid(case.image.any(0) | (whole > 0), case.affine)
    # The numbers that the record has: components in the order of the file.
    numbers, _ = ndimage.label(case.label > 0, CONNECT_26)
    scores = {name: table(by_arm[name], "scores", id) for name in WORDS}
    tables = {name: table(by_arm[name], "lesions", id) for name in WORDS}
    return {
        "id": id,
        "seed": SEED,
        "runs": {name: {**runs[name], "threshold": threshold(by_arm[name])} for name in WORDS},
        "scores": {
            name: {column: float(one[column][0]) for column in stated.endpoints}
            for name, one in scores.items()
        },
        "lesions": lesions(tables, np.asarray(grid(numbers).dataobj)),
        "small_ml": EDGES_ML[0],
        "size": list(grid(whole).shape),
        "spacing_mm": list(case.spacing_mm),
        "channels": {
            name: packed(grid(greys(channel)))
            for name, channel in zip(ISLES.channels, case.image, strict=True)
        },
        "masks": {"names": list(MASKS), "file": packed(grid(whole))},
    }


def cases() -> dict[str, dict[str, Any]]:
    """Return the three cases by name."""
    study, stated = experiments.Study.of("isles2022", **parameters()), claims.plan()
    scores = claims.scores()
    if scores is None:
        raise ContractError("scores of the study", "none", "page 06", "make study ARGS=06")
    ranked = ranking(scores, stated)
    command = f"python book/_ext/{Path(__file__).name}"
    return {
        rank: {
            "command": command,
            "rank": rank,
            "place": place + 1,
            "of": len(ranked),
            **shown(ranked[place], study, stated),
        }
        for rank, place in places(len(ranked)).items()
    }


def main() -> None:
    """Write the scripts."""
    for rank, case in cases().items():
        write(rank, case, f"book/_ext/{Path(__file__).name}")


if __name__ == "__main__":
    main()
