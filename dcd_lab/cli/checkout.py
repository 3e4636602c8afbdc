"""The checkout: whether all is installed, and the whole experiment again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer

from dcd_lab.cli.console import Json, Workers, print_json, refusal

NEEDED = ("base", "lab")
"""The groups of packages without which commands fail; those of the other extras are optional."""


def doctor(as_json: Json = False) -> None:
    """Tell what is installed, which accelerator is used and which extra is missing.

    Exit code 1 means that packages are missing which most commands need.
    """
    import torch

    from dcd_core.errors import install
    from dcd_core.infer import native_bfloat16

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    facts: dict[str, Any] = {
        "python": sys.version.split()[0],
        "dcd-core": metadata.version("dcd-core"),
        "torch": torch.__version__,
        "accelerator": gpu,
        "threads": torch.get_num_threads(),
        "native bfloat16": native_bfloat16(device),
        "compiled loss": find_spec("dcd_core.wavelet.fast._filterbank") is not None,
        "DCD_DATA": os.environ.get("DCD_DATA"),
    }
    missing = {group: _missing(names) for group, names in _groups().items()}
    if as_json:
        print_json({**facts, "missing": missing})
    else:
        for name, value in facts.items():
            print(f"{name:16}{_word(value)}")
        for group, names in missing.items():
            advice = f"no {', '.join(names)}. Try: {install(group)}" if names else "installed"
            print(f"{f'[{group}]':16}{advice}")
    raise typer.Exit(1 if any(missing.get(group) for group in NEEDED) else 0)


def _word(value: object) -> str:
    words = {"True": "yes", "False": "no", "None": "none"}
    return words.get(str(value), str(value))


def _groups() -> dict[str, list[str]]:
    """The packages that the distribution asks for: those always needed, then by extra."""
    groups: dict[str, list[str]] = {}
    for text in metadata.requires("dcd-core") or ():
        name = re.match(r"[\w.-]+", text)
        extra = re.search(r"extra == ['\"](\w+)", text)
        if name and name[0] != "dcd-core":  # an extra of extras
            groups.setdefault(extra[1] if extra else "base", []).append(name[0])
    return groups


def _missing(names: list[str]) -> list[str]:
    installed = {str(found.name).lower() for found in metadata.distributions()}
    canonical = {re.sub(r"[-_.]+", "-", name) for name in installed}
    return [name for name in names if re.sub(r"[-_.]+", "-", name).lower() not in canonical]


def reproduce(workers: Workers = 2) -> None:
    """Check the record, run the notebooks on it and build the book, as `make reproduce` does.

    What is done already is skipped. Exit code 1 means that a step failed.
    """
    from dcd_core.errors import require
    from dcd_lab.records import root

    home = root()
    if not (home / "notebooks" / "study.py").is_file():
        expected = "a checkout with its notebooks"
        raise refusal("project folder", home, expected, "cd to the checkout, or set DCD_ROOT")
    require("book", "jupyter_book")
    verify = (sys.executable, "notebooks/study.py", "verify")
    book = (str(Path(sys.executable).with_name("jupyter-book")), "build", "book")
    for step in (
        (*verify, "--workers", str(workers), "--quiet"),
        (sys.executable, "notebooks/run.py", "--profile", "study"),
        (*book, "--config", "_config.yml", "--path-output", "book", "-W", "-n", "--keep-going"),
        verify,
    ):
        typer.echo(f"$ {' '.join(map(str, step))}", err=True)
        if subprocess.run(step, cwd=home).returncode:
            raise typer.Exit(1)
