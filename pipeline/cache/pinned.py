"""The cache that fills once and never evicts."""

from __future__ import annotations

from pipeline.cache.lru import K, LRUCache, V


class PinnedCache(LRUCache[K, V]):
    """Keeps the first values put until its budget is full, and those for good.

    When every sample is asked for once an epoch, a hit in the next epoch needs an entry that outlives the epoch's
    border; at most the budget does, so no policy, however clairvoyant, exceeds hit rate c. This one reaches it (the
    policy is MinIO of Mohan et al., VLDB 2021).
    """

    def put(self, key: K, value: V) -> None:
        """Keep `value` if it fits and `key` is new; otherwise change nothing."""
        size_bytes = self._size_of(value)
        with self._lock:
            if key in self._entries:
                return
            if self._capacity is not None and len(self._entries) >= self._capacity:
                return
            if self._max_bytes is not None and self._bytes + size_bytes > self._max_bytes:
                return
            self._entries[key] = value
            self._bytes += size_bytes
