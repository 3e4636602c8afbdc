"""Training: every number of a run, the losses of a batch, and the loop.

A `Recipe` holds every number of a run, with its reason; a `Distiller` owns everything that is
trained; `fit` is the loop, resumable batch for batch.
"""

from dcd_core.train.balance import encoder_parameters, gradient_ratio
from dcd_core.train.distiller import Distiller, segmentation_loss
from dcd_core.train.loop import fit
from dcd_core.train.processes import training_device
from dcd_core.train.recipe import EMA, Recipe
from dcd_core.train.result import Fit, diverged, read_fit

VERSION = 2
"""Number of the training code. Raise it by hand when the same recipe trains to other weights.

It is part of what names a run. tests/core/test_golden.py fails when it should have been raised.
"""

__all__ = ["EMA", "VERSION", "Distiller", "Fit", "Recipe", "diverged", "encoder_parameters"]
__all__ += ["fit", "gradient_ratio", "read_fit", "segmentation_loss", "training_device"]
