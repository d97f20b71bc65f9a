"""How large samples are, from a look at a few of them. A part of `build.py`, in a file of its own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from pipeline.cache.load import Sample, sample_bytes
from pipeline.decode import inspect
from pipeline.transforms.geometry import limit_side

LOOKED_AT = 32
"""Samples read, at most."""
NUM_THREADS = 8
GIB = 2**30


class LookedAt(NamedTuple):
    """A sample that was read to see how large it is."""

    sample: Sample
    read_s: float


class Sizes(NamedTuple):
    """Mean bytes of a sample; infinite where none could be read, which is not for an estimate to say."""

    encoded: float
    decoded: float
    read: dict[int, LookedAt]
    """The samples that were read, by id."""

    def of(self, *, decoded: bool) -> float:
        """Mean bytes of a sample as it is kept."""
        return self.decoded if decoded else self.encoded


def look_at_some(read: Callable[[int], Sample], num_samples: int, max_side: int | None) -> Sizes:
    """The sizes of a few samples spread over all that `read` gives; decoded ones after `max_side`."""
    encoded: list[int] = []
    decoded: list[int] = []
    looked_at: dict[int, LookedAt] = {}
    ids = np.linspace(0, num_samples - 1, min(LOOKED_AT, num_samples), dtype=np.int64).tolist()
    with ThreadPoolExecutor(NUM_THREADS, "headrace-look") as pool:
        for id, future in [(id, pool.submit(_timed, read, id)) for id in ids]:
            try:
                looked = future.result()
                encoded.append(sample_bytes(looked.sample))
                decoded.append(_pixel_bytes(looked.sample, max_side))
            except Exception:  # the loop that wants this sample will meet the error, at its place
                continue
            looked_at[id] = looked
    return Sizes(_mean(encoded), _mean(decoded), looked_at)


def in_gib(size_bytes: float) -> str:
    """A number for people, of two digits at least."""
    size_gib = size_bytes / GIB
    return f"{size_gib:.1f}" if size_gib >= 1 else f"{size_gib:.2g}"


def _timed(read: Callable[[int], Sample], id: int) -> LookedAt:
    began_s = time.perf_counter()
    sample = read(id)
    return LookedAt(sample, time.perf_counter() - began_s)


def _pixel_bytes(sample: Sample, max_side: int | None) -> int:
    if isinstance(sample, np.ndarray):
        height, width = sample.shape[:2]
    else:
        info = inspect(sample)
        height, width = info.height, info.width
    height, width = limit_side(height, width, max_side)
    return height * width * 3


def _mean(sizes: list[int]) -> float:
    return float(np.mean(sizes)) if sizes else math.inf
