"""The directive `study`: how far the study has come, arm by arm, from its plan and its record.

`notebooks/plan.yml` has the arms and seeds that are planned, `results/study/runs` what is finished.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, ClassVar

import yaml
from dcd_provenance import table
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]
TASKS = ("isles2022",)  # of a block of the plan that names none
HEAD = ("block", "arm", "recorded", "planned", "hours", "processor")


def recorded(runs: Path) -> dict[tuple[str, str], dict[int, dict[str, Any]]]:
    """The tested runs by task and arm, and by seed: processor and hours of training."""
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for file in sorted(runs.glob("*/run.json")):
        entry = json.loads(file.read_text("utf-8"))
        job, fit = entry["job"], file.parent / "fit.json"
        if job["tested"] and fit.is_file():
            hours = json.loads(fit.read_text("utf-8"))["seconds"] / 3600
            run = {"processor": entry["facts"]["gpu"] or entry["facts"]["cpu"], "hours": hours}
            arm = job["cohort"]["task"], job["arm"]
            found.setdefault(arm, {})[job["recipe"]["seed"]] = run
    return found


def rows(
    plan: dict[str, Any], done: dict[tuple[str, str], dict[int, dict[str, Any]]]
) -> list[list[str]]:
    """One row for each arm of each block, and for each task of a block that has several."""
    shown = []
    for title, block in plan.items():
        teachers = {"teacher": block["teachers"]} if "teachers" in block else {}
        arms = {**teachers, **dict.fromkeys(block["arms"], block["seeds"])}
        tasks = block.get("tasks", TASKS)
        for task, (arm, seeds) in itertools.product(tasks, arms.items()):
            runs = [run for seed, run in done.get((task, arm), {}).items() if seed in seeds]
            hours = f"{sum(run['hours'] for run in runs):.1f}" if runs else "–"
            processors = ", ".join(sorted({run["processor"] for run in runs})) or "–"
            name = f"{task}: {arm}" if len(tasks) > 1 else arm
            shown.append([title, name, str(len(runs)), str(len(seeds)), hours, processors])
    return shown


class Study(SphinxDirective):
    """A table of all planned arms."""

    has_content: ClassVar[bool] = False

    def run(self) -> list[nodes.Node]:
        """Return the table, rows in the order of the plan."""
        self.env.note_reread()  # the record changes while the page does not
        plan = yaml.safe_load((ROOT / "notebooks" / "plan.yml").read_text("utf-8"))
        done = recorded(ROOT / "results" / "study" / "runs")
        return [table(HEAD, [[nodes.Text(cell) for cell in row] for row in rows(plan, done)])]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("study", Study)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
