"""Kinds of values that a property may have, as functions that say what a value must be if it is something else."""

from __future__ import annotations

import numbers
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from recbole_qbert.utils.spelling import did_you_mean

#: Returns ``None`` for a value that is right, and otherwise what it must be: ``"a whole number from 1 on"``.
Check = Callable[[Any], "str | None"]

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 100


def check(key: str, value: Any, must_be: Check) -> None:
    """Refuse a value of the wrong kind.

    Args:
        key: name of the property, for the error.
        value: its value.
        must_be: the kind.

    Raises:
        ValueError: names the key, the value, and what it must be.

    >>> check("epochs", -1, whole(0, 10))
    Traceback (most recent call last):
    ...
    ValueError: epochs is -1; it must be a whole number from 0 to 10
    """
    expected = must_be(value)
    if expected is not None:
        raise ValueError(f"{key} is {shown(value)}; it must be {expected}")


def shown(value: Any) -> str:
    """Write a value of whatever kind and size for an error."""
    try:
        return _repr.repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        return f"a {type(value).__name__} that is too large to be shown"


def whole(low: int, high: int) -> Check:
    """Whole numbers of a range, its ends included; no truth values."""
    expected = f"a whole number from {low} to {high}"

    def must_be(value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            return expected
        return None if low <= int(value) <= high else expected

    return must_be


def number(low: float, high: float, *, above: bool = False) -> Check:
    """Numbers of a range, its ends included; with ``above``, without the lower end. NaN lies in no range."""
    expected = f"a number above {low} and at most {high}" if above else f"a number from {low} to {high}"

    def must_be(value: Any) -> str | None:
        right = isinstance(value, numbers.Real) and not isinstance(value, bool)
        return None if right and low <= value <= high and not (above and value == low) else expected

    return must_be


def flag() -> Check:
    """Truth values."""
    return lambda value: None if isinstance(value, bool) else "true or false"


def text() -> Check:
    """Text of at least one character, and none that a file name cannot have."""
    return lambda value: None if isinstance(value, str) and value and "\0" not in value else "text"


def one_of(*names: str, any_case: bool = False) -> Check:
    """Some names."""

    def must_be(value: Any) -> str | None:
        name = value.lower() if any_case and isinstance(value, str) else value
        if isinstance(name, str) and name in names:
            return None
        return f"one of {', '.join(names)}{did_you_mean(name, names) if isinstance(name, str) else ''}"

    return must_be


def list_of(each: Check, *, least: int = 0, most: int | None = None, different: bool = False) -> Check:
    """Lists or tuples of values of a kind.

    Args:
        each: kind of the values.
        least: smallest number of values.
        most: largest number of values.
        different: whether a value may stand only once.
    """

    def must_be(value: Any) -> str | None:
        if not isinstance(value, list | tuple):
            return "a list"
        if len(value) < least or (most is not None and len(value) > most):
            return f"a list of {least} values" if least == most else f"a list of at least {least} value"
        for entry in value:
            if (expected := each(entry)) is not None:
                return f"a list, each value {expected}"
        return "a list of different values" if different and len(set(value)) < len(value) else None

    return must_be


def optional(kind: Check) -> Check:
    """Nothing, or a value of a kind."""

    def must_be(value: Any) -> str | None:
        expected = None if value is None else kind(value)
        return expected and f"{expected}, or nothing (~)"

    return must_be


def either(*kinds: Check) -> Check:
    """A value of one of some kinds."""

    def must_be(value: Any) -> str | None:
        expected = [kind(value) for kind in kinds]
        return None if None in expected else ", or ".join(filter(None, expected))

    return must_be


def mapping(known: Mapping[str, Check] | None = None, others: Check | None = None) -> Check:
    """Mappings.

    Args:
        known: keys and the kinds of their values.
        others: kind of the values of all other keys; without it, no other key is allowed.
    """
    kinds = known or {}

    def must_be(value: Any) -> str | None:
        if not isinstance(value, Mapping):
            return "a mapping" + (f" of {', '.join(kinds)}" if kinds else "")
        for key, entry in value.items():
            kind = kinds.get(key, others) if isinstance(key, str) else None
            if kind is None:
                return f"a mapping of {', '.join(kinds)}" if kinds else "a mapping of names"
            if (expected := kind(entry)) is not None:
                return f"a mapping in which {key} is {expected}"
        return None

    return must_be
