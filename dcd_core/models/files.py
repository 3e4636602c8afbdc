"""Segmenters on disk: weights that come back whole or not at all."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch

from dcd_core.models.architectures import build
from dcd_core.models.segmenter import Segmenter
from dcd_core.storage import atomic
from dcd_core.types import ContractError


def save(model: Segmenter, path: str | Path) -> Path:
    """Write weights (safetensors) with the architecture in the file's own header; atomic.

    Equal models make equal bytes, so a file can be known by its checksum.
    Raises ContractError for a segmenter without `spec`, which could not be built again.
    """
    from safetensors.torch import save_model

    if model.spec is None:
        raise ContractError(
            "model to save", "a Segmenter without spec", "one from dynunet or resenc", "build(...)"
        )
    # safetensors refuses channels_last weights; the model at hand keeps its layout.
    plain = copy.deepcopy(model)
    plain.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    with atomic(path) as temporary:
        # save_model knows that DynUNet lists its blocks under two names.
        save_model(plain, str(temporary), metadata={"spec": json.dumps(model.spec)})
        _sort_header(temporary)
    return Path(path)


def _sort_header(path: Path) -> None:
    """Put the header in order: safetensors writes its metadata in another one every time.

    A file begins with the length of the header (8 bytes, little-endian) and the header, compact
    JSON padded with spaces: in order it is as long, and the numbers behind it stay where they are.
    """
    with path.open("rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        file.seek(8)
        file.write(text.encode().ljust(length))


def load(path: str | Path) -> Segmenter:
    """Read what `save` wrote; every weight must match.

    Raises ContractError when the file is missing, cut short, or of another architecture.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_model

    if not Path(path).is_file():
        raise ContractError(
            "model file", f"nothing at {path}", "a file written by save", "train first"
        )
    try:
        with safe_open(path, framework="pt") as file:
            spec = json.loads((file.metadata() or {})["spec"])
        model = build(**spec)
        load_model(model, path, strict=True)
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError, RuntimeError) as error:
        raise ContractError(
            "model file",
            f"{path}, unreadable ({error})",
            "a whole file written by save",
            "deleting it",
        ) from None
    return model.eval()
