"""Figures: volumes, predictions, curves and comparisons, drawn from arrays and tables.

Every function takes what other modules computed and returns a Figure; nothing is fitted or
concluded here. Axes carry units, colours are told apart by colour-blind readers, and panels of a
brain are radiological: the patient's right is on the left.
"""

from dcd_lab.plots.comparisons import by_volume, doses, forest, histogram, matrix, seeds, tradeoff
from dcd_lab.plots.curves import by_stage, curves, growth, schedule
from dcd_lab.plots.features import bands, features, gallery, subbands
from dcd_lab.plots.page import LABEL_COLORS, PALETTE, Page, axis_label, colors
from dcd_lab.plots.tables import measured, table
from dcd_lab.plots.volumes import cohort, compare_cases, segmentation, slices

__all__ = ["LABEL_COLORS", "PALETTE", "Page", "axis_label", "bands", "by_stage", "by_volume"]
__all__ += ["cohort", "colors", "compare_cases", "curves", "doses", "features", "forest", "gallery"]
__all__ += ["growth", "histogram", "matrix", "measured", "schedule", "seeds", "segmentation"]
__all__ += ["slices", "subbands", "table", "tradeoff"]
