"""How fast the disk gives samples that are not in memory, and samples that are."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pipeline.bench import page_cache
from pipeline.cache.load import Sample, sample_bytes
from pipeline.config import ConfigError
from pipeline.sources import Source

MAX_BYTES = 64 << 20
LIMIT_S = 3.0
"""Of a cold pass; a disk that takes longer is judged by fewer samples."""
_WARM_LIMIT_S = 1.0
_WARM_PASSES = 3
"""The fastest counts: a few megabytes from memory take milliseconds, and another process can take as many."""
MAX_THREADS = 32

_STAYED_PCT = 5.0
"""So many of the pages are often somebody else's; more, and the pass was not a cold one."""


@dataclass(slots=True)
class ReadPass:
    """What reading some samples gave."""

    samples: dict[int, Sample] = field(default_factory=dict)
    failures: dict[int, OSError] = field(default_factory=dict)
    num_bytes: int = 0
    elapsed_s: float = 0.0

    @property
    def mb_per_s(self) -> float:
        """Megabytes, of 10**6 bytes, a second."""
        return self.num_bytes / 1e6 / self.elapsed_s


@dataclass(frozen=True, slots=True)
class Reading:
    """Samples read twice, the first time from the disk where the system lets its page cache be emptied."""

    first: ReadPass
    warm: ReadPass
    why_not_cold: str | None
    """None: `first` was cold."""


def read_cold_and_warm(source: Source, ids: Sequence[int], *, num_threads: int) -> Reading:
    """Read samples `ids` with `num_threads`, which are the run's: first cold, then warm; `MAX_BYTES` at most."""
    why_not_cold = _drop(files_of(source, ids))
    first = read_pass(source, ids, num_threads=num_threads)
    again = [
        read_pass(source, list(first.samples), num_threads=num_threads, limit_s=_WARM_LIMIT_S)
        for _ in range(_WARM_PASSES)
    ]
    return Reading(first, max(again, key=lambda warm: warm.mb_per_s), why_not_cold)


def read_pass(
    source: Source, ids: Sequence[int], *, num_threads: int, limit_s: float = LIMIT_S, max_bytes: int = MAX_BYTES
) -> ReadPass:
    """Read samples `ids`; those that are not begun within `limit_s`, or after `max_bytes`, are left out."""
    done, lock, began_s = ReadPass(), threading.Lock(), time.perf_counter()

    def read(id: int) -> None:
        if time.perf_counter() - began_s > limit_s or done.num_bytes >= max_bytes:
            return
        try:
            sample = source.read(id)
        except OSError as failure:
            done.failures[id] = failure
            return
        with lock:
            done.samples[id] = sample
            done.num_bytes += sample_bytes(sample)

    with ThreadPoolExecutor(min(num_threads, MAX_THREADS), "headrace-doctor") as pool:
        list(pool.map(read, ids))
    done.elapsed_s = time.perf_counter() - began_s
    # Threads end in any order; who looks at the first of them is to see the same ones every time.
    done.samples = {id: done.samples[id] for id in ids if id in done.samples}
    done.failures = {id: done.failures[id] for id in ids if id in done.failures}
    return done


def files_of(source: Source, ids: Sequence[int]) -> list[str]:
    """The files that samples `ids` lie in: one each, or the archives among all that the source has."""
    files = source.files()
    if len(files) == len(source):
        return [files[id] for id in ids]
    names = [source.where(id) for id in ids]
    return [file for file in files if any(name.startswith(f"{file}:") for name in names)]


def _drop(files: Sequence[str]) -> str | None:
    """Have none of `files` in the page cache; else why they are, in words."""
    there = [path for path in files if os.access(path, os.R_OK) and os.path.isfile(path)]
    if not there:
        return "there is no file to read"
    try:
        stayed_pct = page_cache.drop(there)
    except ConfigError:  # its words are those of a benchmark's key
        return "this file system keeps them in the page cache"
    return f"{stayed_pct:.0f} % stayed in the page cache" if stayed_pct > _STAYED_PCT else None
