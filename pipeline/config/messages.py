"""Hydra's and omegaconf's errors in one line, in the form of our own: key, what is allowed, what was given."""

from dataclasses import fields, is_dataclass
from enum import StrEnum
from types import NoneType
from typing import Any, get_args, get_type_hints

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from pipeline.config.checks import nearest

# How a message says what a key may hold.
_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    NoneType: "null",
    list[float]: "a list of numbers",
    list[str]: "a list of names",
    list[list[int]]: "pairs of numbers, such as [[1,32],[5,48]]",
}
_GROUPS_WITHOUT_SCHEMA = ("experiment", "sweep")


def one_line(error: Exception) -> str:
    """The message of an error met while composing; names the key, the value and the nearest choice where known."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return f"{group} has no option {option!r}; {nearest(option, error.options)}"
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}; write GROUP=OPTION or KEY=VALUE, special characters in quotes"
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, MissingMandatoryValue):
        return f"{cause.full_key} must be given; add {cause.full_key}=VALUE"
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and is_dataclass(cause.object_type):
        names = [field.name for field in fields(cause.object_type)]
        root = cause.full_key == cause.key
        choices = (*names, *_GROUPS_WITHOUT_SCHEMA) if root else names
        return f"{cause.full_key} is not a key; {nearest(cause.key, choices)}"
    if isinstance(cause, ValidationError) and is_dataclass(cause.object_type):
        return _wrong_value(cause)
    if isinstance(cause, OmegaConfBaseException):
        # An element of a list that should be a list itself has only its number for a key; the outer error tells more.
        is_element = isinstance(cause.full_key, int)
        key = str(error).removeprefix("Error merging override ") if is_element else cause.full_key
        return f"{key}: {str(cause).splitlines()[0]}"
    lines = [line.strip() for line in str(error).splitlines()]
    return "; ".join(line for line in lines if line)


def _wrong_value(error: ValidationError) -> str:
    hint = get_type_hints(error.object_type)[str(error.key)]
    kinds = get_args(hint) if hint not in _WORDS and get_args(hint) else (hint,)
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, StrEnum):
            return f"{error.full_key} has no choice {error.value!r}; {nearest(error.value, kind)}"
    words = " or ".join(_WORDS.get(kind, "a group of keys") for kind in kinds)
    given = "null" if error.value is None else repr(error.value)
    return f"{error.full_key} must be {words}, got {given}"
