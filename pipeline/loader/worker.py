"""A worker process: makes rows of slots in shared memory until its loader closes, or is gone.

A fresh interpreter starts here (`worker_process.START`). It imports no torch, answers no Ctrl-C, and ends when the
socket does, when its parent dies, or when it is no longer its parent's child: a sibling that the parent forked may hold
the socket open.
"""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import pickle
import signal
import socket
import sys
import threading
import traceback
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from pipeline.loader.hands import Hands
from pipeline.loader.job import SampleFunction
from pipeline.loader.sample import MakeSample  # noqa: F401  # import decoders while the loader is still at work
from pipeline.loader.wire import Connection, Done, Failure, Hello, Ready, Ring, Unable, Work
from pipeline.main_script import import_main_script
from pipeline.shared import Arena, map_file
from pipeline.stats import Stats

STACK_SIGNAL = signal.SIGUSR1
"""Makes a worker write the stacks of its threads into its report, also while C code holds the GIL."""

_PARENT_POLL_S = 1.0
_PR_SET_PDEATHSIG = 1


def main(fd: int, parent_pid: int) -> None:
    """Serve the loader at the other end of socket `fd`. Does not return."""
    _die_with(parent_pid)
    connection = Connection(socket.socket(fileno=fd))
    hello, work = None, SimpleQueue[tuple["Slots", Work]]()
    slots: Slots | None = None
    while True:
        try:
            messages = connection.receive(_PARENT_POLL_S)
        except EOFError:
            os._exit(0)  # whatever a thread is making, nobody wants it
        if os.getppid() != parent_pid:
            os._exit(0)
        for message in messages or ():
            if isinstance(message, Work):
                assert slots is not None, "work came before its ring"
                work.put((slots, message))
            elif isinstance(message, Ring):
                slots = Slots(message, connection.take_fd())
            elif isinstance(message, Hello):
                assert hello is None, "a second hello came"
                hello = message
                _start(connection, hello, work)


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


def _start(connection: Connection, hello: Hello, work: SimpleQueue[tuple[Slots, Work]]) -> None:
    """Take over the sample function and begin to work; or say why that cannot be."""
    arena = Arena([connection.take_fd() for _ in range(hello.num_segments)])
    hands_fd, report_fd = connection.take_fd(), connection.take_fd()
    hands = Hands(map_file(hands_fd, os.fstat(hands_fd).st_size, writable=True))
    os.close(hands_fd)
    faulthandler.enable(report_fd)
    faulthandler.register(STACK_SIGNAL, report_fd)
    try:
        if hello.script is not None:
            import_main_script(hello.script)
        sample, stats = arena.load(hello.stored)
    except BaseException as error:
        connection.send(Unable(_portable(error)))
        return
    finally:
        arena.close()
    for number in range(hello.num_threads):
        hand = hello.number * hello.num_threads + number
        threading.Thread(target=_work, args=(connection, work, sample, stats, hands, hand), daemon=True).start()
    connection.send(Ready(_private_bytes()))


def _work(
    connection: Connection,
    queue: SimpleQueue[tuple[Slots, Work]],
    sample: SampleFunction,
    stats: Stats,
    hands: Hands,
    hand: int,
) -> None:
    clock = stats.clock
    try:
        while True:
            slots, work = queue.get()
            num_made, failure = _make_rows(slots, work, sample, hands, hand)
            connection.send(Done(work.ticket, num_made, failure, clock.take(), _private_bytes()))
    except OSError:  # the loader is gone; the main thread notices it too
        return
    except BaseException:  # a worker that lacks a thread would be waited for: let it be replaced
        traceback.print_exc()
        os._exit(1)


def _make_rows(slots: Slots, work: Work, sample: SampleFunction, hands: Hands, hand: int) -> tuple[int, Failure | None]:
    """How many rows were made, in order, and why the next was not; None where nobody wanted it."""
    rows = slots.rows(work.slot, work.row, len(work.ids))
    row = 0
    try:
        while row < len(work.ids) and not hands.skips(work.ticket):
            hands.take(hand, work.ticket, work.row + row)
            sample(work.ids[row], work.draws[row], rows[row])
            row += 1
    except BaseException as error:
        return row, _portable(error)._replace(row=work.row + row)
    finally:
        hands.drop(hand)
    return row, None


def _portable(error: BaseException) -> Failure:
    """`error` if pickling keeps it what it is, else a RuntimeError with its words; its traceback as a note."""
    notes = [str(note) for note in getattr(error, "__notes__", ())]
    where = _story(error)
    error.__traceback__ = error.__cause__ = error.__context__ = None
    try:
        copy = pickle.loads(pickle.dumps(error))
        faithful = type(copy) is type(error) and copy.args == error.args
    except Exception:  # an exception class can do anything in there
        faithful = False
    if not faithful:
        error = RuntimeError(f"{type(error).__name__}: {_words(error)}")
    return Failure(0, error, [*notes, f"in worker process {os.getpid()}:\n{where}"])


def _story(error: BaseException) -> str:
    """The traceback, and those of its causes; without the notes, which travel by themselves."""
    story = traceback.TracebackException.from_exception(error)
    story.__notes__ = None
    return "".join(story.format()).rstrip()


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # its own words fail it
        return "(it cannot say what it is)"


def _private_bytes() -> int:
    # Resident less shared: slots and index are the loader's. The parent cannot learn it when a worker is dead: the
    # kernel's peak of a child begins with the peak of who started it.
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:
            _, resident, shared, *_ = map(int, file.read().split())
            return (resident - shared) * mmap.PAGESIZE
    except OSError:
        return 0


def _die_with(parent_pid: int) -> None:
    """Have the kernel end this process with its parent; end at once if that has happened already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(0)
