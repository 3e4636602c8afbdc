"""The table of faults: every test that it names is there, and every test here is named in it."""

import ast
import re
from pathlib import Path

FAULTS = Path(__file__).parent
NAMED = re.findall(r"`([\w/]+\.py)::(\w+)`", (FAULTS / "README.md").read_text("utf-8"))


def names_in(path):
    tree = ast.parse(path.read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_test_that_the_table_names_is_there():
    assert [
        f"{file}::{name}" for file, name in NAMED if name not in names_in(FAULTS.parent / file)
    ] == []
    rows = (FAULTS / "README.md").read_text("utf-8").splitlines()
    assert [
        row for row in rows if row.startswith("| ") and "`" not in row and "tests |" not in row
    ] == []


def test_every_test_of_a_fault_is_in_the_table():
    here = {f"faults/{path.name}": names_in(path) for path in FAULTS.glob("test_*.py")}
    here.pop("faults/test_table.py")
    made = {(file, name) for file, names in here.items() for name in names if name[:5] == "test_"}
    assert sorted(made - {*NAMED}) == []
