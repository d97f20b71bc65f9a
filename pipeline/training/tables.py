"""Tables of plain text, for the terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence

WIDTH = 100
"""Columns of a terminal that everything but a line to paste fits in."""


def format_table(rows: Sequence[Sequence[str]], *, width: int, right: Collection[int] = ()) -> list[str]:
    """Return `rows` as lines of at most `width` characters; the widest columns are cut until all fit.

    The columns numbered in `right` end at one place, as numbers should; the others begin at one.
    """
    gaps = 2 * (len(rows[0]) - 1)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    while sum(widths) + gaps > width:
        widths[widths.index(max(widths))] -= 1
    return [
        "  ".join(
            _cut(cell, w).rjust(w) if number in right else _cut(cell, w).ljust(w)
            for number, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def short_names(keys: Sequence[str]) -> list[str]:
    """The keys without their groups, where that leaves them different."""
    names = [key.rpartition(".")[2] for key in keys]
    return [name if names.count(name) == 1 else key for name, key in zip(names, keys, strict=True)]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
