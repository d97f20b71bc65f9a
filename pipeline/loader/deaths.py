"""What a worker's death means: who is suspected, who is blamed, and when it is enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

DEATHS_ALONE = 3
"""So often a sample must be the only one in hand at a death before it is blamed: random kills blame nobody."""


class Deaths:
    """Counts the restarts of a loader's workers against `max_restarts`.

    A death is charged; but if a sample that was in hand is blamed in the end, the charge is dropped. A kill from
    outside is charged at once. A crash is the likely fault of a sample in hand, so it is charged only when all of those
    have been made after all: many bad images in flight at once do not use up the restarts.
    """

    def __init__(self, max_restarts: int) -> None:
        self.max_restarts = max_restarts
        self._charged = 0
        self._deaths_alone: Counter[int] = Counter()
        self._open: list[_Charge] = []

    @property
    def is_enough(self) -> bool:
        """Whether there were more deaths than `max_restarts`."""
        return self._charged > self.max_restarts

    def add(self, in_hand: Iterable[int], *, alone: bool, from_outside: bool) -> int | None:
        """A worker died with these samples in hand; gives the one that is now to blame, if any.

        Args:
            in_hand: ids of samples begun and not ended.
            alone: the worker had been given nothing else.
            from_outside: it was killed, and did not crash.
        """
        suspects = set(in_hand)
        charge = _Charge(suspects, counted=from_outside or not suspects or self.max_restarts == 0)
        self._charged += charge.counted
        self._open.append(charge)
        if not alone or len(suspects) != 1:
            return None
        (suspect,) = suspects
        self._deaths_alone[suspect] += 1
        if self._deaths_alone[suspect] < DEATHS_ALONE:
            return None
        self._blame(suspect)
        return suspect

    def clear(self, id: int) -> None:
        """A suspect was made after all: somebody else killed its workers."""
        self._deaths_alone.pop(id, None)
        for charge in self._open:
            charge.suspects.discard(id)
            if not charge.suspects and not charge.counted:
                self._charged += 1
        self._open = [charge for charge in self._open if charge.suspects]

    def _blame(self, id: int) -> None:
        self._deaths_alone.pop(id)
        self._charged -= sum(charge.counted for charge in self._open if id in charge.suspects)
        self._open = [charge for charge in self._open if id not in charge.suspects]


class _Charge:
    __slots__ = ("counted", "suspects")

    def __init__(self, suspects: set[int], *, counted: bool) -> None:
        self.suspects = suspects
        self.counted = counted
