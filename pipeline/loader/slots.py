"""Reusable memory that batches are decoded straight into.

A slot is lent out as a NumPy array and comes back by itself when the last tensor that views it is collected, so a
consumer who keeps batches is always safe and one who does not never causes a page fault. Three rules, each learnt by
breaking it:

- The finalizer sits on the very array given to `torch.from_numpy`. NumPy collapses `.base` chains, so a finalizer on an
  array that is sliced afterwards fires while the slice still lives.
- The finalizer only puts a number into a `SimpleQueue`, whose `put` is re-entrant: garbage collection may run it inside
  any other call, one that holds a lock included.
- It has `atexit = False`: at interpreter exit there is nobody left to use the slot again.
"""

from __future__ import annotations

import math
import mmap
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import DTypeLike, NDArray


def slot_bytes(row_shape: tuple[int, ...], dtype: DTypeLike, rows: int) -> int:
    """Bytes of a slot of `rows` rows."""
    return rows * math.prod(row_shape) * np.dtype(dtype).itemsize


def max_slots(in_flight: int) -> int:
    """Slots that a ring makes at most."""
    return 2 * in_flight + 2


SlotMemory = Callable[[int], NDArray[np.uint8]]
"""Slot number -> its memory, writable, from the beginning of a page; asked once for each slot, in order."""

Pin = Callable[[NDArray[np.uint8]], Callable[[], None] | None]
"""Locks the pages of a slot for a device that copies from them, and returns what undoes it."""


class SlotRing:
    """Slots of equal size, made when first needed.

    At most `in_flight` slots are being filled; a consumer may hold `in_flight + 2` batches as views of slots, and gets
    a private copy of any batch beyond (`lend` says so), so the ring never grows above `2 * in_flight + 2` slots.
    """

    def __init__(
        self,
        row_shape: tuple[int, ...],
        dtype: DTypeLike,
        rows: int,
        *,
        in_flight: int,
        memory: SlotMemory | None = None,
        pin: Pin | None = None,
    ) -> None:
        """Describe the slots: `rows` rows of `row_shape`, of `dtype`, in `memory` or else in this process's own.

        What `pin` locks is unlocked when the last view of the slot and the ring itself are gone.
        """
        self._row_shape = row_shape
        self._dtype = np.dtype(dtype)
        self._slot_bytes = slot_bytes(row_shape, dtype, rows)
        # None and not a method of this ring: a cycle would keep all slots until the garbage collector comes by.
        self._given_memory = memory
        self._pin = pin
        self._max_lent = in_flight + 2
        self._memory: list[NDArray[np.uint8]] = []
        self._free: SimpleQueue[int] = SimpleQueue()
        self._filling = 0

    @property
    def num_slots(self) -> int:
        """How many slots exist."""
        return len(self._memory)

    @property
    def num_lent(self) -> int:
        """How many slots the consumer still references."""
        return self.num_slots - self._free.qsize() - self._filling

    def take(self) -> int:
        """A slot to fill; a free one if there is one, else a new one."""
        try:
            slot = self._free.get_nowait()
        except Empty:
            slot = len(self._memory)
            memory = self._private_memory() if self._given_memory is None else self._given_memory(slot)
            unpin = None if self._pin is None else self._pin(memory)
            if unpin is not None:
                weakref.finalize(_owner(memory), unpin).atexit = False
            self._memory.append(memory)
        self._filling += 1
        return slot

    def _private_memory(self) -> NDArray[np.uint8]:
        # Whole pages: one that two slots share cannot be locked for both.
        num_bytes = -(-self._slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = np.empty(num_bytes + mmap.PAGESIZE, np.uint8)
        start = -memory.ctypes.data % mmap.PAGESIZE
        return memory[start : start + num_bytes]

    def give_back(self, slot: int) -> None:
        """Return a slot that was taken but not lent. Every writer must have finished."""
        self._filling -= 1
        self._free.put(slot)

    def rows(self, slot: int, count: int) -> NDArray[np.generic]:
        """A new array `(count, *row_shape)` over the slot's memory."""
        return np.ndarray((count, *self._row_shape), self._dtype, buffer=self._memory[slot].data)

    def lend(self, slot: int, count: int) -> tuple[NDArray[np.generic], bool]:
        """The filled slot's first `count` rows for the consumer, and whether they were copied to private memory.

        Give the array to `torch.from_numpy` as it is: the slot returns when this very array is collected.
        """
        rows = self.rows(slot, count)
        if self.num_lent >= self._max_lent:
            rows = rows.copy()
            self.give_back(slot)
            return rows, True
        self._filling -= 1
        finalizer = weakref.finalize(rows, self._free.put, slot)
        finalizer.atexit = False
        return rows, False


def _owner(memory: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The array that views of `memory` keep alive: NumPy passes over those in between."""
    while isinstance(memory.base, np.ndarray):
        memory = memory.base
    return memory
