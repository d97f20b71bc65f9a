"""What a worker loads samples by when no cache stands before it: timed reads, and whole images decoded to be kept.

Worker processes import this file and not what builds it: every module is memory in each of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.load import Sample
from pipeline.decode import Scratch, decode, inspect
from pipeline.stats import Stats
from pipeline.transforms.sample import shrink_to


class TimedRead:
    """`read(id)` that counts its calls and seconds as the stage `read`."""

    def __init__(self, read: Callable[[int], Sample], stats: Stats) -> None:
        self._read = read
        self._stats = stats

    def __call__(self, id: int) -> Sample:
        """Read sample `id`."""
        began = time.perf_counter()
        sample = self._read(id)
        self._stats.clock.add("read", time.perf_counter() - began)
        return sample


class Decoding:
    """`load(id)` that gives pixels of its own: RGB uint8 `(H, W, 3)`, the long side at most `max_side`."""

    def __init__(
        self,
        read: Callable[[int], Sample],
        where: Callable[[int], str],
        *,
        max_side: int | None = None,
        stats: Stats | None = None,
    ) -> None:
        self._read = read
        self._where = where
        self._max_side = max_side
        self._stats = stats

    def __call__(self, id: int) -> NDArray[np.uint8]:
        """Read and decode sample `id`; counted as the stage `decode` where there are stats."""
        sample = self._read(id)
        if not isinstance(sample, bytes):
            return sample
        began = time.perf_counter()
        try:
            # New scratch for each image: the pixels are kept, so they must not view memory that is used again.
            pixels = shrink_to(decode(sample, inspect(sample), Scratch()), self._max_side)
        except ValueError as error:
            error.add_note(f"stage decode, sample id {id}, {self._where(id)}")
            raise
        if self._stats is not None:
            self._stats.clock.add("decode", time.perf_counter() - began)
        return pixels
