"""Loading through a cache."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.forks import renew_after_fork
from pipeline.cache.lru import LRUCache

Sample = bytes | NDArray[np.uint8]
"""An encoded image, or decoded RGB pixels `(H, W, 3)`."""


def sample_bytes(sample: Sample) -> int:
    """Memory that a cached sample holds."""
    return sample.nbytes if isinstance(sample, np.ndarray) else len(sample)


class CachedLoad:
    """`load(id)` that remembers; an id whose load is in flight is waited for, never loaded twice.

    Arrays are kept read-only: what a cache returns is shared by every later epoch.
    """

    def __init__(self, load: Callable[[int], Sample], cache: LRUCache[int, Sample]) -> None:
        """Ask `cache` before `load`; the cache may evict or refuse as it likes."""
        self._load = load
        self.cache = cache
        self.renew_locks()

    def __getstate__(self) -> dict[str, Any]:
        # What is in flight, and its lock, belong to the process that loads it.
        return self.__dict__ | {"_lock": None, "_in_flight": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.renew_locks()

    def renew_locks(self) -> None:
        """Forget what other threads have in flight, as a forked child must: they do not exist there."""
        self._lock = threading.Lock()
        self._in_flight: dict[int, threading.Event] = {}
        renew_after_fork(self)

    def __call__(self, id: int) -> Sample:
        """Sample `id`. Raises what `load` raises; a failure is not remembered."""
        while True:
            with self._lock:
                landed = self._in_flight.get(id)
                if landed is None:
                    sample = self.cache.get(id)
                    if sample is not None:
                        return sample
                    self._in_flight[id] = threading.Event()
                    break
            landed.wait()
        try:
            sample = self._load(id)
            if isinstance(sample, np.ndarray):
                sample.flags.writeable = False
            self.cache.put(id, sample)
            return sample
        finally:
            with self._lock:
                self._in_flight.pop(id).set()
