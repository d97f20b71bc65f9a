"""Turns the labels people write into numbers."""

import math
import re
import reprlib
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

WrittenLabel: TypeAlias = str | int | float

MAX_CLASSES = 1_000_000

# `int` and `float` take more for numbers, such as 1_1 for 11, so that two names would become one class.
_WHOLE = re.compile(r"\s*[+-]?[0-9]{1,300}\s*")
_DECIMAL = re.compile(
    r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?\s*|\s*[+-]?(nan|inf(inity)?)\s*", re.IGNORECASE
)


def number_labels(written: Sequence[WrittenLabel], where: Callable[[int], str]) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Returns labels and class names: for texts their sorted set, for whole numbers the numbers, else none.

    Args:
        written: All labels of both splits, of one Python type.
        where: Says where label i was written, for messages.

    Raises:
        ValueError: The labels are of several types, or a number is no class number and no finite value.
    """
    kind = type(written[0])
    for number, label in enumerate(written):
        if type(label) is not kind or not isinstance(label, str | int | float) or isinstance(label, bool):
            raise ValueError(
                f"{where(number)}: label {reprlib.repr(label)} is {type(label).__name__}, the first is "
                f"{kind.__name__}: labels must be all texts, all whole numbers or all decimal numbers"
            )
    if kind is str:
        class_names = tuple(sorted({str(label) for label in written}))
        numbers = {name: number for number, name in enumerate(class_names)}
        return np.array([numbers[str(label)] for label in written], np.int64), class_names
    values = np.fromiter(map(_as_float, written), np.float64, len(written))
    valid = np.isfinite(values) if kind is float else (values >= 0) & (values < MAX_CLASSES)
    if not valid.all():
        first = int(np.argmin(valid))
        is_class = f"a class number from 0 to {MAX_CLASSES - 1:,} (write -1.0 for a measured value)"
        cure = "a finite number" if kind is float else is_class
        raise ValueError(f"{where(first)}: label {reprlib.repr(written[first])} must be {cure}")
    if kind is float:
        return values.astype(np.float32), ()
    return values.astype(np.int64), tuple(map(str, range(int(values.max()) + 1)))


def parse_texts(texts: Sequence[str]) -> Sequence[WrittenLabel]:
    """Returns the labels of a format without types: whole numbers if all are, else numbers if all are, else texts."""
    for kind, form in ((int, _WHOLE), (float, _DECIMAL)):
        if all(map(form.fullmatch, texts)):
            return [kind(text) for text in texts]
    return texts


def _as_float(label: WrittenLabel) -> float:
    try:
        return float(label)
    except OverflowError:  # of a whole number with more than 308 digits
        return math.inf
