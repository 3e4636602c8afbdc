"""The shape of the project: which module may import which, and what every public name must say."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
ROOMS = [PROJECT / "dcd_core", PROJECT / "dcd_lab"]

ODDS_AND_ENDS = {"utils", "util", "common", "helpers", "helper", "misc", "core", "lib"}
LIGHT = {"torch", "pywt", "numpy", "jaxtyping"}


FILES = [file for room in ROOMS for file in sorted(room.rglob("*.py"))]
IDS = [file.relative_to(PROJECT).as_posix() for file in FILES]


def test_imports_point_downward() -> None:
    """The law is in pyproject.toml, [tool.importlinter]."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_there_is_no_drawer_of_odds_and_ends() -> None:
    names = {part for file in FILES for part in file.relative_to(PROJECT).with_suffix("").parts}
    assert not names & ODDS_AND_ENDS


def test_importing_the_package_stays_light() -> None:
    code = "import sys, dcd_core; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    heavy = {"monai", "pandas", "matplotlib", "nilearn", "nibabel", "scipy", "torchvision"}
    heavy |= {"sklearn", "safetensors", "IPython", "papermill", "beartype"}
    assert loaded >= {"torch", "pywt"}
    assert not loaded & heavy


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_heavy_packages_are_imported_where_they_are_used(file: Path) -> None:
    """Outside functions: the standard library, the light packages and a module's own subject."""
    module = file.relative_to(PROJECT).parts[1].removesuffix(".py")
    subject = {
        "metrics": {"scipy", "pandas"},
        "stats": {"scipy", "pandas"},
        "phantom": {"scipy", "nibabel", "pandas", "threadpoolctl"},
        "data": {"scipy", "nibabel", "pandas"},
        "audit": {"scipy", "nibabel", "pandas"},
        "experiments": {"pandas"},
        "plots": {"matplotlib", "pandas", "scipy"},
    }
    found = {name.split(".")[0] for name in top_level_imports(ast.parse(file.read_text("utf-8")))}
    known = (
        set(sys.stdlib_module_names) | LIGHT | {"dcd_core", "dcd_lab"} | subject.get(module, set())
    )
    assert not found - known


def top_level_imports(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def public(file: Path) -> Iterator[tuple[str, str]]:
    """Yield name and docstring of the module, its public functions, classes and their methods."""
    tree = ast.parse(file.read_text("utf-8"))
    yield "module", ast.get_docstring(tree) or ""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, ast.get_docstring(node) or ""


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_every_public_name_is_documented_by_a_sentence(file: Path) -> None:
    def is_sentence(text: str) -> bool:
        first = text.split("\n\n", 1)[0].strip()
        return bool(re.match(r"[A-Z0-9`\"(]", first)) and first.endswith((".", ":", "?"))

    silent = [name for name, text in public(file) if not is_sentence(text)]
    assert not silent, f"{file.name}: no sentence for {silent}"


def kept_files() -> list[Path]:
    """Return the text files a clone has: tracked ones, and new ones that git does not ignore."""
    listing = ["git", "-C", str(PROJECT), "ls-files", "-z", "-co", "--exclude-standard"]
    try:
        done = subprocess.run(listing, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    binary = {".png", ".npz", ".gz", ".woff2", ".woff", ".ico", ".onnx"}
    paths = [PROJECT / name for name in done.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and path.suffix not in binary]


def test_no_file_names_a_place_of_one_machine() -> None:
    # Written in pieces, so that this file passes its own test.
    places = ("/" + "work/", "/" + "root/", "/" + r"home/\w", r"C:\\" + "Users", "/" + "Users/")
    place = "|".join(places)
    found = [
        path.relative_to(PROJECT).as_posix()
        for path in kept_files()
        if re.search(place, path.read_text("utf-8", errors="replace"))
    ]
    assert found == []


def test_kept_files_are_small() -> None:
    large = {path.name: path.stat().st_size for path in kept_files() if path.stat().st_size > 3e6}
    assert not large
