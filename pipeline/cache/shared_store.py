"""A store in anonymous memory that every worker, whatever process it is in, and every rank of a host has mapped."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.claims import Claims
from pipeline.cache.extents import Appended, Extents, Replaced, Request, size_of
from pipeline.cache.load import Sample
from pipeline.cache.record_locks import RecordLocks
from pipeline.cache.settings import Settings
from pipeline.cache.table import Field, Table, create, start_of, word_of
from pipeline.config.cache import CachePolicy
from pipeline.shared import Descriptor

_ROOM = 0
"""The number that is held while places are given out; whoever loads sample `id` holds `id + 1`."""


class SharedStore:
    """Samples by id under a budget, kept once for all processes that have the store.

    Pickling for another process of this program passes the descriptor (`shared.Descriptor`); what any other pickle
    makes begins empty. Holds no lock in its memory; a process that dies while it writes leaves a place that whoever
    loads that sample next writes again. Owns a descriptor until `close`; pixels it gave stay valid.
    """

    copies = True

    def __init__(self, fd: int) -> None:
        """Map the file of `fd`, which `create` made; closes `fd`, for it opens the file anew."""
        try:
            self._table = table = Table(fd)
            self._locks = RecordLocks(fd)
        finally:
            os.close(fd)
        self.settings = table.settings
        self._words, self._forms, self._ranks = table.words, table.forms, table.ranks
        self._data = table.data
        self._readonly = table.data.view()
        self._readonly.flags.writeable = False
        self._claims = Claims()
        self._extents: Extents = Replaced(table, self._locks) if self.settings.evicts else Appended(table)
        self._is_lru = self.settings.policy is CachePolicy.lru
        self._copies = threading.local()
        self._asked = table.asked

    @classmethod
    def empty(cls, settings: Settings) -> Self:
        """A new store."""
        return cls(create(settings))

    def __reduce__(self) -> tuple[Callable[[Descriptor, Settings], SharedStore], tuple[Descriptor, Settings]]:
        return _opened, (Descriptor(self._locks.fd), self.settings)

    def find(self, id: int) -> Sample | None:
        """Sample `id` if it is kept: bytes of the caller's own, or read-only pixels (H, W, 3).

        Pixels of a store that evicts are a copy that is valid until the calling thread's next `find`.
        """
        word = int(self._words[id])
        if word <= 0:
            return None
        form = int(self._forms[id])
        content = self._readonly[start_of(word) :][: size_of(form)]
        sample: Sample = content
        if form > 0 or self.settings.evicts:
            sample = self._copied(content, form)
        if self.settings.evicts:
            if self._words[id] != word:  # it went meanwhile, and what was copied may be anything
                with self._changing():
                    self._extents.forget(start_of(word), len(content))
                return None
            if self._is_lru:
                self._ranks[id] = time.monotonic()
        return sample if isinstance(sample, bytes) else sample.reshape(-form >> 32, -form & 0xFFFFFFFF, 3)

    def wants(self, id: int) -> bool:
        """Whether `keep` might keep sample `id`; if not, it needs no claim."""
        if self._words[id] < 0:  # being written, or left by a dead writer: nobody else gives the place back
            return True
        if self.settings.evicts:
            return bool(self._is_lru or self._ranks[id] == 0 or self._ranks[id] > self._table.threshold[0])
        return not self.is_full

    def has(self, id: int) -> bool:
        """Whether sample `id` is kept now."""
        return bool(self._words[id] > 0)

    def claimed(self, id: int) -> AbstractContextManager[None]:
        """Wait until nobody, in any process, loads sample `id`; until the `with` ends nobody else will."""
        return self._hold(id + 1)

    def keep(self, id: int, sample: Sample, *, rank: float | None = None) -> bool:
        """Copy `sample` into the store if there is room; the caller has claimed it. Whether it is there now.

        `rank` decides what gives way in a `valued` store.
        """
        if self._words[id] > 0:
            return True
        if len(sample) == 0:
            return False
        is_pixels = isinstance(sample, np.ndarray)
        content = np.ascontiguousarray(sample).reshape(-1) if is_pixels else np.frombuffer(sample, np.uint8)
        start = self._place(id, _form(sample), time.monotonic() if rank is None else rank)
        if start is None:
            return False
        self._data[start : start + len(content)] = content
        fence = threading.Lock()  # a new one: a fork might have left any other locked
        with fence:
            pass  # released and acquired: no processor moves the stores above behind the one below
        with fence:
            self._words[id] = -self._words[id]
        return True

    def is_first_use(self, id: int) -> bool:
        """Whether nobody has asked so about sample `id` before."""
        if self._asked[id]:
            return False
        self._asked[id] = 1
        return True

    @property
    def is_full(self) -> bool:
        """Whether something had to go, or was refused, for want of room."""
        header = self._table.header
        if self.settings.evicts:
            return bool(header[Field.evictions] > 0 or self._table.threshold[0] > 0 or header[Field.had_no_room])
        room_bytes = self.settings.max_bytes - int(header[Field.head])
        return bool(header[Field.kept_images] >= header[Field.max_images] or room_bytes < header[Field.smallest_bytes])

    def exchange(self, id: int, sample: Sample, *, rank: float) -> bool:
        """Keep `sample` instead of what is kept of sample `id`, if the budget has room for it; else nothing changes."""
        with self._changing():
            if not self._extents.release_for(id, size_of(_form(sample))):
                self._table.header[Field.had_no_room] = 1
                return False
        return self.keep(id, sample, rank=rank)

    def stats(self) -> dict[str, int]:
        """`entries` and `bytes` kept now, and `evictions` since the store was made, by all processes."""
        header = self._table.header
        return {
            "entries": int(header[Field.kept_images]),
            "bytes": int(header[Field.kept_bytes]),
            "evictions": int(header[Field.evictions]),
        }

    def close(self) -> None:
        """Close the file. May be called twice."""
        self._locks.close()

    @contextmanager
    def _hold(self, number: int) -> Iterator[None]:
        with self._claims.hold(number), self._locks.hold(number):
            yield

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Be the only one who changes what lies where; mends first what somebody who died over it has left."""
        header = self._table.header
        with self._hold(_ROOM):
            if header[Field.is_changing]:
                self._extents.mend()
            header[Field.is_changing] = 1
            yield
            header[Field.is_changing] = 0

    def _place(self, id: int, form: int, rank: float) -> int | None:
        """Where the sample is to be written; its word says so, and that it is not whole yet."""
        with self._changing():
            word = int(self._words[id])
            if word < 0 and self._forms[id] == form:
                return start_of(word)  # whoever had begun to write it is dead
            if word < 0:
                self._extents.drop(id)
            start = self._extents.reserve(Request(id, size_of(form), rank))
            if self.settings.evicts:
                self._ranks[id] = rank
            if start is not None:
                self._forms[id] = form
                self._words[id] = -word_of(start, int(self._table.header[Field.places]))
            return start

    def _copied(self, content: NDArray[np.uint8], form: int) -> Sample:
        if form > 0:
            return content.tobytes()
        buffer: NDArray[np.uint8] | None = getattr(self._copies, "buffer", None)
        if buffer is None or len(buffer) < len(content):
            buffer = self._copies.buffer = np.empty(len(content), np.uint8)
        copy = buffer[: len(content)]
        np.copyto(copy, content)
        copy.flags.writeable = False
        return copy


def _opened(descriptor: Descriptor, settings: Settings) -> SharedStore:
    return SharedStore.empty(settings) if descriptor.fd is None else SharedStore(descriptor.fd)


def _form(sample: Sample) -> int:
    """How `table` notes its kind and size."""
    return -(sample.shape[0] << 32 | sample.shape[1]) if isinstance(sample, np.ndarray) else len(sample)
