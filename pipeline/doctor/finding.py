"""What a check says: a level, what was looked at, and what was found there."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import ParamSpec

from pipeline.config import ConfigError

WIDTH = 100
"""Columns of a line, at most."""

_LEVEL_WIDTH, _WHAT_WIDTH = 9, 15
_MORE = "..."

Arguments = ParamSpec("Arguments")


class Level(StrEnum):
    """How bad it is: as it should be, a run would go on but for less than there could be, or it would end."""

    ok = "ok"
    warning = "warning"
    error = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; a warning's `detail` ends with what to change."""

    level: Level
    what: str
    detail: str

    def lines(self) -> list[str]:
        """For people, of at most `WIDTH` columns; each of them begins with the level, so that `grep` finds all."""
        room = WIDTH - _LEVEL_WIDTH - _WHAT_WIDTH
        pieces = textwrap.wrap(" ".join(self.detail.split()), room, break_on_hyphens=False) or [""]
        names = [self.what, *[_MORE] * (len(pieces) - 1)]
        return [
            f"{self.level:<{_LEVEL_WIDTH}}{name:<{_WHAT_WIDTH}}{piece}".rstrip()
            for name, piece in zip(names, pieces, strict=True)
        ]


def ok(what: str, detail: str) -> Finding:
    """It is as it should be."""
    return Finding(Level.ok, what, detail)


def warning(what: str, detail: str) -> Finding:
    """The run would go on, for less than there could be; `detail` says what to change."""
    return Finding(Level.warning, what, detail)


def error(what: str, detail: str) -> Finding:
    """The run would end, or could not begin."""
    return Finding(Level.error, what, detail)


def guarded(
    what: str, check: Callable[Arguments, Iterator[Finding]], *arguments: Arguments.args, **options: Arguments.kwargs
) -> Iterator[Finding]:
    """What `check` finds; an exception that it raises is one more finding, and no other check is missed for it."""
    try:
        yield from check(*arguments, **options)
    except Exception as raised:
        yield error(what, in_words(raised))


def in_words(raised: Exception) -> str:
    """An exception for people. What is written for them already needs no class name in front of it."""
    if isinstance(raised, ConfigError):
        return str(raised)
    return f"{type(raised).__name__}: {raised}"


def summary(findings: list[Finding]) -> str:
    """How many there are of each level: "12 ok, 1 warning"."""
    counts = {level: sum(finding.level is level for finding in findings) for level in Level}
    words = [f"{counts[Level.ok]} ok"]
    for level in (Level.warning, Level.error):
        if counts[level]:
            words.append(f"{counts[level]} {level}{'s' if counts[level] > 1 else ''}")
    return ", ".join(words)
