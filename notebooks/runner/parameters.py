"""Parameters of a profile, checked against what the notebooks declare."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from dcd_core.types import ContractError
from dcd_lab import records
from runner.sources import Notebook, refuse

_OLD = re.compile(r"[-+]?(0[0-7_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")


def profile(name: str) -> dict[str, dict[str, Any]]:
    """Return `notebooks/params/<name>.yml`: the section `shared` and one for each notebook."""
    from omegaconf import OmegaConf

    file = f"notebooks/params/{name}.yml"
    known = (records.root() / file).parent.glob("*.yml")
    refuse(name, (path.stem for path in known), "profile")
    document = _plain(partial(OmegaConf.load, records.root() / file), file)
    _refuse_old_numbers((records.root() / file).read_text("utf-8-sig"), file)
    if not isinstance(document, dict) or not document:
        raise ContractError(file, document, "sections of parameters", "`shared:` and lines below")
    for section, values in document.items():
        if not isinstance(values, dict | None):
            what = f"section {section!r} of {file}"
            raise ContractError(what, repr(values), "`key: value` lines", "indent them below it")
    return {str(section): values or {} for section, values in document.items()}


def _plain(read: Callable[[], Any], what: str) -> Any:
    """Return what `read` reads as plain data. OmegaConf refuses a key that is there twice."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        return OmegaConf.to_container(read())
    except (YAMLError, OmegaConfBaseException, UnicodeError, RecursionError, OSError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark else ""
        fault = place + (getattr(error, "problem", None) or str(error).splitlines()[0])
        raise ContractError(what, fault, "YAML in UTF-8", "correct this place") from None


def _refuse_old_numbers(text: str, what: str) -> None:
    """Raise ContractError for numbers that only YAML 1.1 has: 010 is 8 there, and 1:30 is 90."""
    import yaml

    for token in _tokens(text, what):
        if isinstance(token, yaml.ScalarToken) and token.plain and _OLD.fullmatch(token.value):
            attempt = "a decimal number, or quotes around text"
            raise ContractError(what, repr(token.value), "numbers as people write them", attempt)


def _tokens(text: str, what: str) -> list[Any]:
    import yaml

    try:
        return list(yaml.scan(text))
    except yaml.YAMLError as error:  # the scanner in Python refuses more than the one in C
        fault = str(error).splitlines()[0]
        raise ContractError(what, fault, "YAML in UTF-8", "correct this place") from None


def resolve(
    known: Mapping[str, Notebook], name: str, overrides: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the parameters of every notebook: profile, shared, its own section, `overrides`.

    Raises ContractError for a key that nobody declares or a value of another type.
    """
    sections = profile(name)
    declared = {stem: notebook.declared for stem, notebook in known.items()}
    everyone = {key for keys in declared.values() for key in keys}
    for section, values in sections.items():
        refuse(section, {"shared", *known}, f"section of notebooks/params/{name}.yml")
        for key in values:
            refuse(key, declared.get(section, everyone), f"parameter in {section} of {name}.yml")
    shared = sections.pop("shared", {})
    layers = {
        stem: {"profile": name} | shared | sections.get(stem, {}) | overrides for stem in known
    }
    return {
        stem: {
            key: _typed(f"parameter {key} of {stem}", layers[stem][key], default)
            for key, default in keys.items()
            if key in layers[stem]
        }
        for stem, keys in declared.items()
    }


def _typed(what: str, value: Any, default: Any) -> Any:
    """Return the value in the type of its default: 1 for a float is 1.0, 1e3 for an int is 1000.

    So are the members of a list, where those of the default are of one type.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ContractError(what, repr(value), "a finite number", f"a value like {default!r}")
    if isinstance(value, list) and isinstance(default, list | None):
        kinds = {type(member) for member in default or ()}
        like = (default or [None])[0] if len(kinds) == 1 else None
        return [_typed(f"a member of {what}", member, like) for member in value]
    if isinstance(value, dict) and isinstance(default, dict | None):
        return {key: _typed(f"{key!r} in {what}", member, None) for key, member in value.items()}
    if default is None or type(value) is type(default):
        return value
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if type(default) is int and isinstance(value, float) and value.is_integer():
        return int(value)
    raise ContractError(what, repr(value), type(default).__name__, f"a value like {default!r}")


def assignments(texts: Sequence[str]) -> dict[str, Any]:
    """Return `--set key=value` options as a mapping; values are read as YAML."""
    from omegaconf import OmegaConf

    pairs: dict[str, Any] = {}
    for text in texts:
        if "=" not in text or not text.partition("=")[0].isidentifier():
            raise ContractError("--set", repr(text), "key=value", "--set seed=1")
        name, _, value = text.partition("=")
        if name in pairs:
            raise ContractError("--set", f"{name} twice", "each parameter once", f"--set {text}")
        pairs |= _plain(partial(OmegaConf.from_dotlist, [text]), f"--set {text!r}")
        _refuse_old_numbers(value, f"--set {text!r}")
    return pairs
