"""What a deployed network costs: teacher, student, pruned teacher, in float32 and in int8.

    python benchmarks/deployment.py                some minutes on two quiet cores
    python benchmarks/deployment.py --quick        small networks, seconds: a test that they run
    python benchmarks/deployment.py --threads 1

Contenders, all ResEnc U-Nets of one task on one patch:

    teacher            32 to 320 channels, PyTorch, float32
    pruned teacher     cut to the student's parameters, channels in multiples of eight, PyTorch
    student            a quarter of the teacher's channels, PyTorch, float32
    ... float32        the same exported, by OpenVINO and by ONNX Runtime
    ... int8           quantised after training: by NNCF for OpenVINO, statically by ONNX Runtime

Method. Weights are random and calibration patches noise: time, memory and size do not depend on
them. Accuracy is not measured. All contenders take turns in one process, in an order drawn anew
every round, after a pass that warms up; a time is the median over the rounds, its spread the
quartiles. The peak is the resident memory of a fresh process per contender beyond that of its
libraries. Float exports must give the student's logits to a thousandth of the largest. Without the
extras [deploy] and [compress] their rows are missing; the output and the JSON file say so.

Written, with a JSON file (commit, versions, processor, all samples):
results/<out>/deployment-cost; <out> is `benchmarks`, or `smoke` with --quick.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import joblib
import torch
from measure import interleaved, spread

from dcd_core.errors import require
from dcd_core.models import Segmenter, parameters, resenc, save, shrink
from dcd_core.types import ContractError
from dcd_lab import compress, deploy, records
from dcd_lab.tasks import BRATS

CPU = torch.device("cpu")


class Sizes(NamedTuple):
    """How much is measured."""

    channels: tuple[int, ...]  # of the teacher; the student has a quarter
    blocks: tuple[int, ...]
    edge: int  # of the patch, in voxels
    divisor: int  # of the channels of the pruned teacher
    calibration: int  # patches
    rounds: int
    remembered: int  # of the contenders, the first so many have their memory measured


FULL = Sizes((32, 64, 128, 256, 320, 320), (1, 3, 4, 6, 6, 6), 128, 8, 2, 9, 99)
QUICK = Sizes((16, 32), (1, 1), 16, 2, 1, 2, 1)


class Contender(NamedTuple):
    """A network as it is run, the file that ships, and the network whose weights these are."""

    name: str
    precision: str
    runtime: str
    model: Segmenter
    source: Segmenter
    file: Path

    @property
    def mib(self) -> float:
        """Size on disk; OpenVINO keeps its weights in a second file."""
        files = [self.file]
        if self.file.suffix == ".xml":
            files.append(self.file.with_suffix(".bin"))
        return sum(file.stat().st_size for file in files) / 2**20


def contenders(sizes: Sizes, threads: int, folder: Path) -> tuple[list[Contender], list[str]]:
    """Those whose packages are installed, and what is missing for the others."""
    torch.manual_seed(0)
    made: dict[str, Any] = {
        "in_channels": len(BRATS.channels),
        "classes": len(BRATS.labels),
        "blocks": sizes.blocks,
    }
    teacher = resenc(channels=sizes.channels, **made).eval()
    student = resenc(channels=shrink(sizes.channels, 4), **made).eval()
    patch = torch.randn(1, len(BRATS.channels), *[sizes.edge] * 3)
    networks, missing = {"teacher": teacher, "student": student}, []
    try:
        small = patch[..., :64, :64, :64]  # dependencies are traced with gradients
        networks["pruned teacher"] = compress.prune(
            teacher, small, parameters=parameters(student), divisor=sizes.divisor
        )
    except ContractError as error:
        missing.append(f"pruned teacher: {error}")
    ready = []
    for name, model in networks.items():
        file = save(model, folder / f"{name}.safetensors")
        ready.append(Contender(name, "float32", "PyTorch", model, model, file))
    try:
        exported = deploy.export_onnx(student, folder / "student.onnx", patch.shape)
        ready += _deployed(student, exported, patch, sizes, threads)
    except ContractError as error:
        missing.append(f"student by OpenVINO and ONNX Runtime: {error}")
    return ready, missing


def _deployed(
    student: Segmenter, exported: Path, patch: torch.Tensor, sizes: Sizes, threads: int
) -> list[Contender]:
    require("deploy", "nncf", "onnxruntime", "openvino")
    import openvino

    calibration = [patch + 0.1 * torch.randn_like(patch) for _ in range(sizes.calibration)]
    converted = exported.with_suffix(".xml")
    openvino.save_model(
        openvino.Core().read_model(str(exported)), converted, compress_to_fp16=False
    )
    files = [
        ("float32", "OpenVINO", converted),
        ("float32", "ONNX Runtime", exported),
        ("int8", "OpenVINO", exported.with_name("int8-openvino.xml")),
        ("int8", "ONNX Runtime", exported.with_name("int8-onnxruntime.onnx")),
    ]
    ready = []
    for precision, runtime, file in files:
        if precision == "int8":
            deploy.quantize(exported, file, calibration)
        else:
            deploy.check_export(student, file, [patch])
        model = deploy.load(file, threads=threads)
        ready.append(Contender("student", precision, runtime, model, student, file))
    return ready


def run(sizes: Sizes, threads: int, out: str) -> Path:
    """Measure all contenders by turns and write the table."""
    torch.set_num_threads(threads)
    with TemporaryDirectory() as folder:
        ready, missing = contenders(sizes, threads, Path(folder))
        patch = torch.randn(1, len(BRATS.channels), *[sizes.edge] * 3)
        names = [f"{c.name}, {c.precision}, {c.runtime}" for c in ready]
        calls = {n: (lambda c=c: c.model(patch)) for n, c in zip(names, ready, strict=True)}
        with torch.inference_mode():
            for call in calls.values():
                call()
            samples = interleaved(calls, dict.fromkeys(names, sizes.rounds), CPU)
        rows = []
        for i, (name, c) in enumerate(zip(names, ready, strict=True)):
            peak = float("nan")
            if i < sizes.remembered:
                peak = deploy.peak_mib(c.model, patch.shape, threads=threads)
            rows.append(
                {
                    "network": c.name,
                    "precision": c.precision,
                    "runtime": c.runtime,
                    "parameters": parameters(c.source),
                    "gmacs": float(f"{deploy.macs(c.source, patch.shape) / 1e9:.4g}"),
                    "size_mib": float(f"{c.mib:.4g}"),
                    "peak_mib": float(f"{peak:.4g}"),
                    **spread(samples[name]),
                    "rounds": sizes.rounds,
                    "threads": threads,
                    "device": "CPU",
                }
            )
    kept = {"patch": list(patch.shape), "samples_ms": samples, "missing": missing}
    path = records.save(rows, out, "deployment", "cost", **kept)
    for line in missing:
        print(f"missing: {line}")
    print(f"{path}\n{records.load(out, 'deployment', 'cost').to_string(index=False)}")
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="small networks, for a test")
    parser.add_argument("--threads", type=int, default=joblib.cpu_count())
    parser.add_argument("--out", help="folder under results/; default benchmarks, quick: smoke")
    options = parser.parse_args(argv)
    if options.threads < 1:
        print(f"--threads: got {options.threads}; expected at least 1", file=sys.stderr)
        return 2
    if options.quick:
        run(QUICK, options.threads, options.out or "smoke")
    else:
        run(FULL, options.threads, options.out or "benchmarks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
