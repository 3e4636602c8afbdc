"""From samples to the tables of the book: times, ratios, the roofline, and what was asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from contenders import Grid
from measure import Work, spread
from peers import Layout

GRAPH = ", graph"
"""What the name of a contender ends in that is replayed from a CUDA graph."""

RATIOS = {
    "dense / orthonormal": ("dense", "orthonormal"),
    "ptwt / orthonormal": ("ptwt", "orthonormal"),
    "orthonormal / MSE": ("orthonormal", "plain MSE"),
    "dense / released": ("dense", "released"),
    "orthonormal / MSE, graphs": ("orthonormal, graph", "plain MSE, graph"),
}
"""What is divided by what, on devices where both take part."""
AT_LEAST: Mapping[tuple[str, str], Mapping[str, float]] = {
    ("1×32×48³", "db4"): {
        "dense / orthonormal": 60,
        "ptwt / orthonormal": 30,
        "dense / released": 20,
    },
    ("1×16×64³", "db4"): {
        "dense / orthonormal": 60,
        "ptwt / orthonormal": 30,
        "dense / released": 20,
    },
    ("1×64×32³", "db4"): {
        "dense / orthonormal": 60,
        "ptwt / orthonormal": 30,
        "dense / released": 20,
    },
    ("1×256×16³", "db4"): {"dense / orthonormal": 40, "dense / released": 20},
    ("1×32×48³", "haar"): {"dense / orthonormal": 6},
}
AT_MOST: Mapping[tuple[str, str], Mapping[str, float]] = {
    ("1×32×48³", "db4"): {"orthonormal / MSE": 2.5},
    ("1×16×64³", "db4"): {"orthonormal / MSE": 2.5},
}


class Timed(NamedTuple):
    """One grid, measured: samples in ms and work by contender, how far released is from dense."""

    grid: Grid
    samples: dict[str, list[float]]
    work: dict[str, Work]
    layout: Layout
    loss_error: float
    gradient_error: float

    @property
    def ms(self) -> dict[str, float]:
        """Median time of every contender."""
        return {name: float(np.median(samples)) for name, samples in self.samples.items()}

    @property
    def ratios(self) -> dict[str, float]:
        """The ratios of `RATIOS`, of medians."""
        ms = self.ms
        taking_part = {name: pair for name, pair in RATIOS.items() if ms.keys() >= set(pair)}
        return {name: ms[above] / ms[below] for name, (above, below) in taking_part.items()}


# --- what a loss must move and compute ------------------------------------------------------------

COMPULSORY = 3
"""Numbers that any such loss moves per feature value: reads s and t, writes the gradient."""


def roofline(found: Sequence[Timed]) -> pd.DataFrame:
    """Bytes needed and moved, operations, and their rates, those of bytes over that of a copy."""
    rows = []
    for one in found:
        grid, ms = one.grid, one.ms
        if grid.wavelet != "db4":
            continue
        copy = 8 * grid.values / ms["copy"]  # bytes in a millisecond
        needed = 4 * COMPULSORY * grid.values
        for name, count in one.work.items():
            numbers = {
                "needs (MiB)": needed / 2**20,
                "moves (MiB)": count.bytes / 2**20,
                "GFLOP": count.operations / 1e9,
                "GFLOP/s": count.operations / (1e6 * ms[name]),
                "moves / copy": count.bytes / ms[name] / copy,
                "needs / copy": needed / ms[name] / copy,
            }
            label = {"features": grid.name, "loss": name}
            rows.append({**label, **{key: shown(value) for key, value in numbers.items()}})
    return pd.DataFrame(rows)


# --- times, memory, steps, growth -----------------------------------------------------------------


def shown(value: float) -> str:
    """Three digits, and nothing for what is not known."""
    if not math.isfinite(value):
        return ""
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def times(found: Sequence[Timed], device: str) -> list[dict[str, Any]]:
    """Every contender on every grid, one row each."""
    return [
        {
            "device": device,
            "features": one.grid.name,
            "basis": one.grid.wavelet,
            "loss": name,
            **spread(samples),
            "rounds": len(samples),
        }
        for one in found
        for name, samples in one.samples.items()
    ]


def cost(found: Sequence[Timed], device: str) -> list[dict[str, str]]:
    """The times to read: medians in ms, one row per grid."""
    return [
        {
            **_label(one),
            **{f"{name} (ms)": shown(one.ms[name]) for name in one.work if "," not in name},
            "device": device,
        }
        for one in found
    ]


def graphs(found: Sequence[Timed]) -> list[dict[str, str]]:
    """Medians in ms of what was replayed from a graph, too, and of its calls: one row per grid."""
    return [
        {
            **_label(one),
            **{
                f"{name} (ms)": shown(one.ms[name])
                for graph in one.ms
                if graph.endswith(GRAPH)
                for name in (graph.removesuffix(GRAPH), graph)
            },
        }
        for one in found
    ]


def ratios(found: Sequence[Timed], device: str) -> list[dict[str, str]]:
    """Ratios of medians, one row per grid."""
    return [
        {
            **_label(one),
            **{name: shown(ratio) for name, ratio in one.ratios.items()},
            "device": device,
        }
        for one in found
    ]


def _label(one: Timed) -> dict[str, str]:
    return {"features": one.grid.name, "basis": one.grid.wavelet}


def memory(used: Sequence[tuple[Grid, dict[str, float]]]) -> list[dict[str, str]]:
    """Peak extra memory as a multiple of the student's features, one row per grid."""
    return [
        {
            "features": grid.name,
            "student (MiB)": shown(4 * grid.values / 2**20),
            **{name: shown(size / (4 * grid.values)) for name, size in bytes_of.items()},
        }
        for grid, bytes_of in used
    ]


def steps(samples: Mapping[str, Mapping[str, list[float]]]) -> pd.DataFrame:
    """Training steps on patches by name, by their parts; `over_least` divides by what must run."""
    rows = []
    for patch, parts in samples.items():
        ms = {name: float(np.median(times)) for name, times in parts.items()}
        least = ms["student alone"] + ms["teacher encoder"]
        for name, times in parts.items():
            over = round(ms[name] / least, 4)
            counts = {"rounds": len(times), "over_least": over}
            rows.append({"patch": patch, "part": name, **spread(times), **counts})
    return pd.DataFrame(rows)


def exponent(sizes: pd.DataFrame, loss: str) -> float:
    """Slope of log time against log voxels over the larger half of the sizes; 1 is linear."""
    rows = sizes[sizes["loss"] == loss].sort_values("voxels")
    rows = rows.iloc[(len(rows) - 1) // 2 :]
    return float(np.polyfit(np.log(rows["voxels"]), np.log(rows["time_ms"]), 1)[0])


# --- what was asked for ---------------------------------------------------------------------------


def targets(
    found: Sequence[Timed],
    used: Sequence[tuple[Grid, dict[str, float]]],
    step: pd.DataFrame,
    sizes: pd.DataFrame,
) -> pd.DataFrame:
    """What the loss should cost on two CPU threads, what it does cost, and whether that will do."""
    rows = []

    def ask(
        quantity: str, value: float, *, least: float = -math.inf, most: float = math.inf
    ) -> None:
        asked = f"≥ {least:g}" if math.isfinite(least) else f"≤ {most:g}"
        met = "yes" if least <= value <= most else "no"
        rows.append({"quantity": quantity, "asked": asked, "measured": shown(value), "met": met})

    for one in found:
        key = (one.grid.name, one.grid.wavelet)
        where = ", ".join(key)
        for name, limit in AT_LEAST.get(key, {}).items():
            ask(f"{name}, {where}", one.ratios[name], least=limit)
        for name, limit in AT_MOST.get(key, {}).items():
            ask(f"{name}, {where}", one.ratios[name], most=limit)
    errors = [max(one.loss_error, one.gradient_error) for one in found]
    ask("released against dense: relative difference of loss and gradient", max(errors), most=1e-4)
    for grid, bytes_of in used:
        multiple = bytes_of["orthonormal"] / (4 * grid.values)
        ask(f"extra memory over student features, orthonormal, {grid.name}", multiple, most=2)
    (with_dcd,) = step.loc[step["part"] == "step with DCD", "over_least"]
    ask("step with DCD over student alone and teacher encoder", with_dcd, most=1.1)
    for loss in ("orthonormal", "released"):
        ask(f"exponent of time in voxels, {loss}", exponent(sizes, loss), most=1.1)
    return pd.DataFrame(rows)
