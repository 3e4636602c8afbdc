"""Runs the command line: `python -m dcd_lab`."""

from dcd_lab.cli import main

raise SystemExit(main())
