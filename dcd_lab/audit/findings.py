"""Findings: what is wrong with a data set, in words that a data manager understands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, TypeVar

from dcd_core.types import ContractError

Severity: TypeAlias = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
"""Worst first: an error means that the scan cannot be used, a warning that someone should look."""
DATA_SET = "(data set)"
"""Stands for the case where a finding concerns no single one."""

T = TypeVar("T")


class Finding(NamedTuple):
    """One thing that is not as it should be; `got` starts with the name of the file."""

    case: str
    check: str
    got: str
    expected: str
    severity: Severity


class Report:
    """Collects the findings of one case, so that none of them ends the examination."""

    def __init__(self, case: str) -> None:
        self.case = case
        self.findings: list[Finding] = []

    def add(self, check: str, got: str, expected: str, severity: Severity) -> None:
        """Note one finding."""
        self.findings.append(Finding(self.case, check, got, expected, severity))

    def refused(self, check: str, error: ContractError) -> None:
        """Note what was refused about a file as an error of the data."""
        path = Path(error.what)
        if not path.exists():  # it may have vanished a moment ago
            check = "missing file"
        self.add(check, f"{path.name}: {error.got}", str(error.expected), "error")

    def attempt(self, check: str, act: Callable[..., T], *arguments: object) -> T | None:
        """Return what `act` returns, or None once its refusal has been noted."""
        try:
            return act(*arguments)
        except ContractError as error:
            self.refused(check, error)
            return None

    def passes(self, check: str, refuse: Callable[..., None], *arguments: object) -> bool:
        """Return whether `refuse` raises nothing; what it raises is noted."""
        before = len(self.findings)
        self.attempt(check, refuse, *arguments)
        return len(self.findings) == before
