"""A worker process: makes rows of slots in shared memory until its loader closes, or is gone.

A fresh interpreter starts here (`worker_process.START`). It imports no torch, answers no Ctrl-C, and ends when the
socket does, when its parent dies, or when it is no longer its parent's child: a sibling that the parent forked may hold
the socket open.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import signal
import socket
import threading
import time
import traceback
from collections import deque

import numpy as np
from numpy.typing import NDArray

from pipeline.launched import die_with
from pipeline.loader.bad import BadRow
from pipeline.loader.hands import Hands
from pipeline.loader.job import SampleFunction, make_rows
from pipeline.loader.sample import MakeSample  # noqa: F401  # import decoders while the loader is still at work
from pipeline.loader.wire import Connection, Done, Failure, Hello, Ready, Ring, Unable, Work
from pipeline.main_script import import_main_script
from pipeline.pickling import portable_error
from pipeline.shared import Arena, map_file
from pipeline.stats import Stats

STACK_SIGNAL = signal.SIGUSR1
"""Makes a worker write the stacks of its threads into its report, also while C code holds the GIL."""

_PARENT_POLL_S = 1.0


def main(fd: int, parent_pid: int) -> None:
    """Serve the loader at the other end of socket `fd`. Does not return."""
    die_with(parent_pid)
    threading.Thread(target=_watch_parent, args=(parent_pid,), daemon=True).start()
    _Worker(Connection(socket.socket(fileno=fd))).run(0)


class Slots:
    """The loader's slots, as this process sees them."""

    def __init__(self, ring: Ring, fd: int) -> None:
        """Map all of them; pages take memory when the first process writes them."""
        self._ring = ring
        self._dtype = np.dtype(ring.row_dtype)
        self._row_bytes = self._dtype.itemsize * int(np.prod(ring.row_shape))
        self._memory = map_file(fd, ring.slot_bytes * ring.num_slots, writable=True)
        os.close(fd)

    def rows(self, slot: int, row: int, count: int) -> NDArray[np.generic]:
        """Rows `row ... row + count - 1` of a slot."""
        start = slot * self._ring.slot_bytes + row * self._row_bytes
        buffer = self._memory[start : start + count * self._row_bytes]
        return np.ndarray((count, *self._ring.row_shape), self._dtype, buffer=buffer.data)


class _Worker:
    """The threads of this process. Whoever is free takes the next message: none only carries them to the others.

    A thread for the socket alone would be woken for every message, and would interrupt the one that decodes.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._taking = threading.Lock()
        self._works: deque[tuple[Slots, Work]] = deque()
        self._slots: Slots | None = None
        self._hello: Hello | None = None
        self._hands: Hands | None = None
        self._sample: SampleFunction | None = None
        self._stats = Stats()

    def run(self, thread: int) -> None:
        """Make what comes, until the process ends."""
        try:
            while True:
                slots, work = self._next_work()
                self._make(slots, work, thread)
        except (EOFError, OSError):  # the loader is gone; whatever is being made, nobody wants it
            os._exit(0)
        except BaseException:  # a worker that lacks a thread would be waited for: let it be replaced
            traceback.print_exc()
            os._exit(1)

    def _next_work(self) -> tuple[Slots, Work]:
        with self._taking:
            while not self._works:
                for message in self._connection.receive(None) or ():
                    self._hear(message)
            return self._works.popleft()

    def _hear(self, message: object) -> None:
        if isinstance(message, Work):
            assert self._slots is not None, "work came before its ring"
            self._works.append((self._slots, message))  # a later ring may come before this is made
        elif isinstance(message, Ring):
            self._slots = Slots(message, self._connection.take_fd())
        elif isinstance(message, Hello):
            self._begin(message)

    def _begin(self, hello: Hello) -> None:
        """Take over the sample function and start the other threads; or say why that cannot be."""
        self._hello = hello
        connection = self._connection
        segments, files = (
            [connection.take_fd() for _ in range(count)] for count in (hello.num_segments, hello.num_files)
        )
        arena = Arena(segments, files)
        hands_fd, report_fd = connection.take_fd(), connection.take_fd()
        self._hands = Hands(map_file(hands_fd, os.fstat(hands_fd).st_size, writable=True))
        os.close(hands_fd)
        faulthandler.enable(report_fd)
        faulthandler.register(STACK_SIGNAL, report_fd)
        try:
            if hello.script is not None:
                import_main_script(hello.script)
            self._sample, self._stats = arena.load(hello.stored)
        except BaseException as error:
            connection.send(Unable(_failure(error)))
            return
        finally:
            arena.close()
        for thread in range(1, hello.num_threads):
            threading.Thread(target=self.run, args=(thread,), daemon=True).start()
        connection.send(Ready(_private_bytes()))

    def _make(self, slots: Slots, work: Work, thread: int) -> None:
        assert self._hello is not None, "work came before its hello"
        assert self._hands is not None
        assert self._sample is not None
        hand = self._hello.number * self._hello.num_threads + thread
        num_made, failure, bad = _make_rows(slots, work, self._sample, self._hands, hand)
        self._connection.send(Done(work.ticket, num_made, failure, bad, self._stats.clock.take(), _private_bytes()))


def _make_rows(
    slots: Slots, work: Work, sample: SampleFunction, hands: Hands, hand: int
) -> tuple[int, Failure | None, list[BadRow]]:
    """`make_rows`, its error as a message can have it."""

    def begin(first: int, count: int) -> bool:
        if hands.skips(work.ticket):
            return False
        hands.take(hand, work.ticket, work.row + first, count)
        return True

    try:
        rows = slots.rows(work.slot, work.row, len(work.ids))
        made, error, bad = make_rows(sample, work.ids, work.draws, rows, begin, epoch=work.epoch)
        return made, None if error is None else _failure(error)._replace(row=work.row + made), bad
    finally:
        hands.drop(hand)


def _failure(error: BaseException) -> Failure:
    notes = [str(note) for note in getattr(error, "__notes__", ())]
    portable, story = portable_error(error)
    # The sample comes last: the end of a long message is what is read.
    return Failure(0, portable, [f"in worker process {os.getpid()}:\n{story}", *notes])


def _private_bytes() -> int:
    # Resident less shared: slots and index are the loader's. The parent cannot learn it when a worker is dead: the
    # kernel's peak of a child begins with the peak of who started it.
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:
            _, resident, shared, *_ = map(int, file.read().split())
            return (resident - shared) * mmap.PAGESIZE
    except OSError:
        return 0


def _watch_parent(parent_pid: int) -> None:
    """End with the parent where the kernel does not see to it."""
    while os.getppid() == parent_pid:
        time.sleep(_PARENT_POLL_S)
    os._exit(0)
