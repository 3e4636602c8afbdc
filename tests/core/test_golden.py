"""Golden histories: tiny runs of one method per family train as they did when they were stored.

A difference means that the same recipe trains to other weights. If that is wanted, raise
`dcd_core.train.VERSION` and write the histories anew: PYTHONPATH=.:tests/support python
tests/core/test_golden.py
"""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from training import CHANNELS, TINY, WIDE, make_case

from dcd_core import methods, train
from dcd_core.models import dynunet, resenc
from dcd_core.train import Distiller, fit
from dcd_lab.compress import ReweightedGroupLasso
from dcd_lab.data import Patches

STORED = Path(__file__).parents[1] / "golden" / "training" / "histories.json"
COLUMNS = ("segmentation", "distillation", "relative_weight", "gradient_norm")
CASES = [make_case(seed) for seed in range(3)]
RECIPES = {
    "none": replace(TINY, optimizer="sgd", learning_rate=1e-2, schedule="poly"),
    "dcd": TINY,
    "logits": replace(TINY, kd_balance="fixed"),
    "reco": TINY,
    "freekd": TINY,
    "group-lasso": replace(TINY, kd_balance="fixed", kd_peak=1.0, kd_start=0.0, kd_ramp=0.0),
}


def history(family, folder):
    """What a run of a family logs, from batches as the experiment draws them."""
    recipe = RECIPES[family]
    batches = Patches(
        CASES, patch=recipe.patch, batch=recipe.batch, seed=recipe.seed, foreground=0.5
    )
    torch.manual_seed(0)
    teacher = dynunet(1, 2, channels=WIDE)
    if family == "none":
        student = resenc(1, 2, channels=CHANNELS, blocks=(1, 1, 1), deep_supervision=True)
        distiller = Distiller(student)
    elif family == "group-lasso":
        student = dynunet(1, 2, channels=CHANNELS)
        distiller = Distiller(student, None, ReweightedGroupLasso(student, batches[0][0], every=2))
    else:
        student = dynunet(1, 2, channels=CHANNELS)
        method = methods.build(family, CHANNELS, WIDE)
        method.prepare(teacher, (batches[step] for step in range(4)))
        distiller = Distiller(student, teacher, method)
    table = fit(distiller, batches, [], recipe, run_dir=folder).history
    return {name: table[name].tolist() for name in COLUMNS}


@pytest.mark.slow
@pytest.mark.parametrize("family", RECIPES)
def test_a_tiny_run_repeats_its_stored_history(family, tmp_path):
    stored = json.loads(STORED.read_text("utf-8"))
    assert stored["version"] == train.VERSION, __doc__
    for name, values in history(family, tmp_path).items():
        expected = np.array(stored[family][name], float)
        # Another processor rounds differently, and eight steps carry that on.
        np.testing.assert_allclose(values, expected, rtol=1e-4, err_msg=f"{name}\n{__doc__}")


def main():
    """Write the histories anew."""
    torch.set_num_threads(1)
    stored = {"version": train.VERSION}
    for family in RECIPES:
        with TemporaryDirectory() as folder:
            table = history(family, folder)
        stored[family] = {
            name: [None if math.isnan(x) else float(f"{x:.6g}") for x in values]
            for name, values in table.items()
        }
    STORED.write_text(json.dumps(stored, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
