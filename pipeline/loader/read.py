"""What a worker loads samples by, or fills a store with: timed reads, and whole images decoded to be kept.

Worker processes import this file and not what builds it: every module is memory in each of them.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from time import perf_counter, sleep, thread_time

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.load import Sample
from pipeline.decode import BadImageError, Rendering, Scratch, ThreadScratch, count_decoded, decode, inspect
from pipeline.stats import READ_CPU, Stats
from pipeline.transforms.sample import shrink_to

OF_THE_FILE = frozenset(
    (
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EACCES,
        errno.EPERM,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENXIO,  # a socket, a pipe, a device
    )
)
"""What opening a file says that will be no other tomorrow."""
_OF_THE_WEATHER = frozenset((errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.EHOSTDOWN))
_TRY_AGAIN_AFTER_S = (0.1, 0.5)


def is_of_the_sample(error: Exception) -> bool:
    """Whether what kept a sample from being loaded is its own fault, and would do so every time."""
    return isinstance(error, BadImageError) or (isinstance(error, OSError) and error.errno in OF_THE_FILE)


class TimedRead:
    """`read(id)` that counts its calls and seconds as the stage `read`, and its processor time.

    What a disk or a network may do at the next try, it is asked again, twice; then it raises, whatever `data.on_error`
    says, or batches would depend on the weather.
    """

    def __init__(self, read: Callable[[int], Sample], stats: Stats) -> None:
        self._read = read
        self._stats = stats

    def __call__(self, id: int) -> Sample:
        """Read sample `id`."""
        began_s, began_cpu_s = perf_counter(), thread_time()
        sample = self._patiently(id)
        self._stats.clock.add("read", perf_counter() - began_s)
        self._stats.clock.add(READ_CPU, thread_time() - began_cpu_s)
        return sample

    def _patiently(self, id: int) -> Sample:
        for wait_s in _TRY_AGAIN_AFTER_S:
            try:
                return self._read(id)
            except OSError as error:
                if error.errno not in _OF_THE_WEATHER:
                    raise
            sleep(wait_s)
        return self._read(id)


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
        rendering: Rendering | None = None,
        stats: Stats | None = None,
        borrow: bool = False,
    ) -> None:
        self._read = read
        self._where = where
        self._max_side = max_side
        self._rendering = rendering or Rendering()
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
            info = inspect(sample)
            pixels = decode(sample, info, self._scratch(), rendering=self._rendering)
            pixels = shrink_to(pixels, self._max_side)
        except ValueError as error:
            error.add_note(f"stage decode, sample id {id}, {self._where(id)}")
            raise
        if self._stats is not None:
            count_decoded(self._stats.clock, [info], perf_counter() - began)
        return pixels

    def _scratch(self) -> Scratch:
        if not self._borrow:
            return Scratch()
        return self._own.scratch
