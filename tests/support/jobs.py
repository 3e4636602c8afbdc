"""Tiny jobs: five cases of tissue with a lesion, a student, a teacher, and runs of a second."""

import numpy as np

from dcd_core.train import Recipe
from dcd_core.types import Case
from dcd_lab.data import Cohort, write
from dcd_lab.experiments import Job
from dcd_lab.tasks import ISLES

RECIPE = Recipe(
    steps=12,
    patch=(8, 8, 8),
    warmup=2,
    learning_rate=1e-2,
    ema=0.5,
    kd_start=0.0,
    kd_ramp=0.5,
    precision="32-true",
    foreground=0.5,
)
IDS = [f"sub-strokecase000{number}" for number in range(1, 6)]
STUDENT, TEACHER = (4, 4, 8), (6, 6, 8)


def make_case(seed, id, *, lesion=True):
    """A block of tissue in which the lesion is bright on DWI and dark on ADC."""
    rng = np.random.default_rng(seed)
    image = np.zeros((3, 14, 14, 14), np.float32)
    image[:, 2:12, 2:12, 2:12] = 1 + 0.1 * rng.standard_normal((3, 10, 10, 10), dtype=np.float32)
    label = np.zeros((14, 14, 14), np.uint8)
    if lesion:
        i, j, k = rng.integers(2, 8, 3)
        label[i : i + 4, j : j + 4, k : k + 4] = 1
    image[0] += label
    image[1] -= 0.5 * label
    return Case(id, image, label, (2.0, 2.0, 2.0), np.diag([2.0, 2.0, 2.0, 1.0]))


def make_cohort(folder):
    """Three cases to train on, one to choose by, one to test on, written to `folder`."""
    write([make_case(seed, id) for seed, id in enumerate(IDS)], folder, task=ISLES)
    train, val, test = tuple(IDS[:3]), (IDS[3],), (IDS[4],)
    return Cohort(ISLES.name, folder, train, val, test, None, "tiny")


def make_job(cohort, label="plain", **options):
    given = {"model": {"architecture": "dynunet", "channels": list(STUDENT)}, "recipe": RECIPE}
    return Job(label, cohort, **{**given, **options})


def distilled(cohort, **options):
    model = {"architecture": "dynunet", "channels": list(TEACHER)}
    teacher = make_job(cohort, "teacher", model=model)
    given = {"method": "dcd", "options": {"wavelet": "haar"}, "teacher": teacher}
    return make_job(cohort, "dcd", **{**given, "teacher_floor": 0.0, **options})
