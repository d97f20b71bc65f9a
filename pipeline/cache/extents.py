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
        """The place where the sample may be put; None if there is no room."""

    def release(self, id: int) -> None:
        """Let sample `id` go, if it is there. RuntimeError where none ever goes."""

    def start(self, place: int) -> int:
        """Where a place begins in the data."""


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

    def release(self, id: int) -> None:
        """None ever goes."""
        raise RuntimeError(f"a pinned store keeps sample {id} for good")

    def start(self, place: int) -> int:
        """The place itself."""
        return place


class Replaced:
    """Whole pages: those of a sample that went, or else new ones while the old go back to the system.

    Addresses are plenty (`ROOM_TO_EVICT`), so new ones are the next run that nobody lives in: it is memory that is
    short, and memory is given back by the page, wherever it lies. Pages used again cost neither that nor page faults,
    which together take as long as decoding.
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
        """Pages for the sample, once as many others as must have gone, lowest ranks first and only lower ones."""
        header, size_bytes = self._header, self.footprint(request.size_bytes)
        if size_bytes > self._table.settings.max_bytes:
            return None
        freed = self._make_room(size_bytes, request.rank)
        start = None if freed is None else self._run_of_pages(size_bytes, freed)
        if start is None:
            return None
        self._table.pages[start // PAGE_BYTES :][: size_bytes // PAGE_BYTES] = request.id + 1
        header[Field.kept_bytes] += size_bytes
        header[Field.kept_images] += 1
        header[Field.places] += 1
        return start + int(header[Field.places]) % (PAGE_BYTES - 1)

    def release(self, id: int) -> None:
        """Give its pages back to the system."""
        if self._table.words[id] > 0:
            self._give_back([self._evict(id)])

    def start(self, place: int) -> int:
        """The page that the place is on."""
        return place - place % PAGE_BYTES

    def _make_room(self, size_bytes: int, rank: float) -> list[tuple[int, int]] | None:
        """Start and size of what was evicted, its memory not yet given back; None if there is no room even so."""
        table, header = self._table, self._header
        freed: list[tuple[int, int]] = []
        while (
            header[Field.kept_bytes] + size_bytes > table.settings.max_bytes
            or header[Field.kept_images] >= header[Field.max_images]
        ):
            victim = self._next_victim()
            if victim is None or table.ranks[victim] >= rank:
                table.threshold[0] = rank if victim is None else table.ranks[victim]
                self._give_back(freed)
                return None
            self._victims.popleft()
            freed.append(self._evict(victim))
            header[Field.evictions] += 1
        return freed

    def _run_of_pages(self, size_bytes: int, freed: list[tuple[int, int]]) -> int | None:
        """Where `size_bytes` are free: in what was just `freed`, or anywhere. All others of these are given back."""
        for number, (start, freed_bytes) in enumerate(freed):
            if freed_bytes >= size_bytes:
                freed[number] = start + size_bytes, freed_bytes - size_bytes
                self._give_back(freed)
                return start
        self._give_back(freed)
        page = self._free_run(size_bytes // PAGE_BYTES)
        if page is None:
            return None
        self._header[Field.head] = page * PAGE_BYTES + size_bytes
        return page * PAGE_BYTES

    def _give_back(self, freed: list[tuple[int, int]]) -> None:
        for start, size_bytes in freed:
            if size_bytes:
                _punch_hole(self._file.fd, self._table.data_start + start, size_bytes)

    def _evict(self, id: int) -> tuple[int, int]:
        """Let a sample go; start and size of its pages."""
        table, header = self._table, self._header
        start, size_bytes = self.start(int(table.words[id]) - 1), self.footprint(size_of(int(table.forms[id])))
        table.words[id] = 0
        header[Field.kept_bytes] -= size_bytes
        header[Field.kept_images] -= 1
        return start, size_bytes

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
            start = self.start(abs(int(table.words[id])) - 1) // PAGE_BYTES
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
