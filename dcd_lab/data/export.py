"""Export: a label volume goes back to the clinic as the file of a scan's own space."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import UInt8

from dcd_core.storage import atomic
from dcd_core.types import ContractError
from dcd_lab.data.volumes import open_image


def export(
    label: UInt8[np.ndarray, "i j k"],
    path: str | os.PathLike[str],
    *,
    reference: str | os.PathLike[str],
) -> Path:
    """Write a label volume (i, j, k) as NIfTI with the header of `reference`, a file of the scan.

    Affine, both transforms with their codes, units and voxel sizes are those of the reference, so
    that viewers and the challenges' evaluation lay one on the other; only the type (uint8) and the
    scaling are the label's own. The official BraTS code takes its millimetres from this header.
    Returns the path. Raises ContractError when the reference is unreadable or of another shape, or
    when `path` is no NIfTI name.
    """
    path, stored = Path(path), open_image(Path(reference))
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ContractError("export", path.name, "a name in .nii.gz or .nii", f"{path.name}.nii.gz")
    shape = stored.shape[: label.ndim]
    if shape != label.shape or any(n > 1 for n in stored.shape[label.ndim :]):
        raise ContractError(
            f"label for {path.name}",
            f"shape {label.shape}",
            f"{stored.shape}, as in {Path(reference).name}",
            "infer.predict_case, which returns to the native grid",
        )
    header = stored.header.copy()
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    header["cal_min"], header["cal_max"] = 0, 0  # a display window of intensities hides labels
    with atomic(path) as temporary:
        nib.save(nib.Nifti1Image(label, None, header), temporary)
    return path
