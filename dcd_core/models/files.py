"""Segmenters by name and on disk: all weights of a file are read, or the file is refused."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcd_core.models.nnunet import planned
from dcd_core.models.segmenter import Segmenter, refuse_not_finite
from dcd_core.models.unets import dynunet, resenc, swin
from dcd_core.storage import atomic, digest
from dcd_core.types import ContractError

ARCHITECTURES: dict[str, Callable[..., Segmenter]] = {
    made.__name__: made for made in (dynunet, resenc, swin, planned)
}
"""Architectures by name, others may be added; each takes `in_channels`, `classes`, its options."""


def build(architecture: str, in_channels: int, classes: int, **options: Any) -> Segmenter:
    """A segmenter by the name of its architecture, as written in params files and checkpoints."""
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        expected = f"one of {sorted(ARCHITECTURES)}; importing dcd_lab.compress adds 'pruned'"
        raise ContractError("architecture", repr(architecture), expected, "'dynunet'")
    return ARCHITECTURES[architecture](in_channels, classes, **options)


@torch.no_grad()
def halve(model: Segmenter) -> None:
    """Round all weights to half precision, in place: what is tested is what will be stored."""
    for weight in model.state_dict().values():
        if weight.is_floating_point():
            weight.copy_(weight.half())


def save(model: Segmenter, path: str | Path, *, half: bool = False) -> Path:
    """Write weights (safetensors), with architecture and a hash in the file's header; atomic.

    Equal models make equal bytes. With `half` weights are in half precision, which loses nothing of
    a model that `halve` has rounded. Raises ContractError for a segmenter without `spec`.
    """
    from safetensors.torch import save

    if model.spec is None:
        raise ContractError("model to save", "no `spec`", "one that `build` makes", "build(...)")
    # DynUNet lists its blocks under two names; each weight is written once.
    names = dict([*model.named_parameters(), *model.named_buffers()])
    # safetensors refuses channels_last weights.
    weights = {name: w.contiguous() for name, w in model.state_dict().items() if name in names}
    if half:
        weights = {n: w.half() if w.is_floating_point() else w for n, w in weights.items()}
    spec = json.dumps({**model.spec, "sha256": _hash(model.spec, weights)})
    with atomic(path) as temporary:
        temporary.write_bytes(save(weights, {"spec": spec}))
    return Path(path)


def load(path: str | Path) -> Segmenter:
    """Read what `save` wrote; ContractError unless every weight matches and is finite."""
    from safetensors import safe_open
    from safetensors.torch import load_file, load_model

    if not Path(path).is_file():
        raise ContractError("model file", f"nothing at {path}", "a file of save", "train first")
    try:
        with safe_open(path, framework="pt") as file:
            spec = json.loads((file.metadata() or {})["spec"])
        if spec.pop("sha256", None) not in (None, _hash(spec, load_file(path))):
            raise KeyError("changed since it was written")
        model = build(**spec)
        load_model(model, path, strict=True)
    except Exception as error:  # a header can ask for anything
        got = f"{path}, unreadable ({error})"
        raise ContractError("model file", got, "a whole file of save", "another copy") from None
    refuse_not_finite(model, path)
    return model.eval()


def _hash(spec: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    return digest(spec, (weights[name].cpu().numpy().tobytes() for name in sorted(weights)))
