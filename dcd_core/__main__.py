"""The command line: `python -m dcd_core audit ROOT` tells whether a data set can be used."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from dcd_core.types import TASKS, ContractError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 fine, 1 the data have errors, 2 it cannot run."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except ModuleNotFoundError as error:
        return _failed(f"{error.name} is not installed. Try: pip install 'dcd-core[study]'")
    except (ContractError, OSError) as error:
        return _failed(str(error))
    except KeyboardInterrupt:
        _failed("interrupted")
        return 130
    except Exception as error:  # whoever cares for the data cannot use a traceback
        return _failed(f"unexpected {type(error).__name__}: {error}. This is a defect: report it")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dcd_core", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    audit = commands.add_parser(
        "audit",
        help="list everything that is wrong with a data set",
        description="List everything that is wrong with a data set. Exit code 1 means errors.",
    )
    audit.add_argument("root", help="folder that holds BraTS or ISLES, at any depth")
    audit.add_argument("--task", choices=sorted(TASKS), help="default: whatever lies there")
    audit.add_argument(
        "--edition", type=int, help="year whose numbers the BraTS labels hold (default: 2024)"
    )
    audit.add_argument("--out", help="folder for findings.csv and manifest.csv")
    audit.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    audit.set_defaults(run=_audit)
    return parser


def _audit(options: argparse.Namespace) -> int:
    from dcd_core.data import audit

    result = audit(
        options.root,
        task=options.task,
        edition=options.edition,
        out=options.out,
        workers=options.workers,
    )
    if text := result.text():
        print(text)
    print(result.verdict())
    return 1 if result.count("error") else 0


def _failed(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
