"""Export: a segmenter as a file that runs without PyTorch's modules, and back as a segmenter."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from dcd_core.errors import require
from dcd_core.models import Segmenter, evaluating
from dcd_core.storage import atomic
from dcd_core.types import ContractError

Runtime: TypeAlias = Literal["onnxruntime", "openvino"]
IMAGE, LOGITS = "image", "logits"  # names of input (b, c, d, h, w) and output (b, k, d, h, w)
REGIONS = "regions"  # in the metadata of an export whose logits are those of overlapping regions
SEVEN_BITS = "seven_bits"  # ... and of one whose int8 weights cannot overflow on any processor


def export_onnx(model: Segmenter, path: str | Path, shape: Sequence[int]) -> Path:
    """Write the network as ONNX; its input is "image" (b, c, d, h, w), its output "logits".

    Batch and grid stay free: any batch, and any grid in the steps that the network's strides allow.
    `shape` is that of an example. An older file is replaced when the new one is whole. Raises
    ContractError for a shape that the network does not take, and without the extra [deploy].
    Source: ONNX, opset of PyTorch's exporter.
    """
    steps = _steps(model, shape)
    require("deploy", "onnx", "onnxscript")
    device = next(model.parameters()).device
    # Drawn, not zeros: some operations are exported by what they see. An axis of one step, or a
    # batch of one, would be taken for a constant.
    batch, channels, *grid = shape
    size = [max(batch, 2), channels, *(max(n, 2 * s) for n, s in zip(grid, steps, strict=True))]
    example = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(device)
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
        _finish(temporary, model)
    return Path(path)


def graph_hash(exported: str | Path) -> str:
    """A hash of what a network of `export_onnx` computes, 12 hexadecimal digits, weights left out.

    Two networks of the same hash differ in the values of their weights alone: operations, their
    order and options, shapes and types are equal. Raises ContractError for a file that cannot be
    read, and without the extra [deploy].
    """
    require("deploy", "onnx")
    import onnx

    try:
        content = onnx.load(exported)
    except Exception as error:  # of the parser or of the system
        raise ContractError("exported network", error, "an ONNX file", "export_onnx") from None
    weights = {weight.name: weight for weight in content.graph.initializer}
    names, parts = dict[str, int](), list[object]()
    for node in content.graph.node:
        options = sorted(option.SerializeToString(deterministic=True) for option in node.attribute)
        parts += [node.domain, node.op_type, options]
        for name in (*node.input, *node.output):
            if (weight := weights.get(name)) is None:
                parts.append(names.setdefault(name, len(names)))  # names differ between exports
                continue
            parts += [weight.data_type, list(weight.dims)]
            if weight.data_type != onnx.TensorProto.FLOAT:  # sizes and axes
                parts.append(onnx.numpy_helper.to_array(weight).tolist())
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def load(
    path: str | Path,
    *,
    threads: int | None = None,
    runtime: Runtime | None = None,
    bfloat16: bool = False,
    abreast: bool = False,
) -> Segmenter:
    """Read an exported network: .onnx for ONNX Runtime, .xml for OpenVINO, on the CPU.

    It has logits and `regions`, but no stages and no parameters. `threads`: how many it computes
    with, the runtime's choice if None. `runtime` "openvino" takes .onnx as well. OpenVINO alone
    has two options: with `bfloat16` float layers run in that precision where the processor has it;
    with `abreast` every thread computes an image of its own, so that a batch takes less time, and
    a single image more. Raises ContractError for a file that is missing, cut short or of another
    ending, and without the extra [deploy].
    """
    path = Path(path)
    if path.suffix not in _USUAL or not path.is_file():
        expected = f"an existing file ending with {' or '.join(_USUAL)}"
        raise ContractError("exported network", path, expected, "export_onnx or quantize")
    if (path.suffix, runtime) == (".xml", "onnxruntime"):
        raise ContractError("runtime of .xml", runtime, "openvino", "the .onnx it was made of")
    runtime = runtime or _USUAL[path.suffix]
    if (bfloat16 or abreast) and runtime != "openvino":
        what = "runtime of bfloat16 or abreast"
        raise ContractError(what, runtime, "openvino", "runtime='openvino'")
    network = Exported(path, threads, runtime, bfloat16, abreast)
    return Segmenter(network, (), (), regions=network.regions).eval()


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
    largest = []
    with evaluating(model), torch.inference_mode():
        for patch in patches:
            expected = model(patch.to(device)).logits.float().cpu()
            error = other(patch).logits.cpu() - expected
            largest.append(torch.stack([error.abs().max(), expected.abs().max()]))
    error, scale = torch.stack(largest).amax(0).tolist()
    if not error <= tolerance * scale:
        got, expected = f"logits {error:.3g} off, of at most {scale:.3g}", f"within {tolerance:g}"
        attempt = "another runtime, layers kept in float, or a higher tolerance for int8"
        raise ContractError("exported network", got, f"{expected} of the largest", attempt)
    return error


class Exported(nn.Module):
    """An exported network, executed by `runtime`; it is pickled by the path of its file."""

    def __init__(
        self,
        path: Path,
        threads: int | None,
        runtime: Runtime,
        bfloat16: bool = False,
        abreast: bool = False,
    ) -> None:
        super().__init__()
        require("deploy", runtime)
        self.runtime, self.given = runtime, (path, threads, runtime, bfloat16, abreast)
        # Prediction asks a model's parameters for their device.
        self.nothing = nn.Parameter(torch.empty(0), requires_grad=False)
        try:
            if runtime == "onnxruntime":
                self._run, self.regions = _onnxruntime(path, threads)
            else:
                self._run, self.regions = _openvino(path, threads, bfloat16, abreast)
        except Exception as error:  # every runtime has errors of its own
            raise ContractError("export", error, "a whole file", f"writing {path} again") from None

    def forward(self, image: Tensor) -> Tensor:
        return torch.from_numpy(self._run(image.float().contiguous().numpy()))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.given


def _onnxruntime(path: Path, threads: int | None) -> tuple[Callable[[Any], Any], bool]:
    """What runs the network, and whether its logits are those of overlapping regions."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    regions = REGIONS in metadata
    if SEVEN_BITS not in metadata and b"QuantizeLinear" in path.read_bytes():
        _warn_of_overflow(path)
    return lambda image: session.run([LOGITS], {IMAGE: image})[0], regions


def _openvino(
    path: Path, threads: int | None, bfloat16: bool, abreast: bool
) -> tuple[Callable[[Any], Any], bool]:
    import openvino

    # By itself it takes bfloat16 where the processor has it.
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32"}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    if abreast:
        options["NUM_STREAMS"] = threads or os.cpu_count()
    core = openvino.Core()
    content = core.read_model(str(path))
    network = core.compile_model(content, "CPU", options)
    regions = content.has_rt_info(["framework", REGIONS])  # where it keeps the metadata of ONNX
    rounded = any(node.get_type_name() == "FakeQuantize" for node in content.get_ops())
    if rounded and not content.has_rt_info(["framework", SEVEN_BITS]):
        _warn_of_overflow(path)
    if abreast:
        return partial(_abreast, openvino.AsyncInferQueue(network)), regions
    return lambda image: network(image)[0], regions


def _abreast(queue: Any, images: Any) -> Any:
    """The logits of every image of a batch, as many at a time as the queue has requests."""
    found: dict[int, Any] = {}
    queue.set_callback(lambda done, at: found.update({at: done.get_output_tensor(0).data.copy()}))
    for at in range(len(images)):
        queue.start_async({0: images[at : at + 1]}, at)
    queue.wait_all()
    return np.concatenate([found[at] for at in range(len(images))])


def adds_in_32_bits() -> bool:
    """Whether this processor adds products of int8 in 32 bits; AVX2 and AVX-512 without VNNI: 16.

    There sums of two products can overflow, and the runtimes let them. Where the system does not
    tell, as outside Linux, it is taken to.
    """
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
        flags = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
        names = {*flags[1].split()} if flags else set()
        return "avx2" not in names or bool(names & {"avx512_vnni", "avx_vnni", "amx_int8"})
    return True


def _warn_of_overflow(path: Path) -> None:
    if not adds_in_32_bits():
        warnings.warn(
            f"{path.name}: int8 can overflow on this processor, which has no VNNI, and its logits "
            "be wrong; quantize it on this machine, which then gives weights seven bits"
        )


_USUAL: dict[str, Runtime] = {".onnx": "onnxruntime", ".xml": "openvino"}


@contextmanager
def quiet() -> Iterator[None]:
    """Within, exporters and quantisers neither print nor warn about themselves."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    silence: AbstractContextManager[object] = redirect_stdout(io.StringIO())
    if "IPython" in sys.modules:  # in a notebook progress bars are displays, not text
        from IPython.utils.capture import capture_output

        silence = capture_output(stderr=False)
    try:
        with warnings.catch_warnings(), silence:
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _finish(path: Path, model: Segmenter) -> None:
    """Note `regions`, and give weights the first of their names: DynUNet has two for its blocks."""
    import onnx

    first = {weight: name for name, weight in model.network.named_parameters()}
    names = {n: first[w] for n, w in model.network.named_parameters(remove_duplicate=False)}
    content = onnx.load(path)
    if model.regions:
        content.metadata_props.add(key=REGIONS, value="true")
    for weight in content.graph.initializer:
        weight.name = names.get(weight.name, weight.name)
    for node in content.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    onnx.save(content, path)


def _steps(model: Segmenter, shape: Sequence[int]) -> list[int]:
    """Voxels of the image in one of the coarsest stage, by axis: grids are multiples of it."""
    image = torch.zeros(*shape, device=next(model.parameters()).device)
    with evaluating(model), torch.inference_mode():
        stages = model(image).stages
    return [n // min([n, *(s.shape[axis] for s in stages)]) for axis, n in enumerate(shape[2:], 2)]
