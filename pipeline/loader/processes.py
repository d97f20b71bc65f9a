"""`loader.backend=processes`: worker processes that fill slots in shared memory."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pipeline.loader.dispatch import Crew, Dispatcher, Inbox, RingFile
from pipeline.loader.hands import Hands
from pipeline.loader.job import Job, SampleFunction, most_rows_per_task, rows_per_task
from pipeline.loader.slots import SlotMemory
from pipeline.loader.wire import Hello, Ring
from pipeline.loader.worker_process import Launch
from pipeline.main_script import MainScript
from pipeline.shared import Arena, anonymous_file, map_file
from pipeline.stats import Stats

_PAGE_BYTES = 4096

_log = logging.getLogger(__name__)

END_LIMIT_S = 10.0
"""How long a batch that came too late waits for the dispatcher; only a worker in a dead disk's grip takes long."""


class ProcessExecutor:
    """Fresh interpreters, each with some threads, that write rows straight into slots both sides map.

    They import no torch and nothing of the user's program, except what `sample` refers to. They start with the first
    batch's planning and stay from epoch to epoch. One that dies is replaced and its rows are made again.
    """

    def __init__(
        self,
        sample: SampleFunction,
        arena: Arena,
        *,
        num_workers: int,
        threads_per_worker: int,
        in_flight: int,
        where: Callable[[int], str],
        stats: Stats,
        max_restarts: int = 3,
        stall_timeout_s: float = 300.0,
        script: MainScript | None = None,
    ) -> None:
        """Write `sample` to `arena` and start the workers.

        Args:
            sample: picklable; every worker has its own.
            arena: what `sample` refers to may lie there already. Kept, for workers to come; the caller's to close.
            num_workers: processes.
            threads_per_worker: threads in each.
            in_flight: batches unfinished or undelivered at once.
            where: what an error calls a sample.
            stats: receives the workers' seconds and counts per stage; the one that `sample` counts in.
            max_restarts: deaths of workers that are mended.
            stall_timeout_s: how long a sample may take.
            script: the user's main script, where workers must import it.

        Raises:
            Whatever pickling `sample` raises, before any process is started.
        """
        if num_workers < 1:
            raise ValueError(f"loader.num_workers must be >= 1 for processes, got {num_workers}; 0 is serial")
        self.num_workers = num_workers
        self.in_flight = in_flight
        self._lanes = num_workers * threads_per_worker
        self._most_rows = most_rows_per_task(sample)
        self._pid = os.getpid()
        self._fds: list[int] = []
        stored = arena.store((sample, stats))
        size_bytes = Hands.size_bytes(self._lanes)
        hands_fd = anonymous_file("hands", size_bytes)
        self._fds.append(hands_fd)
        self._hands = Hands(map_file(hands_fd, size_bytes, writable=True))
        crew = Crew(
            num_workers=num_workers,
            threads_per_worker=threads_per_worker,
            hello=Hello(0, stored, len(arena.fds), len(arena.files), threads_per_worker, script),
            arena=arena,
            hands_fd=hands_fd,
            hands=self._hands,
            where=where,
            max_restarts=max_restarts,
            stall_timeout_s=stall_timeout_s,
            launch=Launch.here(),
        )
        self._inbox = Inbox()
        self._stats = stats
        self._ended_by: str | None = None
        self._ring_file: RingFile | None = None
        # The kernel ends the workers with the thread that started them: this one lives as long as they do.
        self._thread = threading.Thread(
            target=_dispatch, args=(crew, self._inbox, stats), name="headrace-dispatch", daemon=True
        )
        self._thread.start()

    def slot_memory(
        self, slot_bytes: int, max_slots: int, row_shape: tuple[int, ...], row_dtype: DTypeLike
    ) -> SlotMemory:
        """Slots in anonymous shared memory; jobs submitted from now on lie there."""
        slot_bytes = -(-slot_bytes // _PAGE_BYTES) * _PAGE_BYTES
        fd = anonymous_file("slots", slot_bytes * max_slots)
        # All of them are mapped at once; a slot takes memory when a worker first writes to it.
        memory = map_file(fd, slot_bytes * max_slots, writable=True)
        self._ring_file = RingFile(Ring(slot_bytes, max_slots, row_shape, np.dtype(row_dtype).str), fd)

        def slot(number: int) -> NDArray[np.uint8]:
            return memory[number * slot_bytes : (number + 1) * slot_bytes]

        return slot

    def submit(self, job: Job) -> None:
        """Queue the batch in about two tasks a thread."""
        self.check()
        assert self._ring_file is not None, "a job came before its slots"
        # Two messages for every task: half as many as threads have took 3 % less of the machine.
        tasks = job.split(rows_per_task(len(job.ids), self._lanes, tasks_per_thread=2, most=self._most_rows))
        self._inbox.tasks.extend((self._ring_file, task) for task in tasks)
        self._inbox.wake()
        if self._inbox.closing.is_set():  # it may have emptied the inbox before these came
            self._thread.join(END_LIMIT_S)
            while self._inbox.tasks:
                self._inbox.tasks.popleft()[1].cancel()

    def abandon(self) -> None:
        """Workers may skip what they have been given so far."""
        self._hands.abandon(self._inbox.next_ticket)

    def check(self) -> None:
        """Raise what ended the workers, if something did; RuntimeError when asked again."""
        while self._inbox.news:
            self._stats.worker_deaths += 1
            _log.warning("%s; it is replaced and its samples are made again", self._inbox.news.popleft())
        failure, self._inbox.failure = self._inbox.failure, None
        if failure is not None:
            self._ended_by = f"{type(failure).__name__}: {failure}".splitlines()[0]
            raise failure
        if self._ended_by is not None:
            raise RuntimeError(f"the workers of this loader ended earlier ({self._ended_by}); make a new one")

    def watch(self) -> None:
        """`check`; the dispatcher looks for stalls by itself."""
        self.check()

    def close(self, limit_s: float | None = None) -> None:
        """End the workers at once, whatever they make; returns when they are gone. May be called twice."""
        if os.getpid() != self._pid:
            return  # a forked child has neither the thread nor the workers
        self._inbox.closing.set()
        self._inbox.wake()
        if self._thread is not threading.current_thread():
            self._thread.join(limit_s)
        if not self._thread.is_alive():  # else it may still be about to send them to a worker
            while self._fds:
                os.close(self._fds.pop())
            if self._ring_file is not None:
                self._ring_file.close()


def _dispatch(crew: Crew, inbox: Inbox, stats: Stats) -> None:
    Dispatcher(crew, inbox, stats.clock).run()
