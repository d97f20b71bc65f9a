"""Makes samples: read, decode, transform, into their rows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from time import perf_counter, thread_time
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pipeline.decode import BadImageError, Scratch, ThreadScratch
from pipeline.loader.bad import Tolerance
from pipeline.loader.job import Begin
from pipeline.loader.read import OF_THE_FILE
from pipeline.stats import BUSY, MAKING_CPU, StageClock, Stats


class Transform(Protocol):
    """What turns a sample into its row; called by several threads at once."""

    @property
    def num_draws(self) -> int:
        """Uniforms that a sample uses."""

    @property
    def channels_last(self) -> bool:
        """Whether rows are (H, W, 3), else (3, H, W)."""

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of a row."""

    @property
    def row_dtype(self) -> np.dtype[Any]:
        """Element type of a row."""

    def __call__(
        self,
        sample: bytes | NDArray[np.uint8],
        draws: NDArray[np.float64],
        out: NDArray[Any],
        scratch: Scratch,
        clock: StageClock | None = None,
    ) -> None:
        """Write the row of `sample`, encoded or RGB pixels, into `out`."""


@runtime_checkable
class ManyTransform(Transform, Protocol):
    """A transform that is faster with several samples than with one."""

    most_rows: int
    """So many at a time, at most; 1: it takes none."""

    def takes(self, sample: bytes | NDArray[np.uint8]) -> bool:
        """Whether this sample can be one of `many`, with others of its type."""

    def many(
        self,
        samples: Sequence[bytes | NDArray[np.uint8]],
        draws: NDArray[np.float64],
        out: NDArray[Any],
        scratch: Scratch,
        clock: StageClock | None = None,
    ) -> None:
        """Write the rows of `samples` into `out`, to the bit what each would be alone; or raise: all are open then."""


class MakeSample:
    """A `ManySamplesFunction` over a `load` callable and a transform; safe to call from several threads.

    Every thread has its own scratch memory and its own clock. An error leaves as itself, with a note that says at which
    stage and for which sample it happened.
    """

    def __init__(
        self,
        load: Callable[[int], bytes | NDArray[np.uint8]],
        transform: Transform,
        *,
        where: Callable[[int], str],
        stats: Stats,
        tolerance: Tolerance | None = None,
    ) -> None:
        """Use `load(id)` for an encoded image or decoded RGB pixels, and `where(id)` to name a sample in errors."""
        self._load = load
        self.tolerance = tolerance
        self.transform = transform
        self._together = transform if isinstance(transform, ManyTransform) else None
        self.most_rows = 1 if self._together is None else self._together.most_rows
        self._where = where
        self._stats = stats
        self._threads = ThreadScratch()

    def __call__(self, id: int, draws: NDArray[np.float64], row: NDArray[np.generic]) -> None:
        """Write sample `id` into `row`."""
        self._make(self._read(id), id, draws, row)

    def many(
        self, ids: Sequence[int], draws: NDArray[np.float64], rows: NDArray[np.generic], begin: Begin
    ) -> Iterator[int]:
        """Write samples `ids` into `rows`, in order; yields how many more are made, whenever some are."""
        row = 0
        began_s, began_cpu_s = perf_counter(), thread_time()
        try:
            for samples in self._groups(ids, begin):
                end = row + len(samples)
                if not begin(row, len(samples)):
                    return
                yield from self._make_group(samples, ids[row:end], draws[row:end], rows[row:end])
                row = end
                del samples  # they may be large: not to be held while the next one is read
        finally:
            clock = self._stats.clock
            clock.add(BUSY, perf_counter() - began_s, row)
            clock.add(MAKING_CPU, thread_time() - began_cpu_s, row)

    def _groups(self, ids: Sequence[int], begin: Begin) -> Iterator[list[Any]]:
        """The samples, loaded in order: those that the transform takes together, and every other alone."""
        together: list[Any] = []
        for row, id in enumerate(ids):
            if not begin(row, 1):
                return
            try:
                sample = self._read(id)
            except Exception:
                if together:
                    yield together  # should one of these fail, that is the first failure
                raise
            is_taken = self._together is not None and self._together.takes(sample)
            is_other = together and type(sample) is not type(together[0])
            if together and (not is_taken or is_other or len(together) == self.most_rows):
                yield together
                together = []
            if is_taken:  # a load may lend memory that its next call writes to
                together.append(sample.copy() if isinstance(sample, np.ndarray) else sample)
            else:
                yield [sample]
            del sample
        if together:
            yield together

    def _make_group(
        self, samples: list[Any], ids: Sequence[int], draws: NDArray[np.float64], rows: NDArray[np.generic]
    ) -> Iterator[int]:
        if self._together is not None and len(samples) > 1:
            with suppress(Exception):  # one by one, below, shows whose it is
                self._together.many(samples, draws, rows, *self._own())
                yield len(samples)
                return
        for sample, id, own_draws, row in zip(samples, ids, draws, rows, strict=True):
            self._make(sample, id, own_draws, row)
            yield 1

    def _read(self, id: int) -> bytes | NDArray[np.uint8]:
        try:
            return self._load(id)
        except Exception as error:
            self._note(error, "read", id)
            if self.tolerance is not None and isinstance(error, OSError) and error.errno in OF_THE_FILE:
                raise BadImageError(str(error.strerror)) from error
            raise

    def _make(self, sample: bytes | NDArray[np.uint8], id: int, draws: NDArray[np.float64], row: NDArray[Any]) -> None:
        try:
            self.transform(sample, draws, row, *self._own())
        except Exception as error:
            self._note(error, "decode or transform", id)
            raise

    def _own(self) -> tuple[Scratch, StageClock]:
        """The calling thread's scratch memory and clock."""
        return self._threads.scratch, self._stats.clock

    def _note(self, error: Exception, stage: str, id: int) -> None:
        if not any("sample id" in note for note in getattr(error, "__notes__", ())):
            error.add_note(f"stage {stage}, sample id {id}, {self._where(id)}, {threading.current_thread().name}")
