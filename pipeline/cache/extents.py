"""Where the next sample of a store is put, and what has to go for it.

Both ways are called by one thread of one process at a time, which holds the store's claim. A process that is killed in
between leaves the table right: what it had counted and not used is counted anew when something is evicted.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from typing import NamedTuple, Protocol

import numpy as np

from pipeline.cache.table import PAGE_BYTES, Field, Table, whole_pages

ALIGNMENT = 64
_MIN_VICTIMS = 32
_VICTIMS_PART = 16
_PUNCH_HOLE = 0x1 | 0x2  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE


class Request(NamedTuple):
    """A sample that is to be kept."""

    id: int
    size_bytes: int
    rank: float


class Extents(Protocol):
    """Gives out places in the data."""

    def footprint(self, size_bytes: int) -> int:
        """Bytes of the budget that a sample of `size_bytes` takes."""

    def reserve(self, request: Request) -> int | None:
        """Where the sample may be put, counted from the data's start; None if there is no room."""


class HasDescriptor(Protocol):
    """An open file."""

    @property
    def fd(self) -> int:
        """Its descriptor, now."""


class Appended:
    """One sample after the other, and none ever goes."""

    def __init__(self, table: Table) -> None:
        self._header = table.header
        self._settings = table.settings

    def footprint(self, size_bytes: int) -> int:
        """Whole cache lines."""
        return -(-size_bytes // ALIGNMENT) * ALIGNMENT

    def reserve(self, request: Request) -> int | None:
        """The end of what is there, if the budget allows."""
        header, size_bytes = self._header, self.footprint(request.size_bytes)
        smallest = int(header[Field.smallest_bytes])
        header[Field.smallest_bytes] = min(smallest, size_bytes) if smallest else size_bytes
        start = int(header[Field.head])
        has_room = header[Field.kept_images] < header[Field.max_images]
        if not has_room or start + size_bytes > self._settings.max_bytes:
            return None
        # In this order a process that is killed here wastes the bytes; in another, two samples might get one place.
        header[Field.head] = start + size_bytes
        header[Field.kept_bytes] += size_bytes
        header[Field.kept_images] += 1
        return start


class Replaced:
    """Whole pages, which are given back to the system when their sample goes.

    Addresses are plenty (`ROOM_TO_EVICT`), so a place is the next run of pages that nobody lives in: it is memory that
    is short, and memory is given back by the page, wherever it lies.
    """

    def __init__(self, table: Table, file: HasDescriptor) -> None:
        """Give back pages of `file`, whose descriptor may change with a fork."""
        self._table = table
        self._header = table.header
        self._file = file
        self._num_pages = len(table.data) // PAGE_BYTES
        self._victims: deque[tuple[int, float]] = deque()

    def footprint(self, size_bytes: int) -> int:
        """Whole pages."""
        return whole_pages(size_bytes)

    def reserve(self, request: Request) -> int | None:
        """The next free run of pages, once as many as must have gone, of lower rank all and the lowest first."""
        table, header, size_bytes = self._table, self._header, self.footprint(request.size_bytes)
        max_bytes, max_images = table.settings.max_bytes, int(header[Field.max_images])
        if size_bytes > max_bytes or max_images == 0:
            return None
        while header[Field.kept_bytes] + size_bytes > max_bytes or header[Field.kept_images] >= max_images:
            victim = self._next_victim()
            if victim is None or table.ranks[victim] >= request.rank:
                table.threshold[0] = request.rank if victim is None else table.ranks[victim]
                return None
            self._victims.popleft()
            self._evict(victim)
            header[Field.evictions] += 1
        start = self._free_run(size_bytes // PAGE_BYTES)
        if start is None:
            return None
        table.pages[start : start + size_bytes // PAGE_BYTES] = request.id + 1
        header[Field.head] = (start * PAGE_BYTES) + size_bytes
        header[Field.kept_bytes] += size_bytes
        header[Field.kept_images] += 1
        return start * PAGE_BYTES

    def _evict(self, id: int) -> None:
        table = self._table
        start, size_bytes = int(table.words[id]) - 1, self.footprint(size_of(int(table.forms[id])))
        table.words[id] = 0
        self._header[Field.kept_bytes] -= size_bytes
        self._header[Field.kept_images] -= 1
        _punch_hole(self._file.fd, table.data_start + start, size_bytes)

    def _next_victim(self) -> int | None:
        """The sample of lowest rank, still there and not used since it was listed."""
        table = self._table
        for _ in range(2):
            while self._victims:
                id, listed_rank = self._victims[0]
                if table.words[id] > 0 and table.ranks[id] == listed_rank:
                    return id
                self._victims.popleft()
            self._list_victims()
        return None

    def _list_victims(self) -> None:
        """A part of all, so that looking at every sample is seldom; counts anew what is kept."""
        table = self._table
        kept = np.flatnonzero(table.words)
        sizes = [self.footprint(size_of(form)) for form in table.forms[kept].tolist()]
        self._header[Field.kept_bytes], self._header[Field.kept_images] = sum(sizes), len(sizes)
        whole = kept[table.words[kept] > 0]
        ranks = table.ranks[whole]
        count = min(len(whole), max(_MIN_VICTIMS, len(whole) // _VICTIMS_PART))
        lowest = np.argsort(ranks, kind="stable")[:count]
        self._victims = deque(zip(whole[lowest].tolist(), ranks[lowest].tolist(), strict=True))

    def _free_run(self, num_pages: int) -> int | None:
        """The next run of pages, from the head on, in which no sample lives."""
        page, end = int(self._header[Field.head]) // PAGE_BYTES, self._num_pages
        for begin, stop in ((page, end), (0, min(end, page + num_pages))):
            page = begin
            while page + num_pages <= stop:
                behind = self._behind_last_living(page, page + num_pages)
                if behind is None:
                    return page
                page = behind
        return None

    def _behind_last_living(self, begin: int, stop: int) -> int | None:
        """The page behind the last sample that lives in some page of `begin ... stop - 1`; None if none does."""
        table = self._table
        owners = table.pages[begin:stop]
        changes = np.flatnonzero(np.diff(owners, prepend=-1))
        for owner in reversed(owners[changes].tolist()):
            id = owner - 1
            if id < 0 or table.words[id] == 0:
                continue
            start = (abs(int(table.words[id])) - 1) // PAGE_BYTES
            behind: int = start + self.footprint(size_of(int(table.forms[id]))) // PAGE_BYTES
            if start < stop and behind > begin:
                return behind
        return None


def size_of(form: int) -> int:
    """Bytes of a sample of this form (see `table`)."""
    return form if form > 0 else 3 * (-form >> 32) * (-form & 0xFFFFFFFF)


def _punch_hole(fd: int, start: int, size_bytes: int) -> None:
    if _libc.fallocate(fd, _PUNCH_HOLE, start, size_bytes) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot give back {size_bytes} bytes of a cache: {os.strerror(number)}")


_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
