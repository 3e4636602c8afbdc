"""Few labels: what has none is distilled on, and its label reaches nothing, whatever it is."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from jobs import IDS, RECIPE, distilled, make_case, make_cohort, make_job
from training import CHANNELS, WIDE

from dcd_core import methods
from dcd_core.models import dynunet
from dcd_core.train import Distiller
from dcd_core.types import UNLABELLED, ContractError
from dcd_lab.data import Patches, cohort, write
from dcd_lab.experiments import Study, run, run_all
from dcd_lab.experiments.description import describe, made_again
from dcd_lab.experiments.running import distiller_of, first_steps, patches_of
from dcd_lab.tasks import ISLES

RECIPE = dataclasses.replace(RECIPE, steps=6)
CASES = [make_case(seed, id) for seed, id in enumerate(IDS)]


def patches(cases, **options):
    return Patches(cases, patch=(8, 8, 8), batch=2, seed=3, foreground=0.5, **options)


def test_patches_of_labelled_cases_are_the_same_with_and_without_others():
    few, some = patches(CASES[:2]), patches(CASES[:2], unlabelled=CASES[2:])
    for step in range(4):
        (image, target), (more, targets) = few[step], some[step]
        assert torch.equal(more[:2], image)
        assert torch.equal(targets[:2], target)
        assert all(map(torch.equal, some.labelled(step), (image, target)))
        assert (targets[2:] == UNLABELLED).all()
        assert {draw.case for draw in some.draws(step)[2:]} <= {2, 3, 4}
    assert {draw.case for step in range(40) for draw in some.draws(step)[2:]} == {2, 3, 4}


def distiller(name):
    torch.manual_seed(0)
    student, teacher = dynunet(1, 2, channels=CHANNELS), dynunet(1, 2, channels=WIDE)
    return Distiller(student, teacher, methods.build(name, CHANNELS, WIDE))


@pytest.mark.parametrize("name", ["logits", "feature-mse"])
def test_segmentation_sees_labelled_samples_alone_and_distillation_all(name):
    made, image = distiller(name), torch.randn(3, 1, 8, 8, 8)
    target = torch.randint(2, (3, 1, 8, 8, 8))
    target[1] = UNLABELLED
    losses = made(image, target, distil=True)
    known = torch.tensor([0, 2])
    alone = made(image[known], target[known], distil=True)
    torch.testing.assert_close(losses.segmentation, alone.segmentation)
    every = made.method(made.student(image), made.teacher(image))
    torch.testing.assert_close(losses.distillation, every)
    assert not torch.isclose(losses.distillation, alone.distillation)


def test_before_the_distillation_the_student_sees_labelled_samples_alone():
    made, target = distiller("dcd"), torch.randint(2, (3, 1, 8, 8, 8))
    target[1:] = UNLABELLED
    seen = []
    made.student.register_forward_pre_hook(lambda _, images: seen.append(len(images[0])))
    assert made(torch.randn(3, 1, 8, 8, 8), target, distil=False).distillation is None
    assert seen == [1]
    with pytest.raises(ContractError, match="no label in the batch"):
        made(torch.randn(3, 1, 8, 8, 8), torch.full_like(target, UNLABELLED), distil=True)


def test_a_method_of_regions_refuses_what_has_no_label():
    target = torch.randint(2, (2, 1, 8, 8, 8))
    target[1] = UNLABELLED
    with pytest.raises(ContractError, match="target: got None"):
        distiller("ifvd")(torch.randn(2, 1, 8, 8, 8), target, distil=True)


def test_what_learns_before_the_first_step_sees_labelled_patches(monkeypatch):
    seen = []

    def prepare(_, teacher, batches):
        seen.extend(target for _, target in batches)

    monkeypatch.setattr(methods.METHODS["logits"], "prepare", prepare)
    mixed = [c._replace(label=None) if i else c for i, c in enumerate(CASES[:3])]
    recipe = dataclasses.replace(RECIPE, kd_prepare=3)
    student, teacher = dynunet(3, 2, channels=CHANNELS), dynunet(3, 2, channels=WIDE)
    distiller_of(lambda: student, teacher, patches_of(mixed, recipe), recipe, "logits")
    assert len(seen) == 3
    assert all((target != UNLABELLED).all() for target in seen)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A function that makes a cohort of few labels, those without one with any label, and jobs."""

    def made(name, spoil):
        root = tmp_path / name
        monkeypatch.setenv("DCD_ROOT", str(root))
        whole = make_cohort(root / "cases")
        hidden = whole.train[1]
        for folder in ("rawdata", "derivatives"):
            shutil.rmtree(root / "cases" / folder / hidden)
        case = make_case(1, hidden)
        write([case._replace(label=spoil(case.label))], root / "cases", task=ISLES)
        few = whole.few_labels(2)
        wide = {"architecture": "dynunet", "channels": [6, 6, 8]}
        teacher = make_job(whole, "teacher", recipe=RECIPE, model=wide)
        return [
            make_job(few, recipe=RECIPE),
            *(
                distilled(few, method=m, options={}, recipe=RECIPE, teacher=teacher)
                for m in ("feature-mse", "logits", "logits + feature-mse")
            ),
        ]

    return made


def garbage(label):
    return np.random.default_rng(5).integers(0, 2, label.shape).astype(np.uint8)


@pytest.mark.slow
def test_labels_that_are_hidden_change_nothing_to_the_bit(project):
    """Nothing of a run: its losses, its weights, its threshold."""
    fits, source = [], None
    for name, spoil in (("sound", lambda label: label), ("garbage", garbage)):
        plain, *taught = project(name, spoil)
        assert plain.cohort.cases("train")[1].label is None
        teacher = taught[0].teacher
        if source:  # the teacher knew all labels: it is the one that learnt from sound ones
            shutil.copytree(source, teacher.folder)
        source = source or run(teacher)
        fits.append([job.result() for job in run_all([plain, *taught])])
    sound, spoiled = fits
    for one, other in zip(sound, spoiled, strict=True):
        columns = one.history.columns.drop("seconds")
        assert one.history[columns].equals(other.history[columns])
        assert (one.threshold, one.val_dice) == (other.threshold, other.val_dice)
        weights = other.student.state_dict()
        assert all(torch.equal(w, weights[k]) for k, w in one.student.state_dict().items())


def test_the_undistilled_student_learns_from_the_labelled_cases_alone(project):
    plain, taught, *_ = project("one", garbage)
    few = dataclasses.replace(plain.cohort, train=plain.cohort.train[::2], label_every=1)
    alone = dataclasses.replace(plain, cohort=few)
    compared = ["segmentation", "gradient_norm"]
    assert first_steps(plain, 4)[compared].equals(first_steps(alone, 4)[compared])
    run(taught.teacher)
    assert first_steps(taught, 1).segmentation[0] == first_steps(plain, 1).segmentation[0]


def test_labels_are_part_of_what_names_a_run(project):
    plain, *_ = project("one", garbage)
    whole = dataclasses.replace(plain, cohort=plain.cohort.few_labels(1))
    assert len({plain.identity, whole.identity}) == 2
    assert plain.cohort.identity == whole.cohort.identity
    origin = {"task": "isles2022", "source": "synthetic"}
    made = dataclasses.replace(plain.cohort.few_labels(1), origin=origin)
    assert made.few_labels(1) == made
    assert made.few_labels(4).origin == {**origin, "label_every": 4}
    with pytest.raises(ContractError, match="label_every: got 0"):
        made.few_labels(0)


@pytest.mark.slow
@pytest.mark.usefixtures("workspace")
def test_a_study_has_students_of_few_labels_and_one_teacher():
    cases = cohort("synthetic", "isles2022", train=3, val=1, test=1, spacing_mm=4.0)
    few = Study("stroke", cases, RECIPE, WIDE, CHANNELS)
    job = few.student("few labels DCD", 0, method="dcd", label_every=2)
    assert [case.label is None for case in job.cohort.cases("train")] == [False, True, False]
    assert job.teacher == few.teacher()
    assert few.student("few labels DCD", 0, method="dcd").identity != job.identity
    assert made_again(describe(job)) == job
