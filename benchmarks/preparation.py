"""What it costs to prepare a scan, beside opening its files.

    python benchmarks/preparation.py            a minute on one core
    python benchmarks/preparation.py --quick    a small scan, seconds: does it run?

One scan of BraTS 2024 at its full size, 182 x 218 x 182 voxels, four channels and a label, gzipped:
noise in a brain of 140 x 174 x 136 voxels, which compresses as badly as a real scan. A process of
its own, with one thread, does in turn

    nibabel     open the five files and convert their voxels to float32: the least that is needed
    read        `data.read`: the same, and all checks
    prepare     `data.prepare`: crop, fill, normalise
    resampled   `data.prepare(spacing_mm=1.5)`: the same and resampling by splines
    keep        `data.prepared` of a scan that is not kept yet: read, prepare, write

Times are processor seconds, since the machine may do other work: median and quartiles. The peak is
the largest resident memory of the process, libraries included.

Written, with a JSON file: results/<out>/preparation-times; <out> is `benchmarks`, or `smoke`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
import pandas as pd
from measure import spread

from dcd_core.types import Case, Size3
from dcd_lab import data, records
from dcd_lab.deploy.cost import resident_bytes
from dcd_lab.tasks import BRATS

FULL, SMALL = (182, 218, 182), (24, 28, 24)


def scan_of(size: Size3, folder: Path) -> None:
    """Write one scan of noise in a brain that fills three quarters of every axis."""
    draw = np.random.default_rng(0)
    brain = tuple(slice(n // 8, n // 8 + 3 * n // 4) for n in size)
    inside = tuple(edge.stop - edge.start for edge in brain)
    image = np.zeros((4, *size), np.float32)
    # Whole numbers, as scanners give: a fraction of noise would not compress at all.
    image[(slice(None), *brain)] = np.rint(draw.normal(500, 100, (4, *inside)))
    label = np.zeros(size, np.uint8)
    label[brain] = draw.integers(0, 5, inside)
    case = Case("BraTS-GLI-00001-100", image, label, (1.0,) * 3, np.diag([-1.0, 1, 1, 1]))
    data.write([case], folder, task=BRATS)


def measured(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Processor milliseconds of every step and round, and the peak in GiB under "peak"."""
    [scan] = data.brats2024(folder)
    case = data.read(scan)
    steps: dict[str, Callable[[], object]] = {
        "nibabel": lambda: [np.asarray(nib.load(f).dataobj, np.float32) for f in scan.files],
        "read": lambda: data.read(scan),
        "prepare": lambda: data.prepare(case, task=BRATS),
        "resampled": lambda: data.prepare(case, spacing_mm=1.5, task=BRATS),
        "keep": lambda: data.prepared([scan]),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        for name, step in steps.items():
            os.utime(scan.channels[0], ns=(number, number))  # so that nothing is kept of this file
            start = time.process_time()
            step()
            times[name].append(1e3 * (time.process_time() - start))
    return {**times, "peak": [resident_bytes("VmHWM") / 2**30]}


def run(size: Size3, rounds: int, out: str) -> Path:
    """Measure in a process of its own, then write the table."""
    with TemporaryDirectory() as scratch:
        scan_of(size, Path(scratch, "data"))
        done = subprocess.run(
            [sys.executable, __file__, "--measure", str(Path(scratch, "data")), str(rounds)],
            env={**os.environ, "DCD_ROOT": scratch, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise RuntimeError(done.stderr)
    samples: dict[str, list[float]] = json.loads(done.stdout)
    [peak] = samples.pop("peak")
    least = float(np.median(samples["nibabel"]))
    table = pd.DataFrame(
        [
            {
                "step": name,
                **spread(times),
                "over_nibabel": float(f"{np.median(times) / least:.3g}"),
                "peak_gib": float(f"{peak:.3g}"),
            }
            for name, times in samples.items()
        ]
    )
    path = records.save(table, out, "preparation", "times", size=list(size), samples_ms=samples)
    print(f"{path}\n{table.to_string(index=False)}")
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small scan, for a test")
    parser.add_argument("--out", help="folder under results/; default benchmarks, quick: smoke")
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "ROUNDS"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure:
        folder, rounds = options.measure
        json.dump(measured(Path(folder), int(rounds)), sys.stdout)
    elif options.quick:
        run(SMALL, 2, options.out or "smoke")
    else:
        run(FULL, 5, options.out or "benchmarks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
