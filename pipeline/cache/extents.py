"""Where the next sample of a store is put, and what has to go for it.

Both ways are called by one thread of one process at a time, which holds the store's claim. A process that is killed in
between leaves no sample wrong, only counts and pages, which the next to come mends.
"""

from __future__ import annotations

import ctypes
import os
from bisect import insort
from collections import deque
from operator import itemgetter
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.table import PAGE_BYTES, Field, Table, start_of, whole_pages

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

    def reserve(self, request: Request) -> int | None:
        """Where the sample may be put, counted from the data's start; None if there is no room."""

    def drop(self, id: int) -> None:
        """Let go the place that a dead writer of sample `id` had."""

    def release_for(self, id: int, size_bytes: int) -> bool:
        """Let go what is kept of sample `id` if the budget then has room for `size_bytes`; whether it went."""

    def forget(self, start: int, size_bytes: int) -> None:
        """Give back what of these bytes is no sample's: reading takes memory where one has just gone."""

    def mend(self) -> None:
        """Put right what somebody left who died while he changed something."""


class HasDescriptor(Protocol):
    """An open file."""

    @property
    def fd(self) -> int:
        """Its descriptor, now."""


class Appended:
    """One sample after the other, and none ever goes."""

    def __init__(self, table: Table) -> None:
        self._header = table.header
        self._words = table.words
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
        header[Field.places] += 1
        return start

    def drop(self, id: int) -> None:
        """Its bytes stay unused: what comes after it cannot move."""
        self._words[id] = 0

    def release_for(self, id: int, size_bytes: int) -> bool:
        """None ever goes."""
        raise RuntimeError(f"a pinned store keeps sample {id} for good, and has no {size_bytes} bytes in its place")

    def forget(self, start: int, size_bytes: int) -> None:
        """None ever goes."""
        raise RuntimeError(f"a pinned store gives nothing back, of {size_bytes} bytes at {start} neither")

    def mend(self) -> None:
        """Count the images anew."""
        self._header[Field.kept_images] = np.count_nonzero(self._words)


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
        if size_bytes > self._table.settings.max_bytes or header[Field.max_images] == 0:
            return None
        freed: list[tuple[int, int]] = []
        start = self._find_place(size_bytes, freed)
        if start is None and self._is_worth_it(size_bytes, request.rank):
            start = self._make_place(size_bytes, request.rank, freed)
        self._give_back(freed)
        if start is not None:
            if self._victims and request.rank < self._victims[-1][1]:
                insort(self._victims, (request.id, request.rank), key=itemgetter(1))
            self._table.pages[start // PAGE_BYTES :][: size_bytes // PAGE_BYTES] = request.id + 1
            header[Field.kept_bytes] += size_bytes
            header[Field.kept_images] += 1
            header[Field.places] += 1
        return start

    def drop(self, id: int) -> None:
        """Its pages go back to the system."""
        self._give_back([self._evict(id)])

    def release_for(self, id: int, size_bytes: int) -> bool:
        """Let go what is kept of sample `id` if the budget then has room for `size_bytes`; whether it went."""
        table, header = self._table, self._header
        kept_bytes = self.footprint(size_of(int(table.forms[id]))) if table.words[id] > 0 else 0
        if header[Field.kept_bytes] - kept_bytes + self.footprint(size_bytes) > table.settings.max_bytes:
            return False
        if kept_bytes:
            self.drop(id)
        return True

    def _is_worth_it(self, size_bytes: int, rank: float) -> bool:
        """Whether all that would have to go is of lower rank, as far as victims are listed."""
        self._next_victim()  # lists them, if there are none
        table, header = self._table, self._header
        missing_bytes = int(header[Field.kept_bytes]) + size_bytes - table.settings.max_bytes
        missing_images = int(header[Field.kept_images]) + 1 - int(header[Field.max_images])
        for id, listed_rank in self._victims:
            if missing_bytes <= 0 and missing_images <= 0:
                return True
            if table.words[id] <= 0 or table.ranks[id] != listed_rank:
                continue
            if listed_rank >= rank:
                table.threshold[0] = listed_rank
                return False
            missing_bytes -= self.footprint(size_of(int(table.forms[id])))
            missing_images -= 1
        return True

    def _make_place(self, size_bytes: int, rank: float, freed: list[tuple[int, int]]) -> int | None:
        """Evict until there is a place. `freed` gets start and size of what went; its memory is not yet given back."""
        while True:
            victim = self._next_victim()
            if victim is not None:
                if self._table.ranks[victim] >= rank:
                    self._table.threshold[0] = self._table.ranks[victim]
                    return None
                self._victims.popleft()
                freed.append(self._evict(victim))
                self._header[Field.evictions] += 1
            start = self._find_place(size_bytes, freed)
            if start is not None or victim is None:  # all the rest is being written, or its writers are dead
                return start

    def _find_place(self, size_bytes: int, freed: list[tuple[int, int]]) -> int | None:
        """Free pages in a row, if the budget has room for them: of what was just `freed`, or any."""
        header = self._header
        has_bytes = header[Field.kept_bytes] + size_bytes <= self._table.settings.max_bytes
        if not has_bytes or header[Field.kept_images] >= header[Field.max_images]:
            return None
        for number, (start, freed_bytes) in enumerate(freed):
            if freed_bytes >= size_bytes:
                freed[number] = start + size_bytes, freed_bytes - size_bytes
                return start
        page = self._free_run(size_bytes // PAGE_BYTES)
        if page is None:
            return None
        header[Field.head] = page * PAGE_BYTES + size_bytes
        return page * PAGE_BYTES

    def _give_back(self, freed: list[tuple[int, int]]) -> None:
        for start, size_bytes in freed:
            if size_bytes:
                _punch_hole(self._file.fd, self._table.data_start + start, size_bytes)

    def _evict(self, id: int) -> tuple[int, int]:
        """Let a sample go; start and size of its pages."""
        table, header = self._table, self._header
        start, size_bytes = start_of(int(table.words[id])), self.footprint(size_of(int(table.forms[id])))
        table.words[id] = 0
        header[Field.kept_bytes] -= size_bytes
        header[Field.kept_images] -= 1
        return start, size_bytes

    def forget(self, start: int, size_bytes: int) -> None:
        """Give back every page of them in which no sample lives."""
        pages = range(start // PAGE_BYTES, (start + size_bytes - 1) // PAGE_BYTES + 1)
        unused = [page for page in pages if self._behind_last_living(page, page + 1) is None]
        self._give_back([(page * PAGE_BYTES, PAGE_BYTES) for page in unused])

    def mend(self) -> None:
        """Count anew, and give back every page in which no sample lives: somebody died before he did."""
        table = self._table
        kept = self._list_victims()
        starts = np.array([start_of(word) // PAGE_BYTES for word in table.words[kept].tolist()], np.int64)
        counts = [self.footprint(size_of(form)) // PAGE_BYTES for form in table.forms[kept].tolist()]
        order = np.argsort(starts)
        behind = 0
        for start, count in zip(starts[order].tolist(), np.array(counts, np.int64)[order].tolist(), strict=True):
            self._give_back([(behind * PAGE_BYTES, (start - behind) * PAGE_BYTES)])
            behind = start + count
        self._give_back([(behind * PAGE_BYTES, (self._num_pages - behind) * PAGE_BYTES)])

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

    def _list_victims(self) -> NDArray[np.intp]:
        """List a part of all, so that looking at every sample is seldom; counts anew what is kept, and returns it."""
        table = self._table
        kept = np.flatnonzero(table.words)
        sizes = [self.footprint(size_of(form)) for form in table.forms[kept].tolist()]
        self._header[Field.kept_bytes], self._header[Field.kept_images] = sum(sizes), len(sizes)
        whole = kept[table.words[kept] > 0]
        ranks = table.ranks[whole]
        count = min(len(whole), max(_MIN_VICTIMS, len(whole) // _VICTIMS_PART))
        lowest = np.argsort(ranks, kind="stable")[:count]
        self._victims = deque(zip(whole[lowest].tolist(), ranks[lowest].tolist(), strict=True))
        return kept

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
            start = start_of(int(table.words[id])) // PAGE_BYTES
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
