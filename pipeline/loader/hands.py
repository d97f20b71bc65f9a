"""What every worker thread has in hand, where others can see it: to name a sample that killed its worker or stalls."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_TICKET, _ROWS, _COLUMNS = 0, 1, 2
_NOTHING = -1
# The first row lies above their number, so that one store tells both.
_COUNT_BITS = 32


class InHand(NamedTuple):
    """Rows in the making: one, or some that are made together."""

    thread: int
    ticket: int
    rows: range


class Hands:
    """One line a thread, written by that thread alone by aligned 8-byte stores; never locked, so nobody can die on it.

    Also the mark up to which work was abandoned: `skips(ticket)` tells a thread that nobody wants the rest.
    """

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        """Look at `memory` of `size_bytes(...)` bytes, shared with the other side."""
        words = memory.view(np.int64)
        self._abandoned = words[:1]
        self._lines = words[_COLUMNS:].reshape(-1, _COLUMNS)

    @staticmethod
    def size_bytes(num_threads: int) -> int:
        """Memory for `num_threads` threads."""
        return 8 * _COLUMNS * (1 + num_threads)

    def clear(self, threads: range) -> None:
        """Those threads have nothing in hand."""
        self._lines[threads.start : threads.stop, _TICKET] = _NOTHING

    def take(self, thread: int, ticket: int, row: int, count: int) -> None:
        """`thread` begins `count` rows from `row` on."""
        line = self._lines[thread]
        line[_ROWS] = row << _COUNT_BITS | count
        line[_TICKET] = ticket

    def drop(self, thread: int) -> None:
        """`thread` has ended its rows."""
        self._lines[thread, _TICKET] = _NOTHING

    def held(self, threads: range) -> list[InHand]:
        """What those threads have in hand."""
        lines = ((thread, *self._lines[thread].tolist()) for thread in threads)
        return [InHand(thread, ticket, _unpacked(rows)) for thread, ticket, rows in lines if ticket != _NOTHING]

    def abandon(self, below: int) -> None:
        """Nobody wants work with a ticket below `below` any more."""
        self._abandoned[0] = below

    def skips(self, ticket: int) -> bool:
        """Whether the work with this ticket was abandoned."""
        return bool(ticket < self._abandoned[0])


def _unpacked(rows: int) -> range:
    first, count = divmod(rows, 1 << _COUNT_BITS)
    return range(first, first + count)
