"""The loop: it turns batches into a trained student, and goes on where it was interrupted."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dcd_core import models
from dcd_core.dcd import kd_weight
from dcd_core.infer import choose_threshold, in_bfloat16, predict
from dcd_core.models import Segmenter
from dcd_core.progress import progress
from dcd_core.storage import atomic, read_torch
from dcd_core.train.balance import BALANCE_EVERY, encoder_parameters, gradient_ratio, smoothed
from dcd_core.train.distiller import Distiller, Losses
from dcd_core.train.processes import Processes, training_device
from dcd_core.train.recipe import EMA, Recipe
from dcd_core.train.result import DIVERGED, Fit, read_fit, read_same, seal, unfit, write_facts
from dcd_core.types import Batches, Case, ContractError, checked_case

if TYPE_CHECKING:
    import pandas as pd

OFFENDING = "offending-batch.pt"
"""File of the batch at which a loss or a gradient was not finite."""


def fit(
    distiller: Distiller,
    train: Batches,
    val: Sequence[Case],
    recipe: Recipe,
    *,
    run_dir: str | Path,
    resume: bool = True,
) -> Fit:
    """Train the distiller's student by `recipe`; return its averaged weights and the run's history.

    `val` are prepared cases that choose the decision threshold. `run_dir` receives `checkpoint.pt`
    while training, in the end `student.safetensors`, `history.csv`, `fit.json` and, if the method
    has a state, `method.safetensors`. With `resume` a finished run is read back and an interrupted
    one goes on, batch for batch. Raises ContractError for files of another recipe or of other
    networks and for damaged ones, FloatingPointError as soon as a loss or a gradient is not finite;
    that batch is then in `run_dir`/offending-batch.pt.

    It uses one GPU if there is one. Under `torchrun` all processes call it alike, on a common disk.
    Each takes a part of every batch; losses and gradients are those of the whole batch, but batch
    norm and dropout see the part alone. The first process writes the files, the others read them.
    """
    folder = Path(run_dir)
    if resume and all((folder / name).is_file() for name in ("fit.json", "student.safetensors")):
        own = () if distiller.method is None else tuple(distiller.method.state_dict())
        return read_same(folder, recipe, distiller.student.spec, own)
    _refuse_unfit(distiller, val)
    if not resume:  # files of an older run must not pass for this one's
        for name in ("fit.json", "checkpoint.pt", "method.safetensors", DIVERGED, OFFENDING):
            (folder / name).unlink(missing_ok=True)
    for left in folder.glob(".*.*"):  # by a process that was killed as it wrote
        left.unlink(missing_ok=True)
    run = Run(distiller, recipe, folder)
    run.restore()
    if val:  # one patch before step 1: a bug in prediction shows in the first minute
        crop = val[0].image[:, : recipe.patch[0], : recipe.patch[1], : recipe.patch[2]]
        predict(distiller.student, crop, patch=recipe.patch, overlap=0, precision=recipe.precision)
    state = run.start(train)
    while state.step < recipe.steps:
        run.advance(train)
        note = f"loss {state.rows[-1]['segmentation']:.3f}" if state.rows else ""
        progress(folder.name, state.step, recipe.steps, note)
        if state.step % recipe.checkpoint_every == 0 and state.step < recipe.steps:
            run.save()
    processes = distiller.processes
    fitted = None if processes.rank else run.finish(val)
    processes.wait()  # for the files
    return fitted or read_fit(folder)


def _refuse_unfit(distiller: Distiller, val: Sequence[Case]) -> None:
    """Raise ContractError before the first step for what would fail after the last one."""
    if distiller.student.spec is None:
        raise ContractError("student", "no `spec`", "one that can be saved", "models.build(...)")
    for case in val:
        checked_case(case)


@dataclass
class State:
    """Where a run is and what it logged: all that a checkpoint holds besides tensors."""

    step: int = 0
    ratios: list[float] = field(default_factory=list)  # of gradients, segmentation over each loss
    seconds: float = 0.0
    rows: list[dict[str, float]] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)


class Run:
    """A run under way: what is trained, what trains it, and where it stands."""

    def __init__(self, distiller: Distiller, recipe: Recipe, folder: Path) -> None:
        processes = distiller.processes = Processes.started(recipe.batch)
        processes.make_alike(distiller.to(training_device()))
        if recipe.channels_last:
            distiller.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.distiller, self.recipe, self.folder = distiller, recipe, folder
        self.optimizer = recipe.build_optimizer(distiller.trainable())
        self.ema = EMA(distiller.student, recipe.ema)
        self.device = next(distiller.student.parameters()).device
        self.encoder: Sequence[nn.Parameter] = ()
        self.state = State()

    def start(self, train: Batches) -> State:
        """Make ready for the first step, or for the next one of a run that is restored."""
        student = self.distiller.student
        # What the two losses are compared on; nothing where there is one loss.
        image = self.distiller.processes.part(train[0][0])
        alone = self.distiller.method is None
        self.encoder = [] if alone else encoder_parameters(student, image)
        self.distiller.train()
        return self.state

    def advance(self, train: Batches) -> None:
        """One step of the optimizer."""
        started = time.perf_counter()
        state, recipe, step = self.state, self.recipe, self.state.step
        processes = self.distiller.processes
        image, target = (part.to(self.device) for part in train[step])
        if recipe.channels_last:
            image = image.contiguous(memory_format=torch.channels_last_3d)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        start, ramp = recipe.kd_start * recipe.steps, recipe.kd_ramp * recipe.steps
        weight = kd_weight(step, peak=recipe.kd_peak, start=start, ramp=ramp)
        mixed = in_bfloat16(self.device, recipe.precision)
        accelerators = [self.device] if self.device.type == "cuda" else []
        with (
            torch.random.fork_rng(accelerators),
            torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=mixed),
        ):
            # A method that masks at random draws the same masks after a restart.
            torch.manual_seed((recipe.seed << 32) + step)
            losses: Losses = self.distiller(image, target, distil=weight > 0)
        total, parts = losses.segmentation, _parts(losses)
        weights = self._weights(losses.segmentation, parts, weight)
        for part, weight_of_part in zip(parts, weights, strict=False):
            total = total + weight_of_part * part
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        trained = self.distiller.trainable()
        for parameter in trained:
            if parameter.grad is not None:
                parameter.grad = processes.mean(parameter.grad)
        norm = nn.utils.clip_grad_norm_(trained, recipe.clip).item()
        if not math.isfinite(total.item()) or not math.isfinite(norm):
            self._stop(image, target, losses, norm)
        self.optimizer.step()
        self.ema.update(self.distiller.student)
        state.step += 1
        state.seconds += time.perf_counter() - started
        state.recent.append(losses.segmentation.item())
        if state.step % max(1, recipe.steps // 100) == 0 or state.step == recipe.steps:
            state.rows.append(self._row(parts, weights, norm))
            state.recent.clear()

    def _weights(self, loss: Tensor, parts: Sequence[Tensor], weight: float) -> list[float]:
        """The weight of each loss of the distillation; without one that of the schedule."""
        state, every = self.state, self.state.step % BALANCE_EVERY == 0
        if parts and (every or not (state.ratios and all(state.ratios))):
            previous, processes = state.ratios or [0.0] * len(parts), self.distiller.processes
            new = [gradient_ratio(loss, part, self.encoder, processes) for part in parts]
            state.ratios = list(map(smoothed, previous, new))
        if parts and self.recipe.kd_balance == "gradient":
            return [weight * ratio for ratio in state.ratios]
        return [weight] * max(1, len(parts))

    def _row(
        self, parts: Sequence[Tensor], weights: Sequence[float], norm: float
    ) -> dict[str, float]:
        state = self.state
        row = {
            "step": state.step,
            # The mean since the last row: a single patch says little about where training stands.
            "segmentation": sum(state.recent) / len(state.recent),
        }
        for number, weight in enumerate(weights):
            ratio = state.ratios[number] if state.ratios else 0.0
            of = f"_{number + 1}" if number else ""
            row["distillation" + of] = parts[number].item() if parts else math.nan
            row["weight" + of] = weight
            # Gradient norms on the encoder, weighted distillation over segmentation.
            row["relative_weight" + of] = weight / ratio if ratio else 0.0
        row |= {"gradient_norm": norm, "learning_rate": self.recipe.rate(state.step - 1)}
        return row | {"seconds": state.seconds}

    def _stop(self, image: Tensor, target: Tensor, losses: Losses, norm: float) -> None:
        step, path = self.state.step, self.folder / OFFENDING
        if self.distiller.processes.rank == 0:
            with atomic(path) as temporary:
                torch.save({"step": step, "image": image, "target": target}, temporary)
            self._write_history()
            write_facts(self.folder / DIVERGED, {"step": step, "recipe": self.recipe.plain()})
        segmentation, distillation = (None if loss is None else loss.tolist() for loss in losses)
        raise FloatingPointError(
            f"not finite at step {step}: segmentation {segmentation}, distillation {distillation}, "
            f"gradient norm {norm}; the batch is in {path}. "
            "Try a lower learning_rate or kd_peak, or precision='32-true'."
        )

    def save(self) -> None:
        """Write the checkpoint, once for all processes."""
        if self.distiller.processes.rank:
            return
        content = {
            "recipe": self.recipe.plain(),
            "distiller": self.distiller.trained_state(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.model.state_dict(),
            "state": asdict(self.state),
        }
        with atomic(self.folder / "checkpoint.pt") as temporary:
            torch.save(content, temporary)

    def restore(self) -> None:
        """Go on from the checkpoint, if there is one."""
        path = self.folder / "checkpoint.pt"
        if not path.is_file():
            return
        try:
            content = read_torch(path)
            theirs = content["recipe"]
        except Exception as error:  # there are half a dozen types for a damaged file
            raise unfit(path, f"unreadable ({type(error).__name__})") from None
        if theirs != self.recipe.plain():
            raise unfit(path, "made by another recipe")
        try:
            self.distiller.load_trained_state(content["distiller"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.ema.model.load_state_dict(content["ema"])
            self.state = State(**content["state"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise unfit(path, f"of another student or method ({error})") from None
        self.ema.steps = self.state.step

    def finish(self, val: Sequence[Case]) -> Fit:
        """Choose the threshold and write the files of a finished run."""
        from safetensors.torch import save

        folder, recipe, state, method = self.folder, self.recipe, self.state, self.distiller.method
        student = self.ema.model
        assert isinstance(student, Segmenter)
        student.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
        models.halve(student)
        threshold, dice = choose_threshold(
            student, val, patch=recipe.patch, overlap=recipe.overlap, precision=recipe.precision
        )
        if dice == 0:
            progress(folder.name, state.step, recipe.steps, "val Dice 0 at all thresholds: kept .5")
        models.save(student, folder / "student.safetensors", half=True)
        own = {} if method is None else method.state_dict()
        kept = {n: x.cpu().clone(memory_format=torch.contiguous_format) for n, x in own.items()}
        if kept:  # analysis needs it, no deployed network does
            with atomic(folder / "method.safetensors") as temporary:
                temporary.write_bytes(save(kept))
        history = self._write_history()
        facts: dict[str, Any] = {"threshold": threshold, "val_dice": dice}
        facts |= {"seconds": round(state.seconds, 2), "recipe": recipe.plain()}
        facts["sha256"] = seal(folder, facts)
        write_facts(folder / "fit.json", facts)  # last: its presence says that all is there
        (folder / "checkpoint.pt").unlink(missing_ok=True)
        return Fit(student, threshold, dice, history, state.seconds, kept)

    def _write_history(self) -> "pd.DataFrame":
        import pandas as pd

        history = pd.DataFrame(self.state.rows)
        with atomic(self.folder / "history.csv") as temporary:
            history.to_csv(temporary, index=False, float_format="%.6g")
        return history


def _parts(losses: Losses) -> Sequence[Tensor]:
    """The losses of the distillation, one by one; none while its weight is 0."""
    kd = losses.distillation
    if kd is None:
        return ()
    return kd.unbind() if kd.ndim else (kd,)
