"""Who runs the tasks of a batch: the consumer itself, or threads. `processes.py` has the third."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol

from numpy.typing import DTypeLike

from pipeline.loader.errors import WorkerStalledError
from pipeline.loader.job import Job, SampleFunction, Task, most_rows_per_task, rows_per_task
from pipeline.loader.slots import SlotMemory
from pipeline.loader.watch import Watch

STALLED_LIMIT_S = 1.0
"""How long closing waits for the threads beside a stalled one."""


class Executor(Protocol):
    """Runs jobs. Owns whatever it started; `close` ends it, and may be called twice."""

    num_workers: int
    in_flight: int
    """How many batches may be unfinished or undelivered at once."""

    def slot_memory(
        self, slot_bytes: int, max_slots: int, row_shape: tuple[int, ...], row_dtype: DTypeLike
    ) -> SlotMemory | None:
        """Where the slots of jobs submitted from now on lie; None: in this process's own memory."""

    def submit(self, job: Job) -> None:
        """Have every task of `job` run, in order of submission, at once or later."""

    def abandon(self) -> None:
        """All jobs submitted so far are cancelled."""

    def check(self) -> None:
        """Raise what ended the workers, once; RuntimeError from then on. Cheap."""

    def watch(self) -> None:
        """`check`, and find out whether a sample stalls; for who waits, now and then."""

    def close(self, limit_s: float | None = None) -> None:
        """Return when no task runs any more, or after `limit_s` seconds. Tasks not begun make no rows."""


class SerialExecutor:
    """`loader.num_workers=0`: makes a batch in the consumer's thread, when it is asked for."""

    num_workers = 0
    in_flight = 1

    def __init__(self, sample: SampleFunction) -> None:
        self._sample = sample

    def submit(self, job: Job) -> None:
        """Make the whole batch before returning. Ctrl-C comes through at once: it is no sample's failure."""
        for task in job.split(max(1, len(job.ids))):
            task.run(self._sample)
        for _, failure in job.failures:
            if not isinstance(failure, Exception):
                raise failure

    def slot_memory(self, slot_bytes: int, max_slots: int, row_shape: tuple[int, ...], row_dtype: DTypeLike) -> None:
        """In this process."""

    def abandon(self) -> None:
        """A job is over when `submit` returns."""

    def check(self) -> None:
        """There are no workers."""

    def watch(self) -> None:
        """A sample that never returns cannot be seen from its own thread."""

    def close(self, limit_s: float | None = None) -> None:
        """Nothing was started."""


class _Hand:
    """What one thread makes; written by it alone."""

    __slots__ = ("ids", "num_taken")

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.num_taken = 0

    def take(self, ids: list[int]) -> None:
        self.num_taken += 1
        self.ids = ids


class ThreadExecutor:
    """`loader.backend=threads`: all threads build the oldest batch together, then the next.

    Decoding and resizing release the GIL, so threads run in parallel and nothing is copied between processes.
    """

    def __init__(
        self,
        sample: SampleFunction,
        *,
        num_workers: int,
        in_flight: int,
        where: Callable[[int], str] = str,
        stall_timeout_s: float = 300.0,
    ) -> None:
        """Start `num_workers` daemon threads; they hold no reference to this object."""
        if num_workers < 1:
            raise ValueError(f"loader.num_workers must be >= 1 for threads, got {num_workers}; 0 is serial")
        if in_flight < 1:
            raise ValueError(f"loader.prefetch_factor must be >= 1, got {in_flight}")
        self.num_workers = num_workers
        self.in_flight = in_flight
        self._most_rows = most_rows_per_task(sample)
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._stopping = threading.Event()
        # Re-entrant: garbage collection inside `submit` may run the finalizer that closes another, or this, executor.
        self._closing = threading.RLock()
        # Own daemon threads: the exit hook of concurrent.futures joins its threads and can hang the interpreter.
        self._where = where
        self._stall_timeout_s = stall_timeout_s
        self._stalled: str | None = None
        self._deadline_s: float | None = None
        self._watch: Watch[tuple[int, int]] = Watch()
        self._hands = [_Hand() for _ in range(num_workers)]
        self._threads = [
            threading.Thread(
                target=_work,
                args=(self._tasks, self._stopping, sample, self._hands[number]),
                name=f"headrace-worker-{number}",
                daemon=True,
            )
            for number in range(num_workers)
        ]
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError as error:  # no thread left to be had
            self.close()
            raise RuntimeError(f"loader.num_workers={num_workers} is more than can be had: {error}") from error

    def submit(self, job: Job) -> None:
        """Queue the batch in about four tasks a thread."""
        tasks = job.split(rows_per_task(len(job.ids), self.num_workers, tasks_per_thread=4, most=self._most_rows))
        with self._closing:
            if not self._stopping.is_set():
                for task in tasks:
                    self._tasks.put(task)
                return
        job.cancelled = True  # closed meanwhile, by another thread than the one that waits for this batch
        for _ in tasks:
            job.finish_task()

    def slot_memory(self, slot_bytes: int, max_slots: int, row_shape: tuple[int, ...], row_dtype: DTypeLike) -> None:
        """In this process."""

    def abandon(self) -> None:
        """Threads look at `Job.cancelled` before they take the next sample, or the next few that are made together."""

    def check(self) -> None:
        """RuntimeError after a stall."""
        if self._stalled is not None:
            raise RuntimeError(f"a worker of this loader stalled earlier ({self._stalled}); make a new one")

    def watch(self) -> None:
        """Raise WorkerStalledError if a sample takes longer than `stall_timeout_s`.

        Nobody can end a thread: it keeps the slot it writes to, and this executor is of no use any more.
        """
        self.check()
        held = {(number, hand.num_taken): hand for number, hand in enumerate(self._hands) if hand.ids}
        for (number, _), held_s in self._watch.look(held):
            thread, ids = self._threads[number], self._hands[number].ids
            if ids and held_s > self._stall_timeout_s:
                self._stalled = "; ".join(f"sample id {id}, {self._where(id)}" for id in ids)
                self._stop()
                raise WorkerStalledError(
                    f"{thread.name} does not go on: {self._stalled} has been in hand for {held_s:.0f} s\n"
                    f"That is longer than loader.stall_timeout_s={self._stall_timeout_s:g}; raise it if such samples "
                    "are expected. A thread cannot be ended; loader.backend=processes can end its workers. "
                    f"Its stack:\n{_stack(thread)}"
                )

    def close(self, limit_s: float | None = None) -> None:
        """Let running samples end, skip the rest, and join the threads; all but one that stalled."""
        self._stop()
        if self._stalled is not None:
            limit_s = STALLED_LIMIT_S
        if self._deadline_s is None and limit_s is not None:
            self._deadline_s = time.monotonic() + limit_s  # of all calls together
        deadline_s = None if limit_s is None else self._deadline_s
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(None if deadline_s is None else max(0.0, deadline_s - time.monotonic()))

    def _stop(self) -> None:
        with self._closing:
            if not self._stopping.is_set():
                self._stopping.set()
                for _ in self._threads:
                    self._tasks.put(None)


def _work(tasks: SimpleQueue[Task | None], stopping: threading.Event, sample: SampleFunction, hand: _Hand) -> None:
    while (task := tasks.get()) is not None:
        if stopping.is_set():
            task.job.cancelled = True
        task.run(sample, hand.take)
        hand.ids = []
        del task  # else the last batch's job would live until the next one comes


def _stack(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    return "".join(traceback.format_stack(frame)).rstrip() if frame is not None else "(it has ended)"
