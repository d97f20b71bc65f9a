"""Files out of the page cache and back into it, and a look at which of their pages are there. Needs Linux."""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil

from pipeline.config import ConfigError
from pipeline.machine import available_bytes
from pipeline.sources.paths import Paths

MAX_LOOKED_AT = 200
"""Files whose pages and sizes are looked at, evenly spread over all of them."""

NOTHING_DROPPED_PCT = 99.0
WARM_LIMIT_S = 60.0
_READ_BYTES = 1 << 20
_MADV_DONTNEED = 4

_File = tuple[int, int]
"""Device and inode."""

_log = logging.getLogger(__name__)


def drop(files: Paths) -> float:
    """Write back and drop all pages of `files`; gives the percentage of them that stay, of at most 200 files.

    Nobody may be reading them. Raises ConfigError where the system keeps them all, as on tmpfs, and where a child
    process maps one of them.
    """
    if sys.platform != "linux":
        raise ConfigError("bench.cold=true needs Linux, which drops files from its page cache; use bench.cold=false")
    mapped, mapped_by_children = _mappings([os.getpid()]), _mappings([child.pid for child in _children()])
    for path in files:
        file = _drop(path)
        if file in mapped_by_children:
            raise ConfigError(
                f"bench.cold=true cannot drop {path}, which a worker process maps; "
                "use loader.backend=threads, or bench.cold=false"
            )
        if file in mapped:
            _let_go(mapped[file])
            _drop(path)
    stay_pct = resident_pct(files)
    if stay_pct >= NOTHING_DROPPED_PCT:
        raise ConfigError(
            f"bench.cold=true cannot drop {files[0]} from the page cache, as on tmpfs; "
            "put the data on a disk, as a user who may write it, or use bench.cold=false"
        )
    return stay_pct


def warm(files: Paths, *, clock: Callable[[], float] = time.monotonic) -> None:
    """Read `files` through unless they are in the page cache; says so where they, or the time, are too many."""
    if len(files) == 0 or (sys.platform == "linux" and resident_pct(files) == 100):
        return
    sizes = [os.stat(path).st_size for path in _some(files)]
    num_bytes = sum(sizes) / len(sizes) * len(files)
    began_s, buffer = clock(), bytearray(_READ_BYTES)
    if num_bytes < available_bytes() / 2:
        for path in files:
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
            if clock() - began_s > WARM_LIMIT_S:
                break
        else:
            return
    _log.warning(
        "about %.1f GB of files are not in memory, nor could they be brought there: passes read them from the disk",
        num_bytes / 1e9,
    )


def resident_pct(files: Paths) -> float:
    """The percentage of the pages of `files` that are in the page cache, of at most 200 files; 100 of no page."""
    counts = [_pages(path) for path in _some(files)]
    total = sum(pages for _, pages in counts)
    return 100 * sum(resident for resident, _ in counts) / total if total else 100.0


def _some(files: Paths) -> Iterator[str]:
    count = min(len(files), MAX_LOOKED_AT)
    return (files[number * len(files) // count] for number in range(count))


def _drop(path: str) -> _File:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fdatasync(fd)  # pages that wait to be written are not dropped
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        status = os.fstat(fd)
    finally:
        os.close(fd)
    return status.st_dev, status.st_ino


def _let_go(ranges: Sequence[tuple[int, int]]) -> None:
    """Unmap the pages of this process's own mappings, which stay and read them again: a mapped page is not dropped."""
    libc = ctypes.CDLL(None, use_errno=True)
    for start, end in ranges:
        if libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED):
            raise OSError(ctypes.get_errno(), f"madvise: {os.strerror(ctypes.get_errno())}")


def _children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _mappings(pids: Sequence[int]) -> dict[_File, list[tuple[int, int]]]:
    """The files whose pages these processes share, with the address ranges; none of a process that has ended."""
    found: dict[_File, list[tuple[int, int]]] = {}
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape").splitlines()
        except OSError:
            continue
        for words in (line.split(maxsplit=5) for line in lines):
            # A private page may hold what nobody else has: only shared ones can be read again.
            if len(words) < 6 or not words[5].startswith("/") or words[1][3] != "s":
                continue
            try:
                status = os.stat(words[5])
            except OSError:  # deleted
                continue
            start, end = (int(word, 16) for word in words[0].split("-"))
            found.setdefault((status.st_dev, status.st_ino), []).append((start, end))
    return found


def _pages(path: str) -> tuple[int, int]:
    """How many pages of a file are in the page cache, and how many it has."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return 0, 0
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    view = np.frombuffer(mapped, np.uint8)
    flags = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mincore(
        ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(len(mapped)), ctypes.c_void_p(flags.ctypes.data)
    ):
        raise OSError(ctypes.get_errno(), f"mincore of {path}: {os.strerror(ctypes.get_errno())}")
    return int((flags & 1).sum()), len(flags)
