"""A configuration as plain values, seen key by key."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_MAX_LINES = 10


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no mapping, with its dotted key."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def first_of(differences: Sequence[str]) -> list[str]:
    """The first ten of some lines, one a key, and a line that counts the others: an error has to fit a screen."""
    left_out = len(differences) - _MAX_LINES
    return [*differences[:_MAX_LINES], *([f"  ... and {left_out} more"] if left_out > 0 else [])]
