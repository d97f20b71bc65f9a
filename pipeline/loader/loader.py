"""ids -> filled batches, in order."""

from __future__ import annotations

import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import DTypeLike

from pipeline.loader.bad import mended
from pipeline.loader.batch import Batch
from pipeline.loader.executors import Executor
from pipeline.loader.job import Job
from pipeline.loader.order import Order
from pipeline.loader.slots import Pin, SlotRing, max_slots, slot_bytes
from pipeline.loader.state import make_state, resume_point
from pipeline.stats import BUSY, COLLATE, Stats

OnBad = Callable[[list[tuple[int, str]]], None]

EXIT_LIMIT_S = 5.0
"""How long closing, collecting a loader, or the interpreter's exit waits for a thread that does not end."""


WATCH_S = 0.5
"""While a batch is waited for: how often the executor is asked whether it will ever come."""


class Loader:
    """Yields the batches of `order`, made by `executor` in reusable slots.

    Each `iter()` begins the next epoch, or continues a loaded state; an epoch left by `break` counts as begun. There is
    one iterator at a time. With `read_ahead` the first batches of the next epoch are made while the last ones of this
    epoch are consumed, so that there is no gap between epochs.

    A failure of a sample surfaces as itself at its batch's turn and ends that epoch's iterator.
    """

    def __init__(
        self,
        order: Order,
        executor: Executor,
        *,
        row_shape: tuple[int, ...],
        row_dtype: DTypeLike,
        channels_last: bool = True,
        num_crops: int = 1,
        read_ahead: bool = False,
        num_epochs: int | None = None,
        stats: Stats | None = None,
        on_bad: OnBad | None = None,
        pin: Pin | None = None,
    ) -> None:
        """Take ownership of `executor`.

        Args:
            order: which samples stand in which batch.
            executor: makes the batches; closed by `close`.
            row_shape: one sample in a slot, `(H, W, 3)` when `channels_last`, else `(3, H, W)`; of several crops
                that many of them.
            row_dtype: element type of the images.
            channels_last: yield slots as channels-last `(B, 3, H, W)` views; else as they are.
            num_crops: images in a row; each is yielded as one of its own, with the sample's id and label.
            read_ahead: begin the next epoch before it is asked for.
            num_epochs: the known number of epochs, after which nothing is read ahead; None when unknown.
            stats: counters to fill; new ones when None.
            on_bad: told of the bad samples that a batch passed over, by id with their causes, before it is handed over;
                what it raises ends the epoch's iterator.
            pin: locks the pages of slots, for a device that copies from them.
        """
        self.order = order
        self.stats_counters = stats if stats is not None else Stats()
        self._executor = executor
        self._on_bad = on_bad
        self._pin = pin
        self._channels_last = channels_last
        self.num_crops = num_crops
        self._row = (row_shape, row_dtype)
        self._read_ahead = read_ahead and executor.num_workers > 0
        self._num_epochs = num_epochs
        self._ring = self._make_ring()
        self._pending: deque[Job] = deque()
        self._to_plan: tuple[int, int] | None = None
        self._upcoming = (0, 0)  # where the next iterator begins
        self._handed = (0, 0)  # the first batch the consumer has not had
        self._interrupted = False
        """Whether planning or handing over broke off in the middle, so that `_pending` is not to be trusted."""
        self._live: weakref.ref[_Epoch] | None = None
        self._pid = os.getpid()
        self._finalizer = weakref.finalize(self, executor.close, EXIT_LIMIT_S)

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        """Begin the next epoch. RuntimeError when another iterator is live, or after `close`."""
        self._check_usable()
        live = self._live() if self._live else None
        if live is not None and not live.finished:
            raise RuntimeError(
                "this loader already has a live iterator; drop that one first, "
                "or call set_epoch(epoch) to abandon it and begin that epoch"
            )
        epoch, step = self._upcoming
        iterator = _Epoch(self, step)
        self._live = weakref.ref(iterator)
        self._upcoming = (epoch + 1, 0)
        self._handed = (epoch, step)
        ahead = self._pending[0].plan if self._pending else None
        if self._interrupted or ahead is None or (ahead.epoch, ahead.step) != (epoch, step):
            self._abandon_pending()
            self._to_plan = (epoch, step) if step < len(self) else None
        if self._executor.num_workers:
            self._submit_ahead()
        return iterator

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the next one; optional, since every `iter()` counts on by itself.

        A live iterator is abandoned, and batches made ahead for another epoch are discarded.
        """
        if epoch < 0:
            raise ValueError(f"epoch must be >= 0, got {epoch}")
        self._check_usable()
        self._live = None
        if self._interrupted or self._upcoming != (epoch, 0):
            self._abandon_pending()
            self._upcoming = (epoch, 0)
        self._handed = (epoch, 0)

    def state_dict(self) -> dict[str, Any]:
        """Where the consumer stands: counts batches handed over, not batches fetched ahead."""
        return make_state(self.order, *self._handed)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iterator continue where `state` was taken. ValueError if it belongs to another order.

        The global batch size of the state is kept: under another world size the batch size per rank changes.
        """
        self._check_usable()
        epoch, step, batch_size = resume_point(state, self.order)
        self._live = None
        self._abandon_pending()
        if batch_size != self.order.batch_size:
            self.order = replace(self.order, batch_size=batch_size)
            self._ring = self._make_ring()
        self._upcoming = self._handed = (epoch, step)

    def close(self) -> None:
        """End workers and forget slots. Batches already handed over stay valid. May be called twice.

        A thread that does not end within seconds is left to itself; it keeps the memory that it writes to.
        """
        self._live = None
        for job in tuple(self._pending):  # a prefetcher's thread may be taking from it
            job.cancelled = True
        self._finalizer.detach()
        self._executor.close(EXIT_LIMIT_S)
        self._pending.clear()

    @property
    def num_workers(self) -> int:
        """Workers that make batches; 0 when the consumer's thread does."""
        return self._executor.num_workers

    @property
    def in_flight(self) -> int:
        """Batches that may be unfinished or undelivered at once."""
        return self._executor.in_flight

    @property
    def batch_size(self) -> int:
        """Samples per rank in a full batch."""
        return self.order.batch_size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _make_ring(self) -> SlotRing:
        shape, dtype = self._row
        in_flight, rows = self._executor.in_flight, self.order.batch_size
        memory = self._executor.slot_memory(slot_bytes(shape, dtype, rows), max_slots(in_flight), shape, dtype)
        return SlotRing(shape, dtype, rows, in_flight=in_flight, memory=memory, pin=self._pin)

    def _wait(self, job: Job) -> None:
        while not job.wait(WATCH_S):
            self._executor.watch()
            if not self._finalizer.alive:  # closed by another thread, with a sample that does not end
                raise RuntimeError("the loader was closed while a batch was waited for")

    def _check_usable(self) -> None:
        if not self._finalizer.alive:
            raise RuntimeError("close() was already called on this loader")
        if os.getpid() != self._pid:
            raise RuntimeError("this loader belongs to the process that made it; make one after the fork instead")
        self._executor.check()

    def _after(self, epoch: int, step: int) -> tuple[int, int] | None:
        if step + 1 < len(self):
            return epoch, step + 1
        known_last = self._num_epochs is not None and epoch + 1 >= self._num_epochs
        return (epoch + 1, 0) if self._read_ahead and not known_last else None

    def _submit_ahead(self) -> None:
        try:
            while self._to_plan and len(self._pending) < self._executor.in_flight:
                plan = self.order.plan(*self._to_plan)
                slot = self._ring.take()
                job = Job(plan, slot, self._ring.rows(slot, len(plan.ids)))
                self._executor.submit(job)
                self._pending.append(job)
                self._to_plan = self._after(*self._to_plan)
        except BaseException:  # Ctrl-C comes between any two of these lines
            self._interrupted = True
            raise

    def _abandon_pending(self) -> None:
        for job in self._pending:
            job.cancelled = True
        self._executor.abandon()
        if self._interrupted:
            # A batch may be on its way that nobody here knows of: the old slots stay with whoever writes to them.
            self._pending.clear()
            self._ring = self._make_ring()
            self._interrupted = False
        try:
            while self._pending:
                job = self._pending[0]
                self._wait(job)  # a slot may be written to until its last task has ended
                self._pending.popleft()
                self._ring.give_back(job.slot)
        except BaseException:
            self._interrupted = True
            raise
        self._to_plan = None

    def _next_batch(self) -> Batch:
        began = time.perf_counter()
        clock = self.stats_counters.clock
        made_s = clock.seconds[BUSY]  # without workers, this thread makes the samples too
        self._check_usable()
        if self._interrupted:
            self._abandon_pending()
            self._to_plan = self._handed
        self._submit_ahead()
        job = self._pending[0]
        num_ready = sum(pending.is_done for pending in self._pending)
        asked = time.perf_counter()
        self._wait(job)
        waited_s = time.perf_counter() - asked
        if job.cancelled:
            self._executor.check()
            raise RuntimeError("the loader was closed while a batch was waited for")
        self._pending.popleft()
        if failure := job.first_failure():
            self._ring.give_back(job.slot)
            try:
                raise failure
            finally:
                del failure, job  # the error's traceback refers to this frame: a cycle would keep all it holds
        self._tell_of_bad(job)
        batch = self._hand_over(job)
        if self._executor.num_workers:
            self._submit_ahead()
        took_s = time.perf_counter() - began
        num_samples = len(batch.ids) // self.num_crops
        self.stats_counters.handed_over(num_samples, took_s, num_ready=num_ready)
        clock.add(COLLATE, took_s - waited_s - (clock.seconds[BUSY] - made_s), num_samples)
        return batch

    def _tell_of_bad(self, job: Job) -> None:
        if self._on_bad is None or not job.bad:
            return
        try:
            self._on_bad([cause for bad_row in sorted(job.bad) for cause in bad_row.causes])
        except BaseException:
            self._ring.give_back(job.slot)
            raise

    def _hand_over(self, job: Job) -> Batch:
        plan = mended(job.plan, job.rows, job.bad, self.order.labels) if job.bad else job.plan
        rows, is_copied = self._ring.lend(job.slot, len(plan.ids))
        self.stats_counters.copied_batches += is_copied
        images = torch.from_numpy(rows)
        labels, ids, draws = plan.labels, plan.ids, plan.draws
        if self.num_crops > 1:
            images = images.flatten(0, 1)  # and not the array, on which the slot's finalizer sits
            labels, ids = (np.repeat(values, self.num_crops, axis=0) for values in (labels, ids))
            draws = draws.reshape(len(ids), -1)
        self._handed = (plan.epoch, plan.step + 1)
        return Batch(
            images.permute(0, 3, 1, 2) if self._channels_last else images,
            torch.from_numpy(np.ascontiguousarray(labels)),
            ids=torch.from_numpy(ids),
            epoch=plan.epoch,
            step=plan.step,
            draws=draws,
        )


class _Epoch:
    """The one live iterator of a loader."""

    def __init__(self, loader: Loader, step: int) -> None:
        self.finished = step >= len(loader)
        self._loader = loader
        self._step = step

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self.finished:
            raise StopIteration
        loader = self._loader
        if loader._live is None or loader._live() is not self:
            raise RuntimeError("this iterator was abandoned by close(), set_epoch() or load_state_dict()")
        handed, step = loader._handed, self._step
        try:
            batch = loader._next_batch()
            self._step = step + 1
            # Whoever counts batches may never ask for the one after the last: that iterator is over too.
            self.finished = self._step >= len(loader)
            return batch
        except Exception:
            self.finished = True
            raise
        except BaseException:  # Ctrl-C: the consumer has not had this batch, and may ask again
            self._step, self.finished = step, False
            loader._handed = handed
            loader._interrupted = True
            raise
