"""Draw the still picture of the cases: `python book/_ext/case_still.py`.

It stands on the page before the 3D view and without it: for each case the axial slice through its
largest lesion below 1 ml, with the truth and the errors of each network, from the same volumes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from case_files import RANKS, WORDS, read, small, unpacked
from matplotlib.patches import Patch

from dcd_core.storage import atomic
from dcd_lab.plots import page

TARGET = Path(__file__).resolve().parents[1] / "_assets" / "cases.png"
COLORS = {  # as in live/volumes.js
    "marked": (page.ORANGE, "lesion"),
    "found": (page.GREEN, "lesion, found"),
    "missed": (page.VERMILLION, "lesion, missed"),
    "added": (page.SKY, "no lesion, but predicted"),
}


def kinds(bits: np.ndarray, names: list[str], mask: str) -> dict[str, np.ndarray]:
    """Return what each voxel is under a mask: marked, or the errors of one against the truth."""
    has = {name: bits & (1 << bit) > 0 for bit, name in enumerate(names)}
    truth, own = has["truth"], has[mask]
    if mask == "truth":
        return {"marked": truth}
    return {"found": truth & own, "missed": truth & ~own, "added": own & ~truth}


def painted(grey: np.ndarray, marked: dict[str, np.ndarray]) -> np.ndarray:
    """Return a slice (x, y) in colour, as an image of rows from below to above."""
    from matplotlib.colors import to_rgb

    picture = np.repeat(grey.T[..., None] / 255, 3, axis=2)
    for kind, mask in marked.items():
        picture[mask.T] = to_rgb(COLORS[kind][0])
    return picture


def still() -> page.Page:
    """Return the picture: a row for each case; its image, the truth, and each network's errors."""
    figure = page.blank(5.7, of_slices=True)
    columns = ["DWI", "truth", *WORDS]
    axes = iter(page.panels(figure, len(RANKS) * len(columns), len(columns)))
    for rank in RANKS:
        case = read(rank)
        k, names = small(case)[0]["at"][2], case["masks"]["names"]
        grey, bits = (
            np.asarray(unpacked(file).dataobj)[:, :, k]
            for file in (case["channels"]["dwi"], case["masks"]["file"])
        )
        for column, panel in zip(columns, axes, strict=False):
            marked = {} if column == "DWI" else kinds(bits, names, column)
            page.picture(panel, painted(grey, marked))
            if column == "DWI":
                panel.set_ylabel(rank)
            if rank == RANKS[0]:
                panel.set_title(WORDS.get(column, column).replace(" student", "\nstudent"))
    patches = [Patch(color=color, label=label) for color, label in COLORS.values()]
    page.legend(figure, patches, columns=4)
    return figure


def main() -> None:
    """Write the picture into the book."""
    with atomic(TARGET) as temporary:
        temporary.write_bytes(page.styled(still)()._repr_png_())


if __name__ == "__main__":
    main()
