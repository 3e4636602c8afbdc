"""Export: a segmenter as a file that runs without PyTorch's modules, and back as a segmenter."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from dcd_core.errors import require
from dcd_core.models import Segmenter, evaluating
from dcd_core.storage import atomic
from dcd_core.types import ContractError

Runtime: TypeAlias = Literal["onnxruntime", "openvino"]
"""Packages that execute an exported network."""
IMAGE, LOGITS = "image", "logits"
"""Names of the exported network's input (b, c, d, h, w) and output (b, k, d, h, w)."""


def export_onnx(model: Segmenter, path: str | Path, shape: Sequence[int]) -> Path:
    """Write the network as ONNX; its input is "image" (b, c, d, h, w), its output "logits".

    Batch and grid stay free: any batch, and any grid in the steps that the network's strides allow.
    `shape` is that of an example. The file replaces an older one only when it is whole. Raises
    ContractError without the extra [deploy].

    Source: ONNX, opset of PyTorch's exporter.
    """
    require("deploy", "onnx", "onnxscript")
    device = next(model.parameters()).device
    steps = _steps(model, shape)
    # Drawn, not zeros: some operations are exported by what they see. An axis of one step, or a
    # batch of one, would be taken for a constant.
    counts = [n // step for n, step in zip(shape[2:], steps, strict=True)]
    repeats = [2 if n < 2 else 1 for n in (shape[0], *counts)]
    example = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(device)
    example = example.repeat(repeats[0], 1, *repeats[1:])
    free: dict[int, Any] = {0: torch.export.Dim("batch")}
    for axis, (name, step) in enumerate(zip("dhw", steps, strict=True), start=2):
        free[axis] = step * torch.export.Dim(name)
    with evaluating(model), atomic(path) as temporary, quiet():
        torch.onnx.export(
            model.network,
            (example,),
            temporary,
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=[IMAGE],
            output_names=[LOGITS],
            dynamic_shapes=(free,),
        )
        _rename(temporary, model.network)
    return Path(path)


def load(
    path: str | Path, *, threads: int | None = None, runtime: Runtime | None = None
) -> Segmenter:
    """Read an exported network: .onnx for ONNX Runtime, .xml for OpenVINO, on the CPU.

    Its output has logits and no stages, its module no parameters: it predicts, and that is all.
    `threads`: how many it computes with, the runtime's choice if None. `runtime` "openvino" takes
    .onnx as well. Raises ContractError for a missing file or another ending, and without the extra
    [deploy].
    """
    path = Path(path)
    if path.suffix not in _USUAL or not path.is_file():
        raise ContractError(
            "exported network",
            path,
            f"an existing file ending with {' or '.join(_USUAL)}",
            "export_onnx or quantize",
        )
    if (path.suffix, runtime) == (".xml", "onnxruntime"):
        raise ContractError("runtime of .xml", runtime, "openvino", "the .onnx it was made of")
    return Segmenter(Exported(path, threads, runtime or _USUAL[path.suffix]), (), ()).eval()


def check_export(
    model: Segmenter,
    exported: Segmenter | str | Path,
    patches: Iterable[Tensor],
    *,
    tolerance: float = 1e-3,
) -> float:
    """The largest difference of any logit between an exported network and its model.

    `patches`: batches (b, c, d, h, w) that the model takes. Raises ContractError when the
    difference exceeds `tolerance` times the largest logit of the model.
    """
    other = exported if isinstance(exported, Segmenter) else load(exported)
    device = next(model.parameters()).device
    errors, scales = [], []
    with evaluating(model), torch.inference_mode():
        for patch in patches:
            expected = model(patch.to(device)).logits.float().cpu()
            errors.append((other(patch).logits.cpu() - expected).abs().max())
            scales.append(expected.abs().max())
    error, scale = torch.stack(errors).max().item(), torch.stack(scales).max().item()
    if not error <= tolerance * scale:
        raise ContractError(
            "exported network",
            f"logits {error:.3g} off, of at most {scale:.3g}",
            f"within {tolerance:g} of the largest",
            "another runtime, layers kept in float, or a higher tolerance for int8",
        )
    return error


class Exported(nn.Module):
    """An exported network, as a module; it is pickled by the path of its file.

    `runtime`: the package that executes it.
    """

    def __init__(self, path: Path, threads: int | None, runtime: Runtime) -> None:
        super().__init__()
        self.path, self.threads, self.runtime = path, threads, runtime
        # Prediction asks a model's parameters for their device.
        self.nothing = nn.Parameter(torch.empty(0), requires_grad=False)
        self._run = _START[runtime](path, threads)

    def forward(self, image: Tensor) -> Tensor:
        return torch.from_numpy(self._run(image.float().contiguous().numpy()))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.threads, self.runtime)


def _onnxruntime(path: Path, threads: int | None) -> Callable[[Any], Any]:
    require("deploy", "onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: session.run([LOGITS], {IMAGE: image})[0]


def _openvino(path: Path, threads: int | None) -> Callable[[Any], Any]:
    require("deploy", "openvino")
    import openvino

    # Otherwise float layers run in bfloat16 where the processor has it.
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    network = openvino.Core().compile_model(str(path), "CPU", options)
    return lambda image: network(image)[0]


_USUAL: dict[str, Runtime] = {".onnx": "onnxruntime", ".xml": "openvino"}
_START: dict[Runtime, Callable[[Path, int | None], Callable[[Any], Any]]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}


@contextmanager
def quiet() -> Iterator[None]:
    """What exporters and quantisers print and warn about themselves is no news to their users."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    silence: AbstractContextManager[object] = redirect_stdout(io.StringIO())
    if "IPython" in sys.modules:
        # In a notebook progress bars are displays, not text.
        from IPython.utils.capture import capture_output

        silence = capture_output(stderr=False)
    try:
        with warnings.catch_warnings(), silence:
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _rename(path: Path, network: nn.Module) -> None:
    """Give weights the first of their names: DynUNet lists its blocks under two."""
    import onnx

    first = {weight: name for name, weight in network.named_parameters()}
    every = network.named_parameters(remove_duplicate=False)
    names = {name: first[weight] for name, weight in every}
    content = onnx.load(path)
    for weight in content.graph.initializer:
        weight.name = names.get(weight.name, weight.name)
    for node in content.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    onnx.save(content, path)


def _steps(model: Segmenter, shape: Sequence[int]) -> list[int]:
    """Voxels of the image in one of the coarsest stage, by axis: grids are multiples of it."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        stages = model.encode(torch.zeros(*shape, device=device))
    counts = [min([shape[axis], *(s.shape[axis] for s in stages)]) for axis in (2, 3, 4)]
    return [n // count for n, count in zip(shape[2:], counts, strict=True)]
