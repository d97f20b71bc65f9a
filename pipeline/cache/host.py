"""How the ranks of one host come to share one anonymous file: local rank 0 makes it and hands out descriptors."""

from __future__ import annotations

import errno
import hashlib
import itertools
import logging
import os
import socket
import struct
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from typing import NamedTuple, Self

from pipeline.config.checks import ConfigError

_LAUNCH = (
    *("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK"),
    *("SLURM_JOB_ID", "SLURM_STEP_ID"),
)
"""What tells launches apart and is equal for all ranks of a host; `GROUP_RANK` for "nodes" tried out on one machine."""

# Nothing can be waited for: a name without a file tells nobody when it appears. An attempt takes 10 us.
_PAUSE_S = 0.02
_TELL_AFTER_S = 1.0
_ANSWER_S = 1.0

_HERE, _TAKEN = b"here", b"taken"
_CREDENTIALS = struct.Struct("3i")
_log = logging.getLogger(__name__)


class HostRank(NamedTuple):
    """A process's place among those that a launcher started on this host."""

    local_rank: int
    local_world_size: int
    run: str
    """Names the launch, its restart and its node: equal for all ranks that may meet, and for no others."""


def host_rank(environ: Mapping[str, str] = os.environ) -> HostRank | None:
    """This process's place, as torchrun and most launchers tell it; None unless they say that there are several.

    Raises ConfigError when `LOCAL_RANK` or `LOCAL_WORLD_SIZE` is not what it can be.
    """
    if not {"LOCAL_RANK", "LOCAL_WORLD_SIZE"} <= environ.keys():
        return None
    local_world_size = _whole(environ, "LOCAL_WORLD_SIZE", low=1)
    local_rank = _whole(environ, "LOCAL_RANK", low=0)
    if local_rank >= local_world_size:
        raise ConfigError(
            f"LOCAL_RANK must be below LOCAL_WORLD_SIZE={local_world_size}, got {local_rank}; set both, or unset both"
        )
    run = " ".join(f"{variable}={environ[variable]}" for variable in _LAUNCH if variable in environ)
    return HostRank(local_rank, local_world_size, run) if local_world_size > 1 else None


def _whole(environ: Mapping[str, str], variable: str, *, low: int) -> int:
    text = environ[variable].strip()
    if not (text.isascii() and text.isdigit() and int(text) >= low):
        cure = "set it as torchrun does, or unset it"
        raise ConfigError(f"{variable} must be a whole number >= {low}, got {text!r}; {cure}")
    return int(text)


class SharedFile:
    """Owns a descriptor until `close`, or until it is collected; local rank 0's answers the other ranks as long."""

    def __init__(self, fd: int, *, made_here: bool) -> None:
        """Take ownership of `fd`."""
        self.made_here = made_here
        """Whether this process made the file; if not, local rank 0 did."""
        self._fd = fd
        self._server: _Server | None = None
        self._resources = ExitStack()
        self._resources.callback(os.close, fd)
        self._finalizer = weakref.finalize(self, self._resources.close)

    @property
    def fd(self) -> int:
        """The descriptor. RuntimeError after `close`."""
        if not self._finalizer.alive:
            raise RuntimeError("close() was already called on this file")
        return self._fd

    def close(self) -> None:
        """Close the descriptor and answer nobody any more; others keep theirs. May be called twice."""
        self._finalizer()
        if self._server is not None:
            self._server.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _serve(self, address: bytes, askers: frozenset[bytes]) -> None:
        self._server = _Server(self._fd, address, askers)
        self._resources.callback(self._server.stop)


def share_file(name: str, make: Callable[[], int], rank: HostRank | None, *, limit_s: float) -> SharedFile:
    """The file that local rank 0's `make()` gave a descriptor of, the same one for all ranks of the host.

    All ranks ask for the same names in the same order: a rank's n-th `name` is the other ranks' n-th. The file is
    private, of this process's own `make()`, when `rank` is None, where the system is not Linux, in a forked child of
    a process that has asked as this rank, and, with a warning that gives the reason, when local rank 0 does not
    answer within `limit_s` or must not be trusted. Raises what `make` raises.
    """
    if sys.platform != "linux" or rank is None or rank in _ranks_of_parents:
        return SharedFile(make(), made_here=True)
    address = _address(rank, name, next(_asked.setdefault((rank, name), itertools.count())))
    if rank.local_rank > 0:
        try:
            return SharedFile(_receive(address, rank, name, limit_s), made_here=False)
        except _RefusedError as refusal:
            _warn_private(name, rank, str(refusal))
            return SharedFile(make(), made_here=True)
    shared = SharedFile(make(), made_here=True)
    try:
        shared._serve(address, frozenset(_asker(address, other) for other in range(1, rank.local_world_size)))
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        _warn_private(name, rank, _place_taken(0) if taken else f"it cannot listen for the others ({error})")
    return shared


class _RefusedError(Exception):
    """Why there is nothing to be had from local rank 0."""


def _warn_private(name: str, rank: HostRank, reason: str) -> None:
    warnings.warn(
        f"{name!r} is not shared with local rank {rank.local_rank}: {reason}; it keeps a store of its own, in memory "
        "of its own. Every process with a LOCAL_RANK must make the same loaders in the same order; unset LOCAL_RANK "
        "for one that is no rank",
        stacklevel=3,
    )


def _place_taken(local_rank: int) -> str:
    return f"another process that was started as local rank {local_rank} has its place"


def _address(rank: HostRank, name: str, number: int) -> bytes:
    """Where local rank 0 answers: in Linux's abstract namespace, no file, gone with its process."""
    parts = repr((os.geteuid(), rank.run, name, number))
    return b"\0headrace-" + hashlib.sha256(parts.encode()).hexdigest()[:32].encode()


def _asker(address: bytes, local_rank: int) -> bytes:
    """Where a rank asks from: so the server knows who asks without waiting for a word."""
    return address + b"-%d" % local_rank


class _Peer(NamedTuple):
    pid: int
    uid: int


def _peer(connection: socket.socket) -> _Peer:
    """Who is at the other end, as the kernel knows it."""
    pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return _Peer(pid, uid)


def _receive(address: bytes, rank: HostRank, name: str, limit_s: float) -> int:
    """A descriptor from local rank 0, which may come later than this rank but within `limit_s`."""
    start_s, told = time.monotonic(), False
    while (fd := _ask(address, rank.local_rank)) is None:
        waited_s = time.monotonic() - start_s
        if waited_s >= limit_s:
            raise _RefusedError(f"local rank 0 did not offer it within {limit_s:g} s")
        if waited_s >= _TELL_AFTER_S and not told:
            _log.info("waiting for local rank 0 to share %r, for %g s at most", name, limit_s)
            told = True
        time.sleep(_PAUSE_S)
    return fd


def _ask(address: bytes, local_rank: int) -> int | None:
    """One attempt: a descriptor, or None when nobody answers yet."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_ANSWER_S)  # rank 0 may have been stopped, or killed with this connection not yet accepted
        try:
            sock.bind(_asker(address, local_rank))
            sock.connect(address)
            if (uid := _peer(sock).uid) != os.geteuid():
                raise _RefusedError(f"a process of another user (uid {uid}) has local rank 0's place")
            answer, fds, _, _ = socket.recv_fds(sock, len(_TAKEN), 1)
        except (ConnectionError, BlockingIOError, TimeoutError):
            return None
        except OSError as error:
            # Somebody else asks as this rank, or a child just being started holds the last attempt's socket.
            if error.errno == errno.EADDRINUSE:
                return None
            raise _RefusedError(f"local rank 0 cannot be asked ({error})") from error
    if answer == _TAKEN:
        raise _RefusedError(_place_taken(local_rank))
    if answer == _HERE and not fds:
        raise OSError(errno.EMFILE, "the descriptor that local rank 0 sent could not be opened; raise `ulimit -n`")
    for fd in fds:
        os.set_inheritable(fd, False)  # recv_fds drops its flags (Python 3.11), MSG_CMSG_CLOEXEC among them
    return fds[0] if fds else None


class _Server:
    """Answers, in a thread of its own, the ranks that ask for a file; each rank is one process, the first that asks."""

    def __init__(self, fd: int, address: bytes, askers: frozenset[bytes]) -> None:
        """Answer at `address` with copies of `fd`. OSError when the address cannot be had."""
        self._askers, self._served = askers, dict[bytes, int]()
        self._stopping = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # A copy of its own: when the owner is collected, its descriptor closes while an answer may be on its way.
        self._fd = os.dup(fd)
        self._thread = threading.Thread(target=self._run, name="headrace-host", daemon=True)
        try:
            self._listener.bind(address)
            self._listener.listen()
            _serving.add(self)
            self._thread.start()
        except BaseException:
            self.close_copies()
            raise

    def stop(self) -> None:
        """Have the thread end soon. Takes no lock: a garbage collection in any thread may come here."""
        self._stopping = True
        with suppress(OSError):  # in a forked child, where it is closed
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread; closing would not

    def join(self) -> None:
        """Wait for the thread's end after `stop`."""
        self._thread.join()

    def close_copies(self) -> None:
        """Close the descriptors: the thread does, and a forked child, which must not keep the address taken."""
        _serving.discard(self)
        self._listener.close()
        os.close(self._fd)

    def _run(self) -> None:
        while not self._stopping:
            try:
                connection, asker = self._listener.accept()
            except OSError as error:
                if not self._stopping:  # too many open files, say: that may pass
                    _log.warning("local rank 0 cannot answer the other ranks of its host now: %s", error)
                    time.sleep(_ANSWER_S)
                continue
            with connection, suppress(OSError):  # whoever asked may be gone
                self._answer(connection, asker)
        self.close_copies()

    def _answer(self, connection: socket.socket, asker: bytes) -> None:
        peer = _peer(connection)
        if peer.uid != os.geteuid() or asker not in self._askers:
            return
        # A program that a rank starts inherits its LOCAL_RANK; two processes must not be one writer of a store.
        if self._served.setdefault(asker, peer.pid) == peer.pid:
            socket.send_fds(connection, [_HERE], [self._fd])
        else:
            connection.send(_TAKEN)


_asked: dict[tuple[HostRank, str], Iterator[int]] = {}
_serving: set[_Server] = set()
_ranks_of_parents: set[HostRank] = set()


def _leave_it_to_the_parent() -> None:
    """In a forked child: the parent is the rank, and goes on answering."""
    _ranks_of_parents.update(rank for rank, _ in _asked)
    _asked.clear()
    for server in tuple(_serving):
        server.close_copies()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_it_to_the_parent)
