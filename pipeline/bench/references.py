"""What a trial is held against, in the same process: bare decoding, and a batch that is there already."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.bench.passes import Take, synchronize, wait_until_idle
from pipeline.build_source import make_sampler
from pipeline.config import BenchConfig
from pipeline.decode import Scratch, decode, inspect
from pipeline.machine import num_cores
from pipeline.sampler import Sampler
from pipeline.sources import Source
from pipeline.training.loop_clock import Clock

LIMIT_S = 3.0
"""A reference's pass ends then, however many batches a timed pass has."""

_PER_TASK = 4
"""Samples that a thread takes at a time: few, for at the end the others wait for the last."""


class References:
    """The references of one trial, measured in turn with its passes."""

    def __init__(self, cfg: BenchConfig, source: Source, *, clock: Clock = time.perf_counter) -> None:
        """Bare decoding of `source`, unless it has pixels, uses as many threads as this process may use cores."""
        self._clock = clock
        self._ceiling: DecodeCeiling | None = None
        if isinstance(source.read(0), bytes):
            sampler = make_sampler(cfg.loader.sampler, source, cfg.seed)
            self._ceiling = DecodeCeiling(source, sampler, num_threads=num_cores(), clock=clock)

    def measure(self, batch: tuple[Any, Any], take: Take, num_batches: int) -> dict[str, float | None]:
        """The references' rates over `num_batches` like `batch`, whose memory is not kept."""
        wait_until_idle()  # what the loader makes ahead would slow the decoder
        num_samples = num_batches * len(batch[0])
        batch = own_copy(batch)
        return {
            "decode_ceiling_per_sec": self._ceiling.samples_per_sec(num_samples) if self._ceiling else None,
            "resident_per_sec": resident_per_sec(batch, take, num_batches, clock=self._clock),
        }


class DecodeCeiling:
    """Reads and fully decodes a source's files, in the order of its epochs, and makes nothing of them.

    Nothing is ahead between two passes. The samples must be encoded images.
    """

    def __init__(self, source: Source, sampler: Sampler, *, num_threads: int, clock: Clock = time.perf_counter) -> None:
        """Decode `source` in the order that `sampler` gives, by `num_threads` threads."""
        self.num_decoded = 0
        """Samples, of all passes."""
        self._source = source
        self._sampler = sampler
        self._num_threads = num_threads
        self._clock = clock

    def samples_per_sec(self, num_samples: int) -> float:
        """The rate over the next `num_samples` samples, or over as many as 3 seconds allow.

        Raises OSError and ValueError for a sample that cannot be read or decoded.
        """
        ids, began_s = self._next_ids(num_samples), self._clock()
        firsts = itertools.count(0, _PER_TASK)

        def decode_some() -> int:
            scratch, num_decoded = Scratch(), 0
            while (first := next(firsts)) < num_samples and (first == 0 or self._clock() - began_s < LIMIT_S):
                for id in ids[first : first + _PER_TASK].tolist():
                    self._decode(id, scratch)
                    num_decoded += 1
            return num_decoded

        with ThreadPoolExecutor(self._num_threads, "headrace-ceiling") as pool:
            counts = [pool.submit(decode_some) for _ in range(self._num_threads)]
            num_decoded = sum(count.result() for count in counts)
        wall_s = self._clock() - began_s
        self.num_decoded += num_decoded
        return num_decoded / wall_s

    def _decode(self, id: int, scratch: Scratch) -> None:
        data = self._source.read(id)
        assert isinstance(data, bytes)
        try:
            decode(data, inspect(data), scratch)
        except ValueError as error:
            error.add_note(f"stage decode, sample id {id}, {self._source.where(id)}")
            raise

    def _next_ids(self, num_samples: int) -> NDArray[np.int64]:
        return np.concatenate(list(self._ids(self.num_decoded, num_samples)))

    def _ids(self, start: int, count: int) -> Iterator[NDArray[np.int64]]:
        while count > 0:
            epoch, position = divmod(start, self._sampler.num_samples)
            positions = np.arange(position, min(position + count, self._sampler.num_samples))
            yield self._sampler.ids(epoch, positions)
            start, count = start + len(positions), count - len(positions)


def own_copy(batch: tuple[Any, Any]) -> tuple[Any, Any]:
    """A batch in memory of its own and of the same layout, so that the loader's is free."""
    images, labels = batch
    images = images.clone() if isinstance(images, Tensor) else images.copy(order="K")
    return images, labels.clone() if isinstance(labels, Tensor) else labels


def resident_per_sec(
    batch: tuple[Any, Any], take: Take, num_batches: int, *, clock: Clock = time.perf_counter
) -> float:
    """The rate of a loop that has its batch already, as a perfect loader would give it, over 3 seconds at most."""
    images, labels = batch
    began_s, num_taken = clock(), 0
    while num_taken < num_batches and (num_taken == 0 or clock() - began_s < LIMIT_S):
        take(images, labels)
        num_taken += 1
    synchronize()
    return num_taken * len(images) / (clock() - began_s)
