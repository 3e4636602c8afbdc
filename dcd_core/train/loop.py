"""The loop: one page that turns patches into a trained student, and survives being interrupted."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from dcd_core import models
from dcd_core.dcd import kd_weight
from dcd_core.infer import choose_threshold, in_bfloat16, predict
from dcd_core.models import Segmenter
from dcd_core.progress import progress
from dcd_core.storage import atomic
from dcd_core.train.balance import encoder_parameters, gradient_ratio
from dcd_core.train.distiller import Distiller, Losses
from dcd_core.train.recipe import EMA, Recipe
from dcd_core.types import Batches, Case, ContractError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

OFFENDING = "offending-batch.pt"
"""File of the batch at which a loss was not finite."""
BALANCE_EVERY = 20
"""Steps between measurements of the gradient ratio; each costs about two more backward passes."""


class Fit(NamedTuple):
    """A finished training run.

    `student`: the averaged weights in eval mode; `threshold` and `val_dice`: the decision and its
    mean foreground Dice on the tune cases; `history`: one row per logged step; `seconds` of
    training; `method`: the state dict of the distillation method, its projections say, as the last
    step left it (not averaged); empty where there is none.
    """

    student: Segmenter
    threshold: float
    val_dice: float
    history: pd.DataFrame
    seconds: float
    method: Mapping[str, Tensor] = MappingProxyType({})


class _State:
    """Everything a checkpoint holds besides the modules: where the run is and what it logged."""

    def __init__(self) -> None:
        self.step = 0
        self.ratio = 0.0  # gradient norms, segmentation over distillation; 0 until measured
        self.seconds = 0.0
        self.rows: list[dict[str, float]] = []
        self.recent: list[float] = []


def fit(
    distiller: Distiller,
    train: Batches,
    val: Sequence[Case],
    recipe: Recipe,
    *,
    fabric: Fabric | None = None,
    run_dir: str | Path,
    resume: bool = True,
) -> Fit:
    """Train the distiller's student by `recipe`; return its averaged weights and the run's history.

    `train` deals the batches, `val` are prepared tune cases that choose the decision threshold.
    `run_dir` receives `checkpoint.pt` while training and `student.safetensors`, `history.csv`,
    `fit.json` and, if the method has a state, `method.safetensors` at the end. With `resume` a
    finished run is read back and an interrupted one goes on, batch for batch as if nothing had
    happened.
    Raises ContractError for a run or checkpoint of another recipe, for a checkpoint that is damaged
    or of other networks, and FloatingPointError as soon as a loss is not finite; the offending
    batch is then in `run_dir`/offending-batch.pt.
    """
    folder = Path(run_dir)
    if resume and (folder / "fit.json").is_file():
        return _read_same(folder, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    if not resume:  # what is left of an older run must not pass for this one's later
        for name in ("fit.json", "checkpoint.pt", "method.safetensors", OFFENDING):
            (folder / name).unlink(missing_ok=True)
    fabric = fabric or _fabric(recipe)
    if recipe.channels_last:
        distiller.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    # Moved, not wrapped: Fabric's wrapper forbids the separate gradients that kd_balance measures.
    fabric.to_device(distiller)
    optimizer = recipe.build_optimizer(distiller.trainable())
    ema, state = EMA(distiller.student, recipe.ema), _State()
    if (folder / "checkpoint.pt").is_file():
        _restore(folder / "checkpoint.pt", distiller, optimizer, ema, state, recipe)
    _rehearse(distiller.student, val, recipe)
    # What the two losses are compared on; nothing where there is one loss.
    encoder = [] if distiller.method is None else encoder_parameters(distiller.student, train[0][0])
    distiller.train()
    while state.step < recipe.steps:
        _step(fabric, distiller, optimizer, ema, state, train, recipe, folder, encoder)
        progress(folder.name, state.step, recipe.steps, _note(state))
        if state.step % recipe.checkpoint_every == 0 and state.step < recipe.steps:
            _save(folder / "checkpoint.pt", distiller, optimizer, ema, state, recipe)
    return _finish(folder, ema.model, distiller.method, val, recipe, state)


def read_fit(run_dir: str | Path) -> Fit:
    """Read a finished run back; raises ContractError when there is none in `run_dir`."""
    folder = Path(run_dir)
    try:
        facts = json.loads((folder / "fit.json").read_text("utf-8"))
        history = pd.read_csv(folder / "history.csv")
    except (OSError, ValueError):
        raise ContractError(
            "training run",
            f"no finished run in {folder}",
            "fit.json and history.csv",
            "train it again",
        ) from None
    student = models.load(folder / "student.safetensors")
    method = _read_method(folder / "method.safetensors")
    return Fit(student, facts["threshold"], facts["val_dice"], history, facts["seconds"], method)


def diverged(run_dir: str | Path) -> bool:
    """Whether the last word of the run in `run_dir` is a loss that was not finite."""
    folder = Path(run_dir)
    return (folder / OFFENDING).is_file() and not (folder / "fit.json").is_file()


def _read_same(folder: Path, recipe: Recipe) -> Fit:
    theirs = json.loads((folder / "fit.json").read_text("utf-8"))["recipe"]
    if theirs != _plain(recipe):
        raise _other_recipe("training run", folder)
    return read_fit(folder)


def _plain(recipe: Recipe) -> dict[str, Any]:
    """A recipe in the words of JSON, as it comes back from a file."""
    return dict(json.loads(json.dumps(asdict(recipe))))


def _other_recipe(what: str, path: Path) -> ContractError:
    return ContractError(
        what,
        f"{path}, made by another recipe",
        "the recipe of this run",
        "another run_dir, or resume=False to start again",
    )


def training_device() -> torch.device:
    """Where networks are trained, measured and scored unless told otherwise: a GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _fabric(recipe: Recipe) -> Fabric:
    from lightning_fabric import Fabric

    device = training_device()
    precision: Any = "bf16-mixed" if in_bfloat16(device, recipe.precision) else "32-true"
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # says what facts() says
    return Fabric(accelerator=device.type, devices=1, precision=precision)


def _step(
    fabric: Fabric,
    distiller: Distiller,
    optimizer: Any,
    ema: EMA,
    state: _State,
    train: Batches,
    recipe: Recipe,
    folder: Path,
    encoder: Sequence[nn.Parameter],
) -> None:
    started = time.perf_counter()
    step = state.step
    device = next(distiller.student.parameters()).device
    image, target = (part.to(device) for part in train[step])
    if recipe.channels_last:
        image = image.contiguous(memory_format=torch.channels_last_3d)
    for group in optimizer.param_groups:
        group["lr"] = recipe.rate(step)
    weight = kd_weight(
        step,
        peak=recipe.kd_peak,
        start=recipe.kd_start * recipe.steps,
        ramp=recipe.kd_ramp * recipe.steps,
    )
    # A method that masks at random draws the same masks after a restart.
    accelerators = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(accelerators), fabric.autocast():
        torch.manual_seed((recipe.seed << 32) + step)
        losses = distiller(image, target, distil=weight > 0)
    total = losses.segmentation
    if losses.distillation is not None:
        if state.ratio == 0 or step % BALANCE_EVERY == 0:
            state.ratio = _smoothed(state.ratio, gradient_ratio(losses, encoder))
        if recipe.kd_balance == "gradient":
            weight *= state.ratio
        total = total + weight * losses.distillation
    if not math.isfinite(total.item()):
        _report_nan(folder, step, image, target, losses)
    optimizer.zero_grad(set_to_none=True)
    fabric.backward(total)
    norm = nn.utils.clip_grad_norm_(distiller.trainable(), recipe.clip)
    optimizer.step()
    ema.update(distiller.student)
    state.step += 1
    state.seconds += time.perf_counter() - started
    state.recent.append(losses.segmentation.item())
    if state.step % _log_every(recipe) == 0 or state.step == recipe.steps:
        state.rows.append(_row(state, recipe, losses, weight, norm.item()))
        state.recent.clear()


def _smoothed(previous: float, ratio: float | None) -> float:
    """The running ratio of the gradient norms; it stays where there is nothing to distil."""
    if ratio is None:
        return previous  # it would drown the segmentation later on
    return ratio if previous == 0 else 0.8 * previous + 0.2 * ratio


def _row(
    state: _State, recipe: Recipe, losses: Losses, weight: float, norm: float
) -> dict[str, float]:
    kd = losses.distillation
    return {
        "step": state.step,
        # The mean since the last row: a single patch says little about where training stands.
        "segmentation": sum(state.recent) / len(state.recent),
        "distillation": math.nan if kd is None else kd.item(),
        "weight": weight,
        # How hard the distillation pulls on the encoder, in gradients of the segmentation.
        "relative_weight": weight / state.ratio if state.ratio else 0.0,
        "gradient_norm": norm,
        "learning_rate": recipe.rate(state.step - 1),
        "seconds": state.seconds,
    }


def _log_every(recipe: Recipe) -> int:
    return max(1, recipe.steps // 100)


def _note(state: _State) -> str:
    return f"loss {state.rows[-1]['segmentation']:.3f}" if state.rows else ""


def _rehearse(student: Segmenter, val: Sequence[Case], recipe: Recipe) -> None:
    """One patch of one tune case before step 1: a bug in prediction shows in the first minute."""
    if val:
        crop = val[0].image[:, : recipe.patch[0], : recipe.patch[1], : recipe.patch[2]]
        predict(student, crop, patch=recipe.patch, overlap=0.0, precision=recipe.precision)


def _finish(
    folder: Path,
    student: nn.Module,
    method: nn.Module | None,
    val: Sequence[Case],
    recipe: Recipe,
    state: _State,
) -> Fit:
    assert isinstance(student, Segmenter)
    student.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    labelled = [(case, case.label) for case in val if case.label is not None]
    threshold, dice = 0.5, math.nan
    if labelled:
        found = [
            predict(
                student,
                case.image,
                patch=recipe.patch,
                overlap=recipe.overlap,
                precision=recipe.precision,
            )
            for case, _ in labelled
        ]
        threshold, dice = choose_threshold(
            [probabilities.cpu().numpy() for probabilities in found],
            [label for _, label in labelled],
        )
    history = pd.DataFrame(state.rows)
    models.save(student, folder / "student.safetensors")
    method_state = _write_method(folder / "method.safetensors", method)
    with atomic(folder / "history.csv") as temporary:
        history.to_csv(temporary, index=False, float_format="%.6g")
    facts = {
        "threshold": threshold,
        "val_dice": dice,
        "seconds": round(state.seconds, 2),
        "recipe": _plain(recipe),
    }
    with atomic(folder / "fit.json") as temporary:  # last: its presence says that all is there
        temporary.write_text(json.dumps(facts, indent=1), "utf-8")
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    return Fit(student, threshold, dice, history, state.seconds, method_state)


def _write_method(path: Path, method: nn.Module | None) -> dict[str, Tensor]:
    """Keep the method's state: nothing that is deployed needs it, but analysis does."""
    from safetensors.torch import save_file

    state = {} if method is None else method.state_dict()
    plain = {"device": "cpu", "copy": True, "memory_format": torch.contiguous_format}
    kept = {name: value.detach().to(**plain) for name, value in state.items()}
    if kept:
        with atomic(path) as temporary:
            save_file(kept, temporary)
    return kept


def _read_method(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path) if path.is_file() else {}


def _save(
    path: Path, distiller: Distiller, optimizer: Any, ema: EMA, state: _State, recipe: Recipe
) -> None:
    content = {
        "recipe": _plain(recipe),
        "distiller": distiller.trained_state(),
        "optimizer": optimizer.state_dict(),
        "ema": ema.model.state_dict(),
        "ema_steps": ema.steps,
        "state": vars(state),
    }
    with atomic(path) as temporary:
        torch.save(content, temporary)


def _restore(
    path: Path, distiller: Distiller, optimizer: Any, ema: EMA, state: _State, recipe: Recipe
) -> None:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        theirs = content["recipe"]
    except Exception as error:  # torch raises half a dozen types for a damaged file
        raise ContractError(
            "checkpoint",
            f"{path}, unreadable ({type(error).__name__})",
            "a whole checkpoint of this run",
            "deleting it, or resume=False, to start this run again",
        ) from None
    if theirs != _plain(recipe):
        raise _other_recipe("checkpoint", path)
    try:
        distiller.load_trained_state(content["distiller"])
        optimizer.load_state_dict(content["optimizer"])
        ema.model.load_state_dict(content["ema"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise ContractError(
            "checkpoint",
            f"{path}, of another student or method ({error})",
            "the networks of this run",
            "another run_dir, or resume=False to start again",
        ) from None
    ema.steps = content["ema_steps"]
    vars(state).update(content["state"])


def _report_nan(folder: Path, step: int, image: Tensor, target: Tensor, losses: Losses) -> None:
    batch = {"step": step, "image": image, "target": target}
    with atomic(folder / OFFENDING) as temporary:
        torch.save(batch, temporary)
    kd = losses.distillation
    raise FloatingPointError(
        f"loss not finite at step {step}: segmentation {losses.segmentation.item()}, distillation "
        f"{None if kd is None else kd.item()}; the batch is in {folder / OFFENDING}. "
        "Try a lower learning_rate or kd_peak, or precision='32-true'."
    )
