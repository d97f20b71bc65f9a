"""Locks between processes that the kernel keeps, and releases however their holder ends."""

from __future__ import annotations

import fcntl
import os
import struct
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.cache.forks import renew_after_fork

# struct flock of 64-bit Linux; the process id must be 0 for locks of an open file description.
_FLOCK = struct.Struct("hhqqi4x")


class RecordLocks:
    """Exclusive locks on single bytes of a file, by number; the file need not be so long.

    "Open file description locks" of fcntl(2), Linux 3.15: unlike the older record locks they are not lost when the
    process closes some other descriptor of the file. Threads of one process do not exclude each other.
    """

    def __init__(self, fd: int) -> None:
        """Lock in the file of `fd`, which stays the caller's; the file is opened once more."""
        self._take(_opened_anew(fd))
        renew_after_fork(self)

    @property
    def fd(self) -> int:
        """The file's descriptor here; a forked child has another. RuntimeError after `close`."""
        if not self._finalizer.alive:
            raise RuntimeError("close() was already called on this store")
        return self._fd

    def renew_locks(self) -> None:
        """Lock as a process of its own, as a forked child must: the descriptor that it inherits locks as its parent."""
        inherited = self._fd
        if self._finalizer.detach():
            self._take(_opened_anew(inherited))
            os.close(inherited)

    @contextmanager
    def hold(self, number: int) -> Iterator[None]:
        """Wait until no other process holds `number`, then hold it. RuntimeError after `close`."""
        fd = self.fd
        _lock(fd, number, fcntl.F_WRLCK)
        try:
            yield
        finally:
            _lock(fd, number, fcntl.F_UNLCK)

    def close(self) -> None:
        """Close the file. May be called twice."""
        self._finalizer()

    def _take(self, fd: int) -> None:
        self._fd = fd
        self._finalizer = weakref.finalize(self, os.close, fd)


def _opened_anew(fd: int) -> int:
    # Such locks belong to an opening of the file, and copies of a descriptor share theirs.
    return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)


def _lock(fd: int, number: int, kind: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _FLOCK.pack(kind, os.SEEK_SET, number, 1, 0))
