"""How long things have been waited for, as somebody who looks now and then can tell."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

LONGEST_S = 2.0
"""An interval between two looks counts for no more than this: when a whole job is suspended nobody has been slow."""


class Watch(Generic[K]):
    """Adds up, for everything that is still there at each look, the time since it was first seen."""

    def __init__(self) -> None:
        self._looked_s = time.monotonic()
        self._seen_s: dict[K, float] = {}

    def look(self, there: Iterable[K]) -> list[tuple[K, float]]:
        """What is there now, each with the seconds it has been seen; what is not there is forgotten."""
        now_s = time.monotonic()
        passed_s = min(now_s - self._looked_s, LONGEST_S)
        self._looked_s = now_s
        self._seen_s = {key: self._seen_s[key] + passed_s if key in self._seen_s else 0.0 for key in there}
        return list(self._seen_s.items())
