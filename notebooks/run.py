"""Run the notebooks of a profile, each in a process of its own, and skip what is already done.

    python notebooks/run.py --profile smoke              all of them
    python notebooks/run.py --profile study              those whose training runs are recorded
    python notebooks/run.py --profile study 05 06        these, after the notebooks they need
    python notebooks/run.py --profile paper 05 --set kd_peak=0.1
    python notebooks/run.py --profile study --workers 4
    python notebooks/run.py --profile study --chunk 2/8  the second of eight jobs of an array
    python notebooks/run.py --profile study --list       what there is, with its parameters
    python notebooks/run.py --profile study --recompute  train every run anew, beside the record
    python notebooks/run.py --profile study --import runs-01.tar   add runs to the record

A notebook is done when its source, its parameters, the modules of the project it imports, the
record and the notebooks it needs are those of its last successful run. In the profile study
training runs are read from the record. Executed copies of this profile become pages in
book/notebooks; those of other profiles stay in runs/executed unless --publish is given.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

# The modules that are hashed are the modules that run: those of this checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from dcd_core.types import ContractError
from dcd_lab import records
from dcd_lab.experiments import record
from dcd_lab.records.text import printable
from runner.execution import papermill, run
from runner.jobs import BOOK_PROFILE, Job, plan
from runner.parameters import assignments, resolve
from runner.runs import enter_archives
from runner.screen import Screen, listing
from runner.sources import chunk, discover, refuse, select, with_needs


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line, read."""
    parser = argparse.ArgumentParser(
        prog="run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="notebook", help="number or name; all if none")
    add("--profile", required=True, help="smoke, study or paper")
    overrides = "override a parameter in every notebook that declares it"
    add("--set", action="append", default=[], metavar="key=value", dest="assigned", help=overrides)
    add("--workers", type=int, default=1, metavar="N", help="notebooks at a time")
    add("--chunk", default="1/1", metavar="i/n", help="the i-th of n parts")
    add("--force", action="store_true", help="run what is done, too")
    add("--publish", action="store_true", help="make the copies pages of the book")
    add("--recompute", action="store_true", help="train every run anew, beside the record")
    add("--import", nargs="+", metavar="archive", dest="archives", help="add runs to the record")
    add("--list", action="store_true", help="show notebooks and parameters, run none")
    return parser.parse_args(argv)


def prepare(options: argparse.Namespace) -> dict[str, Job]:
    """Return the jobs that the command line asks for; ContractError when it asks for nonsense."""
    if options.workers < 1:
        raise ContractError("--workers", options.workers, "at least 1", "--workers 2")
    known = discover(records.root() / "notebooks")
    read = options.profile == BOOK_PROFILE and not options.recompute
    possible = [name for name in known if known[name].recorded or not read]
    chosen = chunk(select(known, options.names or possible), options.chunk)
    if read:  # a page shows what is recorded, and does without the rest
        known = {name: one.needing(possible) for name, one in known.items()}
    names = with_needs(known, chosen)
    overrides = assignments(options.assigned)
    for key in overrides:
        refuse(key, {key for name in names for key in known[name].declared}, "--set")
    parameters = resolve(known, options.profile, overrides)
    entries = [] if options.recompute else record.entries()
    jobs = plan(known, names, options.profile, parameters, entries, publish=options.publish)
    for name in chosen if options.force and not options.list else ():
        jobs[name].kept("state.json").unlink(missing_ok=True)
    return jobs


def answer(options: argparse.Namespace) -> bool:
    """Do what the command line asks for; return whether all went well."""
    if options.archives:
        overrides = assignments(options.assigned)
        names = enter_archives(options.archives, options.profile, overrides)
        print(f"{len(names)} runs entered the record", *names, sep="\n")
        return True
    jobs = prepare(options)
    if options.list:
        print(listing(jobs.values()))
        return True
    policy = "ignore" if options.recompute else "only" if options.profile == BOOK_PROFILE else "use"
    with Screen(sys.stdout, jobs.values()) as screen:
        asyncio.run(run(jobs, options.workers, screen, partial(papermill, record=policy)))
    return all(job.state in ("run", "cached") for job in jobs.values())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 all done, 1 something failed, 2 a wrong request, 130 interrupted."""
    options = arguments(argv)
    try:
        return 0 if answer(options) else 1
    except ContractError as error:
        code, message = 2, str(error)
    except OSError as error:
        code, message = 1, str(error)
    except KeyboardInterrupt:
        code, message = 130, "interrupted; what is finished is kept, run again to go on"
    print(f"run.py: {printable(message)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    # The end of a job on a cluster and a closed terminal are interrupts like Ctrl-C.
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    sys.exit(main())
