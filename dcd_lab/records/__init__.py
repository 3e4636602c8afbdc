"""Records: parameters go in, results and their provenance come out.

A notebook asks this module for its parameters, hands it tables and figures, and the book reads what
was kept. Every file is written under a temporary name and then renamed, so that an interrupted run
leaves either the old file or the new one, never half of one.
"""

from dcd_lab.records.identity import (
    ROOMS,
    facts,
    fingerprint,
    source_hash,
    versions,
)
from dcd_lab.records.places import real_cases, root
from dcd_lab.records.results import (
    PROFILES,
    load,
    params,
    profile_document,
    published,
    read_yaml,
    save,
    save_figure,
)
from dcd_lab.records.shown import glue

__all__ = [
    "PROFILES",
    "ROOMS",
    "facts",
    "fingerprint",
    "glue",
    "load",
    "params",
    "profile_document",
    "published",
    "read_yaml",
    "real_cases",
    "root",
    "save",
    "save_figure",
    "source_hash",
    "versions",
]
