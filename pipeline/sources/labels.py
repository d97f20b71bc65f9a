"""Turns the labels people write into numbers."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

WrittenLabel: TypeAlias = str | int | float

MAX_CLASSES = 1_000_000


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
                f"{where(number)}: label {label!r} is {type(label).__name__}, the first is {kind.__name__}: "
                f"labels must be all texts, all whole numbers or all decimal numbers"
            )
    if kind is str:
        class_names = tuple(sorted({str(label) for label in written}))
        numbers = {name: number for number, name in enumerate(class_names)}
        return np.array([numbers[str(label)] for label in written], np.int64), class_names
    values = np.array(written, np.float64)
    valid = np.isfinite(values) if kind is float else (values >= 0) & (values < MAX_CLASSES)
    if not valid.all():
        first = int(np.argmin(valid))
        cure = "a finite number" if kind is float else "a class number from 0 on (write -1.0 for a measured value)"
        raise ValueError(f"{where(first)}: label {written[first]!r} must be {cure}")
    if kind is float:
        return values.astype(np.float32), ()
    return values.astype(np.int64), tuple(map(str, range(int(values.max()) + 1)))


def parse_texts(texts: Sequence[str]) -> Sequence[WrittenLabel]:
    """Returns the labels of a format without types: whole numbers if all are, else numbers if all are, else texts."""
    for kind in (int, float):
        try:
            return [kind(text) for text in texts]
        except ValueError:
            continue
    return texts
