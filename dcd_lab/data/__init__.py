"""Data: from the files of a public data set to the patches a network learns from.

Every case takes the same road. A `Scan` says where its files lie, `read` turns them into a `Case`
or says in one sentence why it cannot, `prepare` crops, normalises and resamples it, `prepared`
keeps the result on disk, and `Patches` deals out training batches that depend on nothing but a seed
and a step. `folds` splits by patient; `export` writes a prediction in the space of its scan.
`audit` lists everything that is wrong with a whole data set. `write` lays cases out on disk exactly
as BraTS 2024 and ISLES 2022 do, so that phantoms and patients come in through the same door.
"""

from typing import Any

from dcd_lab.data.cohorts import Cohort, clinical, cohort, synthetic
from dcd_lab.data.export import export
from dcd_lab.data.grid import prepare, resample
from dcd_lab.data.nifti import read, read_label, write
from dcd_lab.data.patches import Augment, Loaders, Patches, loaders
from dcd_lab.data.prediction import predict_case, to_native
from dcd_lab.data.scans import Scan, brats2024, isles2022, patient
from dcd_lab.data.splits import Fold, folds, shared, write_splits
from dcd_lab.data.store import prepared

__all__ = [
    "Augment",
    "Cohort",
    "Fold",
    "Loaders",
    "Patches",
    "Scan",
    "audit",
    "brats2024",
    "clinical",
    "cohort",
    "export",
    "folds",
    "isles2022",
    "loaders",
    "patient",
    "predict_case",
    "prepare",
    "prepared",
    "read",
    "read_label",
    "resample",
    "shared",
    "synthetic",
    "to_native",
    "write",
    "write_splits",
]


def __getattr__(name: str) -> Any:
    # The audit reads through this package, and is one of its public names all the same.
    if name == "audit":
        from dcd_lab.audit import audit

        return audit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
