"""Loading through a store."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.settings import Kind, Settings
from pipeline.stats import StageClock, Stats

Sample = bytes | NDArray[np.uint8]
"""An encoded image, or decoded RGB pixels `(H, W, 3)`."""


def sample_bytes(sample: Sample) -> int:
    """Memory that a sample takes."""
    return sample.nbytes if isinstance(sample, np.ndarray) else len(sample)


HITS, MISSES = "cache_hits", "cache_misses"
"""What `Stats` calls samples that a store had, and those that it had not."""


_READS_REMEMBERED = 31
_MOST_TIMES_MEDIAN = 4.0


class Store(Protocol):
    """Keeps samples by id, as many as its budget and its policy allow. Safe to use from many threads."""

    settings: Settings
    copies: bool
    """Whether `keep` copies what it is given; if not, that stays in use."""

    def find(self, id: int) -> Sample | None:
        """Sample `id` if it is kept; pixels must not be written to."""

    def wants(self, id: int, /) -> bool:
        """Whether `keep` might keep sample `id`. Cheap."""

    def has(self, id: int) -> bool:
        """Whether sample `id` is kept now."""

    def is_first_use(self, id: int) -> bool:
        """Whether nobody has asked so about sample `id` before: finding it is no hit then, it was kept beforehand."""

    @property
    def is_full(self) -> bool:
        """Whether something had to go, or was refused, for want of room."""

    def claimed(self, id: int) -> AbstractContextManager[None]:
        """Be the only one who loads sample `id`; waits for whoever does."""

    def keep(self, id: int, sample: Sample) -> bool:
        """Remember `sample` if there is room; the caller has claimed it. Whether it is there now."""

    def stats(self) -> dict[str, int]:
        """`entries` and `bytes` kept now, `evictions` so far."""

    def close(self) -> None:
        """Free what it owns. May be called twice."""


@runtime_checkable
class RankedStore(Store, Protocol):
    """A store in which a sample of higher rank takes the place of lower ones."""

    def keep(self, id: int, sample: Sample, *, rank: float | None = None) -> bool:
        """As `Store.keep`."""

    def exchange(self, id: int, sample: Sample, *, rank: float) -> bool:
        """Keep `sample` instead of what is kept of sample `id`, if there is room; else nothing changes."""


Read = Callable[[int], Sample]
Decode = Callable[[int, Sample], NDArray[np.uint8]]
"""Sample `id`, as it was read, to pixels."""


class CachedLoad:
    """`load(id)` that remembers; an id whose load is in flight is waited for, never loaded twice."""

    def __init__(self, read: Read, decode: Decode | None, store: Store, stats: Stats) -> None:
        """Ask `store` before `read`; keep what was read, or with `decode` its pixels.

        What the store has no room for comes as it was read: where it is used once, it may be decoded in part.
        """
        self._read = read
        self._decode = decode
        self.store = store
        self._stats = stats

    def __call__(self, id: int) -> Sample:
        """Sample `id`. Raises what `read` and `decode` raise; a failure is not remembered."""
        return _kept_or_loaded(id, self.store, self._stats.clock, load=self._load, read=self._read)[0]

    def keep_read(self, id: int, sample: Sample, _read_s: float = 0.0) -> Sample:
        """Keep sample `id`, which was read, in whatever time, and is claimed; gives what was kept."""
        if self._decode is not None:
            sample = self._decode(id, sample)
        self.store.keep(id, sample)
        return sample

    def _load(self, id: int) -> Sample:
        return self.keep_read(id, self._read(id))


class ValuedLoad:
    """`load(id)` over a store that keeps what saves most time a byte.

    What a sample is worth is measured when it is loaded: kept as a file it saves the reading, kept as pixels the
    decoding too, each divided by its bytes. The better of the two is kept, if it is worth more than what must go for
    it: the greedy solution of the fractional knapsack, at most one sample from the best (Dantzig 1957). Files become
    pixels later while there is room. The pixels are the same, whichever it is.
    """

    def __init__(self, read: Read, decode: Decode | None, store: RankedStore, stats: Stats) -> None:
        """Ask `store` before `read`; without `decode` only what was read is kept."""
        self._read = read
        self._decode = decode
        self.store = store
        self._stats = stats
        self._reads_s: deque[float] = deque(maxlen=_READS_REMEMBERED)

    def __call__(self, id: int) -> Sample:
        """Sample `id`. Raises what `read` and `decode` raise; a failure is not remembered."""
        sample, was_kept = _kept_or_loaded(id, self.store, self._stats.clock, load=self._load, read=self._read)
        if was_kept and isinstance(sample, bytes) and self._decode is not None and not self.store.is_full:
            return self._decoded(id, sample, self._decode)
        return sample

    def keep_read(self, id: int, sample: Sample, read_s: float) -> Sample:
        """Keep sample `id`, which is claimed and took `read_s` to read, as file or pixels; gives the pixels, if any."""
        file_rank = self._rank(sample, read_s)
        if self._decode is None:
            self.store.keep(id, sample, rank=file_rank)
            return sample
        # The thread's own time: what else the machine did meanwhile is not saved by keeping this sample.
        began_s = time.thread_time()
        pixels = self._decode(id, sample)
        pixels_rank = self._rank(pixels, read_s + time.thread_time() - began_s)
        if pixels_rank >= file_rank or self.store.settings.kind is Kind.decoded:
            self.store.keep(id, pixels, rank=pixels_rank)
        else:
            self.store.keep(id, sample, rank=file_rank)
        return pixels

    def _rank(self, sample: Sample, saved_s: float) -> float:
        """What keeping it saves, for what it costs: in bytes, or in images where their number is limited."""
        if self.store.settings.max_images is not None:
            return saved_s
        return saved_s / max(1, sample_bytes(sample))

    def _load(self, id: int) -> Sample:
        began_s = time.perf_counter()
        sample = self._read(id)
        return self.keep_read(id, sample, self._believed(time.perf_counter() - began_s))

    def _believed(self, read_s: float) -> float:
        """`read_s`, or less: a thread that waits for the interpreter's lock after its read has not read for so long."""
        self._reads_s.append(read_s)
        return min(read_s, _MOST_TIMES_MEDIAN * statistics.median(tuple(self._reads_s)))

    def _decoded(self, id: int, data: bytes, decode: Decode) -> NDArray[np.uint8]:
        """The pixels of a file that is kept, from now on kept in its place."""
        began_s = time.thread_time()
        pixels = decode(id, data)
        rank = self._rank(pixels, time.thread_time() - began_s)
        with self.store.claimed(id):
            self.store.exchange(id, pixels, rank=rank)
        return pixels


def _kept_or_loaded(id: int, store: Store, clock: StageClock, *, load: Read, read: Read) -> tuple[Sample, bool]:
    """Sample `id`, and whether `store` had it: else by `load`, which nobody else does meanwhile, if it may be kept."""
    is_first = store.is_first_use(id)
    sample = store.find(id)
    if sample is None:
        if not store.wants(id):
            clock.tally(MISSES)
            return read(id), False
        with store.claimed(id):
            sample = store.find(id)  # whoever held it before may have loaded it
            if sample is None:
                clock.tally(MISSES)
                return load(id), False
    clock.tally(MISSES if is_first else HITS)
    return sample, True
