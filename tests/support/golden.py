"""The released loss as the authors' code gave it: stored features, values and gradients."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dcd_core.wavelet import BANDS

RELEASED = sorted((Path(__file__).parents[1] / "golden" / "released_loss").glob("*.npz"))
"""Files of the stored cases."""


def assert_stored(path, distance, *, dtype, tolerance, device="cpu"):
    """`distance(student, teacher, wavelet=, levels=, bands=)` has the stored value and gradient."""
    arrays = dict(np.load(path))
    meta = json.loads(str(arrays.pop("meta")))
    given = {name: torch.tensor(x, dtype=dtype, device=device) for name, x in arrays.items()}
    student = given["student"].requires_grad_()
    projected = student
    if "projection_weight" in given:
        projected = F.conv3d(student, given["projection_weight"], given["projection_bias"])
    loss = distance(
        projected,
        given["teacher"],
        wavelet=meta["wavelet"],
        levels=meta["levels"],
        bands=[BANDS[i] for i in meta["bands"]],
    )
    loss.backward()
    assert loss.item() == pytest.approx(float(arrays["loss"]), rel=tolerance)
    error = np.abs(student.grad.cpu().numpy() - arrays["grad_student"]).max()
    assert error < tolerance * np.abs(arrays["grad_student"]).max()
