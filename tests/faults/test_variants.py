"""Variants of the listed faults in networks and training: each right value as a test."""

import math
import os

import numpy as np
import pytest
import torch
import training
from torch import nn

from dcd_core.dcd import DCD, kd_weight
from dcd_core.infer import decide, in_bfloat16, predict
from dcd_core.methods import build
from dcd_core.models import Segmenter, dynunet
from dcd_core.storage import atomic
from dcd_core.train import EMA, Distiller, Recipe, fit
from dcd_core.train.processes import Processes
from dcd_core.types import ContractError, Output
from dcd_core.wavelet import Pyramid, idwt3, waverec3
from dcd_lab.cache import make_once

X = torch.randn(1, 2, 8, 8, 8)
LABELS = torch.zeros(1, 1, 8, 8, 8, dtype=torch.int64)


def halved():
    """A network whose logits lie on half the grid of the image."""
    return Segmenter(nn.Conv3d(1, 2, 2, stride=2), [""], [2])


def distil(labels):
    teacher = dynunet(1, 2, channels=(2, 2, 2))
    method = DCD((2, 2, 2), (2, 2, 2), wavelet="haar")
    return Distiller(dynunet(1, 2, channels=(2, 2, 2)), teacher, method)(
        X[:, :1], labels, distil=True
    )


def twins(shared):
    """Distil from a teacher that has weights of its student."""
    student, teacher = (dynunet(1, 2, channels=(2, 2, 2)) for _ in range(2))
    if shared == "all":
        teacher = student
    teacher.network.input_block = student.network.input_block
    return Distiller(student, teacher, DCD((2, 2, 2), (2, 2, 2), wavelet="haar"))


REFUSED = {
    "threshold NaN": (lambda: decide(np.ones((2, 1, 1, 1)), math.nan), "threshold: got nan"),
    "threshold 2": (lambda: decide(np.ones((2, 1, 1, 1)), 2), "threshold: got 2"),
    "one class": (lambda: decide(np.ones((1, 2, 2, 2)), 0.5), "2 to 256 classes"),
    "logits decided on": (lambda: decide(np.full((2, 2, 2, 2), 3.0), 0.5), "probabilities: got"),
    "no axis of voxels": (lambda: decide(np.ones((2, 2, 2)), 0.5), r"\(k, d, h, w\)"),
    "network of one class": (
        lambda: predict(dynunet(1, 1, channels=(2, 2, 2)), np.ones((1, 8, 8, 8)), patch=(8, 8, 8)),
        "classes of the network",
    ),
    "one class to train on": (
        lambda: Distiller(dynunet(1, 1, channels=(2, 2, 2)))(X[:, :1], LABELS, distil=False),
        "classes of the student",
    ),
    "no Segmenter": (
        lambda: predict(nn.Conv3d(1, 2, 1), np.ones((1, 8, 8, 8)), patch=(8, 8, 8)),
        "a Segmenter",
    ),
    "a number for an image": (
        lambda: Distiller(dynunet(1, 2, channels=(2, 2, 2)))(0, LABELS, distil=False),
        "image: got int",
    ),
    "the student as teacher": (lambda: twins("all"), "weights that both have"),
    "a block of the teacher": (lambda: twins("some"), "weights that both have"),
    "a method by name": (
        lambda: Distiller(dynunet(1, 2, channels=(2, 2, 2)), None, "dcd"),
        "method: got 'dcd'",
    ),
    "NaN decided on": (lambda: decide(np.full((2, 1, 1, 1), math.nan), 0.5), "probabilities"),
    "weight switched off": (lambda: kd_weight(5, peak=math.nan, start=0, ramp=9), "peak: got nan"),
    "start NaN": (lambda: kd_weight(5, peak=1, start=math.nan, ramp=9), "start: got nan"),
    "average of NaN": (lambda: EMA(nn.Linear(1, 1), math.nan), "decay: got nan"),
    "precision unknown": (lambda: in_bfloat16(torch.device("cpu"), "bf16"), "precision: got"),
    "precision NaN": (lambda: Recipe(deep_weights=math.nan), "deep_weights: got nan"),
    "target of another grid": (lambda: distil(LABELS[..., ::2, ::2, ::2]), "grid of the target"),
    "target of fractions": (lambda: distil(LABELS.float()), "integer labels"),
    "label beyond the classes": (lambda: distil(LABELS + 2), "2 to 2; expected classes 0 to 1"),
    "label below 0": (lambda: distil(LABELS - 2), "labels: got -2"),
    "logits of half the grid": (
        lambda: predict(halved(), np.ones((1, 8, 8, 8)), patch=(8, 8, 8)),
        "grid of the logits",
    ),
    "complex image": (
        lambda: predict(halved(), np.ones((1, 8, 8, 8), complex), patch=(8, 8, 8)),
        "real numbers",
    ),
    "pyramid cut": (
        lambda: waverec3(
            Pyramid(torch.ones(1, 1, 9, 9, 9), (torch.ones(1, 1, 7, 4, 4, 4),)), "haar"
        ),
        "level of a pyramid",
    ),
    "volume cut": (lambda: idwt3(torch.ones(1, 1, 8, 4, 4, 4), size=(1, 1, 1)), "size: got"),
    "seven bands": (lambda: idwt3(torch.ones(1, 1, 7, 4, 4, 4)), "number of bands: got 7"),
    "a word for no": (lambda: Recipe(channels_last="no"), "channels_last: got 'no'"),
    "bands as one word": (lambda: build("dcd", (2,), (2,), bands="aad"), "bands: got 'aad'"),
    "a stage twice": (lambda: build("at", (2, 2), (2, 2), stages=(1, 1)), "distinct indices"),
    "weight below 0": (lambda: build("rkd", (2,), (2,), angle=-1.0), "angle: got -1"),
    "drawn by chance": (lambda: build("random-bands", (2,), (2,), draw=None), "draw: got None"),
    "features of nothing": (
        lambda: build("feature-mse", (2,), (2,))(Output(X, (X[:0],)), Output(X, (X[:0],))),
        "encoder stage 0",
    ),
    "an output without values": (
        lambda: build("fitnets", (2,), (2,))(Output(X[:0].to("meta"), (X,)), Output(X, (X,))),
        "logits of the student",
    ),
}


@pytest.mark.unchecked
@pytest.mark.parametrize("name", REFUSED)
def test_a_variant_is_refused_in_words(name):
    call, message = REFUSED[name]
    with pytest.raises(ContractError, match=message):
        call()


def test_a_teacher_that_is_set_to_train_is_not_trained():
    networks = [dynunet(1, 2, channels=(2, 2, 2)) for _ in range(2)]
    distiller = Distiller(*networks, DCD((2, 2, 2), (2, 2, 2), wavelet="haar"))
    distiller.teacher.train()
    distiller(X[:, :1], LABELS, distil=True)
    assert not any(module.training for module in distiller.teacher.modules())


def test_a_finished_run_is_that_of_its_student_and_method(tmp_path):
    training.run(tmp_path)
    other = Distiller(dynunet(1, 2, channels=(4, 4, 4)))
    for made in (other, training.distiller("none")):
        with pytest.raises(ContractError, match="of another student or method"):
            fit(made, training.Batches(), training.VAL, training.TINY, run_dir=tmp_path)


def test_what_could_not_be_saved_in_the_end_is_refused_before_the_first_step(tmp_path):
    made = training.distiller("none")
    made.student.spec = None
    slices = [case._replace(label=case.label[..., :1]) for case in training.VAL]
    for distiller, val in ((made, training.VAL), (training.distiller("none"), slices)):
        with pytest.raises(ContractError, match=r"no `spec`|a label"):
            fit(distiller, training.Batches(fail_at=0), val, training.TINY, run_dir=tmp_path)


def test_a_compiled_network_is_understood_or_refused():
    network = torch.compile(dynunet(1, 2, channels=(2, 2, 2)).network, backend="eager")
    x = torch.zeros(1, 1, 8, 8, 8)
    before = network(x)
    names = [f"_orig_mod.{name}" for name in ("input_block", "downsamples.0", "bottleneck")]
    try:
        output = Segmenter(network, names, (2, 2, 2))(x)
    except ContractError as error:
        assert "did not run" in str(error)  # noqa: PT017
    else:
        assert torch.equal(output.logits, before)


def test_a_node_of_a_cluster_changes_nothing_unless_torchrun_asked(tmp_path, monkeypatch):
    program = tmp_path / "srun"
    program.write_text("#!/bin/sh\nexit 1\n", "utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for name, value in {"NTASKS": 4, "PROCID": 2, "LOCALID": 2, "JOB_ID": 7, "NNODES": 2}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setenv("WORLD_SIZE", "4")  # of a launcher that is not torchrun: no RANK
    assert Processes.started(2) == Processes(0, 1)


def test_files_reach_the_disk_before_they_get_their_names(tmp_path, monkeypatch):
    """What a power cut leaves is the old file or the new one."""
    events = []

    def noted(function, kind):
        def called(*arguments, **options):
            events.append(kind)
            return function(*arguments, **options)

        return called

    monkeypatch.setattr(os, "fsync", noted(os.fsync, "sync"))
    monkeypatch.setattr(os, "replace", noted(os.replace, "name"))
    with atomic(tmp_path / "file") as temporary:
        temporary.touch()
    assert events == ["sync", "name", "sync"]
    events.clear()
    make_once(tmp_path / "folder", lambda folder: (folder / "inner").touch())
    assert events == ["sync", "sync", "name", "sync"]
