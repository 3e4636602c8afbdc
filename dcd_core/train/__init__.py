"""Training: every number of a run, the losses of a batch, and the loop.

A `Recipe` holds every number of a run, with its reason; a `Distiller` owns everything that is
trained; `fit` is the loop, resumable batch for batch.
"""

from dcd_core.train.balance import encoder_parameters, equal_weight, gradient_ratio
from dcd_core.train.distiller import Distiller, Losses, segmentation_loss
from dcd_core.train.loop import Fit, fit, read_fit
from dcd_core.train.recipe import EMA, Recipe

VERSION = 1
"""Of training. Raise it by hand when a change alters what is trained: kept runs are named by it."""

__all__ = [
    "EMA",
    "VERSION",
    "Distiller",
    "Fit",
    "Losses",
    "Recipe",
    "encoder_parameters",
    "equal_weight",
    "fit",
    "gradient_ratio",
    "read_fit",
    "segmentation_loss",
]
