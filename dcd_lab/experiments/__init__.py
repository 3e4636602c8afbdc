"""Experiments: training runs described as data, run once, kept, and compared.

A `Job` describes a whole run, so that notebooks share trained models through `runs/` and several
are trained at a time. A `Study` is one cohort, one teacher and the arms that are compared; a
`Sweep` compares every method at every seed.
"""

from dcd_lab.experiments.calibration import measure
from dcd_lab.experiments.description import enter
from dcd_lab.experiments.evaluation import Evaluation, evaluate
from dcd_lab.experiments.job import Job
from dcd_lab.experiments.running import available, check_teacher, run, run_all
from dcd_lab.experiments.study import Study, histories, lesions, scores
from dcd_lab.experiments.sweep import Sweep, arms

__all__ = [
    "Evaluation",
    "Job",
    "Study",
    "Sweep",
    "arms",
    "available",
    "check_teacher",
    "enter",
    "evaluate",
    "histories",
    "lesions",
    "measure",
    "run",
    "run_all",
    "scores",
]
