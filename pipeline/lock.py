"""A lock between processes, released by the kernel however its holder ends."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


@contextmanager
def file_lock(path: str, *, waiting_for: str) -> Iterator[None]:
    """Holds an exclusive lock on `path`, which is made and stays; says `waiting_for` when another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        if not _try_lock(descriptor, wait=False):
            log.info("waiting for another process: %s", waiting_for)
            while not _try_lock(descriptor, wait=True):
                pass
        yield
    finally:
        # Closing releases it. The file stays: a process that waits on a removed file would hold a lock nobody sees.
        os.close(descriptor)


if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int, *, wait: bool) -> bool:
        try:
            # LK_LOCK gives up after ten seconds.
            msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def _try_lock(descriptor: int, *, wait: bool) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True
