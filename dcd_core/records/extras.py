"""Optional packages: who needs one that is not there is told which extra brings it."""

from __future__ import annotations

from importlib.util import find_spec

from dcd_core.types import ContractError


def require(extra: str, *packages: str) -> None:
    """Raise ContractError, naming the `extra` to install, unless all `packages` can be imported."""
    absent = [name for name in packages if find_spec(name) is None]
    if absent:
        raise ContractError(
            "packages",
            f"no {', '.join(absent)}",
            f"{', '.join(packages)} installed",
            f"pip install 'dcd-core[{extra}]'",
        )
