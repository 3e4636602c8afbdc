"""Draw the pictures of real cases on the page on data: `python book/_ext/real_cases.py`.

It needs the folder of public cases (DCD_REAL_CASES): ISLES 2022 case 0009 in the layout of the
challenge, and patient 19 of the multiple sclerosis database. Licences and sources are in NOTICE.
The pictures lie in the book, so that its pages show real brains where the cases are not at hand.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from dcd_core.types import Case, ContractError
from dcd_lab import data, plots, records
from dcd_lab.tasks import ISLES, Task

TARGET = Path(__file__).resolve().parents[1] / "_assets"
SCLEROSIS = Task("ms", ("T1", "T1POST", "T2", "FLAIR"), ("background", "lesion"), {"lesion": (1,)})


def sclerosis(folder: Path) -> Case:
    """Return a case of the multiple sclerosis database: four channels on one grid, one label."""
    *images, label = (
        nib.load(folder / f"{name}.nii.gz") for name in (*SCLEROSIS.channels, "lesions")
    )
    stack = np.stack([image.get_fdata(dtype=np.float32) for image in images])
    lesions = (label.get_fdata() > 0).astype(np.uint8)
    right, front, up = (float(size) for size in label.header.get_zooms())
    return Case("patient19", stack, lesions, (right, front, up), label.affine)


def pictures(folder: Path) -> dict[str, plots.Page]:
    """Return the pictures by file name."""
    stroke = data.read(data.isles2022(folder / "isles2022")[0])
    patient = sclerosis(folder / "open_ms_mni" / "patient19")
    shown = {
        "real-isles2022-0009.png": (stroke, ISLES, "ISLES 2022, 0009"),
        "real-ms-patient19.png": (patient, SCLEROSIS, "patient 19"),
    }
    return {
        name: plots.compare_cases([case], task, titles=[title])
        for name, (case, task, title) in shown.items()
    }


def main() -> None:
    """Write the pictures into the book."""
    folder = records.real_cases()
    if folder is None:
        raise ContractError("real cases", "none", "a folder", "name it by DCD_REAL_CASES")
    for name, page in pictures(folder).items():
        (TARGET / name).write_bytes(page._repr_png_())


if __name__ == "__main__":
    main()
