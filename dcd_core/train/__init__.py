"""Training: a recipe, a loop, and jobs that are run once and kept by content.

A `Recipe` holds every number of a run, with its reason; a `Distiller` owns everything that is
trained; `fit` is the loop, resumable batch for batch; a `Job` describes a whole run as data, so
that notebooks share trained models through `runs/` and several are trained at a time.
"""

from dcd_core.train.balance import encoder_parameters, equal_weight, gradient_ratio
from dcd_core.train.calibration import Calibration, measure
from dcd_core.train.distiller import Distiller, Losses, segmentation_loss
from dcd_core.train.evaluation import Evaluation, evaluate
from dcd_core.train.jobs import Job, check_teacher, run, run_all
from dcd_core.train.loop import Fit, fit, read_fit
from dcd_core.train.matrix import Matrix, arms, matrices
from dcd_core.train.recipe import EMA, Recipe
from dcd_core.train.study import Study, histories, lesions, scores

__all__ = [
    "EMA",
    "Calibration",
    "Distiller",
    "Evaluation",
    "Fit",
    "Job",
    "Losses",
    "Matrix",
    "Recipe",
    "Study",
    "arms",
    "check_teacher",
    "encoder_parameters",
    "equal_weight",
    "evaluate",
    "fit",
    "gradient_ratio",
    "histories",
    "lesions",
    "matrices",
    "measure",
    "read_fit",
    "run",
    "run_all",
    "scores",
    "segmentation_loss",
]
