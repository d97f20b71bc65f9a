"""Stores that processes share, samples whose bytes tell whose they are, and forked children to use and kill."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from watching import ANSWER_S

from pipeline.cache import record_locks
from pipeline.cache.settings import Settings
from pipeline.cache.shared_store import SharedStore
from pipeline.cache.table import PAGE_BYTES, Field
from pipeline.config import CachePolicy

UNLIMITED_BYTES = 1 << 24


@contextmanager
def store_of(
    num_samples: int, *, pages: float | None = None, images: int | None = None, policy: str = "pinned"
) -> Iterator[SharedStore]:
    """An empty store of `pages` of memory; closed at the end."""
    max_bytes = UNLIMITED_BYTES if pages is None else int(pages * PAGE_BYTES)
    store = SharedStore.empty(Settings(num_samples, max_bytes, images, CachePolicy(policy)))
    try:
        yield store
    finally:
        store.close()


def sample_of(id: int, size_bytes: int) -> bytes:
    """Bytes that no other sample has, and that differ from one place to the next."""
    return (np.arange(size_bytes, dtype=np.int64) * 31 + id * 7919 + 1).astype(np.uint8).tobytes()


def pages_of(id: int, count: int = 1) -> bytes:
    """A sample of `count` whole pages."""
    return sample_of(id, count * PAGE_BYTES)


def keep(store: SharedStore, id: int, sample: Any, *, rank: float | None = None) -> bool:
    """Claim `id` and keep `sample`, as loading does; `rank` is for a store that goes by value."""
    with store.claimed(id):
        return store.keep(id, sample, rank=rank if store.settings.policy is CachePolicy.valued else None)


def kept_ids(store: SharedStore) -> list[int]:
    """In order."""
    return [id for id in range(store.settings.num_samples) if store.has(id)]


def number(store: SharedStore, field: Field) -> int:
    """What the header says now."""
    return int(store._table.header[field])


def data_bytes(store: SharedStore) -> int:
    """Memory that the samples really take: that of the file without its columns, all of which are made real first."""
    fd, table = store._locks.fd, store._table
    os.pwrite(fd, os.pread(fd, table.data_start, 0), 0)
    return os.fstat(fd).st_blocks * 512 - table.data_start


def lock_without_waiting() -> None:
    """From now on, in this process, a claim that another process holds raises BlockingIOError."""
    record_locks.fcntl.F_OFD_SETLKW = record_locks.fcntl.F_OFD_SETLK  # type: ignore[misc]


class Child:
    """A forked process that runs `act`: a real one, which can be killed anywhere."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.exit_code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                signal.alarm(int(ANSWER_S))  # nobody hangs for ever
                act()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)

    def kill(self) -> None:
        """SIGKILL, and return when it is dead."""
        os.kill(self.pid, signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL

    def wait(self) -> int:
        """Its exit code; minus the signal's number if one ended it."""
        if self.exit_code is None:
            self.exit_code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.exit_code


@contextmanager
def child(act: Callable[[], object]) -> Iterator[Child]:
    """Killed at the end if it has not been waited for."""
    made = Child(act)
    try:
        yield made
    finally:
        if made.exit_code is None:
            os.kill(made.pid, signal.SIGKILL)
            made.wait()


class Signal:
    """An event between processes that are forked later: a pipe."""

    def __init__(self) -> None:
        self._ends = os.pipe()

    def tell(self, count: int = 1) -> None:
        """Let `count` waits end."""
        os.write(self._ends[1], b"!" * count)

    def wait(self) -> None:
        """Until somebody tells, once for each time."""
        assert os.read(self._ends[0], 1) == b"!"

    def close(self) -> None:
        for end in self._ends:
            os.close(end)


@contextmanager
def signals(count: int) -> Iterator[list[Signal]]:
    """So many, closed at the end."""
    made = [Signal() for _ in range(count)]
    try:
        yield made
    finally:
        for each in made:
            each.close()


@contextmanager
def limit_s(seconds: int) -> Iterator[None]:
    """What takes longer is an error instead of a test that hangs."""

    def too_long(*_: object) -> None:
        raise TimeoutError(f"nothing should have waited, and {seconds} s are over")

    before, others_s = signal.signal(signal.SIGALRM, too_long), signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(others_s)
        signal.signal(signal.SIGALRM, before)
