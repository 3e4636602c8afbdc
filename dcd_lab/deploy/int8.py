"""Quantisation after training: an exported network whose convolutions compute with 8-bit integers.

Weights get a scale per channel, activations one per tensor, from the values they take on training
patches. Instance norms stay in float: their statistics are sums over whole volumes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

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

    `patches`: some thirty batches (b, c, d, h, w) of training cases, none of those to be tested.
    `keep_float`: convolutions that stay in float, by their PyTorch names or what these begin with;
    "edges" are those that read the image or write the logits. OpenVINO rounds the inputs of
    convolutions. ONNX Runtime rounds their outputs as well, all channels on one scale, so that a
    class of small logits needs "edges"; it leaves transposed convolutions in float. Raises
    ContractError for patches that are none or not finite, a name that is no convolution's, another
    ending, and without the extra [deploy].

    Source: Krishnamoorthi, Quantizing Deep Convolutional Networks for Efficient Inference, arXiv
    1806.08342, 2018; Neural Network Compression Framework, arXiv 2002.08679.
    """
    exported, path = Path(exported), Path(path)
    if path.suffix not in (".xml", ".onnx"):
        raise ContractError("ending of the path", path.suffix, ".xml or .onnx", "student-int8.xml")
    batches = [patch.float().cpu().numpy() for patch in calibration(patches)]
    require("deploy", "nncf", "onnx", "onnxruntime", "openvino")
    floats = _floats(exported, keep_float)
    path.parent.mkdir(parents=True, exist_ok=True)
    with quiet():
        (_openvino if path.suffix == ".xml" else _onnxruntime)(exported, path, batches, floats)
    return path


def calibration(patches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The batches, one by one; ContractError for one that is not finite, and for none at all."""
    count = 0
    for count, patch in enumerate(patches, 1):
        if not patch.isfinite().all():
            what = f"calibration batch {count}"
            raise ContractError(what, "NaN or infinity", "finite numbers", "data.audit")
        yield patch
    if count == 0:
        raise ContractError("calibration", "no patch", "batches of training cases", "32 patches")


def _floats(exported: Path, keep_float: Sequence[str] | Literal["edges"]) -> dict[str, str]:
    """Convolutions that stay in float: name of the weight, which PyTorch gave, and of the node."""
    import onnx

    graph = onnx.load(exported, load_external_data=False).graph
    nodes = [node for node in graph.node if node.op_type in ("Conv", "ConvTranspose")]
    layers = {node.input[1].removesuffix(".weight"): node for node in nodes}
    if keep_float == "edges":
        kept = [n for n, node in layers.items() if IMAGE in node.input or LOGITS in node.output]
    else:
        kept = layers_of(layers, keep_float)
    return {f"{name}.weight": layers[name].name for name in kept}


def layers_of(layers: Iterable[str], parts: Sequence[str]) -> list[str]:
    """The `layers` that are the named parts of a network, or within them.

    Raises ContractError for a part that has none.
    """
    layers = list(layers)
    for part in parts:
        if not any(f"{name}.".startswith(f"{part}.") for name in layers):
            expected = f"names out of {sorted(layers)}"
            raise ContractError("keep_float", repr(part), expected, nearest(part, layers))
    return [name for name in layers if f"{name}.".startswith(tuple(f"{p}." for p in parts))]


def _openvino(exported: Path, path: Path, batches: list[Any], floats: dict[str, str]) -> None:
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
    # By default NNCF rounds the input of instance norms and of residual sums as well.
    scope = nncf.IgnoredScope(names=names, types=["MVN", "Add"], validate=False)
    data = nncf.Dataset(batches)
    rounded = nncf.quantize(network, data, subset_size=len(batches), ignored_scope=scope)
    # Two files, .xml and .bin. The weights come first: who finds the .xml finds them as well.
    with TemporaryDirectory(dir=path.parent) as folder:
        whole = Path(folder, path.name)
        openvino.save_model(rounded, str(whole), compress_to_fp16=False)
        os.replace(whole.with_suffix(".bin"), path.with_suffix(".bin"))
        os.replace(whole, path)


def _onnxruntime(exported: Path, path: Path, batches: list[Any], floats: dict[str, str]) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    feed = iter([{IMAGE: batch} for batch in batches])

    class Reader(CalibrationDataReader):
        def get_next(self) -> Any:
            return next(feed, None)

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
