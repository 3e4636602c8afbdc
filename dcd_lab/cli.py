"""The command line.

python -m dcd_lab audit ROOT     can this data set be used?
python -m dcd_lab folds ROOT     the five folds, by patient, in the format of nnU-Net
"""

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
        return _failed(f"{error.name} is not installed. Try: pip install 'dcd-core[lab]'")
    except (ContractError, OSError) as error:
        return _failed(str(error))
    except KeyboardInterrupt:
        _failed("interrupted")
        return 130
    except Exception as error:  # whoever cares for the data cannot use a traceback
        return _failed(f"unexpected {type(error).__name__}: {error}. This is a defect: report it")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dcd_lab",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    folds = commands.add_parser(
        "folds",
        help="the five folds of a data set, for training elsewhere",
        description="Split the labelled scans of a data set into nnU-Net's five folds.",
    )
    folds.add_argument("root", help="folder that holds BraTS or ISLES, at any depth")
    folds.add_argument("--task", choices=sorted(TASKS), required=True)
    folds.add_argument(
        "--by-scan",
        action="store_true",
        help="as nnU-Net does by itself: patients with several scans end up on both sides",
    )
    folds.add_argument("--out", default="splits_final.json", help="default: %(default)s")
    folds.set_defaults(run=_folds)
    return parser


def _audit(options: argparse.Namespace) -> int:
    from dcd_lab.audit import audit

    chosen = {name: getattr(options, name) for name in ("task", "edition", "out", "workers")}
    result = audit(options.root, **chosen)
    if text := result.text():
        print(text)
    print(result.verdict())
    return 1 if result.count("error") else 0


def _folds(options: argparse.Namespace) -> int:
    from dcd_lab import data
    from dcd_lab.data.scans import READERS

    scans = READERS[options.task](options.root)
    patients = {scan.id: scan.group for scan in scans if scan.label is not None}
    folds = data.folds(patients, group=None if options.by_scan else patients)
    for number, fold in enumerate(folds):
        leak = len(data.shared(fold, patients))
        warning = f"; {leak} patients on both sides: scores on it are too high" if leak else ""
        print(f"fold {number}: {len(fold.train)} train, {len(fold.val)} val{warning}")
    print(data.write_splits(folds, options.out))
    return 0


def _failed(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2
