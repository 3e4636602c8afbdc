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
PACKAGE = PROJECT / "dcd_core"

# The law: a module imports modules of lower layers only. A folder counts as one module.
LAYERS = (
    {"types", "records"},
    {"wavelet", "metrics", "stats", "phantom"},
    {"dcd", "models", "data"},
    {"rivals", "infer", "deploy", "compress", "flow"},
    {"train", "plots"},
    {"__main__"},
)
# The two leaves of layer 0: everything may speak the vocabulary, records included.
SAME_LAYER = {("records", "types")}
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
ODDS_AND_ENDS = {"utils", "util", "base", "common", "helpers", "helper", "misc", "core", "lib"}
LIGHT = {"torch", "pywt", "numpy", "jaxtyping"}


def modules() -> Iterator[tuple[str, Path]]:
    """Yield every source file with the module (file or folder) of dcd_core it belongs to."""
    for file in sorted(PACKAGE.rglob("*.py")):
        yield file.relative_to(PACKAGE).parts[0].removesuffix(".py"), file


FILES = [file for _, file in modules()]
IDS = [file.relative_to(PROJECT).as_posix() for file in FILES]


def imports(text: str, package: str = "dcd_core") -> set[str]:
    """Return the modules of dcd_core that a source text imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith(f"{package}.")}
        found |= {"a relative import" for name in names if name.startswith(".")}
    return found


def forbidden(module: str, imported: set[str]) -> list[str]:
    """Return what `module` may not import."""
    allowed = {name for name, level in LEVEL.items() if level < LEVEL[module]}
    allowed |= {module} | {low for high, low in SAME_LAYER if high == module}
    # `from dcd_core import __version__` names no module
    return sorted(name for name in imported - allowed if not name.startswith("__"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import dcd_core.stats", {"stats"}),
        ("from dcd_core import wavelet, dcd", {"wavelet", "dcd"}),
        ("def f():\n    from dcd_core.data.scans import Scan", {"data"}),
        ("from . import dcd", {"a relative import"}),
        ("import numpy\nfrom numpy import stats", set()),
    ],
)
def test_imports_are_seen(text: str, found: set[str]) -> None:
    assert imports(text) == found


def test_forbidden_knows_up_from_down() -> None:
    assert forbidden("dcd", {"wavelet", "types", "dcd"}) == []
    assert forbidden("wavelet", {"dcd", "types", "stats"}) == ["dcd", "stats"]
    assert forbidden("types", {"records"}) == ["records"]


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_imports_point_downward(file: Path) -> None:
    module = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    imported = imports(file.read_text("utf-8"))
    if module == "__init__":
        assert imported <= {"dcd", "types", "wavelet"}
        return
    assert module in LEVEL, f"{module} is in no layer: give it a place in LAYERS"
    assert forbidden(module, imported) == []


def test_there_is_no_drawer_of_odds_and_ends() -> None:
    names = {part for file in FILES for part in file.relative_to(PACKAGE).with_suffix("").parts}
    assert not names & ODDS_AND_ENDS


def test_importing_the_package_stays_light() -> None:
    code = "import sys, dcd_core; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    heavy = {"monai", "pandas", "matplotlib", "nilearn", "nibabel", "scipy", "torchvision"}
    heavy |= {"sklearn", "lightning_fabric", "safetensors", "IPython", "papermill", "beartype"}
    assert loaded >= {"torch", "pywt"}
    assert not loaded & heavy


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_heavy_packages_are_imported_where_they_are_used(file: Path) -> None:
    """Outside functions: the standard library, the light packages and a module's own subject."""
    module = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    subject = {
        "metrics": {"scipy", "pandas"},
        "stats": {"scipy", "pandas"},
        "phantom": {"scipy", "nibabel", "pandas", "threadpoolctl"},
        "data": {"scipy", "nibabel", "pandas"},
        "plots": {"matplotlib", "pandas", "scipy"},
        "train": {"pandas", "scipy"},
    }
    found = {name.split(".")[0] for name in top_level_imports(ast.parse(file.read_text("utf-8")))}
    known = set(sys.stdlib_module_names) | LIGHT | {"dcd_core"} | subject.get(module, set())
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
