"""Messages between a loader and its worker processes: length-prefixed pickles over a Unix socket, with descriptors."""

from __future__ import annotations

import os
import pickle
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.loader.bad import BadRow
from pipeline.main_script import MainScript

_LENGTH = struct.Struct("<I")
_MAX_FDS = 16


class Hello(NamedTuple):
    """First message to a worker, with the descriptors of the arena's segments and files, of hands and of report."""

    number: int
    stored: bytes
    """What `Arena.load` makes `(sample function, stats)` of."""
    num_segments: int
    num_files: int
    num_threads: int
    script: MainScript | None
    """The user's main script, if the sample function refers to it."""


class Ring(NamedTuple):
    """From here on slots lie in the file whose descriptor comes with this."""

    slot_bytes: int
    num_slots: int
    row_shape: tuple[int, ...]
    row_dtype: str


class Work(NamedTuple):
    """Rows to make: `ids[i]` goes to row `row + i` of `slot`."""

    ticket: int
    slot: int
    row: int
    ids: list[int]
    draws: NDArray[np.float64]
    epoch: int


class Ready(NamedTuple):
    """The worker has what it needs."""

    private_bytes: int


class Unable(NamedTuple):
    """The worker cannot start."""

    failure: Failure


class Failure(NamedTuple):
    """Why a row could not be made, or, as row 0, why a worker cannot start."""

    row: int
    error: BaseException
    notes: list[str]
    """Of the error; beside it, for many classes lose them when they are pickled."""


class Done(NamedTuple):
    """A work's rows are made, up to the one that failed."""

    ticket: int
    num_made: int
    failure: Failure | None
    bad: list[BadRow]
    """Counted from the work's first row."""
    clock: tuple[dict[str, float], dict[str, int]]
    """Seconds and calls per stage since the last message."""
    private_bytes: int
    """What the worker holds now and shares with nobody; 0 where the system does not tell."""


class Connection:
    """One end of a socket pair. `send` may be called by any thread, the rest by one."""

    def __init__(self, sock: socket.socket, *, send_limit_s: float | None = None) -> None:
        """Own `sock`; a `send` that takes longer than `send_limit_s` raises TimeoutError."""
        sock.settimeout(send_limit_s)
        self._sock = sock
        self._sending = threading.Lock()
        self._received = bytearray()
        self._fds: deque[int] = deque()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    def send(self, message: tuple[Any, ...], fds: Sequence[int] = ()) -> None:
        """Send a message and copies of `fds`. OSError when the other end is gone."""
        data = pickle.dumps(message, 5)
        frame = _LENGTH.pack(len(data)) + data
        with self._sending:
            sent = socket.send_fds(self._sock, [frame], list(fds)) if fds else 0
            self._sock.sendall(frame[sent:])

    def receive(self, limit_s: float | None) -> list[Any] | None:
        """The messages that are now whole; None if nothing came within `limit_s`. EOFError at the end."""
        if limit_s is not None and not self._poll.poll(1e3 * limit_s):
            return None
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, 1 << 16, _MAX_FDS)
        except ConnectionError:  # the other end died with something unread
            data, fds = b"", []
        if not data:
            raise EOFError
        self._fds.extend(fds)
        self._received += data
        return self._whole_messages()

    def take_fd(self) -> int:
        """The next descriptor that came; the caller closes it."""
        return self._fds.popleft()

    def close(self) -> None:
        """Close the socket and whatever was not taken. May be called twice."""
        self._sock.close()
        while self._fds:
            os.close(self._fds.popleft())

    def _whole_messages(self) -> list[Any]:
        messages, start = [], 0
        while len(self._received) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._received, start)
            end = start + _LENGTH.size + length
            if end > len(self._received):
                break
            messages.append(pickle.loads(memoryview(self._received)[start + _LENGTH.size : end].tobytes()))
            start = end
        del self._received[:start]
        return messages
