"""Run the notebooks of a profile, each in a process of its own, and skip what is already done.

    python notebooks/run.py --profile demo               all of them
    python notebooks/run.py --profile demo 05 06         these, after the notebooks they need
    python notebooks/run.py --profile demo 05 --set steps=100
    python notebooks/run.py --profile study --workers 4
    python notebooks/run.py --profile study --chunk 2/8  the second of eight jobs of an array
    python notebooks/run.py --profile demo --list        what there is, with its parameters

A notebook is done when its source, its parameters, the modules of dcd_core it imports and the
notebooks it needs are those of its last successful run. Executed copies of the profile demo become
pages in book/notebooks; those of other profiles stay in runs/executed unless --publish is given.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

# The modules that are hashed are the modules that run: those of this checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dcd_core.types import ContractError
from dcd_lab import records
from runner.execution import Runner
from runner.jobs import Job, plan
from runner.parameters import assignments, profile_document, refuse, resolve
from runner.screen import listing, results, status_table
from runner.sources import chunk, discover, select, with_needs


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line, read."""
    parser = argparse.ArgumentParser(
        prog="run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="notebook", help="number or name; all if none")
    parser.add_argument("--profile", required=True, help="smoke, demo, study or paper")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="key=value",
        dest="assigned",
        help="override a parameter in every notebook that declares it",
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="notebooks at a time")
    parser.add_argument("--chunk", default="1/1", metavar="i/n", help="the i-th of n parts")
    parser.add_argument("--force", action="store_true", help="run what is done, too")
    parser.add_argument("--publish", action="store_true", help="make the copies pages of the book")
    parser.add_argument(
        "--list", action="store_true", help="show notebooks and parameters, run none"
    )
    parser.add_argument("--results", action="store_true", help="show the final tables, run none")
    return parser.parse_args(argv)


def prepare(options: argparse.Namespace) -> dict[str, Job]:
    """Return the jobs that the command line asks for; ContractError when it asks for nonsense."""
    if options.workers < 1:
        raise ContractError("--workers", options.workers, "at least 1", "--workers 2")
    known = discover(records.root() / "notebooks")
    chosen = chunk(select(known, options.names), options.chunk)
    names = with_needs(known, chosen)
    overrides = assignments(options.assigned)
    offered = {key for name in names for key in known[name].declared}
    for key in overrides:
        refuse(key, offered, "--set")
    parameters = resolve(known, options.profile, overrides)
    return plan(known, names, options.profile, parameters, chosen if options.force else ())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 all done, 1 something failed, 2 a wrong request, 130 interrupted."""
    options = arguments(argv)
    try:
        if options.results:
            profile_document(options.profile)
            print(results(options.profile))
            return 0
        jobs = prepare(options)
        if options.list:
            print(listing(jobs))
            return 0
        return _run(jobs, options)
    except ContractError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\nrun.py: interrupted; what is finished is kept, run again to go on", file=sys.stderr
        )
        return 130


def _run(jobs: dict[str, Job], options: argparse.Namespace) -> int:
    for package in ("papermill", "ipykernel", "psutil"):
        if importlib.util.find_spec(package) is None:
            raise ContractError(package, "not installed", "the extra [lab]", "make setup")
    with TemporaryDirectory(prefix="dcd-run-", ignore_cleanup_errors=True) as scratch:
        well = Runner(jobs, options.workers, Path(scratch), options.publish).run()
    print("\n" + status_table(jobs.values(), options.publish))
    return 0 if well else 1


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # The end of a job on a cluster and a closed terminal are interrupts like Ctrl-C.
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _interrupt)
    sys.exit(main())
