"""Hydra's and omegaconf's errors in one line, in the form of our own: key, what is allowed, what was given."""

from collections.abc import Mapping
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
    list[int]: "a list of whole numbers",
    list[float]: "a list of numbers",
    list[str]: "a list of names",
    list[list[int]]: "pairs of whole numbers, such as [[1,32],[5,48]],",
    int | str: "auto or a whole number",
}
_LISTS_OF_LISTS = {"schedule.sizes": list[list[int]]}
"""Keys of which omegaconf's errors tell an element's number, or the type of a list, and no key."""
_GROUPS_WITHOUT_SCHEMA = ("experiment", "sweep")


def one_line(error: Exception) -> str:
    """The message of an error met while composing; names the key, the value and the nearest choice where known."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return f"{group} has no option {option!r}; {nearest(option, error.options)}"
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}; write GROUP=OPTION or KEY=VALUE, special characters in quotes"
    key, _, value = str(error).removeprefix("Error merging override ").lstrip("+").partition("=")
    if key in _LISTS_OF_LISTS:
        return f"{key} must be {_WORDS[_LISTS_OF_LISTS[key]]} or null, got {value}"
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
        return f"{cause.full_key}: {str(cause).splitlines()[0]}"
    lines = [line.strip() for line in str(error).splitlines()]
    return "; ".join(line for line in lines if line)


def _wrong_value(error: ValidationError) -> str:
    hint = get_type_hints(error.object_type)[str(error.key)]
    kinds = get_args(hint) if hint not in _WORDS and get_args(hint) else (hint,)
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, StrEnum):
            if isinstance(error.value, Mapping):  # what omegaconf makes of KEY.OPTION=true
                return f"{error.full_key} has no keys below it; write {error.full_key}=VALUE, {nearest('', kind)}"
            return f"{error.full_key} has no choice {error.value!r}; {nearest(error.value, kind)}"
    words = " or ".join(_WORDS.get(kind, "a group of keys") for kind in kinds)
    given = "null" if error.value is None else repr(error.value)
    return f"{error.full_key} must be {words}, got {given}"
