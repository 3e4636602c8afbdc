"""What is decided before nnU-Net trains a student: settings, its plans, its teacher, its labels."""

import copy
from types import SimpleNamespace

import pytest
import torch
from nnunet import BLOCKS, CHANNELS, LABELS, network_of, plans_of, write

from dcd_core.models.nnunet import read_trained
from dcd_core.nnunet.plans import architecture_of, check_teacher, student_plans
from dcd_core.nnunet.plans import refuse_other_student as refuse
from dcd_core.nnunet.settings import Settings, read_settings
from dcd_core.nnunet.teaching import Teaching, labels_of
from dcd_core.types import ContractError

FULL = "3d_fullres"
WIDE = [32, 64, 320]
DATASET = {"channel_names": {"0": "DWI", "1": "ADC"}, "labels": LABELS}


def plans(kind="ResidualEncoderUNet", **options):
    made = {"dataset_name": "Dataset027_Stroke", "plans_name": "P", **plans_of(kind)}
    made["configurations"][FULL]["spacing"] = [1.0, 1.0, 1.0]
    arguments = made["configurations"][FULL]["architecture"]["arch_kwargs"]
    arguments |= {"features_per_stage": WIDE, **options}
    return made


def options_of(made, configuration=FULL):
    return architecture_of(made, configuration)["arch_kwargs"]


def test_a_student_is_the_teacher_with_features_divided():
    before = plans()
    kept = copy.deepcopy(before)
    student = student_plans(before, "3d_large", Settings(name="b"))
    expected = {**options_of(before), "features_per_stage": [8, 16, 80]}
    assert options_of(student, "3d_large") == expected
    assert options_of(student) == options_of(before)  # of the other configuration
    assert student["plans_name"] == "P_b"
    assert before == kept
    for settings, features in (
        (Settings(factor=2, floor=20), [20, 32, 160]),
        (Settings(channels=[4, 6, 320]), [4, 6, 320]),
    ):
        assert options_of(student_plans(before, FULL, settings))["features_per_stage"] == features
    for wrong in ({"factor": 1}, {"channels": [8, 16]}, {"channels": [8, 128, 16]}):
        with pytest.raises(ContractError, match=r"none wider than the teacher's.*Try: a larger"):
            student_plans(before, FULL, Settings(**wrong))


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize(("network", "usual"), [("PlainConvUNet", [2, 2, 2]), (None, None)])
def test_another_block_and_norm(kind, network, usual):
    settings = Settings(network=network, norm="BatchNorm3d")
    architecture = architecture_of(student_plans(plans(kind), FULL, settings), FULL)
    chosen, options = network or kind, architecture["arch_kwargs"]
    assert architecture["network_class_name"].endswith(f".unet.{chosen}")
    assert options["norm_op"] == "torch.nn.BatchNorm3d"
    expected = usual if network not in (None, kind) else [1, 2, 1]
    assert options[BLOCKS[chosen]] == expected
    assert len({*BLOCKS.values()} & {*options}) == 1
    residual = Settings(network="ResidualEncoderUNet", blocks=[1, 1, 2])
    made = student_plans(plans(kind), FULL, residual)
    assert options_of(made)["n_blocks_per_stage"] == [1, 1, 2]
    with pytest.raises(ContractError, match="each of 3 stages"):
        student_plans(plans(kind), FULL, Settings(blocks=[1, 1]))


def test_plans_without_what_is_needed():
    with pytest.raises(ContractError, match="'3d_lowres' is missing; expected one of"):
        student_plans(plans(), "3d_lowres", Settings())
    old = plans()
    del old["configurations"][FULL]["architecture"]
    with pytest.raises(ContractError, match=r"'architecture' is missing.*2\.5 or later"):
        student_plans(old, FULL, Settings())


def test_a_folder_holds_one_student(tmp_path):
    made = student_plans(plans(), FULL, Settings())
    folder = tmp_path / "Dataset027_Stroke" / f"T__P__{FULL}"
    write(folder, network_of("PlainConvUNet"), plans=made)
    refuse(tmp_path, "T", made, FULL)
    with pytest.raises(ContractError, match="another student"):
        refuse(tmp_path, "T", student_plans(plans(), FULL, Settings(factor=2)), FULL)


def trained(tmp_path):
    own = plans("PlainConvUNet", features_per_stage=CHANNELS)
    folder = write(tmp_path / "teacher", network_of("PlainConvUNet"), plans=own)
    return folder, own


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("dataset_name", "Dataset028_Other", "data set Dataset027_Stroke; expected data set Data"),
        ("spacing", [2.0, 1.0, 1.0], "spacing"),
        ("strides", [[1, 1, 1], [1, 2, 2], [2, 2, 2]], r"strides \[\[1, 1, 1\], \[2, 2, 2\]"),
        ("features_per_stage", [4, 6, 10], "features_per_stage"),
        ("labels", {"background": 0, "core": 1}, "labels"),
    ],
)
def test_a_teacher_of_other_data_or_plans_is_refused(part, value, message, tmp_path):
    folder, own = trained(tmp_path)
    teacher = read_trained(folder, fold=0, checkpoint="checkpoint_final.pth")
    check_teacher(teacher, own, FULL, DATASET)
    other, dataset = copy.deepcopy(own), dict(DATASET)
    configuration = other["configurations"][FULL]
    for place in (other, dataset, configuration, configuration["architecture"]["arch_kwargs"]):
        if part in place:
            place[part] = value
    with pytest.raises(ContractError, match=rf"teacher: got {message}.*Try: -p P, 3d_fullres"):
        check_teacher(teacher, other, FULL, dataset)


def test_the_teaching_of_a_batch_and_what_is_kept_of_it(tmp_path):
    folder, own = trained(tmp_path)
    settings = Settings(str(folder), factor=2, floor=2, options={"wavelet": "haar"})
    teaching = Teaching(settings, own, FULL, 0, DATASET)
    stages = [torch.zeros(1, c // 2, n, n, n) for c, n in zip(CHANNELS, (16, 8, 4), strict=True)]
    manager = SimpleNamespace(has_regions=False, ignore_label=None)
    batch = torch.randn(1, 2, 16, 16, 16), torch.zeros(1, 1, 16, 16, 16, dtype=torch.int16)
    loss = teaching.loss(*batch, stages, [torch.zeros(1, 3, 16, 16, 16)], manager)
    assert loss > 0
    assert [each.shape[:2] for each in teaching.adapters] == [(4, 2), (6, 3), (8, 4)]
    assert not any(p.requires_grad for p in teaching.teacher.parameters())
    again = Teaching(settings, own, FULL, 0, DATASET)
    again.check(teaching.state(), "file")
    again.restore(teaching.state())
    assert torch.equal(again.adapters[0], teaching.adapters[0])
    with pytest.raises(ContractError, match="factor 2 in file; expected factor 1"):
        state = teaching.state()
        again.identity = {**again.identity, "factor": 1}
        again.check(state, "file")
    with pytest.raises(ContractError, match="fold_3"):
        Teaching(settings, own, FULL, 3, DATASET)
    with pytest.raises(ContractError, match="Try: DCD_NNUNET_TEACHER"):
        Teaching(Settings(), own, FULL, 0, DATASET)
    assert Teaching(Settings(method="none"), own, FULL, 0, DATASET).method is None


def test_regions_and_ignored_voxels_become_labels():
    labels = torch.tensor([0, 1, 2, 3]).view(1, 1, 1, 1, 4).short()
    expected = torch.tensor([0, 1, 2, -1]).view(1, 1, 1, 1, 4)
    classes = SimpleNamespace(has_regions=False, ignore_label=3)
    assert torch.equal(labels_of(labels, classes), expected)
    plain = SimpleNamespace(has_regions=False, ignore_label=None)
    assert torch.equal(labels_of(labels, plain), labels.long())
    regions = torch.cat([(labels == 1) | (labels == 2), labels == 2, labels == 3], 1)
    facts = {"foreground_regions": [(1, 2), 2], "regions_class_order": [1, 2]}
    manager = SimpleNamespace(has_regions=True, ignore_label=3, **facts)
    assert torch.equal(labels_of(regions, manager), expected)
    assert torch.equal(labels_of(regions[:, :2], manager), expected.clamp(min=0))


def test_settings_of_variables_and_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("DCD_TEST_PLACE", "/trained")
    file = tmp_path / "settings.yml"
    file.write_text("teacher: $DCD_TEST_PLACE/net\nfactor: 8\noptions: {levels: 2}\n", "utf-8")
    variables = {"DCD_NNUNET_SETTINGS": str(file), "DCD_NNUNET_FACTOR": "2", "DCD_DATA": "x"}
    settings = read_settings(variables)
    assert (settings.teacher, settings.factor) == ("/trained/net", 2)
    assert settings.method_options(regions=True) == {"levels": 2}
    assert Settings(method="logits").method_options(regions=True) == {"regions": True}
    assert settings.schedule() == {"peak": 0.2, "start": 100, "ramp": 200}
    released = Settings(balance="fixed", ramp=300).schedule()
    assert released == {"peak": 0.01, "start": 150, "ramp": 300}


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"FACTR": "2"}, r"setting: got 'factr'.*Try: 'factor'"),
        ({"METHOD": "fitnet"}, r"method: got 'fitnet'.*Try: 'fitnets'"),
        ({"FACTOR": "wide"}, "factor: got wide; expected a count"),
        ({"CHANNELS": "8, 16"}, "channels: got 8, 16; expected a list"),
        ({"OPTIONS": "["}, "settings of the environment: got .*; expected YAML"),
        ({"NAME": "a__b"}, "name: got a__b; expected letters"),
        ({"MIRRORING": "3"}, "mirroring: got 3; expected true or false"),
        ({"BALANCE": "fixed", "EPOCHS": "100"}, "start: got 150.0, of 100 epochs"),
        ({"SETTINGS": "nowhere.yml"}, "expected a YAML file"),
        ({"SETTINGS": "text"}, "settings of .*text: got .*; expected YAML"),
    ],
)
def test_a_wrong_setting_is_named(variables, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("a sentence", "utf-8")
    with pytest.raises(ContractError, match=message):
        read_settings({f"DCD_NNUNET_{key}": value for key, value in variables.items()})
