"""Single units of the comparison on page 07, for machines that share them out.

    python notebooks/matrix.py --profile study list
    python notebooks/matrix.py --profile study prepare isles2022
    python notebooks/matrix.py --profile study tune isles2022 fitnets
    python notebooks/matrix.py --profile study student isles2022 fitnets 0

`prepare` trains the teacher and the student on which weights are measured, `tune` chooses one arm's
strength and tries its published weight, `student` trains and tests one student. What is done is
kept under runs/ and not repeated; the page then finds everything there. `list` prints the units as
JSON, with a key that changes when parameters or code do.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# The modules that run are those of this checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dcd_core import methods
from dcd_core.types import ContractError
from dcd_lab import experiments, records
from dcd_lab.experiments.job import TESTING, TRAINING
from dcd_lab.experiments.sweep import UNDISTILLED
from runner.parameters import assignments, refuse, resolve
from runner.sources import discover

PAGE = "07-methods"


def parameters(profile: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of page 07 in a profile, those it only declares included."""
    known = discover(records.root() / "notebooks")
    for key in overrides:
        refuse(key, known[PAGE].declared, "--set")
    return {**known[PAGE].declared, **resolve(known, profile, overrides)[PAGE]}


def units(given: Mapping[str, Any]) -> dict[str, Any]:
    """All there is to do, as plain data; nothing is read or made for it."""
    arms = [
        UNDISTILLED,
        *experiments.arms(given["methods"] or methods.METHODS, frozen=given["frozen"]),
    ]
    decided = {name: value for name, value in given.items() if name != "workers"}
    # "experiments" whole: what plans the runs decides which of them there are.
    code = records.source_hash(*TRAINING, "dcd_lab.experiments", "dcd_core.methods", *TESTING)
    return {
        "key": records.fingerprint(decided, code),
        "tasks": given["tasks"],
        "arms": arms,
        "seeds": given["seeds"],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Do one unit; the exit code is 2 where that is impossible."""
    parser = argparse.ArgumentParser(
        prog="matrix.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", required=True, help="smoke, demo, study or paper")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", dest="assigned")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="print the units as JSON")
    for name in ("prepare", "tune", "student"):
        command = commands.add_parser(name)
        command.add_argument("task")
        if name != "prepare":
            command.add_argument("arm")
        if name == "student":
            command.add_argument("seed", type=int)
    options = parser.parse_args(argv)
    try:
        given = parameters(options.profile, assignments(options.assigned))
        if options.command == "list":
            print(json.dumps(units(given)))
            return 0
        refuse(options.task, given["tasks"], "task")
        matrix = experiments.matrices({**given, "tasks": [options.task]})[options.task]
        run(matrix, options)
    except ContractError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(matrix: experiments.Matrix, options: argparse.Namespace) -> None:
    """Do what the command says."""
    if options.command == "prepare":
        matrix.prepare()
    elif options.command == "tune":
        refuse(options.arm, matrix.arms, "arm")
        matrix.tune([options.arm])
    elif options.arm == UNDISTILLED:
        experiments.run(matrix.undistilled(options.seed))
    else:
        refuse(options.arm, matrix.arms, "arm")
        experiments.run(matrix.student(options.arm, options.seed))


if __name__ == "__main__":
    sys.exit(main())
