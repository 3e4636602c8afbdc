"""The trainer: nnU-Net's own, with one more loss between the features of two encoders.

The network is the student and nothing else: its weights are what nnU-Net predicts with. The method,
with its adapters, lies beside it, in the optimizer and in a part of its own of the checkpoint.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.paths import nnUNet_results
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, distributed, nn

from dcd_core.dcd import kd_weight
from dcd_core.models import evaluating
from dcd_core.models.nnunet import read_file
from dcd_core.nnunet.plans import refuse_other_student, student_plans
from dcd_core.nnunet.settings import read_settings
from dcd_core.nnunet.teaching import Teaching
from dcd_core.storage import atomic
from dcd_core.train.balance import BALANCE_EVERY, gradient_ratio, smoothed
from dcd_core.train.processes import Processes
from dcd_core.types import ContractError


class DCDTrainer(nnUNetTrainer):
    """Trains the student of a network that nnU-Net trained, by the `Settings` of the environment.

    `-p`, the configuration and the data set are the teacher's. A wrong setting, teacher or
    checkpoint ends the command with one message and status 1, before anything is written.
    """

    def __init__(  # nnU-Net reads variables of these names in its own
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ) -> None:
        with _explained():
            self.settings = settings = read_settings(os.environ)
            self.teaching = Teaching(settings, plans, configuration, fold, dataset_json)
            plans = student_plans(plans, configuration, settings)
            refuse_other_student(nnUNet_results, type(self).__name__, plans, configuration)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = settings.epochs
        self.num_iterations_per_epoch = settings.iterations
        self.num_val_iterations_per_epoch = settings.val_iterations
        self.enable_deep_supervision = settings.deep_supervision
        count = distributed.get_world_size() if self.is_ddp else 1
        self.processes = Processes(self.local_rank, count)
        self.ratio, self.step = 0.0, 0  # of gradient norms; steps of the optimizer so far
        self.stages: list[Tensor] = []  # of the student's last forward pass
        self.print_to_log_file(f"DCDTrainer: {settings}")

    def initialize(self) -> None:
        """Build what is trained; the student's encoder leaves its features in `stages`."""
        self.teaching.to(self.device)
        super().initialize()
        stages = self.stages

        def keep(module: nn.Module, inputs: Any, output: Sequence[Tensor]) -> None:
            if module.training:
                stages.clear()
                stages.extend(output)

        # Before the first forward pass, in which torch.compile traces the network with its hooks.
        self.student.encoder.register_forward_hook(keep)

    @property
    def student(self) -> Any:
        """The U-Net without what nnU-Net wraps around it."""
        network = self.network.module if self.is_ddp else self.network
        return getattr(network, "_orig_mod", network)

    def configure_optimizers(self) -> tuple[Any, Any]:
        """nnU-Net's optimizer, which trains the adapters at the same rate."""
        optimizer, scheduler = super().configure_optimizers()
        if self.teaching.adapters:
            optimizer.add_param_group({"params": self.teaching.adapters})
        return optimizer, scheduler

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:
        """nnU-Net's augmentation, without mirroring if so set."""
        *others, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if not self.settings.mirroring:
            axes = self.inference_allowed_mirroring_axes = None
        return (*others, axes)

    def on_train_start(self) -> None:
        """Let the method learn of the teacher, and try it: what cannot work fails before step 1."""
        super().on_train_start()
        if self.teaching.method is None:
            return
        with _explained():
            batches = (
                self._sent(next(self.dataloader_train)) for _ in range(self.settings.prepare)
            )
            loss: Any = getattr(self.loss, "loss", self.loss)  # of one head
            self.teaching.prepare(batches, loss)
            self.processes.make_alike(self.teaching.method)
            data, targets = self._sent(next(self.dataloader_train))
            with evaluating(self.student), torch.no_grad(), self._autocast():
                self._distillation(data, targets, *self._seen(data))

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One step; `loss` is that of the segmentation, as in nnU-Net."""
        data, targets = self._sent(batch)
        self.optimizer.zero_grad(set_to_none=True)
        weight, distillation = self._weight(data, targets), None
        with self._autocast():
            heads = _listed(self.network(data))
            total = segmentation = self._segmentation(heads, targets)
            if weight > 0:
                distillation = self._distillation(data, targets, self.stages, heads)
                total = segmentation + weight * distillation
        self.stages.clear()
        self._update(total)
        self.step += 1
        value = math.nan if distillation is None else distillation.item()
        loss = segmentation.detach().cpu().numpy()
        return {"loss": loss, "distillation": value, "weight": weight}

    def _weight(self, data: Tensor, targets: list[Tensor]) -> float:
        """Weight of the distillation in this step; its ratio of gradients is measured at times."""
        if self.teaching.method is None:
            return 0.0
        weight = kd_weight(self.current_epoch, **self.settings.schedule())
        if weight == 0 or self.settings.balance == "fixed":
            return weight
        if self.ratio == 0 or self.step % BALANCE_EVERY == 0:
            with self._autocast():  # not through DDP or torch.compile, made for one backward pass
                stages, heads = self._seen(data)
                losses = [self._segmentation(heads, targets)]
                losses.append(self._distillation(data, targets, stages, heads))
            if self.grad_scaler is not None:  # in half precision gradients would be 0
                losses = [self.grad_scaler.scale(loss) for loss in losses]
            encoder = list(self.student.encoder.parameters())
            ratio = gradient_ratio(losses[0], losses[1], encoder, self.processes)
            finite = ratio is not None and math.isfinite(ratio)
            self.ratio = smoothed(self.ratio, ratio if finite else None)
        return weight * self.ratio

    def _seen(self, data: Tensor) -> tuple[Sequence[Tensor], list[Tensor]]:
        """Stages and heads of the student, not through what is wrapped around it."""
        stages = self.student.encoder(data)
        return stages, _listed(self.student.decoder(stages))

    def _segmentation(self, heads: list[Tensor], targets: list[Tensor]) -> Tensor:
        deep = self.enable_deep_supervision
        loss: Tensor = self.loss(heads, targets) if deep else self.loss(heads[0], targets[0])
        return loss

    def _distillation(
        self, data: Tensor, targets: list[Tensor], stages: Sequence[Tensor], heads: list[Tensor]
    ) -> Tensor:
        return self.teaching.loss(data, targets[0], stages, heads, self.label_manager)

    def _update(self, total: Tensor) -> None:
        """A step of the optimizer, with gradients of the adapters averaged over the processes."""
        scaler, adapters = self.grad_scaler, self.teaching.adapters
        if scaler is None and not total.isfinite():
            raise FloatingPointError(f"loss {total.item()} in step {self.step}; try a lower peak")
        (total if scaler is None else scaler.scale(total)).backward()
        for parameter in adapters:
            if parameter.grad is not None:
                parameter.grad = self.processes.mean(parameter.grad)
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_([*self.network.parameters(), *adapters], 12)
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()

    def _sent(self, batch: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
        """Data and targets, finest first, on the device."""
        tensors = [batch["data"], *_listed(batch["target"])]
        data, *targets = (each.to(self.device, non_blocking=True) for each in tensors)
        return data, targets

    def _autocast(self) -> Any:
        return torch.autocast("cuda") if self.device.type == "cuda" else nullcontext()

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Log what an epoch distilled, beside nnU-Net's log."""
        super().on_train_epoch_end(train_outputs)
        values = [(out["distillation"], out["weight"]) for out in train_outputs if out["weight"]]
        if values:
            loss, weight = np.mean(values, axis=0)
            ratio = f", gradient ratio {weight / self.ratio:.3f}" if self.ratio else ""
            self.print_to_log_file(f"distillation {loss:.4f}, weight {weight:.4g}{ratio}")

    def save_checkpoint(self, filename: str) -> None:
        """Write a checkpoint that stock nnU-Net predicts with; atomic."""
        if self.local_rank or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        with _explained(), atomic(filename) as temporary:
            super().save_checkpoint(str(temporary))
            content = read_file(temporary)
            content["trainer_name"] = nnUNetTrainer.__name__  # found where this trainer is not
            state = {**self.teaching.state(), "ratio": self.ratio, "step": self.step}
            torch.save({**content, "dcd": state}, temporary)

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Go on from a checkpoint of this trainer; nothing in it is executed."""
        with _explained():
            state = read_file(Path(filename_or_checkpoint)).get("dcd", {})
            self.teaching.check(state, filename_or_checkpoint)
        super().load_checkpoint(filename_or_checkpoint)
        self.teaching.restore(state)
        self.ratio, self.step = state["ratio"], state["step"]


@contextmanager
def _explained() -> Iterator[None]:
    """End the command with the message alone, and status 1, where a user can mend what is wrong."""
    try:
        yield
    except ContractError as error:
        raise SystemExit(f"DCDTrainer: {error}") from None


def _listed(tensors: Any) -> list[Tensor]:
    """What may be one tensor, as nnU-Net has it without deep supervision, as a list."""
    return list(tensors) if isinstance(tensors, list | tuple) else [tensors]
