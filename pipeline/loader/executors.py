"""Who runs the tasks of a batch: the consumer itself, or threads."""

from __future__ import annotations

import threading
import time
from queue import SimpleQueue
from typing import Protocol

from pipeline.loader.job import Job, SampleFunction, Task


class Executor(Protocol):
    """Runs jobs. Owns whatever it started; `close` ends it, and may be called twice."""

    num_workers: int
    in_flight: int
    """How many batches may be unfinished or undelivered at once."""

    def submit(self, job: Job) -> None:
        """Have every task of `job` run, in order of submission, at once or later."""

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

    def close(self, limit_s: float | None = None) -> None:
        """Nothing was started."""


class ThreadExecutor:
    """`loader.backend=threads`: all threads build the oldest batch together, then the next.

    Decoding and resizing release the GIL, so threads run in parallel and nothing is copied between processes.
    """

    def __init__(self, sample: SampleFunction, *, num_workers: int, in_flight: int) -> None:
        """Start `num_workers` daemon threads; they hold no reference to this object."""
        if num_workers < 1:
            raise ValueError(f"loader.num_workers must be >= 1 for threads, got {num_workers}; 0 is serial")
        if in_flight < 1:
            raise ValueError(f"loader.prefetch_factor must be >= 1, got {in_flight}")
        self.num_workers = num_workers
        self.in_flight = in_flight
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._stopping = threading.Event()
        # Re-entrant: garbage collection inside `submit` may run the finalizer that closes another, or this, executor.
        self._closing = threading.RLock()
        # Own daemon threads: the exit hook of concurrent.futures joins its threads and can hang the interpreter.
        self._threads = [
            threading.Thread(
                target=_work,
                args=(self._tasks, self._stopping, sample),
                name=f"headrace-worker-{number}",
                daemon=True,
            )
            for number in range(num_workers)
        ]
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError:  # no thread left to be had
            self.close()
            raise

    def submit(self, job: Job) -> None:
        """Queue the batch in about four tasks a thread, of at most eight samples."""
        tasks = job.split(max(1, min(8, -(-len(job.ids) // (4 * self.num_workers)))))
        with self._closing:
            if not self._stopping.is_set():
                for task in tasks:
                    self._tasks.put(task)
                return
        job.cancelled = True  # closed meanwhile, by another thread than the one that waits for this batch
        for _ in tasks:
            job.finish_task()

    def close(self, limit_s: float | None = None) -> None:
        """Let running samples end, skip the rest, and join the threads."""
        with self._closing:
            if not self._stopping.is_set():
                self._stopping.set()
                for _ in self._threads:
                    self._tasks.put(None)
        deadline_s = None if limit_s is None else time.monotonic() + limit_s
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(None if deadline_s is None else max(0.0, deadline_s - time.monotonic()))


def _work(tasks: SimpleQueue[Task | None], stopping: threading.Event, sample: SampleFunction) -> None:
    while (task := tasks.get()) is not None:
        if stopping.is_set():
            task.job.cancelled = True
        task.run(sample)
        del task  # else the last batch's job would live until the next one comes
