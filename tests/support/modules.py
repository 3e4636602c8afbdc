"""Every module of the two packages, as a syntax tree."""

import ast
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
ROOMS = ("dcd_core", "dcd_lab")
TREES = {
    file.relative_to(PROJECT).as_posix(): ast.parse(file.read_text("utf-8"))
    for room in ROOMS
    for file in sorted((PROJECT / room).rglob("*.py"))
}
