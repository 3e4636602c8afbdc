"""Records: results and figures with their provenance, and the names of what is kept.

A notebook hands this module its tables and figures, and the book reads what was kept. An
interrupted run leaves either the old file or the new one, never half of one.
"""

from dcd_lab.records.identity import facts, fingerprint, source_hash, versions
from dcd_lab.records.places import real_cases, root
from dcd_lab.records.results import load, published, save, save_figure
from dcd_lab.records.shown import glue

__all__ = ["facts", "fingerprint", "glue", "load", "published", "real_cases", "root", "save"]
__all__ += ["save_figure", "source_hash", "versions"]
