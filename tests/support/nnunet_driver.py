"""Checks of the trainer where stock nnU-Net is: run as a script, in that environment.

The data set is prepared and its teacher trained. Batches are noise that the step decides, so that
two trainings can be compared to the last bit.
"""

import json
import math
import os
import shutil
import sys
import time
from pathlib import Path
from unittest import mock

import torch
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock
from torch import distributed, nn

from dcd_core.methods import METHODS, options_of
from dcd_core.models import from_nnunet
from dcd_core.nnunet.trainer import DCDTrainer

CPU = torch.device("cpu")
PREPARED, RESULTS = (Path(os.environ[f"nnUNet_{name}"]) for name in ("preprocessed", "results"))
PLANS = "nnUNetResEncUNetMPlans"
NAMES = {27: "Dataset027_Stroke", 28: "Dataset028_Regions"}
SHORT = {"epochs": 2, "iterations": 2, "val_iterations": 1, "prepare": 2}


class Noise:
    """Batches of the trainer's next step; in every process another part."""

    def __init__(self, trainer):
        self.trainer = trainer

    def __next__(self):
        trainer = self.trainer
        generator = torch.Generator().manual_seed(100 * trainer.step + trainer.local_rank)
        data = torch.randn(2, 2, 16, 16, 16, generator=generator)
        labels = torch.randint(0, 3, (2, 1, 16, 16, 16), generator=generator).short()
        if trainer.label_manager.has_ignore_label:
            labels[:, :, :4] = 3
        target = labels
        if trainer.label_manager.has_regions:
            target = torch.cat([labels > 0, labels == 2], 1)
        deep = [target, target[:, :, ::2, ::2, ::2]]
        return {"data": data, "target": deep if trainer.enable_deep_supervision else target}


class Fixed(DCDTrainer):
    """The trainer on batches of noise."""

    def get_dataloaders(self):
        self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        return Noise(self), Noise(self)


def teacher_of(number):
    return RESULTS / NAMES[number] / f"TinyTrainer__{PLANS}__3d_fullres"


def trainer(number=27, *, kind=Fixed, ignore=False, seed=0, **settings):
    """A trainer with these settings, as `nnUNetv2_train` makes one."""
    for name in [key for key in os.environ if key.startswith("DCD_NNUNET_")]:
        del os.environ[name]
    for name, value in {"teacher": teacher_of(number), **SHORT, **settings}.items():
        os.environ[f"DCD_NNUNET_{name.upper()}"] = str(value)
    plans = json.loads((PREPARED / NAMES[number] / f"{PLANS}.json").read_text("utf-8"))
    dataset = json.loads((PREPARED / NAMES[number] / "dataset.json").read_text("utf-8"))
    if ignore:
        dataset["labels"]["ignore"] = 3
    torch.manual_seed(seed)
    plans["continue_training"] = False
    return kind(plans, "3d_fullres", 0, dataset, CPU)


def train(made, epochs):
    """Some epochs as `run_training` has them, without validation."""
    made.network.train()
    for _ in range(epochs):
        made.on_train_epoch_start()
        outputs = [made.train_step(next(made.dataloader_train)) for _ in range(2)]
        made.on_train_epoch_end(outputs)
        made.current_epoch += 1
    return outputs


def started(*args, **settings):
    made = trainer(*args, **settings)
    made.on_train_start()
    return made


def everything(made):
    """All that a training has learnt, as one flat list of tensors."""
    momentum = [s["momentum_buffer"] for s in made.optimizer.state_dict()["state"].values()]
    return [*made.student.state_dict().values(), *made.teaching.method.state_dict().values()] + [
        each for each in momentum if each is not None
    ]


def same(first, second):
    return len(first) == len(second) and all(map(torch.equal, first, second))


def check_teacher_is_the_network_of_nnunet():
    file = teacher_of(27) / "fold_0" / "checkpoint_final.pth"
    plain = trainer(method="none", name="plain")
    plain.initialize()
    plans = json.loads((teacher_of(27) / "plans.json").read_text("utf-8"))
    manager = stock.PlansManager(plans)
    network = plain.build_network_architecture(
        manager, manager.get_configuration("3d_fullres"), 2, 3, True
    )
    weights = torch.load(file, weights_only=False)["network_weights"]
    network.load_state_dict(weights)
    image = torch.randn(1, 2, 16, 16, 16)
    assert same(from_nnunet(teacher_of(27)).network(image), network.eval()(image))


def check_resume_is_exact():
    whole = started(name="whole")
    train(whole, 2)
    first = started(name="half")
    train(first, 1)
    first.on_validation_epoch_end([first.validation_step(next(first.dataloader_val))])
    first.current_epoch -= 1
    file = Path(first.output_folder) / "checkpoint_latest.pth"
    first.save_checkpoint(str(file))
    second = trainer(name="half", seed=1)
    second.load_checkpoint(str(file))
    second.on_train_start()
    outputs = train(second, 1)
    assert outputs[0]["weight"] > 0
    assert same(everything(whole), everything(second))
    kept = torch.load(file, weights_only=False)
    assert kept["trainer_name"] == "nnUNetTrainer"
    assert not [name for name in kept["network_weights"] if "adapter" in name]
    for change in ({"factor": 2}, {"method": "fitnets"}, {"checkpoint": "checkpoint_best.pth"}):
        told = refused(lambda c=change: trainer(name="other", **c).load_checkpoint(str(file)))
        assert "begun with" in told, told
    (damaged := file.with_name("damaged.pth")).write_bytes(file.read_bytes()[:-100])
    assert "unreadable" in refused(lambda: trainer(name="half").load_checkpoint(str(damaged)))


def check_the_teacher_runs_no_more_than_needed():
    made = started(name="calls", start=1, ramp=0)
    before = [p.detach().clone() for p in made.teaching.adapters]
    teacher, ran = made.teaching.teacher, []
    teacher.network.encoder.register_forward_hook(lambda *_: ran.append("encoder"))
    teacher.network.encoder.stages[0].register_forward_hook(lambda *_: ran.append("stage"))
    teacher.network.decoder.register_forward_hook(lambda *_: ran.append("decoder"))
    train(made, 1)
    assert ran == []
    assert same(before, made.teaching.adapters)
    train(made, 1)
    assert {*ran} == {"stage"}
    moved = [not torch.equal(a, b) for a, b in zip(before, made.teaching.adapters, strict=True)]
    assert moved == [True, True, False]  # the grid of the third stage is too small for a level
    assert not made.stages


def check_every_method():
    of_regions = ["dcd", "ifvd", "reco", "freekd", "cwd-logits"]
    of_regions += [name for name in METHODS if "regions" in options_of(name)]
    for number, names in ((27, METHODS), (28, of_regions)):
        for name in names:
            made = started(number, method=name, start=0, ramp=0, name="every")
            step = made.train_step(next(made.dataloader_train))
            assert step["weight"] > 0, name
            assert step["distillation"] == step["distillation"], name


def check_variants():
    made = started(name="flat", deep_supervision="false", mirroring="false", start=0, ramp=0)
    assert train(made, 1)[0]["weight"] > 0
    assert made.inference_allowed_mirroring_axes is None
    made = started(name="batch", norm="BatchNorm3d", network="PlainConvUNet", start=0, ramp=0)
    assert train(made, 1)[0]["weight"] > 0
    assert isinstance(made.student.encoder.stages[0][0].convs[0].norm, nn.BatchNorm3d)
    made = started(name="fixed", balance="fixed", peak=0.01, start=0, ramp=0, method="dcd-released")
    assert train(made, 1)[0]["weight"] == 0.01
    copied = RESULTS.parent / "ignoring"
    shutil.copytree(teacher_of(27), copied)
    dataset = json.loads((copied / "dataset.json").read_text("utf-8"))
    dataset["labels"]["ignore"] = 3
    (copied / "dataset.json").write_text(json.dumps(dataset), "utf-8")
    options = {"ignore": True, "teacher": copied, "method": "logits", "start": 0, "ramp": 0}
    assert train(started(name="ignore", **options), 1)[0]["weight"] > 0


def check_compiled_and_scaled_is_eager():
    steps, compile_ = [], torch.compile
    for compiled, scaled in ((False, False), (True, False), (False, True)):
        made = trainer(name="compiled", start=0, ramp=0)
        made.grad_scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scaled else None
        with (
            mock.patch.object(made, "_do_i_compile", lambda c=compiled: c),
            mock.patch("torch.compile", lambda module: compile_(module, backend="aot_eager")),
        ):
            made.on_train_start()
        assert hasattr(made.network, "_orig_mod") == compiled
        steps.append(train(made, 1))
    for eager, compiled, scaled in zip(*steps, strict=True):
        for key, value in eager.items():
            for other in (compiled, scaled):
                assert math.isclose(value, other[key], rel_tol=1e-3), key


def two_processes(rank, folder):
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="29541")
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    made = trainer(name="ddp", seed=rank, start=0, ramp=0)
    made.device, made.grad_scaler = CPU, None  # nnU-Net takes several processes for several GPUs
    parallel = nn.parallel.DistributedDataParallel
    with mock.patch.object(stock, "DDP", lambda network, **_: parallel(network)):
        made.on_train_start()
    train(made, 1)
    torch.save(everything(made), folder / f"{rank}.pt")
    distributed.destroy_process_group()


def check_two_processes_stay_alike():
    folder = RESULTS.parent / "ddp"
    folder.mkdir()
    torch.multiprocessing.spawn(two_processes, args=(folder,), nprocs=2)
    assert same(*(torch.load(folder / f"{rank}.pt") for rank in range(2)))


def refused(call):
    """The message that a call ends with."""
    told = ""
    try:
        call()
    except SystemExit as error:
        told = str(error)
    assert told.startswith("DCDTrainer: "), "not refused"
    assert all(part in told for part in (": got ", "; expected ", ". Try: ")), told
    return told


def check_bad_input_is_refused_and_nothing_written():
    broken = RESULTS.parent / "broken"
    shutil.copytree(teacher_of(27), broken)
    content = torch.load(broken / "fold_0" / "checkpoint_final.pth", weights_only=False)
    content["network_weights"]["encoder.stem.convs.0.conv.weight"] = torch.zeros(1)
    torch.save(content, broken / "fold_0" / "checkpoint_final.pth")
    torch.save({**content, "logging": Path()}, broken / "fold_0" / "checkpoint_best.pth")
    before = sorted(RESULTS.rglob("*"))
    for settings, message in (
        ({"teacher": "nowhere"}, "unreadable"),
        ({"teacher": teacher_of(28)}, "data set Dataset028"),
        ({"teacher": broken}, "does not fit its plans"),
        ({"teacher": broken, "checkpoint": "checkpoint_best.pth"}, "UnpicklingError"),
        ({"factor": 1}, "narrower"),
        ({"options": "{level: 2}"}, "'levels'"),
    ):
        told = refused(lambda s=settings: trainer(name="refused", **s))
        assert message in told, told
    assert sorted(RESULTS.rglob("*")) == before
    started(name="mine")
    assert "tells this student apart" in refused(lambda: trainer(name="mine", factor=2))


if __name__ == "__main__":
    chosen = sys.argv[1:] or [name for name in globals() if name.startswith("check_")]
    for name in chosen:
        begun = time.time()
        globals()[name]()
        print(f"passed {name} in {time.time() - begun:.0f} s", flush=True)
