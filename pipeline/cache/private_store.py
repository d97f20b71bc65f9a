"""A store of one process: `LRUCache` and `PinnedCache` behind the face that loading wants."""

from __future__ import annotations

from contextlib import AbstractContextManager

import numpy as np

from pipeline.cache.claims import Claims
from pipeline.cache.load import Sample, sample_bytes
from pipeline.cache.lru import LRUCache
from pipeline.cache.pinned import PinnedCache
from pipeline.cache.settings import Settings
from pipeline.config.cache import CachePolicy


class PrivateStore:
    """Samples in this process's own memory; a copy of it, in another process, goes its own way."""

    copies = False

    def __init__(self, settings: Settings) -> None:
        """An empty store; its policy is `lru` or `pinned`."""
        self.settings = settings
        cache = LRUCache if settings.policy is CachePolicy.lru else PinnedCache
        self._cache: LRUCache[int, Sample] = cache(
            settings.max_images, max_bytes=settings.max_bytes, size_of=sample_bytes
        )
        self._claims = Claims()
        self._asked = bytearray(settings.num_samples)

    def find(self, id: int) -> Sample | None:
        """Sample `id` if it is kept."""
        return self._cache.get(id)

    def wants(self, _: int, /) -> bool:
        """Whether the cache may keep one more, or one in place of another."""
        capacity = self._cache.capacity
        if self.settings.policy is CachePolicy.pinned:
            return capacity is None or len(self._cache) < capacity
        return capacity != 0

    def has(self, id: int) -> bool:
        """Whether sample `id` is kept now."""
        return id in self._cache

    def is_first_use(self, id: int) -> bool:
        """Whether nobody has asked so about sample `id` before."""
        is_first, self._asked[id] = not self._asked[id], 1
        return is_first

    @property
    def is_full(self) -> bool:
        """Whether something had to go, or there is no place for one more."""
        capacity = self._cache.capacity
        return self._cache.stats()["evictions"] > 0 or (capacity is not None and len(self._cache) >= capacity)

    def claimed(self, id: int) -> AbstractContextManager[None]:
        """Be the only thread that loads sample `id`; waits for whichever does."""
        return self._claims.hold(id)

    def keep(self, id: int, sample: Sample) -> bool:
        """Put `sample` into the cache; arrays become read-only, for every later epoch shares them."""
        if isinstance(sample, np.ndarray):
            sample.flags.writeable = False
        self._cache.put(id, sample)
        return id in self._cache

    def stats(self) -> dict[str, int]:
        """`entries` and `bytes` kept now, `evictions` so far."""
        stats = self._cache.stats()
        return {name: stats[name] for name in ("entries", "bytes", "evictions")}

    def close(self) -> None:
        """The memory goes with the last reference to it."""
