"""One worker process as its loader sees it: started, spoken to, watched, reaped."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import pipeline
from pipeline.loader.job import Task
from pipeline.loader.watch import Watch
from pipeline.loader.wire import Connection, Hello
from pipeline.loader.worker import STACK_SIGNAL
from pipeline.shared import anonymous_file

START = (
    "import signal, sys\n"
    # For the loader, which ends its workers: Ctrl-C, and SIGTERM, which Slurm and systemd send to every process.
    "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "import json\n"
    "fd, parent_pid, home, path = json.loads(sys.argv[1])\n"
    "sys.path[:] = [home, *path]\n"  # this very package, whatever others the path has
    "import pipeline\n"
    "sys.path[:] = path\n"
    "from pipeline.loader.worker import main\n"
    "main(fd, parent_pid)\n"
)
SEND_LIMIT_S = 10.0
STACK_LIMIT_S = 1.0
"""How long a worker has to write its stacks; only one that is stopped takes longer than a millisecond."""

_STARTING = threading.RLock()
"""While an interpreter starts, a fork by another thread waits, such as that of torch's DataLoader: its child would hold
the pipe at whose end `Popen` hears that the interpreter runs, and for as long as it lives `Popen` would wait."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_STARTING.acquire, after_in_parent=_STARTING.release, after_in_child=_STARTING.release)

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Death(NamedTuple):
    """How a worker ended."""

    signal: int | None
    exit_code: int | None

    @property
    def is_crash(self) -> bool:
        """Whether it came from inside: a segmentation fault, an abort, an exit; and not from somebody's kill."""
        return self.signal not in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def __str__(self) -> str:
        if self.signal is not None:
            try:
                return f"by {signal.Signals(self.signal).name}"
            except ValueError:
                return f"by signal {self.signal}"
        if self.exit_code is not None:
            return f"with exit code {self.exit_code}"
        return "in a way that only who waited for it was told"


class Launch(NamedTuple):
    """The world a worker starts in: that of the loader's beginning, also for those that replace others later."""

    path: list[str]
    environment: dict[str, str]
    directory: str | None

    @classmethod
    def here(cls) -> Launch:
        """This process's module path, environment and working directory, now."""
        try:
            directory = os.getcwd()
        except FileNotFoundError:  # removed, and nothing can be relative to it
            directory = None
        path = [entry or directory or "" for entry in sys.path if isinstance(entry, str)]
        return cls(path, os.environ | _ONE_THREAD, directory)


class WorkerProcess:
    """A child interpreter that serves one loader. The owner must `kill` and `reap` it."""

    def __init__(self, number: int, hello: Hello, fds: Sequence[int], launch: Launch) -> None:
        """Start it, in a process group of its own; never a fork, so there is no lock to inherit. OSError if not."""
        self.number = number
        self.outstanding: dict[int, tuple[Any, Task]] = {}
        """Ticket -> the slots, and the task whose rows lie there."""
        self.is_ready = False
        self.is_alone = False
        """It makes one suspect and is given nothing else meanwhile."""
        self.ring: Any = None
        """The slots it has mapped last."""
        self.private_bytes = 0
        """What it said last that it holds for itself."""
        self.num_answers = 0
        self.watch: Watch[Any] = Watch()
        """Of what it is waited for."""
        self.pidfd: int | None = None
        self._death: Death | None = None
        ours, theirs = socket.socketpair()
        self.connection = Connection(ours, send_limit_s=SEND_LIMIT_S)
        self._report_fd = anonymous_file("report", 0)
        try:
            with theirs:
                self._process = _start_interpreter(theirs.fileno(), launch)
        except BaseException:
            self.close()
            raise
        try:
            self.pidfd = _open_pidfd(self.pid)
            try:
                self.connection.send(hello, [*fds, self._report_fd])
            except OSError:  # killed already; its end is heard of like any other
                self.kill()
        except BaseException:
            self.kill()
            self.reap()
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def stacks(self) -> str:
        """The Python stacks of its threads, now; empty if it cannot say."""
        before = os.fstat(self._report_fd).st_size
        self._send(STACK_SIGNAL)
        deadline_s = time.monotonic() + STACK_LIMIT_S
        size = before
        # Written by a signal handler in C, piece by piece: done when it has grown and then stays.
        while time.monotonic() < deadline_s:
            time.sleep(0.02)
            last, size = size, os.fstat(self._report_fd).st_size
            if size > before and size == last:
                break
        return self._report(before)

    def last_words(self) -> str:
        """What the interpreter wrote when it crashed: signal and stacks."""
        return self._report(0)

    def kill(self) -> None:
        """Send SIGKILL, also to what a user's transform started there; harmless when it is dead."""
        if self._death is None and self._send(signal.SIGKILL):
            with suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)

    def reap(self) -> Death:
        """Wait for its end. Only then may its rows be given to somebody else. May be called twice."""
        if self._death is None:
            try:
                _, status = os.waitpid(self.pid, 0)
            except ChildProcessError:  # the user's program waits for any child, and was faster
                self._death = Death(None, None)
                self._process.returncode = 0
            else:
                code = self._process.returncode = os.waitstatus_to_exitcode(status)
                self._death = Death(-code if code < 0 else None, code if code >= 0 else None)
        return self._death

    def close(self) -> None:
        """Free its descriptors; it ends by itself when it sees that. May be called twice."""
        self.connection.close()
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None
        if self._report_fd >= 0:
            os.close(self._report_fd)
            self._report_fd = -1

    def _send(self, number: signal.Signals) -> bool:
        """Whether there was somebody to send it to: dead and not yet reaped counts."""
        try:
            if self.pidfd is not None:
                signal.pidfd_send_signal(self.pidfd, number)
            else:
                os.kill(self.pid, number)
        except ProcessLookupError:  # dead, and waited for by the user's program
            return False
        return True

    def _report(self, start: int) -> str:
        size = os.fstat(self._report_fd).st_size
        text = os.pread(self._report_fd, size - start, start).decode(errors="replace")
        # Without the thread that only watches the parent, and without the list of every extension that was imported.
        parts = [part for part in text.split("\n\n") if "in _watch_parent" not in part]
        lines = [line for line in "\n\n".join(parts).splitlines() if not line.startswith("Extension modules")]
        return "\n".join(lines).strip()


def _open_pidfd(pid: int) -> int | None:
    """Becomes readable at the process's end; its end of the socket may outlive it, in a child of its own."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):  # an old kernel, or a sandbox that does not know the call
            return None
        raise


def _start_interpreter(fd: int, launch: Launch) -> subprocess.Popen[bytes]:
    # -P: the working directory may hold another `pipeline`.
    home = os.path.dirname(os.path.dirname(os.path.abspath(pipeline.__file__)))
    # -u: what a user's transform prints would be lost with the buffer when the worker is ended.
    command = [sys.executable, "-P", "-u", "-c", START, json.dumps([fd, os.getpid(), home, launch.path])]
    with _STARTING:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            pass_fds=[fd],
            process_group=0,
            env=launch.environment,
            cwd=launch.directory,
        )
