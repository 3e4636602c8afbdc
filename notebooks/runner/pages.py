"""Executed copies: what a page keeps of a run, and what a failed run says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from dcd_lab import records
from runner.jobs import Job
from runner.sources import tags


def publishable(document: dict[str, Any], job: Job) -> dict[str, Any]:
    """Return an executed notebook without timings and chance ids, and with its provenance.

    The source's parameters cell leaves the page, the injected one is folded, and the same run twice
    gives the same file.
    """
    for cell in document["cells"]:
        _settle(cell)
    plain = job.notebook.document.get("metadata", {})
    facts = records.facts()
    document["metadata"] = {
        "kernelspec": plain.get("kernelspec", {"name": "python3", "display_name": "Python 3"}),
        "language_info": {"name": "python", "pygments_lexer": "ipython3"},
        "dcd": {
            **plain.get("dcd", {}),
            **job.hashes,
            **{key: facts[key] for key in ("commit", "dirty", "versions")},
            "profile": job.profile,
            "parameters": job.parameters,
        },
    }
    return document


def _settle(cell: dict[str, Any]) -> None:
    metadata = cell["metadata"]
    for noise in ("papermill", "execution"):
        metadata.pop(noise, None)
    if "injected-parameters" in tags(cell):
        cell["id"] = "injected-parameters"
        metadata["tags"] = ["injected-parameters", "hide-input"]
    elif "parameters" in tags(cell):
        metadata["tags"] = [*tags(cell), "remove-cell"]
    if "outputs" in cell:
        cell["outputs"] = _without_chance(_joined(cell["outputs"]), cell.get("id", ""))


def _joined(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join neighbouring pieces of one stream: where they are cut is a matter of timing."""
    joined: list[dict[str, Any]] = []
    for output in outputs:
        last = joined[-1] if joined else {}
        if output["output_type"] == "stream" == last.get("output_type") and (
            output["name"] == last["name"]
        ):
            text = "".join(last["text"]) + "".join(output["text"])
            last["text"] = text.splitlines(keepends=True)
        else:
            joined.append(output)
    return joined


def _without_chance(outputs: list[dict[str, Any]], cell: str) -> list[dict[str, Any]]:
    """Name pandas' styled tables by their cell, not by lot, and objects not by their address."""
    text = re.sub(r" at 0x[0-9a-f]+>", ">", json.dumps(outputs))
    for number, drawn in enumerate(dict.fromkeys(re.findall(r'id=\\"(T_[0-9a-f]{5})\\"', text))):
        text = text.replace(drawn, f"T_{cell}_{number}")
    settled: list[dict[str, Any]] = json.loads(text)
    return settled


def failure(document: Mapping[str, Any] | None, job: Job) -> str:
    """Return in one line why a notebook failed; a ContractError speaks for itself."""
    where = job.failed.relative_to(records.root()).as_posix()
    ids = [cell.get("id") for cell in job.notebook.document["cells"]]
    for cell in (document or {}).get("cells", ()):
        for output in cell.get("outputs", ()):
            if output["output_type"] != "error":
                continue
            lines = str(output["evalue"]).strip().splitlines() or [""]
            if output["ename"] == "ContractError":
                return " ".join(lines)
            number = ids.index(cell["id"]) + 1 if cell.get("id") in ids else "?"
            return f"cell {number}: {output['ename']}: {lines[-1]} (see {where})"
    log = job.log.relative_to(records.root()).as_posix()
    return f"the kernel ended without an answer; is there enough memory? (see {log})"
