"""The README says what the runs said, and its example runs."""

from __future__ import annotations

import io
import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest

PROJECT = Path(__file__).resolve().parents[2]
README = (PROJECT / "README.md").read_text("utf-8")
COLUMNS = {
    "dice": "Dice",
    "hd95_mm": "HD95, mm",
    "nsd_1mm": "NSD at 1 mm",
    "small_lesion_dice": "Dice, lesions < 1 ml",
}


def markdown(table: pd.DataFrame) -> str:
    """The summary of 11-results as the README shows it."""
    lines = ["| task | model | " + " | ".join(COLUMNS.values()) + " |", "|---|---|" + "---|" * 4]
    for row in table.to_dict("records"):
        task = {"06-isles": "stroke lesion", "05-brats": "whole tumour"}[row["task"]]
        numbers = [f"{row[name]:.{1 if name == 'hd95_mm' else 3}f}" for name in COLUMNS]
        numbers = ["–" if number == "nan" else number for number in numbers]
        lines.append(f"| {task} | {row['method']} | " + " | ".join(numbers) + " |")
    return "\n".join(lines)


def published(path: str) -> str:
    """A committed file: `make reproduce` writes numbers of its own over the one at hand."""
    shown = subprocess.run(
        ["git", "-C", str(PROJECT), "show", f"HEAD:{path}"], capture_output=True, text=True
    )
    return shown.stdout if shown.returncode == 0 else (PROJECT / path).read_text("utf-8")


def test_the_results_table_is_that_of_the_published_demo_run():
    expected = markdown(pd.read_csv(io.StringIO(published("results/demo/11-results-summary.csv"))))
    block = re.search(r"<!-- results: demo -->\n(.*?)\n<!-- end of results -->", README, re.DOTALL)
    assert block, "README has lost its markers"
    assert block[1].strip() == expected, f"put this between the markers:\n{expected}"


def test_the_example_runs_and_gives_the_student_a_gradient():
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    scope: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), scope)
    gradients = [p.grad for p in scope["distil"].parameters()]  # type: ignore[attr-defined]
    assert len(gradients) == 2
    assert all(g is not None and g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_links_of_the_readme_lead_somewhere(path: str):
    assert (PROJECT / path).exists()
