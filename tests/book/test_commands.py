"""Every command that a page or the README gives is understood: it is read, and not run."""

import argparse
import re
import runpy
import shlex
import tomllib
from typing import Any, NoReturn

import pytest
import typer
from book_pages import PAGES, ROOT, blocks, prose

from dcd_lab.cli.commands import app
from runner import parameters, sources

FILES = {name: (ROOT / name).read_text("utf-8") for name in ("README.md", "CONTRIBUTING.md")}
TEXTS = FILES | {page: prose(page) for page in PAGES}
RULES = re.findall(r"^([a-z][a-z ]*):(?!=)", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
TARGETS = set(" ".join(RULES).split())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
IN_TEXT = re.compile(r"`((?:\w+=\S+ )?(?:make|dcd|python|pip|bash|snakemake) [^`\n]+)`")


def commands() -> list[str]:
    """Every line of a shell block and every command within a sentence, once."""
    found = []
    for text in TEXTS.values():
        for body in blocks(text, "bash"):
            found += re.sub(r"\\\n\s*", "", body).splitlines()
        found += IN_TEXT.findall(text)
    return [line for line in dict.fromkeys(found) if line.strip()]


class Understood(Exception):
    """The options were read."""


def read_and_stop(
    self: argparse.ArgumentParser, arguments: list[str] | None = None, space: object = None
) -> NoReturn:
    options, unknown = self.parse_known_args(arguments)
    assert not unknown, f"{self.prog} does not know {unknown}"
    raise Understood(options)


def read_by_script(script: str, arguments: list[str], patch: pytest.MonkeyPatch) -> None:
    """Have a script of the project read its options, and of the runner the names of parameters."""
    path = ROOT / script
    assert path.is_file()
    if path.parent.name not in ("notebooks", "benchmarks"):
        assert arguments == []  # a script that takes none
        return
    with patch.context() as patched:
        patched.syspath_prepend(path.parent)
        patched.setattr(argparse.ArgumentParser, "parse_args", read_and_stop)
        with pytest.raises(Understood) as understood:
            runpy.run_path(str(path))["main"](arguments)
    (options,) = understood.value.args
    if path.name == "run.py" and not options.archives:
        known = sources.discover(ROOT / "notebooks")
        numbers = ["01" if name == "NN" else name for name in options.names]
        chosen = sources.chunk(sources.select(known, numbers or list(known)), options.chunk)
        declared = {key for name in chosen for key in known[name].declared}
        assert parameters.assignments(options.assigned).keys() <= declared
        assert (ROOT / "notebooks" / "params" / f"{options.profile}.yml").is_file()


def read_by_dcd(arguments: list[str]) -> None:
    group: Any = typer.main.get_command(app)
    if arguments[0].startswith("--"):
        assert arguments[0] in [name for each in group.params for name in each.opts] + ["--help"]
    elif arguments[0] != "COMMAND":
        command = group.commands[arguments[0]]
        if len(arguments) > 1 or not any(each.required for each in command.params):
            command.make_context(arguments[0], arguments[1:])


def read_by_pip(arguments: list[str]) -> None:
    extras = re.findall(r"^\.\[(\w+)\]$", "\n".join(arguments), re.MULTILINE)
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    assert any(name in arguments for name in [".", *(f".[{extra}]" for extra in extras)])


def understand(line: str, patch: pytest.MonkeyPatch) -> None:
    """Raise where a part of the project would not understand the command."""
    words = [word for word in shlex.split(line, comments=True) if not re.match(r"[A-Z_]+=", word)]
    match words:
        case ["make", *targets]:
            assert {target for target in targets if "=" not in target} <= TARGETS
        case ["dcd", *rest] | ["python", "-m", "dcd_lab", *rest]:
            if rest:
                read_by_dcd(rest)
        case ["python", "-m", "pytest", *rest]:
            assert (ROOT / rest[-1]).exists()
        case ["python", "-m", "monai.bundle", "run", *rest]:
            files = re.findall(r"bundle/[\w/.]+yaml", rest[rest.index("--config_file") + 1])
            assert files
            assert [file for file in files if not (ROOT / file).is_file()] == []
        case ["python", script, *rest]:
            read_by_script(script, rest, patch)
        case ["bash", script, *_]:
            assert (ROOT / script).is_file()
        case ["pip", "install", *rest]:
            read_by_pip(rest)
        case ["snakemake", "-s", file, *_]:
            assert (ROOT / file).is_file()
        case ["jupyter", "lab", file]:
            assert (ROOT / file).is_file()
        case ["jupyter-book", "build", folder, *_]:
            assert (ROOT / folder).is_dir()
        case ["export" | "pipx" | "python3.11", *_]:
            assert "$(" not in line or "$(python -m dcd_core.nnunet)" in line
        case ["nnUNetv2_plan_and_preprocess" | "nnUNetv2_train" | "nnUNetv2_predict", *_]:
            pass  # run in test_nnunet.py, where nnU-Net is
        case ["nnUNetv2_evaluate_folder", *_]:
            pass
        case _:
            pytest.fail(f"no test knows how to read {line!r}")


@pytest.mark.parametrize("line", commands())
def test_a_command_is_understood(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    understand(line, monkeypatch)


@pytest.mark.parametrize(
    "line",
    [
        "make everything",
        "python notebooks/run.py --profile smoke 06 --set steps=300",
        "python notebooks/run.py --profile smoke --chunks 1/3",
        "python notebooks/study.py check",
        "dcd audits /data/brats",
        "dcd train ROOT --task isles2022 --teachers NET",
        "pip install -e '.[study]'",
        "rm -r runs",
    ],
)
def test_a_wrong_command_is_not(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((Exception, SystemExit, pytest.fail.Exception)):
        understand(line, monkeypatch)
