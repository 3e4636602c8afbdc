"""Data: from the files of a public data set to the patches a network learns from.

Every case takes the same road. A `Scan` says where its files lie, `read` turns them into a `Case`
or says in one sentence why it cannot, `prepare` crops, normalises and resamples it, `prepared`
keeps the result on disk, and `Patches` deals out training batches that depend on nothing but a seed
and a step. `folds` splits by patient; `export` writes a prediction in the space of its scan.
`audit` lists everything that is wrong with a whole data set. `write` lays cases out on disk exactly
as BraTS 2024 and ISLES 2022 do, so that phantoms and patients come in through the same door.
"""

from dcd_core.data.auditing import Audit, audit
from dcd_core.data.cohorts import Cohort, clinical, cohort, embedded
from dcd_core.data.export import export
from dcd_core.data.grid import prepare, resample
from dcd_core.data.nifti import read, read_label, write
from dcd_core.data.patches import Augment, Loaders, Patches, loaders
from dcd_core.data.scans import Scan, brats2024, isles2022, patient
from dcd_core.data.splits import Fold, folds, shared, write_splits
from dcd_core.data.store import prepared

__all__ = [
    "Audit",
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
    "embedded",
    "export",
    "folds",
    "isles2022",
    "loaders",
    "patient",
    "prepare",
    "prepared",
    "read",
    "read_label",
    "resample",
    "shared",
    "write",
    "write_splits",
]
