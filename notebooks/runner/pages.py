"""Executed copies: what a page keeps of a run, and what a failed run says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from dcd_core.storage import atomic
from dcd_lab import records
from runner.jobs import Job, relative
from runner.sources import tags

LIMIT_BYTES = 1_000_000


def settle(document: NotebookNode, job: Job) -> None:
    """Give an executed copy its provenance, and take from it timings and random names.

    The page hides the parameters cell of the source and folds the injected one. The same run twice
    gives the same page.
    """
    facts = records.facts()
    made = {key: facts[key] for key in ("commit", "dirty", "versions")}
    made |= job.hashes | {"profile": job.profile, "parameters": job.parameters}
    plain = job.notebook.document.metadata
    document.metadata = {
        "kernelspec": plain.get("kernelspec", {"name": "python3", "display_name": "Python 3"}),
        "language_info": {"name": "python", "pygments_lexer": "ipython3"},
        "dcd": plain.get("dcd", {}) | made,
    }
    for cell in document.cells:
        for noise in ("papermill", "execution"):
            cell.metadata.pop(noise, None)
        if "injected-parameters" in tags(cell):
            cell.id = "injected-parameters"
            cell.metadata.tags = ["injected-parameters", "hide-input"]
        elif "parameters" in tags(cell):
            cell.metadata.tags = [*tags(cell), "remove-cell"]
        if "outputs" in cell:
            text = re.sub(r" at 0x[0-9a-f]+>", ">", json.dumps(cell.outputs))
            tables = dict.fromkeys(re.findall(r'id=\\"(T_[0-9a-f]{5})\\"', text))
            for number, table in enumerate(tables):  # as pandas names its styled tables
                text = text.replace(table, f"T_{cell.id}_{number}")
            cell.outputs = [nbformat.from_dict(output) for output in json.loads(text)]


def failure(document: NotebookNode | None, status: int, job: Job) -> str:
    """Return in one line why a run failed, or nothing; a ContractError speaks for itself."""
    for cell in document.cells if document else ():
        for output in cell.get("outputs", ()):
            if output.output_type == "error":
                lines = output.evalue.strip().splitlines() or [""]
                if output.ename == "ContractError":
                    return " ".join(lines)
                where = f"see [{cell.execution_count}] in {relative(job.kept('FAILED.ipynb'))}"
                return f"{output.ename}: {lines[-1]} ({where})"
    if status or not document:
        log = relative(job.kept("log"))
        return f"the kernel ended without an answer; is there enough memory? (see {log})"
    size = len(nbformat.writes(document).encode("utf-8"))
    message = f"the page has {size / 1e6:.1f} MB, more than 1; show less, or smaller pictures"
    return message if size > LIMIT_BYTES else ""


def write(document: NotebookNode, path: Path) -> None:
    """Write a notebook, whole or not at all."""
    with atomic(path) as temporary:
        nbformat.write(document, temporary)
