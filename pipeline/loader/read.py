"""What a worker loads samples by, or fills a store with: timed reads, and whole images decoded to be kept.

Worker processes import this file and not what builds it: every module is memory in each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.load import Sample
from pipeline.decode import Scratch, ThreadScratch, decode, inspect
from pipeline.stats import Stats
from pipeline.transforms.sample import shrink_to


class TimedRead:
    """`read(id)` that counts its calls and seconds as the stage `read`."""

    def __init__(self, read: Callable[[int], Sample], stats: Stats) -> None:
        self._read = read
        self._stats = stats

    def __call__(self, id: int) -> Sample:
        """Read sample `id`."""
        began = perf_counter()
        sample = self._read(id)
        self._stats.clock.add("read", perf_counter() - began)
        return sample


class Decoding:
    """`load(id)` that gives pixels: RGB uint8 `(H, W, 3)`, the long side at most `max_side`.

    They are the caller's own, or, with `borrow`, valid until the calling thread's next `load`: memory that is used
    again costs no page faults.
    """

    def __init__(
        self,
        read: Callable[[int], Sample],
        where: Callable[[int], str],
        *,
        max_side: int | None = None,
        stats: Stats | None = None,
        borrow: bool = False,
    ) -> None:
        self._read = read
        self._where = where
        self._max_side = max_side
        self._stats = stats
        self._borrow = borrow
        self._own = ThreadScratch()

    def __call__(self, id: int) -> NDArray[np.uint8]:
        """Read and decode sample `id`."""
        return self.decode(id, self._read(id))

    def decode(self, id: int, sample: Sample) -> NDArray[np.uint8]:
        """Decode `sample`, which was read as `id`; counted as the stage `decode` where there are stats."""
        if not isinstance(sample, bytes):
            return shrink_to(sample, self._max_side)
        began = perf_counter()
        try:
            pixels = shrink_to(decode(sample, inspect(sample), self._scratch()), self._max_side)
        except ValueError as error:
            error.add_note(f"stage decode, sample id {id}, {self._where(id)}")
            raise
        if self._stats is not None:
            self._stats.clock.add("decode", perf_counter() - began)
        return pixels

    def _scratch(self) -> Scratch:
        if not self._borrow:
            return Scratch()
        return self._own.scratch
