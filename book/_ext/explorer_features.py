"""Write what the explorer shows: `python book/_ext/explorer_features.py`.

Features of three recorded networks (the teacher, the undistilled student and the DCD student of the
stroke study) on one patch of one test case, all channels of all stages that the loss aligns. Which
case and which patch is a rule, not a choice: the first test case, around its largest lesion.

A network's features are stored without the mean of their channel, rounded to 8 bits. The page
computes everything else from them, so that a student takes the room of its own few channels.
A student of another step is one more entry of `networks` and of `projections`.
"""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from dcd_core.dcd import DCD
from dcd_core.storage import atomic
from dcd_core.train import Fit, read_fit
from dcd_core.types import Case
from dcd_core.wavelet.energy import usable_levels
from dcd_lab import data, experiments, flow
from dcd_lab.experiments import record

BOOK = Path(__file__).resolve().parents[1]
PROFILE = BOOK.parent / "notebooks" / "params" / "study.yml"
TARGET = BOOK / "_assets" / "live" / "stroke-features.js"
PAGE, ARMS, SEED = "09-features", ("undistilled", "DCD"), 0
PATCH_SEED = 0  # of page 09
STEPS_8BIT = 127


def parameters() -> dict[str, Any]:
    """Return the parameters of the page whose networks and patches these are."""
    profile = yaml.safe_load(PROFILE.read_text("utf-8"))
    return {**profile["shared"], **profile[PAGE]}


def jobs(study: experiments.Study) -> dict[str, experiments.Job]:
    """Return the teacher and the two students, by arm."""
    options = {"undistilled": {}, "DCD": {"method": "dcd"}}
    students = {arm: study.student(arm, SEED, **options[arm]) for arm in ARMS}
    return {"teacher": study.teacher(), **students}


def recorded(study: experiments.Study) -> tuple[dict[str, Fit], dict[str, Any]]:
    """Return the three runs, and where each is: its entry in the record, a hash of its weights."""
    entries = {arm: record.home() / job.folder.name for arm, job in jobs(study).items()}
    for entry in entries.values():
        record.check_files(entry)
    found = {
        arm: {"entry": entry.name, "weights": record.read(entry)["files"]["student.safetensors"]}
        for arm, entry in entries.items()
    }
    return {arm: read_fit(entry) for arm, entry in entries.items()}, found


def patch_start(label: np.ndarray, patch: tuple[int, ...]) -> list[int]:
    """Return where the patch around the largest lesion begins, in voxels (i, j, k)."""
    from scipy import ndimage

    lesions, _ = ndimage.label(label, np.ones((3, 3, 3)))
    largest = 1 + int(np.bincount(lesions.ravel())[1:].argmax())
    middle = ndimage.center_of_mass(lesions == largest)
    sides = zip(middle, patch, label.shape, strict=True)
    return [int(np.clip(round(m) - p // 2, 0, n - p)) for m, p, n in sides]


def cut(case: Case, start: list[int], patch: tuple[int, ...]) -> Tensor:
    """Return the patch (1, c, d, h, w) of a case that begins at `start`."""
    inside = tuple(slice(at, at + n) for at, n in zip(start, patch, strict=True))
    return torch.from_numpy(np.array(case.image[(slice(None), *inside)]))[None]


def encoded(network: Any, image: Tensor, stages: int) -> list[Tensor]:
    """Return the features (c, d, h, w) of the first stages without their channel means, float64."""
    with torch.no_grad():
        maps = [stage[0].double() for stage in network.eval().encode(image)[:stages]]
    return [stage - stage.mean((1, 2, 3), keepdim=True) for stage in maps]


def fitted(
    students: dict[str, Any], teacher: Any, images: list[Tensor], used: list[int]
) -> dict[str, list[Tensor]]:
    """Return each student's best projection by stage, by least squares, as on page 09."""
    sums: dict[str, list[Any]] = {arm: [0] * len(used) for arm in students}
    for image in images:
        taught = encoded(teacher, image, len(used))
        for arm, student in students.items():
            stages = zip(encoded(student, image, len(used)), taught, used, strict=True)
            for i, (s, t, levels) in enumerate(stages):
                sums[arm][i] = sums[arm][i] + flow.moments(s[None], t[None], levels=levels).sum(0)
    widths = {arm: student.channels for arm, student in students.items()}
    return {
        arm: [flow.best_projection(m, width) for m, width in zip(total, widths[arm], strict=False)]
        for arm, total in sums.items()
    }


def packed(array: np.ndarray) -> str:
    """Return the bytes of an array, compressed and as text."""
    return base64.b64encode(gzip.compress(array.tobytes(), 9, mtime=0)).decode()


def rounded(stages: list[Tensor]) -> dict[str, Any]:
    """Return features as 8-bit numbers and, by stage and channel, the size of one step."""
    steps = [stage.abs().amax((1, 2, 3)) / STEPS_8BIT for stage in stages]
    steps = [torch.where(step > 0, step, 1.0) for step in steps]
    whole = [(x / step[:, None, None, None]).round() for x, step in zip(stages, steps, strict=True)]
    flat = np.concatenate([x.numpy().astype(np.int8).ravel() for x in whole])
    return {"steps": [step.tolist() for step in steps], "data": packed(flat)}


def shown_case(case: Case) -> dict[str, Any]:
    """Return the first channel of a case in 256 greys, and the voxels of its lesions."""
    import nibabel as nib

    assert case.label is not None
    head = case.image[0] != 0  # preparation leaves exact zeros around it
    low, high = np.quantile(case.image[0][head], [0.01, 0.995])
    grey = (255 * np.clip((case.image[0] - low) / (high - low), 0, 1) * head).round()
    return {
        "id": case.id,
        "size": list(grey.shape),
        "spacing_mm": list(case.spacing_mm),
        "towards": "".join(nib.aff2axcodes(case.affine)),
        "image": packed(grey.astype(np.uint8)),
        "lesion": packed(case.label.astype(bool).astype(np.uint8)),
    }


def fit_images(study: experiments.Study, page: dict[str, Any]) -> list[Tensor]:
    """Return the patches of val cases on which page 09 fits projections."""
    plain = data.Augment(flips=False, gain=0.0, shift=0.0, noise=0.0)
    cases = [case for case in study.cohort.cases("val") if case.label.any()]
    options = {"patch": study.recipe.patch, "seed": PATCH_SEED, "augment": plain}
    dealt = data.Patches(cases, batch=1, foreground=1.0, **options)
    return [dealt[step][0] for step in range(4 * page["patches"])]


def stored(arm: str, fit: Fit, image: Tensor, stages: int) -> dict[str, Any]:
    """Return one network as the page reads it."""
    channels = list(fit.student.channels[:stages])
    maps = rounded(encoded(fit.student, image, stages))
    return {"arm": arm, "step": last_step(fit), "channels": channels, **maps}


def last_step(fit: Fit) -> int:
    """Return the step at which the weights of a run were kept."""
    return int(fit.history.step.iloc[-1])


def shown_projection(arm: str, kind: str, step: int, stages: list[Tensor]) -> dict[str, Any]:
    """Return a projection as the page reads it, rounded: by stage, (c_t, c_s)."""
    weights = [[[float(f"{w:.6g}") for w in row] for row in stage.tolist()] for stage in stages]
    return {"arm": arm, "kind": kind, "step": step, "weights": weights}


def features() -> dict[str, Any]:
    """Return everything the explorer reads."""
    page = parameters()
    study = experiments.Study.of("isles2022", **page)
    runs, entries = recorded(study)
    patch, loss = study.recipe.patch, DCD(study.student_channels, study.teacher_channels)
    grids = [[n // 2**i for n in patch] for i in range(len(study.teacher_channels))]
    used = [n for grid in grids if (n := usable_levels(grid, loss.selection))]
    case = study.cohort.cases("test")[0]
    start = patch_start(case.label, patch)
    image, seen = cut(case, start, patch), fit_images(study, page)
    best = fitted({arm: runs[arm].student for arm in ARMS}, runs["teacher"].student, seen, used)
    learned = [runs["DCD"].method[f"adapters.{i}.weight"].flatten(1) for i in range(len(used))]
    projections = [(arm, "fitted", best[arm]) for arm in ARMS] + [("DCD", "trained", learned)]
    return {
        "command": f"python book/_ext/{Path(__file__).name}",
        "runs": entries,
        "case": shown_case(case),
        "patch": {"start": start, "size": list(patch)},
        "fit_patches": len(seen),
        "stages": [grid[0] for grid in grids[: len(used)]],
        "networks": [stored(arm, fit, image, len(used)) for arm, fit in runs.items()],
        "projections": [
            shown_projection(arm, kind, last_step(runs[arm]), stages)
            for arm, kind, stages in projections
        ],
    }


def main() -> None:
    """Write the script that the explorer loads."""
    text = json.dumps(features(), separators=(",", ":"))
    head = f"// Written by book/_ext/{Path(__file__).name}: a phantom, not a patient.\n"
    with atomic(TARGET) as temporary:
        temporary.write_text(f"{head}window.dcdFeatures = {text};\n", "utf-8")


if __name__ == "__main__":
    main()
