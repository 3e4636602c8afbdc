"""What ships: whole volumes through every runtime and precision, the students and their teacher.

    python benchmarks/shipping.py                  half an hour on two quiet cores
    python benchmarks/shipping.py --only time      the times alone, ten minutes
    python benchmarks/shipping.py --busy           where the machine has other work to do
    python benchmarks/shipping.py --quick          networks of a few steps: does it run?

Networks are those of the study on stroke, from the record: the teacher, and of the first seed the
undistilled student and that of DCD. Each is run by

    PyTorch        float32 as in the study, and bfloat16 under autocast
    ONNX Runtime   float32 and int8
    OpenVINO       float32, bfloat16, int8, and int8 with the other layers in bfloat16; some of
                   them with windows abreast, each by a thread of its own

and the students with windows twice as long as well.

Method. All use `infer.predict` with the overlap of the study. The ranges of int8 come from patches
of the training cases, as large as the window. Dice: the test cases of the study, by the network's
own threshold. The Dice of PyTorch in float32 is that of the record, and exports in float32 have it
where their logits are PyTorch's to a thousandth on those patches (`deploy.check_export`); all
others are scored here. Time: a volume of noise of a full scan, all contenders by turns in an order
drawn anew every round, after a smaller volume that warms up. Students of one graph are timed once.
The peak is that of one batch of windows in a fresh process, weights and activations. With --busy a
time is in processor seconds of one thread: that of a bar as thick as the window through the scan,
times the windows of the scan over those of the bar; the peak is left out.

Written, each with a JSON file (commit, versions, processor, samples): results/<out>/shipping-dice,
shipping-time and shipping-graphs; <out> is `benchmarks`, or `smoke` with --quick.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import joblib
import numpy as np
import pandas as pd
import torch
from measure import interleaved

from dcd_core.infer import decide, predict
from dcd_core.models import Segmenter, parameters, save
from dcd_core.progress import progress
from dcd_core.types import ContractError, Precision, Size3
from dcd_lab import deploy, records
from dcd_lab.cache import run_dir
from dcd_lab.data import Patches, read_label
from dcd_lab.data.prediction import to_native
from dcd_lab.experiments import Job, evaluation, run_all
from dcd_lab.metrics import dice
from dcd_lab.pool import threads
from dcd_lab.records.places import write_text

# The runs of a profile are those of this checkout's notebooks.
sys.path.append(str(Path(__file__).resolve().parents[1] / "notebooks"))
from runner.runs import make_cohorts, runs_of

CPU = torch.device("cpu")
ARMS = ("teacher", "undistilled", "DCD")
TIMED = ("teacher", "DCD")  # the undistilled student has the graph of the other


class Route(NamedTuple):
    """How a network is run."""

    runtime: str
    precision: str
    larger: int = 1  # windows than in the study, by this factor
    batch: int = 4  # windows at once
    abreast: bool = False  # each of them by a thread of its own

    @property
    def name(self) -> str:
        """As in tables."""
        parts = [f"{self.runtime} {self.precision}", "windows abreast" * self.abreast]
        return ", ".join(filter(None, [*parts, f"windows x {self.larger}" * (self.larger > 1)]))


ROUTES = (
    Route("PyTorch", "float32"),
    Route("ONNX Runtime", "float32"),
    Route("OpenVINO", "float32"),
    Route("OpenVINO", "int8"),
    Route("OpenVINO", "int8, bfloat16"),
    Route("OpenVINO", "int8, bfloat16", abreast=True),
    Route("OpenVINO", "bfloat16"),
    Route("PyTorch", "bfloat16"),
    Route("ONNX Runtime", "int8"),
)
STUDENTS = (
    Route("OpenVINO", "float32", abreast=True),
    Route("OpenVINO", "int8, bfloat16", 2, abreast=True),
    Route("PyTorch", "float32", 2),
)
"""Of the students alone."""
SLOW = (("ONNX Runtime", "int8"), ("PyTorch", "bfloat16"))
"""Timed in a third of the rounds."""


class Sizes(NamedTuple):
    """How much is measured."""

    profile: str
    volume: tuple[int, int, int]  # in voxels
    calibration: int  # patches
    rounds: int  # of the teacher; twice as many of the student


FULL = Sizes("study", (182, 218, 182), 32, 3)
QUICK = Sizes("smoke", (24, 24, 24), 1, 3)


def window_of(job: Job, route: Route) -> Size3:
    """The window of a network on a route, in voxels."""
    d, h, w = (route.larger * n for n in job.recipe.patch)
    return d, h, w


class Contender(NamedTuple):
    """A network on a route: what runs it, and its file."""

    job: Job
    route: Route
    model: Segmenter
    file: Path

    @property
    def window(self) -> Size3:
        """Of the route, in voxels."""
        return window_of(self.job, self.route)

    def __call__(self, image: np.ndarray) -> torch.Tensor:
        """Class probabilities of an image."""
        mixed = (self.route.runtime, self.route.precision) == ("PyTorch", "bfloat16")
        precision: Precision = "bf16-mixed" if mixed else "32-true"
        given = {"overlap": self.job.recipe.overlap, "batch": self.route.batch}
        return predict(self.model, image, patch=self.window, precision=precision, **given)

    def windows(self, volume: Sequence[int]) -> int:
        """How many of them cover a volume."""
        keep = 1 - self.job.recipe.overlap
        pairs = zip(volume, self.window, strict=True)
        return math.prod(math.ceil(max(n - w, 0) / int(keep * w)) + 1 for n, w in pairs)

    def mib(self) -> float:
        """Size on disk; OpenVINO keeps its weights in a second file."""
        weights = self.file.with_suffix(".bin")
        files = [self.file, *([weights] if self.file.suffix == ".xml" else [])]
        return sum(file.stat().st_size for file in files) / 2**20


def networks(profile: str) -> dict[str, Job]:
    """The runs of the first seed, with their cases and networks."""
    firsts = {job.arm: job for job in reversed(runs_of(profile, {}, ["10"])) if job.tested}
    jobs = {arm: firsts[arm] for arm in ARMS}
    make_cohorts(jobs.values(), workers=1)
    run_all(jobs.values())
    return jobs


def made(job: Job, route: Route, sizes: Sizes, used: int, folder: Path) -> Contender:
    """A network on a route; its files lie in `folder`, and exports are checked."""
    model = job.result().student
    plain, exported = folder / f"{job.arm}.safetensors", folder / f"{job.arm}.onnx"
    if route.runtime == "PyTorch":
        return Contender(job, route, model, save(model, plain))
    ending = "xml" if route.runtime == "OpenVINO" else "onnx"
    # Large windows have more values each, and take longer.
    patches = _patches(job, route.larger, max(sizes.calibration // route.larger**2, 1))
    if not exported.is_file():
        deploy.export_onnx(model, exported, patches[0].shape)
    file = exported
    if route.precision.startswith("int8"):
        file = folder / f"{job.arm}-int8-{route.larger}.{ending}"
        edges: Any = "edges" if ending == "onnx" else ()
        if not file.is_file():
            deploy.quantize(exported, file, patches, keep_float=edges)
    elif ending == "xml":
        file = _converted(exported)
    given = {"bfloat16": "bfloat16" in route.precision, "abreast": route.abreast}
    ready = deploy.load(file, threads=used, **given)
    if route.precision == "float32":
        deploy.check_export(model, ready, patches[:2])
    return Contender(job, route, ready, file)


def _patches(job: Job, larger: int, count: int) -> list[torch.Tensor]:
    recipe = job.recipe
    d, h, w = (larger * n for n in recipe.patch)
    given = {"batch": 1, "seed": 0, "foreground": recipe.foreground}
    deal = Patches(job.cohort.cases("train"), patch=(d, h, w), **given)
    return [deal[step][0] for step in range(count)]


def _converted(exported: Path) -> Path:
    import openvino

    file = exported.with_suffix(".xml")
    if not file.is_file():
        network = openvino.Core().read_model(str(exported))
        openvino.save_model(network, file, compress_to_fp16=False)
    return file


def scored(contender: Contender) -> pd.DataFrame:
    """Dice of every test case: from the record where nothing is rounded, else predicted here."""
    if contender.route.precision == "float32" and contender.route.larger == 1:
        return contender.job.read()[["case", "dice"]]
    return predicted(contender)


def predicted(contender: Contender) -> pd.DataFrame:
    """Dice of every test case, as `experiments.evaluate` has it."""
    job = contender.job
    threshold, rows = job.result().threshold, []
    cases = job.cohort.cases("test")
    for case, prepared in zip(map(read_label, job.cohort.scans("test")), cases, strict=True):
        found = to_native(contender(prepared.image).numpy(), prepared, case)
        rows.append((case.id, dice(decide(found, threshold) > 0, case.label > 0)))
    return pd.DataFrame(rows, columns=["case", "dice"])


def named(job: Job, route: Route) -> dict[str, Any]:
    """The columns that name a network on a route."""
    return {
        "network": job.arm,
        "seed": job.recipe.seed,
        "runtime": route.runtime,
        "precision": route.precision,
        "abreast": route.abreast,
        "window": "x".join(map(str, window_of(job, route))),
    }


def score_all(pairs: Sequence[tuple[Job, Route]], make: Callable[..., Contender], out: str) -> None:
    """Write Dice of every network on every route and case; what earlier calls scored is kept."""
    tables = []
    for count, (job, route) in enumerate(pairs, start=1):
        key = (job.identity, route[:3], evaluation.VERSION)  # the rest moves the time alone
        file = run_dir(f"shipped-{job.label}", *key) / "dice.csv"
        if not file.is_file():
            write_text(file, scored(make(job, route)).to_csv(index=False, lineterminator="\n"))
        tables.append(pd.read_csv(file).assign(**named(job, route)))
        table = pd.concat(tables, ignore_index=True)
        records.save(table[[*named(job, route), "case", "dice"]], out, "shipping", "dice")
        progress("routes scored", count, len(pairs), f"{job.arm} {route.name}")


def time_all(
    ready: Sequence[Contender], sizes: Sizes, used: int, busy: bool
) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """What every contender costs, and the samples of its time in milliseconds."""
    channels = len(ready[0].job.cohort.cases("test")[0].image)
    draw = np.random.default_rng(0)
    image = draw.standard_normal((channels, *sizes.volume), dtype=np.float32)
    calls, rounds = {}, {}
    for contender in ready:
        job, route = contender.job, contender.route
        name = f"{job.arm}, {route.name}"
        count = sizes.rounds * (1 if job.arm == "teacher" else 2)
        if count := count // (3 if route[:2] in SLOW else 1):
            calls[name], rounds[name] = partial(contender, image[_part(contender, busy)]), count
            contender(image[(slice(None), *map(slice, contender.window))])
    timer = time.process_time if busy else time.perf_counter
    samples = interleaved(calls, rounds, CPU, timer=timer)
    rows = []
    for contender in ready:
        name = f"{contender.job.arm}, {contender.route.name}"
        if not (taken := samples.get(name)):
            continue
        shape = (contender.route.batch, channels, *contender.window)
        model, windows = contender.job.result().student, contender.windows(sizes.volume)
        gmacs = windows * deploy.macs(model, (1, *shape[1:])) / 1e9
        peak = math.nan
        if not busy and contender.route[:2] != ("PyTorch", "bfloat16"):
            peak = deploy.peak_mib(contender.model, shape, threads=used)
        parts = windows / contender.windows(image[_part(contender, busy)].shape[1:])
        low, middle, high = parts * np.percentile(taken, [5, 50, 95]) / 1e3
        rows.append(
            {
                **named(contender.job, contender.route),
                "volume": "x".join(map(str, sizes.volume)),
                "batch": contender.route.batch,
                "windows": windows,
                "parameters": parameters(model),
                "gmacs": float(f"{gmacs:.4g}"),
                "size_mib": float(f"{contender.mib():.4g}"),
                "peak_mib": float(f"{peak:.4g}"),
                "seconds": float(f"{middle:.4g}"),
                "seconds_p5": float(f"{low:.4g}"),
                "seconds_p95": float(f"{high:.4g}"),
                "rounds": rounds[name],
                "threads": used,
                "clock": "processor" if busy else "wall",
            }
        )
    return rows, samples


def _part(contender: Contender, busy: bool) -> tuple[slice, ...]:
    """What is timed of a scan: all of it, or on a busy machine a bar as thick as the window."""
    if not busy:
        return (slice(None),)
    _, h, w = contender.window
    return slice(None), slice(None), slice(h), slice(w)


def graphs(jobs: dict[str, Job], folder: Path) -> list[dict[str, Any]]:
    """Of every network: parameters, and the hash of its exported graph without weights."""
    rows = []
    for arm, job in jobs.items():
        model = job.result().student
        shape = (1, model.spec["in_channels"], *job.recipe.patch)
        file = deploy.export_onnx(model, folder / f"{arm}.onnx", shape)
        row = {"network": arm, "seed": job.recipe.seed, "parameters": parameters(model)}
        row |= {"gmacs": deploy.macs(model, shape) / 1e9, "graph": deploy.graph_hash(file)}
        rows.append(row)
    return rows


def run(sizes: Sizes, used: int, out: str, only: str, busy: bool) -> None:
    """Measure what was asked for and write the tables."""
    torch.set_num_threads(used)
    jobs = networks(sizes.profile)
    with TemporaryDirectory() as name, threads(used):
        folder = Path(name)
        hashes = graphs(jobs, folder)
        records.save(hashes, out, "shipping", "graphs")
        students = {row["graph"] for row in hashes if row["network"] != "teacher"}
        assert len(students) == 1, "students of one architecture have one graph"
        make = partial(made, sizes=sizes, used=used, folder=folder)
        pairs = [
            (job, route)
            for route in (*ROUTES, *STUDENTS)
            for arm, job in jobs.items()
            if arm != "teacher" or route not in STUDENTS
            if used > 1 or not route.abreast  # one thread has none beside it
        ]
        if only != "dice":
            ready = [make(job, route) for job, route in pairs if job.arm in TIMED]
            rows, samples = time_all(ready, sizes, used, busy)
            records.save(rows, out, "shipping", "time", samples_ms=samples)
            print(records.load(out, "shipping", "time").to_string(index=False))
        if only != "time":
            score_all(pairs, make, out)
            table = records.load(out, "shipping", "dice")
            keys = ["network", "runtime", "precision", "window"]
            print(table.groupby(keys, sort=False).dice.mean().to_string())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="networks of a few steps, for a test")
    parser.add_argument("--only", choices=["time", "dice"], default="", help="one of the two")
    parser.add_argument("--busy", action="store_true", help="processor time of slabs, one thread")
    parser.add_argument("--rounds", type=int, help="volumes of the teacher, default 3")
    parser.add_argument("--threads", type=int, default=joblib.cpu_count())
    parser.add_argument("--out", help="folder under results/; default benchmarks, quick: smoke")
    options = parser.parse_args(argv)
    if options.threads < 1:
        print(f"--threads: got {options.threads}; expected at least 1", file=sys.stderr)
        return 2
    sizes, out = (QUICK, "smoke") if options.quick else (FULL, "benchmarks")
    used = 1 if options.busy else options.threads
    sizes = sizes._replace(rounds=options.rounds or sizes.rounds)
    try:
        run(sizes, used, options.out or out, options.only, options.busy)
    except ContractError as error:  # without the extra [deploy], for example
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
