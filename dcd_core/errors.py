"""Errors a user can act on: what was wrong, what came, what was expected, what to try."""

import difflib
import math
from collections.abc import Iterable
from importlib.util import find_spec
from typing import TypeVar

Value = TypeVar("Value")


class ContractError(ValueError):
    """Something a user handed in breaks a contract; the message says what to do about it.

    `what` was looked at, what it `got`, what was `expected`, what to `attempt`.
    """

    def __init__(self, what: str, got: object, expected: object, attempt: str) -> None:
        self.what, self.got, self.expected, self.attempt = what, got, expected, attempt
        super().__init__(f"{what}: got {got}; expected {expected}. Try: {attempt}")

    def __reduce__(self) -> tuple[type["ContractError"], tuple[str, object, object, str]]:
        # Errors of worker processes arrive pickled, by default as a call with the message alone.
        return type(self), (self.what, self.got, self.expected, self.attempt)


def within(what: str, value: Value, fits: bool, expected: str) -> Value:
    """Return `value`; ContractError unless it `fits` what is `expected`."""
    if not fits:
        raise ContractError(what, value, expected, f"the default of `{what}`")
    return value


def positive(what: str, value: float) -> float:
    """Return `value`; ContractError unless it is a finite number above 0."""
    return within(what, value, 0 < value < math.inf, "a finite number above 0")


def at_least(what: str, value: int, least: int) -> int:
    """Return `value`; ContractError if it is below `least`."""
    return within(what, value, value >= least, f"at least {least}")


def one_of(what: str, value: str, *choices: str) -> str:
    """Return `value`; ContractError unless it is one of `choices`."""
    if value not in choices:
        expected = "{!r} or {!r}".format(*choices) if len(choices) == 2 else f"one of {choices}"
        raise ContractError(what, repr(value), expected, repr(choices[0]))
    return value


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the known name most like `word`, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if close:
        return f"{close[0]!r}"
    return f"one of {', '.join(names)}" if names else "nothing: there is none yet"


def require(extra: str, *packages: str) -> None:
    """Raise ContractError, naming the `extra` to install, unless all `packages` can be imported."""
    absent = [name for name in packages if find_spec(name) is None]
    if absent:
        got, expected = f"no {', '.join(absent)}", f"{', '.join(packages)} installed"
        raise ContractError("packages", got, expected, install(extra))


def install(extra: str) -> str:
    """Return what installs an `extra`: from a checkout, as no package index has `dcd-core`."""
    return f"pip install -e '.[{extra}]' in the checkout of dcd-core"
