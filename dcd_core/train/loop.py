"""The loop: it turns batches into a trained student, and goes on where it was interrupted."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from dcd_core import models
from dcd_core.dcd import kd_weight
from dcd_core.infer import choose_threshold, in_bfloat16, predict
from dcd_core.models import Segmenter
from dcd_core.progress import progress
from dcd_core.storage import atomic
from dcd_core.train.balance import BALANCE_EVERY, encoder_parameters, gradient_ratio, smoothed
from dcd_core.train.distiller import Distiller, Losses
from dcd_core.train.processes import Processes, training_device
from dcd_core.train.recipe import EMA, Recipe
from dcd_core.types import Batches, Case, ContractError

if TYPE_CHECKING:
    import pandas as pd

OFFENDING = "offending-batch.pt"
"""File of the batch at which a loss or a gradient was not finite."""


class Fit(NamedTuple):
    """A finished training run.

    `student`: the averaged weights in eval mode; `threshold` and `val_dice`: the decision and its
    mean foreground Dice on the val cases; `history`: one row per logged step; `seconds` of
    training; `method`: the state dict of the distillation method, its adapters for example, as the
    last step left it (not averaged); empty where there is none.
    """

    student: Segmenter
    threshold: float
    val_dice: float
    history: pd.DataFrame
    seconds: float
    method: Mapping[str, Tensor] = MappingProxyType({})


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
    while training and `student.safetensors`, `history.csv`, `fit.json` and, if the method has a
    state, `method.safetensors` at the end. With `resume` a finished run is read back and an
    interrupted one goes on, batch for batch as if it had not been interrupted.
    Raises ContractError for a run or checkpoint of another recipe, for a checkpoint that is damaged
    or of other networks, and FloatingPointError as soon as a loss or a gradient is not finite; that
    batch is then in `run_dir`/offending-batch.pt.

    It uses one GPU if there is one. Under `torchrun` all processes call it alike, on a common disk.
    Each takes a part of every batch; losses and gradients are those of the whole batch, but batch
    norm and dropout see the part alone. The first process writes the files, the others read them.
    """
    folder, processes = Path(run_dir), Processes.started(recipe.batch)
    if resume and (folder / "fit.json").is_file():
        if _facts(folder)["recipe"] != _plain(recipe):
            raise _unfit(folder, "made by another recipe")
        return read_fit(folder)
    if not resume:  # files of an older run must not pass for this one's
        for name in ("fit.json", "checkpoint.pt", "method.safetensors", OFFENDING):
            (folder / name).unlink(missing_ok=True)
    distiller.to(training_device()).processes = processes
    processes.make_alike(distiller)
    if recipe.channels_last:
        distiller.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    run = _Run(distiller, recipe, folder)
    run.restore()
    if val:  # one patch before step 1: a bug in prediction shows in the first minute
        crop = val[0].image[:, : recipe.patch[0], : recipe.patch[1], : recipe.patch[2]]
        predict(distiller.student, crop, patch=recipe.patch, overlap=0, precision=recipe.precision)
    image = processes.part(train[0][0])  # the two losses are compared on the weights it reaches
    encoder = [] if distiller.method is None else encoder_parameters(distiller.student, image)
    distiller.train()
    state = run.state
    while state.step < recipe.steps:
        run.advance(train, encoder)
        note = f"loss {state.rows[-1]['segmentation']:.3f}" if state.rows else ""
        progress(folder.name, state.step, recipe.steps, note)
        if state.step % recipe.checkpoint_every == 0 and state.step < recipe.steps:
            run.save()
    fitted = None if processes.rank else run.finish(val)
    processes.wait()  # for the files
    return fitted or read_fit(folder)


def read_fit(run_dir: str | Path) -> Fit:
    """Read a finished run back; raises ContractError when there is none in `run_dir`."""
    import pandas as pd
    from safetensors.torch import load_file

    folder = Path(run_dir)
    facts = _facts(folder)
    student = models.load(folder / "student.safetensors")
    path = folder / "method.safetensors"
    method = load_file(path) if path.is_file() else {}
    history = pd.read_csv(folder / "history.csv")
    return Fit(student, facts["threshold"], facts["val_dice"], history, facts["seconds"], method)


def diverged(run_dir: str | Path) -> bool:
    """Whether the run in `run_dir` ended with a loss or a gradient that was not finite."""
    return (Path(run_dir) / OFFENDING).is_file() and not (Path(run_dir) / "fit.json").is_file()


@dataclass
class _State:
    """Where a run is and what it logged: all that a checkpoint holds besides tensors."""

    step: int = 0
    ratio: float = 0.0  # gradient norms, segmentation over distillation; 0 until measured
    seconds: float = 0.0
    rows: list[dict[str, float]] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)


class _Run:
    """A run under way: what is trained, what trains it, and where it stands."""

    def __init__(self, distiller: Distiller, recipe: Recipe, folder: Path) -> None:
        self.distiller, self.recipe, self.folder = distiller, recipe, folder
        self.optimizer = recipe.build_optimizer(distiller.trainable())
        self.ema = EMA(distiller.student, recipe.ema)
        self.device = next(distiller.student.parameters()).device
        self.state = _State()

    def advance(self, train: Batches, encoder: Sequence[nn.Parameter]) -> None:
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
        total = losses.segmentation
        if losses.distillation is not None:
            if state.ratio == 0 or step % BALANCE_EVERY == 0:
                state.ratio = smoothed(state.ratio, gradient_ratio(losses, encoder, processes))
            if recipe.kd_balance == "gradient":
                weight *= state.ratio
            total = total + weight * losses.distillation
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        processes.average_gradients(self.distiller.trainable())
        norm = nn.utils.clip_grad_norm_(self.distiller.trainable(), recipe.clip).item()
        if not math.isfinite(total.item()) or not math.isfinite(norm):
            self._stop(image, target, losses, norm)
        self.optimizer.step()
        self.ema.update(self.distiller.student)
        state.step += 1
        state.seconds += time.perf_counter() - started
        state.recent.append(losses.segmentation.item())
        if state.step % max(1, recipe.steps // 100) == 0 or state.step == recipe.steps:
            state.rows.append(self._row(losses, weight, norm))
            state.recent.clear()

    def _row(self, losses: Losses, weight: float, norm: float) -> dict[str, float]:
        state, kd = self.state, losses.distillation
        return {
            "step": state.step,
            # The mean since the last row: a single patch says little about where training stands.
            "segmentation": sum(state.recent) / len(state.recent),
            "distillation": math.nan if kd is None else kd.item(),
            "weight": weight,
            # Gradient norms on the encoder, weighted distillation over segmentation.
            "relative_weight": weight / state.ratio if state.ratio else 0.0,
            "gradient_norm": norm,
            "learning_rate": self.recipe.rate(state.step - 1),
            "seconds": state.seconds,
        }

    def _stop(self, image: Tensor, target: Tensor, losses: Losses, norm: float) -> None:
        step, path = self.state.step, self.folder / OFFENDING
        if self.distiller.processes.rank == 0:
            with atomic(path) as temporary:
                torch.save({"step": step, "image": image, "target": target}, temporary)
        segmentation, distillation = (None if loss is None else loss.item() for loss in losses)
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
            "recipe": _plain(self.recipe),
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
            content = torch.load(path, map_location="cpu", weights_only=True)
            theirs = content["recipe"]
        except Exception as error:  # torch raises half a dozen types for a damaged file
            raise _unfit(path, f"unreadable ({type(error).__name__})") from None
        if theirs != _plain(self.recipe):
            raise _unfit(path, "made by another recipe")
        try:
            self.distiller.load_trained_state(content["distiller"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.ema.model.load_state_dict(content["ema"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise _unfit(path, f"of another student or method ({error})") from None
        self.state = _State(**content["state"])
        self.ema.steps = self.state.step

    def finish(self, val: Sequence[Case]) -> Fit:
        """Choose the threshold and write the files of a finished run."""
        import pandas as pd
        from safetensors.torch import save_file

        folder, recipe, state, method = self.folder, self.recipe, self.state, self.distiller.method
        student = self.ema.model
        assert isinstance(student, Segmenter)
        student.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
        threshold, dice = choose_threshold(
            student, val, patch=recipe.patch, overlap=recipe.overlap, precision=recipe.precision
        )
        if dice == 0:
            progress(folder.name, state.step, recipe.steps, "val Dice 0 at all thresholds: kept .5")
        history = pd.DataFrame(state.rows)
        models.save(student, folder / "student.safetensors")
        plain: Any = {"device": "cpu", "copy": True, "memory_format": torch.contiguous_format}
        state_dict = {} if method is None else method.state_dict()
        kept = {name: value.to(**plain) for name, value in state_dict.items()}
        if kept:  # analysis needs it, no deployed network does
            with atomic(folder / "method.safetensors") as temporary:
                save_file(kept, temporary)
        with atomic(folder / "history.csv") as temporary:
            history.to_csv(temporary, index=False, float_format="%.6g")
        facts: dict[str, Any] = {"threshold": threshold, "val_dice": dice}
        facts |= {"seconds": round(state.seconds, 2), "recipe": _plain(recipe)}
        with atomic(folder / "fit.json") as temporary:  # last: its presence says that all is there
            temporary.write_text(json.dumps(facts, indent=1), "utf-8")
        (folder / "checkpoint.pt").unlink(missing_ok=True)
        return Fit(student, threshold, dice, history, state.seconds, kept)


def _facts(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "fit.json").read_text("utf-8")))
    except (OSError, ValueError):
        got = f"no finished run in {folder}"
        raise ContractError("training run", got, "its fit.json", "train it again") from None


def _plain(recipe: Recipe) -> dict[str, Any]:
    """A recipe in types of JSON, as it comes back from a file."""
    return dict(json.loads(json.dumps(asdict(recipe))))


def _unfit(path: Path, why: str) -> ContractError:
    attempt = "another run_dir, or resume=False to start again"
    return ContractError("run to go on with", f"{path}, {why}", "a file of this run", attempt)
