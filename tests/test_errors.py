"""Errors have one shape: every place that raises says what, got, expected and what to try."""

import ast

from modules import TREES

OTHERS = {
    "FloatingPointError": "training diverged, which is a result",
    "NotImplementedError": "an abstract method",
    "MemoryError": "what Python raises where there is none left",
    "SystemExit": "the exit code of a command",
    "typer.Exit": "the exit code of a command",
    "AttributeError": "a module's __getattr__ must",
    "_Encoded": "ends a forward pass, and is caught there",
}
"""What else is raised, and why."""
CAUGHT = {
    ("dcd_core/models/files.py", "KeyError"),
    ("dcd_core/models/nnunet.py", "KeyError"),
    ("dcd_core/train/distiller.py", "KeyError"),
    ("dcd_core/storage.py", "zipfile.BadZipFile"),
    ("dcd_lab/data/volumes.py", "TypeError"),
}
"""Raised to be caught by the reader of a file, which names it in a ContractError."""


def name_of(node):
    return ast.unparse(node.func if isinstance(node, ast.Call) else node).removeprefix("self.")


def makers():
    """Functions that return a ContractError, or yield some."""
    functions = (n for tree in TREES.values() for n in ast.walk(tree))
    return {
        node.name
        for node in functions
        if isinstance(node, ast.FunctionDef)
        if node.returns is not None and "ContractError" in ast.unparse(node.returns)
    }


def test_every_raise_is_of_one_shape_or_a_listed_exception():
    known, wrong = {"ContractError", *OTHERS, *makers()}, []
    for file, tree in TREES.items():
        # `raise error`, where `error` comes out of one of the makers.
        kept = {
            name.id
            for loop in ast.walk(tree)
            if isinstance(loop, ast.For) and name_of(loop.iter) in known
            for name in ast.walk(loop.target)
            if isinstance(name, ast.Name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and node.exc is not None:
                name = name_of(node.exc)
                if name not in known | kept and (file, name) not in CAUGHT:
                    wrong.append(f"{file}:{node.lineno} raises {name}")
    assert wrong == []


def test_every_contract_error_has_its_four_parts_and_says_something():
    calls = [
        (f"{file}:{node.lineno}", node)
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and name_of(node) in ("ContractError", "refusal")
    ]
    whole = [
        (place, c) for place, c in calls if not any(isinstance(a, ast.Starred) for a in c.args)
    ]
    assert len(whole) > 100
    assert [place for place, call in whole if len(call.args) != 4 or call.keywords] == []
    texts = [
        (place, part.value)
        for place, call in whole
        for part in call.args
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]
    assert [place for place, text in texts if not text.strip()] == []
