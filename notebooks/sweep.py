"""Single units of the comparison on page 07, for machines that share the work.

    python notebooks/sweep.py --profile study list
    python notebooks/sweep.py --profile study prepare isles2022
    python notebooks/sweep.py --profile study choose isles2022 fitnets
    python notebooks/sweep.py --profile study student isles2022 fitnets 0

`prepare` trains the teacher and the student on which weights are measured, `choose` measures the
weight of one arm and trains its candidates, `student` trains and tests one student. What is done is
kept under runs/ and not repeated; the page then reads it from there. `list` prints the units as
JSON, with a key that changes with the parameters and the code.
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

from dcd_core.types import ContractError
from dcd_lab import experiments, records
from dcd_lab.experiments.sweep import UNDISTILLED
from dcd_lab.records.text import printable
from runner.parameters import assignments, resolve
from runner.sources import discover, refuse

PAGE = "07-methods"


def parameters(profile: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of page 07 in a profile, those it only declares included."""
    known = discover(records.root() / "notebooks")
    declared = known[PAGE].declared
    for key in overrides:
        refuse(key, declared, "--set")
    return {**declared, **resolve(known, profile, overrides)[PAGE]}


def units(page: Mapping[str, Any]) -> dict[str, Any]:
    """All there is to do, as plain data; nothing is read or made for it."""
    decided = {name: value for name, value in page.items() if name != "workers"}
    arms = experiments.arms(page["methods"], frozen=page["frozen"])
    key = records.fingerprint(decided, records.source_hash())
    tasks = {name: page[name] for name in ("tasks", "seeds")}
    return {"key": key, "arms": [UNDISTILLED, *arms], **tasks}


def run(options: argparse.Namespace, page: Mapping[str, Any]) -> None:
    """Do what the command says."""
    if options.command == "list":
        print(json.dumps(units(page)))
        return
    refuse(options.task, page["tasks"], "task")
    sweep = experiments.Sweep.of(experiments.Study.of(options.task, **page), **page)
    if options.command == "prepare":
        sweep.prepare()
    elif options.command == "choose":
        sweep.choose([options.arm])
    else:
        experiments.run(sweep.student(options.arm, options.seed))


def main(argv: Sequence[str] | None = None) -> int:
    """Do one unit; the exit code is 2 where that is impossible."""
    parser = argparse.ArgumentParser(
        prog="sweep.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", required=True, help="smoke, study or paper")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", dest="assigned")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="print the units as JSON")
    for name, arguments in {"prepare": 1, "choose": 2, "student": 3}.items():
        command = commands.add_parser(name)
        for argument, kind in (("task", str), ("arm", str), ("seed", int))[:arguments]:
            command.add_argument(argument, type=kind)
    options = parser.parse_args(argv)
    try:
        run(options, parameters(options.profile, assignments(options.assigned)))
    except ContractError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
