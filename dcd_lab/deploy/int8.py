"""Quantisation after training: an exported network whose convolutions compute with 8-bit integers.

Weights get a scale per channel, activations one per tensor, from the values they take on training
patches. Instance norms stay in float: their statistics are sums over whole volumes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from torch import Tensor

from dcd_core.errors import nearest, require
from dcd_core.storage import atomic
from dcd_core.types import ContractError
from dcd_lab.deploy.export import IMAGE, LOGITS, quiet


def quantize(
    exported: str | Path,
    path: str | Path,
    patches: Iterable[Tensor],
    *,
    keep_float: Sequence[str] | Literal["edges"] = (),
) -> Path:
    """Quantise an exported .onnx to int8, for OpenVINO (`path` .xml) or ONNX Runtime (.onnx).

    `patches`: batches (b, c, d, h, w) of training cases, some thirty; never of those to be tested.
    `keep_float`: convolutions that stay in float, by their PyTorch names or what these begin with;
    "edges" are those that read the image or write the logits. OpenVINO rounds the inputs of
    convolutions. ONNX Runtime rounds their outputs as well, all channels on one scale, so that a
    class of small logits needs "edges"; it leaves transposed convolutions in float. Raises
    ContractError for no patches, a name that is no convolution's, another ending, and without the
    extra [deploy].

    Source: Krishnamoorthi, Quantizing Deep Convolutional Networks for Efficient Inference, arXiv
    1806.08342, 2018; Neural Network Compression Framework, arXiv 2002.08679.
    """
    require("deploy", "nncf", "onnx", "onnxruntime", "openvino")
    path = Path(path)
    if path.suffix not in (".xml", ".onnx"):
        raise ContractError("ending of the path", path.suffix, ".xml or .onnx", "student-int8.xml")
    batches = [patch.float().cpu().numpy() for patch in patches]
    if not batches:
        raise ContractError(
            "calibration patches", "none", "batches of training cases", "32 patches"
        )
    floats = _floats(Path(exported), keep_float)
    with quiet():
        if path.suffix == ".xml":
            _openvino(Path(exported), path, batches, floats)
        else:
            _onnxruntime(Path(exported), path, batches, floats)
    return path


def _floats(exported: Path, keep_float: Sequence[str] | Literal["edges"]) -> dict[str, str]:
    """Convolutions that stay in float: name of the weight, which PyTorch gave, and of the node."""
    import onnx

    graph = onnx.load(exported, load_external_data=False).graph
    nodes = [node for node in graph.node if node.op_type in ("Conv", "ConvTranspose")]
    weights = {node.input[1].removesuffix(".weight"): node for node in nodes}
    if keep_float == "edges":
        found = {
            name: node
            for name, node in weights.items()
            if IMAGE in node.input or LOGITS in node.output
        }
        return {f"{name}.weight": node.name for name, node in found.items()}
    kept = layers_of(weights, keep_float)
    return {f"{name}.weight": weights[name].name for name in kept}


def layers_of(layers: Iterable[str], parts: Sequence[str]) -> list[str]:
    """The `layers` that are the named parts of a network, or within them.

    Raises ContractError for a part that has none.
    """
    layers = list(layers)
    held = {part: [n for n in layers if n == part or n.startswith(f"{part}.")] for part in parts}
    unknown = [part for part, names in held.items() if not names]
    if unknown:
        raise ContractError(
            "keep_float", unknown, f"names out of {sorted(layers)}", nearest(unknown[0], layers)
        )
    return [name for name in layers if any(name in names for names in held.values())]


def _openvino(
    exported: Path, path: Path, batches: list[np.ndarray], floats: dict[str, str]
) -> None:
    # NNCF would report its use to a server.
    os.environ.setdefault("NNCF_CI", "1")
    import nncf
    import openvino

    network = openvino.Core().read_model(str(exported))
    names = [
        operation.get_friendly_name()
        for operation in network.get_ordered_ops()
        if operation.get_type_name() in ("Convolution", "ConvolutionBackpropData")
        and operation.input_value(1).get_node().get_friendly_name() in floats
    ]
    # Of its own accord NNCF would round the input of instance norms and of residual sums as well.
    scope = nncf.IgnoredScope(names=names, types=["MVN", "Add"], validate=False)
    found = nncf.quantize(
        network, nncf.Dataset(batches), subset_size=len(batches), ignored_scope=scope
    )
    # Two files, .xml and .bin. The weights come first: who finds the .xml finds them as well.
    with TemporaryDirectory(dir=path.parent) as folder:
        whole = Path(folder, path.name)
        openvino.save_model(found, str(whole), compress_to_fp16=False)
        os.replace(whole.with_suffix(".bin"), path.with_suffix(".bin"))
        os.replace(whole, path)


def _onnxruntime(
    exported: Path, path: Path, batches: list[np.ndarray], floats: dict[str, str]
) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(batches)

        def get_next(self) -> Any:
            batch = next(self.rest, None)
            return None if batch is None else {IMAGE: batch}

    with atomic(path) as temporary:
        quantize_static(
            str(exported),
            str(temporary),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=[name for name in floats.values() if name],
        )
