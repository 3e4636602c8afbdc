"""One list of dependencies, one of versions, and two commands that say what is missing."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
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
TARGETS = [
    "help",
    "setup",
    "reproduce",
    "test",
    "smoke",
    "demo",
    "study",
    "paper",
    "figures",
    "book",
    "serve",
    "clean",
]


def pins() -> dict[str, str]:
    lines = (PROJECT / "constraints.txt").read_text("utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def requirements(*extras: str) -> list[Requirement]:
    """Return the requirements of the package and of some extras, extras of extras resolved."""
    found = [Requirement(text) for text in SETTINGS["project"]["dependencies"]]
    for extra in extras:
        for text in EXTRAS[extra]:
            requirement = Requirement(text)
            inner = requirement.name == "dcd-core"
            found += requirements(*requirement.extras) if inner else [requirement]
    return found


def test_every_dependency_is_pinned_inside_its_range() -> None:
    known = pins()
    for requirement in requirements("dev"):
        pinned = known.get(canonicalize_name(requirement.name))
        assert pinned is not None, f"{requirement.name} has no line in constraints.txt"
        assert requirement.specifier.contains(pinned), f"{requirement} but tested with {pinned}"


def test_every_pin_serves_the_oldest_python_that_is_promised() -> None:
    """One pin that needs 3.11.5 and pip on 3.11.2 searches for hours, then brings CUDA builds."""
    from importlib import metadata

    promised = SETTINGS["project"]["requires-python"].removeprefix(">=") + ".0"
    needs = {}
    for name, version in pins().items():
        with contextlib.suppress(metadata.PackageNotFoundError):
            found = metadata.metadata(name)
            if found["Version"].split("+")[0] == version:
                needs[name] = found["Requires-Python"] or ""
    assert len(needs) > 0.9 * len(pins())
    wanting = {n: need for n, need in needs.items() if not SpecifierSet(need).contains(promised)}
    assert wanting == {}


def test_pins_are_exact_and_portable() -> None:
    for name, version in pins().items():
        assert re.fullmatch(r"[0-9][\w.]*", version), f"{name}=={version}"
    assert pins()["torch"] == "2.13.0"


def test_the_base_install_is_the_loss_alone() -> None:
    names = {requirement.name for requirement in requirements()}
    assert names == {"torch", "PyWavelets", "numpy", "jaxtyping"}
    assert set(EXTRAS) == {"lab", "book", "nnunet", "deploy", "compress", "scale", "dev"}


def test_what_runs_here_is_what_is_pinned() -> None:
    from importlib import metadata

    different = {}
    for requirement in requirements("dev"):
        installed = metadata.version(requirement.name).split("+")[0]
        if installed != pins()[canonicalize_name(requirement.name)]:
            different[requirement.name] = installed
    assert not different, "run make setup"


def test_conda_users_get_the_same_versions() -> None:
    environment = yaml.safe_load((PROJECT / "environment.yml").read_text("utf-8"))
    python, pip, by_pip = environment["dependencies"]
    assert (python, pip) == ("python=3.11", "pip")
    assert by_pip == {"pip": ["-c constraints.txt", "-e .[dev]"]}


def test_the_version_is_said_once_more_only_where_it_must() -> None:
    version = SETTINGS["project"]["version"]
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text("utf-8"))
    assert version == dcd_core.__version__ == citation["version"]
    assert f"## {version}" in (PROJECT / "CHANGELOG.md").read_text("utf-8")


def test_the_citation_names_the_paper() -> None:
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text("utf-8"))
    paper = citation["preferred-citation"]
    assert paper["title"].startswith("Detail Consistent Stage-Wise Distillation")
    assert paper["identifiers"][0]["value"] == "arXiv:2605.26382"
    assert [author["family-names"] for author in paper["authors"]] == (
        ["Fan", "Geng", "Xiao", "Wang", "Mei", "Che", "Jiang", "Lan"]
    )


def test_the_licence_is_whole() -> None:
    text = (PROJECT / "LICENSE").read_text("utf-8")
    assert "Version 2.0, January 2004" in text
    assert "APPENDIX: How to apply the Apache License to your work." in text
    notice = (PROJECT / "NOTICE").read_text("utf-8")
    for owed in ("McGill University", "ISLES 2022", "open_ms_data", "DCD-3D-MedSeg"):
        assert owed in notice


def test_every_package_the_code_imports_is_declared() -> None:
    from importlib import metadata

    tops: set[str] = set()
    for file in [
        *(PROJECT / "dcd_core").rglob("*.py"),
        *(PROJECT / "dcd_lab").rglob("*.py"),
        *(PROJECT / "notebooks").rglob("*.py"),
    ]:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                tops |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                tops.add(node.module.split(".")[0])
    declared = {canonicalize_name(item.name) for item in requirements(*EXTRAS)}
    distributions = metadata.packages_distributions()
    # Brought along by what is declared: jupyter's shell by ipykernel.
    implied = {"dcd-core", "ipython"}
    missing = {
        top: distributions.get(top)
        for top in tops - set(sys.stdlib_module_names) - {"dcd_core", "dcd_lab", "runner", "tests"}
        if not {canonicalize_name(d) for d in distributions.get(top, [top])} & (declared | implied)
    }
    assert missing == {}


# --- make ---------------------------------------------------------------------------------------

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*arguments: str, folder: Path = PROJECT, **environment: str) -> tuple[int, str]:
    command = ["make", "--no-print-directory", *arguments]
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFL"))}
    done = subprocess.run(
        command, cwd=folder, env=clean | environment, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


@needs_make
def test_help_names_every_target() -> None:
    code, text = make()
    assert code == 0
    assert [target for target in TARGETS if not re.search(rf"\b{target}\b", text)] == []


@needs_make
@pytest.mark.parametrize("target", TARGETS)
def test_targets_are_phony_and_well_formed(target: str, tmp_path: Path) -> None:
    """A file of the same name must not make a target look done: book/ is such a file."""
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(PROJECT / name, tmp_path)
    (tmp_path / target).mkdir()
    code, text = make("-n", target, folder=tmp_path)
    assert code == 0, text
    assert "up to date" not in text


def installable(folder: Path) -> Path:
    """What `make setup` reads, copied to a folder; return where its Python would be."""
    filters = "dcd_core/wavelet/fast/filterbank.c"
    for name in ("Makefile", "constraints.txt", "pyproject.toml", filters):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, folder / name)
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    return python


@needs_make
def test_make_says_which_python_is_missing(tmp_path: Path) -> None:
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(PROJECT / name, tmp_path)
    for tool in ("make", "cat", "cksum", "grep"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or tool)
    code, text = make("setup", folder=tmp_path, PATH=str(tmp_path))
    assert code != 0
    assert "python 3.11 was not found" in text
    assert not (tmp_path / ".venv").exists()


@needs_make
def test_make_says_that_an_index_is_missing(tmp_path: Path) -> None:
    """A stand-in for .venv whose pip fails as it does without a network."""
    python = installable(tmp_path)
    python.write_text('#!/bin/sh\ncase "$*" in *install*) exit 1;; esac\nexit 0\n', "utf-8")
    python.chmod(0o755)
    code, text = make("setup", folder=tmp_path)
    assert code != 0
    assert "package index" in text
    assert not (tmp_path / ".venv" / "dcd-setup").exists()


@needs_make
def test_a_finished_setup_is_not_repeated(tmp_path: Path) -> None:
    python = installable(tmp_path)
    python.write_text("#!/bin/sh\necho called $*\n", "utf-8")
    python.chmod(0o755)
    code, text = make("setup", folder=tmp_path)
    assert code == 0
    assert "torch==2.13.0" in text
    assert make("setup", folder=tmp_path) == (0, "called -c\n")
    with (tmp_path / "constraints.txt").open("a", encoding="utf-8") as file:
        file.write("another==1.0\n")
    assert "install" in make("setup", folder=tmp_path)[1]


def test_ci_is_a_script_of_its_own() -> None:
    script = PROJECT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text("utf-8")
    assert "set -euo pipefail" in text
    assert "DCD_REQUIRE_BROWSER=1" in text


def test_it_installs_without_a_compiler(tmp_path: Path) -> None:
    """What is compiled is optional: a wheel is made all the same, without it."""
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(PROJECT / name, tmp_path)
    shutil.copytree(
        PROJECT / "dcd_core",
        tmp_path / "dcd_core",
        ignore=shutil.ignore_patterns("*.so", "__pycache__"),
    )
    call = ["pip", "wheel", "--no-deps", "--disable-pip-version-check", "-q", "-w", "made", "."]
    run = subprocess.run(
        [sys.executable, "-m", *call],
        cwd=tmp_path,
        env={**os.environ, "CC": "no-such-compiler"},
        capture_output=True,
        text=True,
        check=False,
    )
    if "No matching distribution found for setuptools" in run.stderr:
        pytest.skip("no package index to build from")
    assert run.returncode == 0, run.stderr
    (wheel,) = (tmp_path / "made").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "dcd_core/wavelet/fast/filters.py" in names
    assert not [name for name in names if name.endswith((".so", ".pyd"))]


def test_python_is_the_supported_one() -> None:
    assert sys.version_info >= (3, 11)
