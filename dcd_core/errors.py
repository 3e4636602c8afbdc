"""Errors a user can act on: what was wrong, what came, what was expected, what to try."""

import difflib
import math
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from numbers import Integral, Real
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

Value = TypeVar("Value")
Counts: TypeAlias = tuple[int, ...]


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
        raise ContractError(what, repr(value), expected, f"the default of `{what}`")
    return value


def finite(
    what: str,
    value: float,
    fits: Callable[[float], bool] = math.isfinite,
    expected: str = "a finite number",
) -> float:
    """Return `value`; ContractError unless it is a finite number that `fits` what is `expected`."""
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    within(what, value, number and bool(fits(value)), expected)
    return value if isinstance(value, int | float) else float(value)  # NumPy's are none for JSON


def positive(what: str, value: float) -> float:
    """Return `value`; ContractError unless it is a finite number above 0."""
    return finite(what, value, lambda x: x > 0, "a finite number above 0")


def not_negative(what: str, value: float) -> float:
    """Return `value`; ContractError unless it is a finite number, 0 or more."""
    return finite(what, value, lambda x: x >= 0, "a finite number, 0 or more")


def share(what: str, value: float) -> float:
    """Return `value`; ContractError unless it is a number from 0 up to, but not, 1."""
    return finite(what, value, lambda x: 0 <= x < 1, "a share in [0, 1)")


def part(what: str, value: float) -> float:
    """Return `value`; ContractError unless it is a number from 0 to 1."""
    return finite(what, value, lambda x: 0 <= x <= 1, "a share in [0, 1]")


def at_least(what: str, value: int, least: int, most: int = 2**31 - 1) -> int:
    """Return `value` as an int; ContractError unless it is a whole number in this range."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    limit = f", at most {most}" if most < 2**31 - 1 else ""
    within(
        what, value, whole and least <= value <= most, f"a whole number, at least {least}{limit}"
    )
    return int(value)


def whole(what: str, values: Iterable[int], least: int = 1, count: int | None = None) -> Counts:
    """Return `values` as ints; ContractError unless they are `count` whole numbers."""
    numbers = several(what, values, f"{count or 'several'} whole numbers, each at least {least}")
    within(what, numbers, len(numbers) == (count or len(numbers)), f"{count} numbers")
    return tuple(at_least(what, number, least) for number in numbers)


def several(what: str, values: Iterable[Value], expected: str) -> tuple[Value, ...]:
    """Return `values` as a tuple; ContractError for a single thing, text among them."""
    try:
        return tuple(within(what, values, not isinstance(values, str | bytes), expected))
    except TypeError:
        raise ContractError(what, repr(values), expected, f"the default of `{what}`") from None


def flag(what: str, value: bool) -> bool:
    """Return `value`; ContractError unless it is True or False: "no" would count as yes."""
    return within(what, value, isinstance(value, bool), "True or False")


def one_of(what: str, value: str, *choices: str) -> str:
    """Return `value`; ContractError unless it is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        expected = "{!r} or {!r}".format(*choices) if len(choices) == 2 else f"one of {choices}"
        raise ContractError(what, repr(value), expected, repr(choices[0]))
    return value


class Check:
    """A check that an annotation names: `Annotated[int, Check(at_least, 1)]`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __call__(self, field: str, value: Any) -> Any:
        """Return the value of a field as it is kept; ContractError where it does not pass."""
        return self.function(field, value, *self.arguments)

    def __repr__(self) -> str:  # signatures show it
        return f"{self.function.__name__}({', '.join(map(repr, self.arguments))})"


Count: TypeAlias = Annotated[int, Check(at_least, 1)]
CountOrNone: TypeAlias = Annotated[int, Check(at_least, 0)]
Positive: TypeAlias = Annotated[float, Check(positive)]
NotNegative: TypeAlias = Annotated[float, Check(not_negative)]
Part: TypeAlias = Annotated[float, Check(part)]
Share: TypeAlias = Annotated[float, Check(share)]
Flag: TypeAlias = Annotated[bool, Check(flag)]


def checks(kind: type) -> dict[str, Check]:
    """The checks that the annotations of a class name, by field; `Literal` names `one_of`.

    Raises ContractError for an annotation that cannot be evaluated.
    """
    found = dict[str, Check]()
    try:
        hints = get_type_hints(kind, include_extras=True)
    except NameError as error:
        expected, attempt = "names of its module", "importing them not only for type checkers"
        raise ContractError(f"annotations of {kind.__name__}", error, expected, attempt) from None
    for field, hint in hints.items():
        if get_origin(hint) is Annotated:
            found[field] = hint.__metadata__[0]
        elif get_origin(hint) is Literal:
            found[field] = Check(one_of, *get_args(hint))
    return found


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
