"""Looks at processes from outside: whose workers live, what they have told, whether they have ended."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

TESTS = Path(__file__).parent
ROOT = TESTS.parent

SOAK = os.environ.get("HEADRACE_SOAK") == "1"
GONE_S = 3.0 if SOAK else 30.0
"""How soon a worker that nobody wants must be gone; a busy machine is no failure of a short run."""

ANSWER_S = 60.0


def workers_of(parent_pid: int) -> set[int]:
    """Worker processes that `parent_pid` started and that live, whoever is their parent now."""
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit() and _started_by(int(entry)) == parent_pid:
            found.add(int(entry))
    return found


def workers_begun(count: int) -> set[int]:
    """The workers of this process, as soon as there are `count`: before they have imported anything."""
    deadline_s = time.monotonic() + ANSWER_S
    while len(pids := workers_of(os.getpid())) < count:
        assert time.monotonic() < deadline_s, f"{count} workers were never started"
    return pids


def wait_until_ready(pids: set[int], threads_per_worker: int = 1) -> None:
    """Return when those workers have started their threads, the last thing that they do before they say so."""
    deadline_s = time.monotonic() + ANSWER_S
    for pid in pids:
        while len(os.listdir(f"/proc/{pid}/task")) <= threads_per_worker:
            assert time.monotonic() < deadline_s, f"worker {pid} was never ready"


def _started_by(pid: int) -> int | None:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    # `python ... -c START [descriptor, parent, ...]`; a zombie has no command line.
    starts = [number for number, word in enumerate(words) if b"pipeline.loader.worker" in word]
    return int(json.loads(words[starts[0] + 1])[1]) if starts and starts[0] + 1 < len(words) - 1 else None


def children() -> set[int]:
    """Children of this process that are workers, or that have ended and that nobody has waited for."""
    found: set[int] = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                state, parent = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if int(parent) == os.getpid() and (state == "Z" or _started_by(int(entry)) is not None):
                found.add(int(entry))
    return found


def shared_descriptors() -> list[str]:
    """What this process's descriptors of the kinds that worker processes need refer to, one entry a descriptor."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue
        if target.startswith(("/memfd:headrace", "anon_inode:[pidfd]", "anon_inode:[eventpoll]", "socket:")):
            found.append(target.partition(":[")[0])
    return sorted(found)


def own_pss_bytes(pid: int) -> int:
    """Proportional size without files: a library's share changes when anybody else on the machine maps it."""
    rows = (row.split() for row in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines())
    return 1024 * sum(int(row[1]) for row in rows if row[0] in ("Pss_Anon:", "Pss_Shmem:"))


def send_signal(pid: int, number: signal.Signals) -> bool:
    """Signal a worker of this process; False if it has ended. Its number cannot have become somebody else's."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if _started_by(pid) != os.getpid():
            return False
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


class Killer:
    """Kills workers of this process at random moments, so many times."""

    def __init__(self, count: int, seed: int) -> None:
        self.remaining = count
        self._random = random.Random(seed)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while self.remaining and not self._stopping.wait(self._random.uniform(0, 0.3)):
            pids = sorted(workers_of(os.getpid()))
            if pids and send_signal(self._random.choice(pids), signal.SIGKILL):
                self.remaining -= 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._thread.join()


class Watch:
    """Some processes, whose end is an event."""

    def __init__(self, pids: set[int]) -> None:
        self._resources = ExitStack()
        self._poll, self._pids = select.poll(), {}
        for pid in pids:
            try:
                fd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            self._resources.callback(os.close, fd)
            self._poll.register(fd, select.POLLIN)
            self._pids[fd] = pid

    def remaining(self, limit_s: float) -> set[int]:
        """Those that have not ended after `limit_s`."""
        deadline_s = time.monotonic() + limit_s
        while self._pids and (left_s := deadline_s - time.monotonic()) > 0:
            for fd, _ in self._poll.poll(1e3 * left_s):
                self._poll.unregister(fd)
                del self._pids[fd]
        return set(self._pids.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._resources.close()


def workers_left_by(parent_pid: int) -> set[int]:
    """Workers of `parent_pid` that outlive it by `GONE_S`."""
    with Watch(workers_of(parent_pid)) as watch:
        return watch.remaining(GONE_S) | workers_of(parent_pid)


class Fifo:
    """A named pipe between a test and samples in whatever process: lines come out, single bytes go in."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._fd = os.open(path, os.O_RDWR)  # for both: nobody waits for the other end
        self._text = b""

    def line(self, limit_s: float = ANSWER_S) -> str:
        """The next line that `samples.Tell` wrote."""
        while b"\n" not in self._text:
            assert select.select([self._fd], [], [], limit_s)[0], "no sample told anything"
            self._text += os.read(self._fd, 4096)
        line, _, self._text = self._text.partition(b"\n")
        return line.decode()

    def told(self) -> tuple[int, int]:
        """Process and sample of the next line."""
        pid, id = self.line().split()
        return int(pid), int(id)

    def has_more(self) -> bool:
        """Whether a line, or a part of one, was written that nobody has read."""
        return bool(self._text) or bool(select.select([self._fd], [], [], 0)[0])

    def let_through(self, count: int = 1) -> None:
        """Let `count` samples that `samples.Block` holds go on."""
        os.write(self._fd, b"!" * count)

    def close(self) -> None:
        os.close(self._fd)


@contextmanager
def fifo(path: Path) -> Iterator[Fifo]:
    made = Fifo(path)
    try:
        yield made
    finally:
        made.close()


def environment() -> dict[str, str]:
    """For a script that imports `pipeline` and the tests' modules."""
    return os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}", "PYTHONUNBUFFERED": ""}


@contextmanager
def script(directory: Path, text: str, *arguments: object, **options: object) -> Iterator[subprocess.Popen[str]]:
    """A real script in a file, running; killed at the end if it has not ended, and so are workers that it left."""
    path = directory / "script.py"
    path.write_text(text)
    process = subprocess.Popen(
        [sys.executable, str(path), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=directory,
        **options,  # type: ignore[call-overload]
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
        for pid in workers_of(process.pid) if sys.exc_info()[0] else ():
            os.kill(pid, signal.SIGKILL)


def run_script(directory: Path, text: str, *arguments: object, limit_s: float = 240.0) -> str:
    """What a script prints; it must end well and have nothing to complain of."""
    with script(directory, text, *arguments) as process:
        out, errors = process.communicate(timeout=limit_s)
        assert (process.returncode, errors) == (0, ""), out + errors
    assert not workers_left_by(process.pid)
    return out


def run_aside(function: Callable[[], object]) -> Callable[[float], object]:
    """Call `function` in a thread; gives what waits for its end, raises what it raised, and fails if it hangs."""
    outcome: list[object] = []

    def call() -> None:
        try:
            outcome.append(function())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()

    def result(limit_s: float) -> object:
        thread.join(limit_s)
        assert not thread.is_alive(), f"no answer after {limit_s} s"
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]

    return result
