"""Data: from the files of a public data set to the patches a network learns from.

A `Scan` says where the files of a case lie. `read` turns them into a `Case`, `prepare` crops,
normalises and resamples it, `prepared` keeps the result on disk, and `Patches` makes training
batches. `folds` splits by patient; `export` writes a prediction in the space of its scan; `audit`
lists all that is wrong with a data set. `write` stores phantoms exactly as the challenges do, so
that they are read by the same code as patients.
"""

from typing import Any

from dcd_lab.data.cohorts import Cohort, clinical, cohort, synthetic
from dcd_lab.data.nifti import export, read, read_label, write
from dcd_lab.data.patches import Augment, Patches
from dcd_lab.data.prediction import predict_case, to_native
from dcd_lab.data.prepare import prepare, resample
from dcd_lab.data.scans import Scan, brats2024, isles2022, patient
from dcd_lab.data.splits import Fold, folds, shared, write_splits
from dcd_lab.data.store import prepared

__all__ = ["Augment", "Cohort", "Fold", "Patches", "Scan", "audit", "brats2024", "clinical"]
__all__ += ["cohort", "export", "folds", "isles2022", "patient", "predict_case", "prepare"]
__all__ += ["prepared", "read", "read_label", "resample", "shared", "synthetic", "to_native"]
__all__ += ["write", "write_splits"]


def __getattr__(name: str) -> Any:
    # The audit imports this package, so this package cannot import it first.
    if name == "audit":
        from dcd_lab.audit import audit

        return audit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
