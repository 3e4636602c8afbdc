"""Quantisation after training to 8-bit integers: of an exported network, or simulated in float.

Weights get a scale per channel, activations one per tensor, from the values they take on training
patches. Instance norms stay in float: their statistics are sums over whole volumes.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from dcd_core.errors import nearest, require
from dcd_core.models import Segmenter
from dcd_core.storage import atomic, room_for, sync
from dcd_core.types import ContractError, Volume
from dcd_lab.cache import scratch
from dcd_lab.deploy.export import IMAGE, LOGITS, SEVEN_BITS, adds_in_32_bits, quiet

_Convolution: TypeAlias = nn.Conv3d | nn.ConvTranspose3d


def quantize(
    exported: str | Path,
    path: str | Path,
    patches: Iterable[Tensor],
    *,
    keep_float: Sequence[str] | Literal["edges"] = (),
) -> Path:
    """Quantise an exported .onnx to int8, for OpenVINO (`path` .xml) or ONNX Runtime (.onnx).

    `patches`: some thirty batches (b, c, d, h, w) of training, never test cases. `keep_float`:
    convolutions that stay in float, by their PyTorch names or what these begin with; "edges" are
    those that read the image or write the logits. OpenVINO rounds the inputs of convolutions. ONNX
    Runtime rounds their outputs as well, all channels on one scale, so that a class of small logits
    needs "edges"; it leaves transposed convolutions in float. Raises ContractError for patches that
    are none or not finite, an unknown name, another ending, and without the extra [deploy].

    On a processor whose sums of int8 can overflow (AVX2 without VNNI) weights get seven bits.

    Source: Krishnamoorthi, Quantizing Deep Convolutional Networks for Efficient Inference, arXiv
    1806.08342, 2018; Neural Network Compression Framework, arXiv 2002.08679.
    """
    exported, path = Path(exported), Path(path)
    if path.suffix not in (".xml", ".onnx"):
        raise ContractError("ending of the path", path.suffix, ".xml or .onnx", "student-int8.xml")
    batches = [patch.float().cpu().numpy() for patch in _calibration(patches)]
    require("deploy", "nncf", "onnx", "onnxruntime", "openvino")
    floats = _floats(exported, keep_float)
    path.parent.mkdir(parents=True, exist_ok=True)
    with quiet():
        (_openvino if path.suffix == ".xml" else _onnxruntime)(exported, path, batches, floats)
    return path


def _calibration(patches: Iterable[Tensor]) -> Iterator[Tensor]:
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
        kept = _layers_of(layers, keep_float)
    return {f"{name}.weight": layers[name].name for name in kept}


def _layers_of(layers: Iterable[str], parts: Sequence[str]) -> list[str]:
    """The `layers` that are `parts` of a network or within them; ContractError where none is."""
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
    kinds = ("Convolution", "ConvolutionBackpropData")
    layers = [node for node in network.get_ordered_ops() if node.get_type_name() in kinds]
    weights = [node.input_value(1).get_node().get_friendly_name() for node in layers]
    pairs = zip(layers, weights, strict=True)
    names = [node.get_friendly_name() for node, weight in pairs if weight in floats]
    # By default NNCF rounds the input of instance norms and of residual sums as well.
    scope = nncf.IgnoredScope(names=names, types=["MVN", "Add"], validate=False)
    data = nncf.Dataset(batches)
    options: dict[str, Any] = {"subset_size": len(batches), "ignored_scope": scope}
    if not adds_in_32_bits():
        fix = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
        options["advanced_parameters"] = fix
    rounded = nncf.quantize(network, data, **options)
    if not adds_in_32_bits():
        rounded.set_rt_info("true", ["framework", SEVEN_BITS])
    # Two files, .xml and .bin. The weights come first: who finds the .xml finds them as well.
    with scratch(path.parent, f".{path.name[:40]}.") as folder, room_for(path):
        whole = folder / path.name
        openvino.save_model(rounded, str(whole), compress_to_fp16=False)
        sync(whole.with_suffix(".bin"))
        sync(whole)
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
            reduce_range=not adds_in_32_bits(),
            nodes_to_exclude=[name for name in floats.values() if name],
        )
        if not adds_in_32_bits():
            import onnx

            content = onnx.load(temporary)
            content.metadata_props.add(key=SEVEN_BITS, value="true")
            onnx.save(content, temporary)


def simulate_int8(
    model: Segmenter,
    patches: Iterable[Tensor],
    *,
    percentile: float = 99.99,
    keep_float: Sequence[str] = (),
) -> Segmenter:
    """A copy of the model in which every convolution has rounded weights and inputs, as in int8.

    Weights: 255 symmetric steps per output channel, the largest weight exact. Inputs: 256 steps
    per tensor, from the percentile 100 - `percentile` to `percentile`, 0 exact, the rest clipped;
    the two are means over `patches`, batches (b, c, d, h, w) of training cases, some thirty. The
    rest, and the layers in `keep_float` (names, or what these begin with), stays as it is. There is
    no `spec`. Raises ContractError as `quantize` does, and for a percentile outside (50, 100].

    Source: as `quantize`; Wu et al., Integer Quantization, arXiv 2004.09602, 2020 (percentiles).
    """
    if not 50 < percentile <= 100:
        raise ContractError("percentile", percentile, "in (50, 100]", "99.99")
    rounded = copy.deepcopy(model).eval()
    rounded.spec = None
    layers = {n: m for n, m in rounded.network.named_modules() if isinstance(m, _Convolution)}
    kept = _layers_of(layers, keep_float)
    chosen = [layer for name, layer in layers.items() if name not in kept]
    for layer, (low, high) in _ranges(rounded, chosen, patches, percentile).items():
        # Output channels are the second axis of a transposed convolution, the first of others.
        axis = int(isinstance(layer, nn.ConvTranspose3d))
        layer.weight.data = rounded_weights(layer.weight.data, axis)
        layer.register_forward_pre_hook(partial(_round_input, low, high))
    return rounded


def rounded_weights(weight: Float[Tensor, "_ _ _ _ _"], axis: int) -> Float[Tensor, "_ _ _ _ _"]:
    """Weights on 255 symmetric steps, one scale per channel along `axis`."""
    scale = weight.abs().amax([a for a in range(weight.ndim) if a != axis], keepdim=True) / 127
    return (weight / scale.clamp_min(torch.finfo(weight.dtype).tiny)).round() * scale


def rounded_values(x: Volume, low: float, high: float) -> Volume:
    """Values on 256 steps from `low` to `high`, which hold 0, moved so that 0 is one of them."""
    if low == high:
        return torch.zeros_like(x)
    scale = (high - low) / 255
    zero = round(-low / scale)
    return (x / scale).round().clamp(-zero, 255 - zero) * scale


@torch.inference_mode()
def _ranges(
    model: Segmenter, layers: Sequence[_Convolution], patches: Iterable[Tensor], percentile: float
) -> dict[_Convolution, tuple[float, float]]:
    """Lowest and highest input of every layer, 0 among them."""
    seen: dict[nn.Module, list[list[float]]] = {layer: [] for layer in layers}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].float().cpu().numpy()
        seen[layer].append(np.percentile(values, [100 - percentile, percentile]).tolist())

    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    device = next(model.parameters()).device
    for patch in _calibration(patches):
        model(patch.to(device))
    for handle in handles:
        handle.remove()
    # The heads of deep supervision see nothing outside training.
    means = {layer: np.mean(seen[layer], axis=0).tolist() for layer in layers if seen[layer]}
    return {layer: (min(low, 0.0), max(high, 0.0)) for layer, (low, high) in means.items()}


def _round_input(low: float, high: float, layer: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return rounded_values(inputs[0], low, high)
