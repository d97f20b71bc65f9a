"""Checks that every schema uses, so that messages have one form: key, allowed, given, cure."""

import math
from collections.abc import Iterable
from difflib import get_close_matches
from enum import StrEnum
from numbers import Integral, Real
from typing import TypeVar

Choice = TypeVar("Choice", bound=StrEnum)


class ConfigError(ValueError):
    """A wrong key, value or path in a configuration.

    Its text is one line, or a list of keys with a line for each; the command line prints it and exits with 2.
    """


def nearest(given: object, choices: Iterable[object]) -> str:
    """What a message about a wrong name ends with: the closest choice, if one is close, and all of them."""
    names = [str(choice) for choice in choices]
    close = get_close_matches(str(given).lower(), names, n=1)
    guess = f"did you mean {close[0]}? " if close else ""
    return f"{guess}choices: {', '.join(names)}"


def choice(key: str, value: Choice | str, kind: type[Choice]) -> Choice:
    """Return `value` as a member of `kind`; plain strings are welcome, so no user need import an enum."""
    try:
        return kind(value)
    except ValueError:
        raise ConfigError(f"{key} has no choice {value!r}; {nearest(value, kind)}") from None


def whole(key: str, value: int, *, low: int, cure: str) -> int:
    """Return `value` as an int that is at least `low`; `cure` ends the message with what to use instead."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(f"{key} must be a whole number >= {low}, got {value!r}; {cure}")
    if value < low:
        raise ConfigError(f"{key} must be >= {low}, got {value}; {cure}")
    return int(value)


def real(
    key: str,
    value: float,
    *,
    low: float,
    high: float = math.inf,
    low_open: bool = False,
    high_open: bool = False,
    cure: str,
) -> float:
    """Return `value` as a finite float between `low` and `high`; an open bound is itself refused."""
    lower = f"> {low:g}" if low_open else f">= {low:g}"
    upper = f"< {high:g}" if high_open else f"<= {high:g}"
    allowed = lower if math.isinf(high) else f"{lower} and {upper}"
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    excluded = (low_open and value == low) or (high_open and value == high)
    if not number or excluded or not low <= value <= high:
        raise ConfigError(f"{key} must be {allowed}, got {value!r}; {cure}")
    return float(value)


def flag(key: str, value: bool) -> bool:
    """Return `value` if it is a bool: the string "false" is true in Python, and nobody means that."""
    if not isinstance(value, bool):
        raise ConfigError(f"{key} must be true or false, got {value!r}")
    return value
