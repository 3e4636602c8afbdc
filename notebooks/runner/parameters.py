"""Parameters of a profile, checked against what the notebooks declare."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dcd_core.errors import nearest
from dcd_core.types import ContractError
from dcd_lab import records
from runner.sources import Notebook


def read_yaml(text: str) -> Any:
    """Return the value of a YAML text, in which 1e-3 is a number (in YAML 1.1 it is a string)."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    number = re.compile(r"[-+]?(\d[\d_]*(\.\d*)?|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    return yaml.load(text, Loader)


def profile_document(profile: str) -> dict[str, dict[str, Any]]:
    """Return `notebooks/params/<profile>.yml`: the section `shared` and one section per notebook.

    Raises ContractError for an unknown profile or a file of another structure.
    """
    import yaml

    folder = records.root() / "notebooks" / "params"
    file = folder / f"{profile}.yml"
    known = [path.stem for path in folder.glob("*.yml")]
    if profile not in known:
        raise ContractError("profile", repr(profile), "a known profile", nearest(profile, known))
    try:
        document = read_yaml(file.read_text("utf-8")) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark else ""
        raise ContractError(
            f"notebooks/params/{profile}.yml", f"broken YAML{place}", "YAML", "correct that line"
        ) from None
    sections = {name: section or {} for name, section in document.items()}
    for name, section in sections.items():
        if not isinstance(section, dict):
            raise ContractError(
                f"section {name!r} of notebooks/params/{profile}.yml",
                type(section).__name__,
                "a mapping of parameters",
                "indent `key: value` lines below it",
            )
    return sections


def resolve(
    known: Mapping[str, Notebook], profile: str, overrides: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the parameters of every notebook: profile, shared, its own section, `overrides`.

    Raises ContractError for a key that nobody declares or a value of another type.
    """
    document = profile_document(profile)
    shared = document.pop("shared", {})
    everyone = {key for notebook in known.values() for key in notebook.declared}
    for key in shared:
        refuse(key, everyone, f"shared key of notebooks/params/{profile}.yml")
    for name, section in document.items():
        refuse(name, known, f"section of notebooks/params/{profile}.yml")
        for key in section:
            refuse(key, known[name].declared, f"parameter of {name} in {profile}.yml")
    return {
        name: {
            key: _typed(name, key, value, notebook.declared[key])
            for layer in ({"profile": profile}, shared, document.get(name, {}), overrides)
            for key, value in layer.items()
            if key in notebook.declared
        }
        for name, notebook in known.items()
    }


def refuse(key: str, known: Iterable[str], what: str) -> None:
    """Raise ContractError, with the nearest known name, unless `key` is known."""
    if key not in (known := list(known)):
        raise ContractError(what, repr(key), "a declared name", nearest(key, known))


def _typed(name: str, key: str, value: Any, default: Any) -> Any:
    """Return the value in the type of its default: 1 for a float is 1.0, 1e3 for an int is 1000."""
    if default is None or value is None or type(value) is type(default):
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, float) and number:
        return float(value)
    whole = isinstance(value, float) and value.is_integer()
    if isinstance(default, int) and not isinstance(default, bool) and whole:
        return int(value)
    if isinstance(default, tuple) and isinstance(value, list):
        return value
    raise ContractError(
        f"parameter {key} of {name}", repr(value), type(default).__name__, f"{key}={default!r}"
    )


def assignments(texts: Sequence[str]) -> dict[str, Any]:
    """Return `--set key=value` options as a mapping; values are read as YAML."""
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise ContractError("--set", repr(text), "key=value", "--set seed=1")
        pairs[key] = read_yaml(value)
    return pairs
