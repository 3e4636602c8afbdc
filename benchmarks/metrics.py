"""What the challenge metrics cost, beside the same rules applied to whole volumes.

    python benchmarks/metrics.py                          a minute or two on one core
    python benchmarks/metrics.py --all                    ten minutes more: see below
    python benchmarks/metrics.py --quick                  small volumes, seconds: does it run?

Contenders, each the lesion-wise scores of BraTS 2024 for all six regions of one case:

    dcd_core      `dcd_lab.metrics.brats2024(...)`: cropped to the lesions, then window by window;
                  it also scores the regions as a whole
    whole volume  `restated.brats2024(...)`: per lesion, every step on the whole volume

Cases are ours: lumps of oedema around a rim around a core or a cavity, scattered over the brain; in
the prediction they are shifted by a voxel and a tenth of the voxels is gone, in clumps. Both
contenders run in one process on one thread, by turns, and must agree. A time is the median over its
rounds, with quartiles; processor time, since the machine may have other work.

Written, with a JSON file (commit, versions, processor, all samples):

    results/<out>/metrics-times    every contender on every case, and the ratio of the two

<out> is `benchmarks`, or `smoke` with --quick. The whole-volume contender runs once per case, and
on the largest, which takes it ten minutes, only with --all.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import restated
from measure import spread
from scipy import ndimage

from dcd_core.progress import progress
from dcd_lab import metrics, records

Size3 = tuple[int, int, int]


class Workload(NamedTuple):
    """A case to score, and how often by whom."""

    shape: Size3
    lesions: int
    rounds: int
    slow_rounds: int


FULL = (
    Workload((91, 109, 91), 10, 5, 1),
    Workload((182, 218, 182), 2, 5, 1),
    Workload((182, 218, 182), 30, 5, 0),
)
QUICK = (Workload((32, 36, 30), 3, 2, 1), Workload((32, 36, 30), 6, 2, 0))


def case(shape: Size3, lesions: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A prediction and a truth (i, j, k) with labels 0 to 4, drawn lesion by lesion."""
    draw = np.random.default_rng(seed)
    true = np.zeros(shape, np.uint8)
    index = np.indices(shape, dtype=np.float32)
    for number in range(lesions):
        # One large lesion, as most patients have, and small ones; half a lesion is 1.5 mm rough.
        radius = (35 if number == 0 else draw.uniform(4, 12)) * min(shape) / 182
        centre = np.array(shape) * draw.uniform(0.15, 0.85, 3)
        box = tuple(
            slice(max(math.floor(c - 1.6 * radius), 0), math.ceil(c + 1.6 * radius) + 1)
            for c in centre
        )
        offsets = index[(slice(None), *box)] - centre[:, None, None, None]
        rough = ndimage.gaussian_filter(draw.standard_normal(offsets.shape[1:]), 2)
        distance = np.linalg.norm(offsets, axis=0) / radius + 1.5 * rough
        window = true[box]
        window[distance < 1] = 2
        window[distance < 0.7] = 3
        window[distance < 0.4] = 1 if number % 2 else 4
    clumps = ndimage.gaussian_filter(draw.standard_normal(shape), 2)
    pred = np.roll(true, 1, 0)
    pred[clumps > np.quantile(clumps, 0.9)] = 0
    return pred, true


def measured(work: Workload) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """Rows and samples (ms of processor time) of one case; both contenders must agree."""
    pred, true = case(work.shape, work.lesions)
    calls = {"dcd_core": metrics.brats2024, "whole volume": restated.brats2024}
    rounds = {"dcd_core": work.rounds, "whole volume": work.slow_rounds}
    metrics.brats2024(*case((16, 16, 16), 1), (1.0, 1.0, 1.0))  # areas are computed once
    samples: dict[str, list[float]] = {name: [] for name, often in rounds.items() if often}
    scores = {}
    for turn in range(work.rounds):
        for name in samples:
            if turn < rounds[name]:
                start = time.process_time()
                scores[name] = calls[name](pred, true, (1.0, 1.0, 1.0))
                samples[name].append(1e3 * (time.process_time() - start))
    if "whole volume" in scores:
        agree(scores["dcd_core"], scores["whole volume"])
    fast = float(np.median(samples["dcd_core"]))
    rows = [
        {
            "grid": "×".join(map(str, work.shape)),
            "lesions": work.lesions,
            "contender": name,
            **spread(times),
            "rounds": len(times),
            "over_dcd_core": float(f"{np.median(times) / fast:.3g}"),
        }
        for name, times in samples.items()
    ]
    return rows, samples


def agree(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    """Refuse to time two codes that say different things."""
    for one, other in zip(ours, theirs, strict=True):
        wrong = [
            key
            for key in other
            if key != "region" and not math.isclose(one[key], other[key], abs_tol=1e-6)
        ]
        if wrong:
            raise RuntimeError(f"{one['region']}: {wrong} differ between the contenders")


def run(works: Sequence[Workload], out: str) -> Path:
    """Measure every case, then write the table."""
    rows: list[dict[str, Any]] = []
    samples = {}
    for done, work in enumerate(works, start=1):
        measured_rows, times = measured(work)
        rows += measured_rows
        samples[f"{'×'.join(map(str, work.shape))}, {work.lesions} lesions"] = times
        progress("metrics", done, len(works))
    code = [Path(__file__), Path(restated.__file__)]
    table = pd.DataFrame(rows)
    path = records.save(
        table,
        out,
        "metrics",
        "times",
        benchmark=records.fingerprint(*[file.read_text("utf-8") for file in code]),
        samples_ms=samples,
    )
    print(f"{path}\n{table.to_string(index=False)}")
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="small volumes, for a test")
    parser.add_argument("--all", action="store_true", help="both contenders on every case")
    parser.add_argument("--out", help="folder under results/; default benchmarks, quick: smoke")
    options = parser.parse_args(argv)
    out = options.out or ("smoke" if options.quick else "benchmarks")
    works = QUICK if options.quick else FULL
    run([work._replace(slow_rounds=1) for work in works] if options.all else works, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
