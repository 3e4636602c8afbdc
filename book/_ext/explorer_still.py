"""Draw the still picture of the explorer: `python book/_ext/explorer_still.py`.

It is what a reader without JavaScript sees: the opening view, one plane, drawn by Python from the
numbers that the page holds. `read` gives these numbers to the tests as well.
"""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcd_core.dcd import PUBLISHED
from dcd_core.storage import atomic
from dcd_core.wavelet import BANDS, Pyramid, wavedec3, waverec3
from dcd_lab.plots import page

ASSETS = Path(__file__).resolve().parents[1] / "_assets"
FEATURES = ASSETS / "live" / "stroke-features.js"


def read(file: Path = FEATURES) -> dict[str, Any]:
    """Return what the script assigns: the explorer's features, as they are stored."""
    return dict(json.loads(file.read_text("utf-8").split(" = ", 1)[1].rstrip(";\n")))


def unpacked(text: str, kind: type) -> np.ndarray:
    """Return the numbers that `explorer_features.packed` wrote."""
    return np.frombuffer(gzip.decompress(base64.b64decode(text)), kind)


def stages(network: dict[str, Any], sides: list[int]) -> list[Tensor]:
    """Return the features of one network by stage, (c, d, h, w) float64."""
    whole, start, found = unpacked(network["data"], np.int8), 0, []
    for side, channels, steps in zip(sides, network["channels"], network["steps"], strict=True):
        stop = start + channels * side**3
        maps = whole[start:stop].reshape(channels, side, side, side)
        found.append(torch.tensor(maps * np.array(steps)[:, None, None, None]))
        start = stop
    return found


def pairs(features: dict[str, Any], arm: str, kind: str) -> list[tuple[Tensor, Tensor]]:
    """Return (projected student, teacher) by stage, each (1, c, d, h, w) float64."""
    maps = {one["arm"]: stages(one, features["stages"]) for one in features["networks"]}
    wanted = (arm, kind)
    (chosen,) = [p for p in features["projections"] if (p["arm"], p["kind"]) == wanted]
    weights = [torch.tensor(w, dtype=torch.float64) for w in chosen["weights"]]
    projected = [torch.tensordot(w, s, 1)[None] for w, s in zip(weights, maps[arm], strict=True)]
    return [(s, t[None]) for s, t in zip(projected, maps["teacher"], strict=True)]


def seen(difference: Tensor, levels: int) -> Tensor:
    """Return what the published loss sees of a difference: the mean of its squares is the loss."""
    pyramid = wavedec3(difference, levels=levels)
    kept = torch.tensor([band in PUBLISHED for band in BANDS[1:]])[:, None, None, None]
    details = [
        detail * kept * (8**level / levels) ** 0.5 for level, detail in enumerate(pyramid.details)
    ]
    return waverec3(Pyramid(0 * pyramid.coarse, tuple(details)))


def still(features: dict[str, Any]) -> page.Page:
    """Return the picture: teacher, student, difference, what the loss sees, at the first stage."""
    student, teacher = pairs(features, "DCD", "fitted")[0]
    channel = int(teacher.square().sum((0, 2, 3, 4)).argmax())
    difference = student - teacher
    volumes = {
        "teacher": teacher,
        "DCD student": student,
        "student − teacher": difference,
        "what the loss sees": seen(difference, 3),
    }
    case, middle = features["case"], features["patch"]["size"][2] // 2
    inside = tuple(slice(a, a + n) for a, n in zip(*features["patch"].values(), strict=True))
    lesion = unpacked(case["lesion"], np.uint8).reshape(case["size"])[inside][:, :, middle]
    figure = page.blank(2.1)
    for panel, (name, volume) in zip(page.panels(figure, 4, 4), volumes.items(), strict=True):
        plate = volume[0, channel, :, :, middle].numpy().T
        top = float(np.quantile(np.abs(plate), 0.995))
        edges = (0, plate.shape[1], 0, plate.shape[0])
        page.picture(panel, plate, cmap="RdBu_r", vmin=-top, vmax=top, extent=edges)
        page.outline(panel, lesion.T.astype(bool), edges, "#F0E442")
        panel.set_title(name, fontsize="small")
    return figure


def main() -> None:
    """Write the picture into the book."""
    with atomic(ASSETS / "explorer.png") as temporary:
        temporary.write_bytes(page.styled(still)(read())._repr_png_())


if __name__ == "__main__":
    main()
