"""Records: parameters go in, results and their provenance come out.

A notebook asks this module for its parameters, hands it tables and figures, and the book reads what
was kept. Every file is written under a temporary name and then renamed, so that an interrupted run
leaves either the old file or the new one, never half of one.
"""

from dcd_core.records.extras import require
from dcd_core.records.identity import (
    capacity,
    facts,
    fingerprint,
    native_bfloat16,
    resident_bytes,
    run_dir,
    source_hash,
    versions,
)
from dcd_core.records.places import atomic, nearest, real_cases, root
from dcd_core.records.results import (
    PROFILES,
    load,
    params,
    profile_document,
    published,
    read_yaml,
    save,
    save_figure,
)
from dcd_core.records.shown import glue, progress

__all__ = [
    "PROFILES",
    "atomic",
    "capacity",
    "facts",
    "fingerprint",
    "glue",
    "load",
    "native_bfloat16",
    "nearest",
    "params",
    "profile_document",
    "progress",
    "published",
    "read_yaml",
    "real_cases",
    "require",
    "resident_bytes",
    "root",
    "run_dir",
    "save",
    "save_figure",
    "source_hash",
    "versions",
]
