"""The process that measures one round of one trial, seen by who started it: it works only when it is told to."""

from __future__ import annotations

import os
import pickle
import select
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Self

import psutil

import pipeline
from pipeline.bench.child import SIZE_BYTES, Round

KILL_WAIT_S = 10.0
_LOOK_S = 0.2
"""How soon the end of a process is seen that does not answer any more."""


class TrialProcess:
    """A fresh interpreter with a round to measure; owns the process and all it starts.

    It is started, and runs through its warm-up, by the first `proceed`; each further one lets it do its next part, and
    the one after its last turn lets it end. In between it rests, holding its memory.
    """

    def __init__(self, round: Round, *, number: int, python: str, log: Path, timeout_s: float) -> None:
        """`timeout_s` is for the time that the process is at work; what it prints is added to `log`."""
        self.cause: str | None = None
        """How it ended; None while it lives."""
        self._timeout_s = self._left_s = timeout_s
        self._log = log
        self._command = [python, "-P", "-m", "pipeline.bench.child"]
        self._command += ["--trial", str(number), "--round", str(round.number)]
        self._round = round
        self._process: subprocess.Popen[bytes] | None = None
        self._go = self._done = -1

    def proceed(self) -> None:
        """Let it do its next part, and return when that is done, or when the process is over."""
        if self.cause is not None:
            return
        began_s = time.monotonic()
        if self._process is None:
            self._start()
        else:
            self._write(self._go, b".")
        is_done = self._wait(began_s + self._left_s)
        self._left_s -= time.monotonic() - began_s
        if not is_done:
            self.cause = self._end()

    def close(self) -> None:
        """Kill what still runs of it, and forget the process. May be called twice."""
        if self._process is not None:
            self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _start(self) -> None:
        go, self._go = os.pipe()
        self._done, done = os.pipe()
        search_path = [str(Path(pipeline.__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        try:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(search_path)},
                    pass_fds=(go, done),
                    start_new_session=True,
                )
        finally:
            os.close(go)
            os.close(done)
        assert self._process.stdin is not None
        pickled = pickle.dumps(replace(self._round, go=go, done=done))
        self._write(self._process.stdin.fileno(), len(pickled).to_bytes(SIZE_BYTES, "little") + pickled)

    @staticmethod
    def _write(pipe: int, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(pipe, data) :]
        except BrokenPipeError:
            pass  # it is dead: its exit status says how

    def _wait(self, until_s: float) -> bool:
        """Whether it says that its part is done, before it ends and before `until_s`."""
        assert self._process is not None
        while (left_s := until_s - time.monotonic()) > 0:
            # Looked at as well as read: a process that it forked may hold the pipe open when it is dead.
            readable, _, _ = select.select([self._done], [], [], min(left_s, _LOOK_S))
            if readable and os.read(self._done, 1):
                return True
            if self._process.poll() is not None:
                return False
        return False

    def _end(self) -> str:
        """Kill it if it still runs, with all it started, and say how it ended."""
        process, self._process = self._process, None
        assert process is not None
        try:
            if process.poll() is None:
                _kill_tree(process)
                return f"still running after bench.timeout_s={self._timeout_s:g}, killed"
            _kill_group(process.pid)
            if process.returncode < 0:
                return f"killed by {signal.Signals(-process.returncode).name}"
            return f"its process ended with exit code {process.returncode}; see {self._log}"
        finally:
            with process:  # closes its standard input
                os.close(self._go)
                os.close(self._done)


def _kill_group(pid: int) -> None:
    """Kill what a process left in the group it led, so that nothing of it runs into the next one's time."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    _kill_group(process.pid)
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait(KILL_WAIT_S)
