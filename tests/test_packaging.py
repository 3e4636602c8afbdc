"""One list of dependencies, one of versions, and a set-up that says what is missing."""

import ast
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import dcd_core

PROJECT = Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))
EXTRAS = SETTINGS["project"]["optional-dependencies"]
PACKED = ["dcd_core", "dcd_lab", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "NOTICE"]
PACKED += ["CITATION.cff", "CHANGELOG.md", "constraints.txt"]
FILES = ["Makefile", "constraints.txt", "pyproject.toml"]
FILES += [
    name for module in SETTINGS["tool"]["setuptools"]["ext-modules"] for name in module["sources"]
]


def pins() -> dict[str, str]:
    lines = (PROJECT / "constraints.txt").read_text("utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def requirements(*extras: str) -> list[Requirement]:
    """Return the requirements of the package and of some extras, extras of extras resolved."""
    listed = [Requirement(text) for text in SETTINGS["project"]["dependencies"]]
    for requirement in [Requirement(text) for extra in extras for text in EXTRAS[extra]]:
        inner = requirement.name == "dcd-core"
        listed += requirements(*requirement.extras) if inner else [requirement]
    return listed


def test_every_dependency_is_pinned_inside_its_range_and_installed_as_pinned() -> None:
    known, wrong = pins(), []
    for requirement in requirements("dev"):
        pin = known.get(canonicalize_name(requirement.name), "")
        installed = metadata.version(requirement.name).split("+")[0]
        if not (pin and requirement.specifier.contains(pin) and installed == pin):
            wrong.append(f"{requirement}: pinned {pin}, installed {installed}")
    assert wrong == [], "run make setup"


def test_every_pin_serves_the_oldest_python_that_is_promised() -> None:
    """One pin that needs 3.11.5 and pip on 3.11.2 searches for hours, then brings CUDA builds."""
    promised = SETTINGS["project"]["requires-python"].removeprefix(">=") + ".0"
    needs = {}
    for name, version in pins().items():
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed = metadata.metadata(name)
            if installed["Version"].split("+")[0] == version:
                needs[name] = installed["Requires-Python"] or ""
    assert len(needs) > 0.9 * len(pins())
    wanting = {n: need for n, need in needs.items() if not SpecifierSet(need).contains(promised)}
    assert wanting == {}


def test_every_package_the_code_imports_is_declared() -> None:
    assert {item.name for item in requirements()} == {"torch", "PyWavelets", "numpy", "jaxtyping"}
    tops: set[str] = set()
    for room in ("dcd_core", "dcd_lab", "notebooks"):
        for file in (PROJECT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if isinstance(node, ast.Import):
                    tops |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                    tops.add(node.module.split(".")[0])
    declared = {canonicalize_name(item.name) for item in requirements(*EXTRAS)}
    declared |= {"dcd-core", "ipython"}  # ipykernel brings IPython
    providers = metadata.packages_distributions()
    own = {*sys.stdlib_module_names, "dcd_core", "dcd_lab", "runner", "worksheets"}
    used = {top: {canonicalize_name(d) for d in providers.get(top, [top])} for top in tops - own}
    assert {top: names for top, names in used.items() if not names & declared} == {}


def test_the_version_is_the_same_everywhere() -> None:
    version = SETTINGS["project"]["version"]
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text("utf-8"))
    assert version == dcd_core.__version__ == citation["version"]
    assert f"## {version}" in (PROJECT / "CHANGELOG.md").read_text("utf-8")


def test_what_archives_read_agrees_with_the_package() -> None:
    project = SETTINGS["project"]
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text("utf-8"))
    archive = json.loads((PROJECT / ".zenodo.json").read_text("utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert archive["version"] == project["version"]
    assert citation["license"] == archive["license"] == project["license"]
    assert citation["title"] == archive["title"]
    assert citation["abstract"] == archive["description"]
    assert citation["keywords"] == archive["keywords"]
    assert {*citation["keywords"]} <= {*project["keywords"]}
    assert citation["authors"] == archive["creators"] == project["authors"]
    (paper,) = citation["preferred-citation"]["identifiers"]
    assert archive["related_identifiers"][0]["identifier"] == paper["value"]


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*arguments: str, folder: Path, **environment: str) -> tuple[int, str]:
    command = ["make", "--no-print-directory", *arguments]
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFL"))}
    done = subprocess.run(
        command, cwd=folder, env=clean | environment, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What `make setup` reads, in an empty folder."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, tmp_path / name)
    return tmp_path


def stand_in(checkout: Path, script: str) -> None:
    """Put a shell script where the environment's Python would be."""
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    python.chmod(0o755)


@needs_make
def test_help_lists_targets_that_a_folder_of_that_name_does_not_hide(checkout: Path) -> None:
    _, text = make(folder=checkout)
    names = " ".join(re.findall(r"^  make ([a-z ]+?)  ", text, re.MULTILINE)).split()
    assert {"setup", "reproduce", "test", "book"} <= set(names)
    for name in names:
        (checkout / name).mkdir()  # book/ is such a folder
        status, text = make("-n", name, folder=checkout)
        assert status == 0, text
        assert "up to date" not in text


@needs_make
def test_make_says_which_python_is_missing(checkout: Path) -> None:
    for tool in ("make", "cat", "cksum", "grep"):
        (checkout / tool).symlink_to(shutil.which(tool) or tool)
    status, text = make("setup", folder=checkout, PATH=str(checkout))
    assert status != 0
    assert "python 3.11 was not found" in text
    assert not (checkout / ".venv").exists()


@needs_make
def test_a_finished_setup_is_not_repeated(checkout: Path) -> None:
    stand_in(checkout, "echo called $*")
    status, text = make("setup", folder=checkout)
    assert status == 0
    assert f"torch=={pins()['torch']}" in text
    assert make("setup", folder=checkout) == (0, "called -c\n")
    with (checkout / "constraints.txt").open("a", encoding="utf-8") as file:
        file.write("another==1.0\n")
    assert "install" in make("setup", folder=checkout)[1]


def pip(*arguments: str, folder: Path, **environment: str) -> None:
    """Call pip; the test is skipped where there is no package index to build from."""
    call = [sys.executable, "-m", "pip", *arguments, "-q", "--disable-pip-version-check"]
    done = subprocess.run(
        call, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )
    if "No matching distribution found for setuptools" in done.stderr:
        pytest.skip("no package index to build from")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_it_installs_without_a_compiler(tmp_path: Path) -> None:
    """What is compiled is optional: a wheel is made all the same, without it."""
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(PROJECT / name, tmp_path)
    skipped = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(PROJECT / "dcd_core", tmp_path / "dcd_core", ignore=skipped)
    pip("wheel", "--no-deps", "-w", "made", ".", folder=tmp_path, CC="no-such-compiler")
    (wheel,) = (tmp_path / "made").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.endswith((".so", ".pyd"))]


@pytest.mark.slow
def test_the_sdist_makes_a_wheel_that_works_outside_the_checkout(tmp_path: Path) -> None:
    listing = ["git", "-C", str(PROJECT), "ls-files", "-co", "--exclude-standard", *PACKED]
    listed = subprocess.run(listing, capture_output=True, text=True, check=True)
    sources = listed.stdout.splitlines()
    for name in sources:
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, tmp_path / "source" / name)
    pip("install", "--target", "tools", *SETTINGS["build-system"]["requires"], folder=tmp_path)
    code = "from setuptools import build_meta; build_meta.build_sdist('..')"
    tools = {**os.environ, "PYTHONPATH": str(tmp_path / "tools")}
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=tmp_path / "source", env=tools, capture_output=True, check=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert not [name for name in archive.getnames() if "/tests" in name]
    made = ("wheel", "--no-deps", "--no-build-isolation", "-w", "made", str(sdist))
    pip(*made, folder=tmp_path, PYTHONPATH=tools["PYTHONPATH"])
    (wheel,) = (tmp_path / "made").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"dcd_core/py.typed", "dcd_lab/py.typed"} <= {*names}
    assert {name.split("/")[0].split("-")[0] for name in names} == {"dcd_core", "dcd_lab"}
    packed = {name for name in names if name.endswith(".py")}
    assert packed == {name for name in sources if name.endswith(".py")}
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    (example,) = re.findall(
        r"```python\n(.*?)```", (PROJECT / "README.md").read_text("utf-8"), re.DOTALL
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{example}\nimport dcd_core\nprint(dcd_core.__file__)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "installed"))
