"""Counts of the faults that were caused and of the inputs that were tried, told at the end."""

from collections import Counter

import pytest


@pytest.fixture
def tally(record_property):
    """What notes the outcomes of a test for the sum."""
    return lambda outcomes: record_property("faults", dict(outcomes))


def pytest_terminal_summary(terminalreporter):
    total, stats = Counter(), terminalreporter.stats
    for report in (*stats.get("passed", ()), *stats.get("failed", ())):
        for name, outcomes in report.user_properties:
            if name == "faults" and report.when == "call":
                total.update(outcomes)
    if total:
        counts = (f"{total[name]} {name}" for name in ("caused", "survived", "refused", "wrong"))
        terminalreporter.write_line(f"faults: {', '.join(counts)}")
        counts = (f"{total[f'inputs {name}']} {name}" for name in ("answered", "refused"))
        terminalreporter.write_line(f"inputs: {total['inputs']} tried, {', '.join(counts)}")
