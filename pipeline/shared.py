"""Anonymous memory that processes share: it has no name, so the kernel takes it back after any death."""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.config.checks import ConfigError
from pipeline.machine import available_bytes

_ALIGNMENT = 64


def anonymous_file(name: str, size_bytes: int) -> int:
    """A descriptor of `size_bytes` zero bytes that no directory lists; pages take memory when first written.

    `/dev/shm` and its size do not matter. `name` shows in /proc only. The caller closes the descriptor.
    """
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create(f"headrace-{name}", os.MFD_CLOEXEC)
    else:
        fd, path = tempfile.mkstemp(prefix=f"headrace-{name}")
        os.unlink(path)
    os.ftruncate(fd, size_bytes)
    return fd


def map_file(fd: int, size_bytes: int, *, writable: bool, private: bool = False) -> NDArray[np.uint8]:
    """The file's first bytes, shared with every process that maps it; unmapped when the last array over it is gone.

    What is written to a `private` map is a copy that nobody else sees, page by page.

    Keeps no descriptor open, unlike `mmap.mmap` before Python 3.13: batches may outlive their loader.
    """
    if size_bytes == 0:
        return np.empty(0, np.uint8)
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    address = _libc.mmap(None, size_bytes, protection, mmap.MAP_PRIVATE if private else mmap.MAP_SHARED, fd, 0)
    if address == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot map {size_bytes} bytes: {os.strerror(number)}")
    memory = (ctypes.c_uint8 * size_bytes).from_address(address)
    finalizer = weakref.finalize(memory, _libc.munmap, address, size_bytes)
    finalizer.atexit = False  # others may still look at it while the interpreter ends
    array: NDArray[np.uint8] = np.frombuffer(memoryview(memory), np.uint8)
    array.flags.writeable = writable
    return array


class Descriptor:
    """A file descriptor that pickles into an `Arena` and, once registered, by `multiprocessing`.

    The receiver's copy has a number of its own and is the receiver's to close. A pickle of any other kind may be read
    anywhere, at any time, and so has none: `fd` is None there.
    """

    def __init__(self, fd: int | None) -> None:
        """Name `fd`, which stays the caller's."""
        self.fd = fd

    def __reduce__(self) -> tuple[Any, ...]:
        arena: Arena | None = getattr(_current, "arena", None)
        if arena is None or self.fd is None:
            return Descriptor, (None,)
        return _descriptor_in_arena, (arena.add_file(self.fd),)


def passed_by_multiprocessing(descriptor: Descriptor) -> tuple[Any, ...]:
    """How `multiprocessing.reduction.ForkingPickler` is to reduce a `Descriptor`."""
    from multiprocessing.reduction import DupFd  # what workers of ours have no use for

    return (Descriptor, (None,)) if descriptor.fd is None else (_descriptor_received, (DupFd(descriptor.fd),))


def _descriptor_in_arena(number: int) -> Descriptor:
    return Descriptor(os.dup(_current.arena.files[number]))


def _descriptor_received(sent: Any) -> Descriptor:
    return Descriptor(sent.detach())


_current = threading.local()
"""`arena`: the one that is being written to or read from, in this thread."""


class _Extent(NamedTuple):
    segment: int
    start: int
    size_bytes: int


class Arena:
    """Pickles whose large buffers lie in shared memory, so that another process maps them instead of copying.

    NumPy arrays of any size, and whatever else pickles its buffers out of band (protocol 5), travel so. A buffer that
    lies in the arena already is referred to, not written again. Owns its descriptors until `close`; what was loaded
    from it stays valid for as long as it is referenced.
    """

    def __init__(self, fds: Sequence[int] = (), files: Sequence[int] = (), *, reserved_bytes: int = 0) -> None:
        """An empty arena, or one over the segments and files that another process's lists; takes ownership of them.

        Over another's segments arrays can be written to, as they could before they were sent: each process then has
        its own copy of the page. `reserved_bytes` of memory are promised to somebody else.
        """
        self.fds = list(fds)
        self.files = list(files)
        """Copies of the descriptors that what was stored refers to."""
        self._reserved_bytes = reserved_bytes
        self._finalizer = weakref.finalize(self, _close_all, self.fds, self.files)
        self._maps = [map_file(fd, os.fstat(fd).st_size, writable=True, private=True) for fd in self.fds]

    @property
    def size_bytes(self) -> int:
        """Bytes of all segments."""
        return sum(len(memory) for memory in self._maps)

    def store(self, value: object) -> bytes:
        """Write `value` to the arena; `load` takes the few bytes returned.

        Raises what pickling raises, and ConfigError when there is not enough memory.
        """
        buffers: list[pickle.PickleBuffer] = []
        with self._as_current():
            stream = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        pieces = [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]
        extents = [self._find(piece) for piece in pieces]
        fresh_bytes = sum(len(piece) for piece, found in zip(pieces, extents, strict=True) if not found)
        _check_room(len(stream) + fresh_bytes, self._reserved_bytes)
        fresh = [(number, piece) for number, piece in enumerate(pieces) if extents[number] is None]
        # The stream itself goes there too: it may be long, and what is sent must never fill a socket.
        written = self._append([*(piece for _, piece in fresh), np.frombuffer(stream, np.uint8)])
        for (number, _), extent in zip(fresh, written, strict=False):
            extents[number] = extent
        return pickle.dumps((written[-1], extents))

    def append(self, pieces: Iterable[memoryview]) -> NDArray[np.uint8]:
        """Write `pieces` one after the other as they come; gives all of them as one array that lies in the arena."""
        fd, size_bytes = anonymous_file("data", 0), 0
        self.fds.append(fd)
        for piece in pieces:
            _write(fd, piece, size_bytes)
            size_bytes += len(piece)
        self._maps.append(map_file(fd, size_bytes, writable=False))
        return self._maps[-1]

    def load(self, stored: bytes) -> Any:
        """A new object; its arrays are views of the arena, read-only ones where it was stored."""
        stream, extents = pickle.loads(stored)
        with self._as_current():
            return pickle.loads(self._view(stream), buffers=[self._view(extent) for extent in extents])

    def add_file(self, fd: int) -> int:
        """Keep a copy of `fd`; its number in `files`."""
        self.files.append(os.dup(fd))
        return len(self.files) - 1

    def close(self) -> None:
        """Close the descriptors. May be called twice."""
        self._finalizer()
        self._maps.clear()

    @contextmanager
    def _as_current(self) -> Iterator[None]:
        _current.arena = self
        try:
            yield
        finally:
            del _current.arena

    def _view(self, extent: _Extent) -> memoryview:
        segment, start, size_bytes = extent
        return self._maps[segment][start : start + size_bytes].data

    def _find(self, piece: NDArray[np.uint8]) -> _Extent | None:
        """Where `piece` lies in the arena already."""
        address = piece.__array_interface__["data"][0]
        for number, memory in enumerate(self._maps):
            start = address - memory.__array_interface__["data"][0]
            if len(piece) and 0 <= start <= len(memory) - len(piece):
                return _Extent(number, start, len(piece))
        return None

    def _append(self, pieces: Sequence[NDArray[np.uint8]]) -> list[_Extent]:
        """Write `pieces` to a new segment."""
        extents, end = [], 0
        padded: list[memoryview] = []
        for piece in pieces:
            extents.append(_Extent(len(self.fds), end, len(piece)))
            padding = -len(piece) % _ALIGNMENT
            padded += [piece.data, memoryview(bytes(padding))]
            end += len(piece) + padding
        self.append(padded)
        return extents


def _close_all(*lists: list[int]) -> None:
    for fds in lists:
        while fds:
            os.close(fds.pop())


def _check_room(needed_bytes: int, reserved_bytes: int) -> None:
    # Before any page is written: memory that is not there is a kill, and no exception.
    available = available_bytes()
    if needed_bytes + reserved_bytes > available:
        raise ConfigError(
            f"what worker processes share, paths and labels above all, needs {needed_bytes:,} bytes beside "
            f"{reserved_bytes:,} of batches in flight, and {available:,} are available; use loader.backend=threads, "
            "fewer samples, or a lower loader.batch_size"
        )


def _write(fd: int, data: memoryview, start: int) -> None:
    # One call writes at most 2 GiB - 4 KiB.
    while data:
        written = os.pwrite(fd, data, start)
        data, start = data[written:], start + written


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
