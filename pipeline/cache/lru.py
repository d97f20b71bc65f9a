"""The least-recently-used cache."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar, overload

from pipeline.cache.forks import renew_after_fork

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
D = TypeVar("D")


def _no_size(_: object) -> int:
    return 0


class LRUCache(Generic[K, V]):
    """Keeps the values used last, at most `capacity` of them and at most `max_bytes`; safe to use from any thread.

    Under a reshuffle every epoch its hit rate is `c + (1 - c) ln(1 - c)` for a capacity fraction c, far below c: prefer
    `PinnedCache` for training and this one for access with locality.
    """

    def __init__(
        self,
        capacity: int | None,
        *,
        max_bytes: int | None = None,
        size_of: Callable[[V], int] = _no_size,
    ) -> None:
        """Make an empty cache.

        Args:
            capacity: entries kept at most; 0 keeps none, None does not limit their number.
            max_bytes: sum of `size_of` over the entries kept at most; None does not limit it.
            size_of: bytes of a value.
        """
        if capacity is not None and capacity < 0:
            raise ValueError(f"capacity must be >= 0, got {capacity}")
        if max_bytes is not None and max_bytes < 0:
            raise ValueError(f"max_bytes must be >= 0, got {max_bytes}")
        self._capacity = capacity
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._entries: OrderedDict[K, V] = OrderedDict()
        self.renew_locks()
        self._bytes = 0
        self._hits = self._misses = self._evictions = 0

    def __getstate__(self) -> dict[str, Any]:
        # A lock belongs to one process; the entries travel.
        with self._lock:
            return self.__dict__ | {"_lock": None, "_entries": self._entries.copy()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.renew_locks()

    def renew_locks(self) -> None:
        """Make a new lock, as a forked child must; the entries stay."""
        # Re-entrant: dropping a value may run a finalizer that asks this very cache.
        self._lock = threading.RLock()
        renew_after_fork(self)

    @property
    def capacity(self) -> int | None:
        """Entries kept at most."""
        return self._capacity

    @overload
    def get(self, key: K) -> V | None: ...
    @overload
    def get(self, key: K, default: D) -> V | D: ...
    def get(self, key: K, default: D | None = None) -> V | D | None:
        """The value of `key`, now the most recently used, or `default`. Counts a hit or a miss."""
        with self._lock:
            try:
                self._entries.move_to_end(key)
            except KeyError:
                self._misses += 1
                return default
            self._hits += 1
            return self._entries[key]

    def put(self, key: K, value: V) -> None:
        """Keep `value` as the most recently used; evict the least recently used ones until the budget holds.

        A value larger than `max_bytes` is not kept.
        """
        size_bytes = self._size_of(value)
        with self._lock:
            if key in self._entries:
                self._bytes -= self._size_of(self._entries.pop(key))
            if self._capacity == 0 or (self._max_bytes is not None and size_bytes > self._max_bytes):
                return
            self._entries[key] = value
            self._bytes += size_bytes
            while self._over_budget():
                _, evicted = self._entries.popitem(last=False)
                self._bytes -= self._size_of(evicted)
                self._evictions += 1

    def __contains__(self, key: object) -> bool:
        """Whether `key` is kept; counts nothing and changes no order."""
        with self._lock:
            return key in self._entries

    def __len__(self) -> int:
        """Entries kept."""
        with self._lock:
            return len(self._entries)

    def clear(self) -> None:
        """Forget all entries; the counters go on."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    def stats(self) -> dict[str, int]:
        """`hits`, `misses`, `evictions` since the cache was made, and `entries` and `bytes` kept now."""
        with self._lock:
            return {
                "hits": self._hits,
                "misses": self._misses,
                "evictions": self._evictions,
                "entries": len(self._entries),
                "bytes": self._bytes,
            }

    def _over_budget(self) -> bool:
        too_many = self._capacity is not None and len(self._entries) > self._capacity
        return too_many or (self._max_bytes is not None and self._bytes > self._max_bytes)
