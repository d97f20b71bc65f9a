"""Sample functions for worker processes: they pickle by name and import no torch, so that workers start fast."""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.sources import FileSource

Act = Callable[[int], None]
"""What happens before sample `id` is made."""


class Painted:
    """Writes a sample's id and first draw into its row, as `fakes.FakeSample` does; `acts` happen before, in order."""

    def __init__(self, *acts: Act) -> None:
        self._acts = acts

    def __call__(self, id: int, draws: np.ndarray, row: np.ndarray) -> None:
        for act in self._acts:
            act(id)
        row[...] = id + draws[0]


def named(id: int) -> str:
    """What errors call a sample."""
    return f"images/{id:05d}.jpg"


@dataclass
class For:
    """`act`, for some samples only."""

    ids: Collection[int]
    act: Act

    def __call__(self, id: int) -> None:
        if id in self.ids:
            self.act(id)


@dataclass
class Both:
    """`first`, then `second`."""

    first: Act
    second: Act

    def __call__(self, id: int) -> None:
        self.first(id)
        self.second(id)


@dataclass
class Once:
    """`act`, the first time in any process: the file `mark` is there afterwards."""

    mark: Path
    act: Act

    def __call__(self, id: int) -> None:
        try:
            os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        self.act(id)


@dataclass
class Tell:
    """Writes "pid id" to a `watching.Fifo`."""

    path: Path

    def __call__(self, id: int) -> None:
        with open(self.path, "w") as fifo:
            fifo.write(f"{os.getpid()} {id}\n")


@dataclass
class Block:
    """Waits until the test lets one sample through a `watching.Fifo`."""

    path: Path

    def __call__(self, _: int) -> None:
        self.waits_at_a_fifo()

    def waits_at_a_fifo(self) -> None:
        fd = os.open(self.path, os.O_RDWR)  # a FIFO opened for both never ends
        try:
            os.read(fd, 1)
        finally:
            os.close(fd)


def sleeps_for_ever(id: int) -> None:
    threading.Event().wait()


def holds_the_gil_for_ever(id: int) -> None:
    ctypes.PyDLL(None).sleep(100_000)


def reads_a_null_pointer(id: int) -> None:
    ctypes.string_at(0)


def aborts(id: int) -> None:
    os.abort()


def exits(id: int) -> None:
    os._exit(3)


def is_killed(id: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def takes_a_millisecond(id: int) -> None:
    until_s = time.perf_counter() + 1e-3
    while time.perf_counter() < until_s:
        pass


@dataclass
class Starts:
    """Starts a process that would go on for ever and writes its number to a `watching.Fifo`."""

    path: Path

    def __call__(self, id: int) -> None:
        process = subprocess.Popen(["sleep", "100000"])
        with open(self.path, "w") as fifo:
            fifo.write(f"{process.pid} {id}\n")


def raises_with_a_cause(id: int) -> None:
    try:
        raise KeyError("inner")
    except KeyError as error:
        raise ValueError("outer") from error


def prints(id: int) -> None:
    print(f"sample {id} says hello")  # noqa: T201
    print(f"sample {id} complains", file=sys.stderr)  # noqa: T201


@dataclass
class Record:
    """Writes one line of JSON a sample, about the process that makes it."""

    path: Path
    variables: tuple[str, ...] = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")

    def __call__(self, id: int) -> None:
        maps = Path("/proc/self/maps").read_text()
        seen = {
            "id": id,
            "pid": os.getpid(),
            "heavy": sorted({"torch", "torchvision", "omegaconf", "matplotlib", "PIL"} & set(sys.modules)),
            "pipeline": str(sys.modules["pipeline"].__file__),
            "path": sys.path,
            "environment": {name: os.environ.get(name) for name in self.variables},
            "maps": sorted({words[5] for line in maps.splitlines() if len(words := line.split()) > 5}),
        }
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(fd, json.dumps(seen).encode() + b"\n")
        finally:
            os.close(fd)


class KeywordOnlyError(Exception):
    def __init__(self, *, reason: str) -> None:
        super().__init__(f"because of {reason}")


class PickyError(Exception):
    def __init__(self, number: int) -> None:
        if not isinstance(number, int):
            raise TypeError("a number is wanted")
        super().__init__(f"number {number}")


class AttachedError(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class SilentError(Exception):
    def __str__(self) -> str:
        raise ValueError("no words for it")


class SilentAttachedError(AttachedError):
    def __str__(self) -> str:
        raise ValueError("no words for it")


class ForgetfulError(Exception):
    def __reduce__(self) -> Any:
        return type(self), self.args


ERRORS: dict[str, Callable[[], Exception]] = {
    "keyword-only constructor": lambda: KeywordOnlyError(reason="a keyword"),
    "constructor that raises": lambda: PickyError(7),
    "CalledProcessError": lambda: subprocess.CalledProcessError(5, ["convert", "it"]),
    "KeyError": lambda: KeyError("a missing key"),
    "attribute that cannot be pickled": lambda: AttachedError("holds a lock"),
    "text that raises": lambda: SilentError("unheard"),
    "text that raises and cannot be pickled": lambda: SilentAttachedError("unheard"),
    "pickling that forgets notes": lambda: ForgetfulError("forgot"),
}


@dataclass
class Raise:
    """`load(id)` that raises one of `ERRORS`."""

    name: str

    def __call__(self, _: int) -> bytes:
        return self.fails_to_load()

    def fails_to_load(self) -> bytes:
        raise ERRORS[self.name]()


class HasScratch:
    """A user's transform that paints into an array of its own, and returns it."""

    def __init__(self) -> None:
        self._scratch = np.zeros((3, 40, 40), np.uint8)

    def __call__(self, image: Image.Image) -> np.ndarray:
        self._scratch[...] = np.asarray(image.resize((40, 40))).transpose(2, 0, 1)
        return self._scratch


class OpensALockLater:
    """A user's transform that cannot be pickled after its first call; writes "pid number-of-the-call" to a file."""

    def __init__(self, path: Path) -> None:
        self.num_calls = 0
        self._path = path
        self._lock: Any = None

    def __call__(self, image: Image.Image) -> np.ndarray:
        self._lock = self._lock or threading.Lock()
        with self._lock, self._path.open("a") as file:
            self.num_calls += 1
            file.write(f"{os.getpid()} {self.num_calls}\n")
        return np.asarray(image.resize((2, 2))).transpose(2, 0, 1)


def draws_without_torch(_: Image.Image) -> np.ndarray:
    """A user's transform that draws from the two generators that need no torch."""
    return np.random.rand(3, 2, 2) + random.random()


class OnePicture(FileSource):
    """Very many paths, and the same bytes behind each of them."""

    def __init__(self, paths: Iterable[str], labels: np.ndarray, data: bytes) -> None:
        super().__init__(paths, labels)
        self._data = data

    def read(self, id: int) -> bytes:
        assert self.paths[id].endswith(f"{id:09d}.jpg")
        return self._data


class LoggedFiles(FileSource):
    """Files; the number of each one that is opened goes to `log`, whichever process opens it."""

    def __init__(
        self, paths: Sequence[str | os.PathLike[str]], labels: Any, log: Path, *, takes_s: float = 0.0
    ) -> None:
        super().__init__(paths, labels)
        self._log = log
        self._takes_s = takes_s

    def read(self, id: int) -> bytes:
        fd = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(fd, b"%d\n" % id)
        finally:
            os.close(fd)
        time.sleep(self._takes_s)
        return super().read(id)


@dataclass
class Pixels:
    """`load(id)` of small images in one array, which lies in shared memory in a worker."""

    pixels: np.ndarray = field(default_factory=lambda: np.zeros((4, 8, 8, 3), np.uint8))

    def __call__(self, id: int) -> np.ndarray:
        return self.pixels[id]
