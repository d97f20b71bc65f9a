"""Reads every sample ahead of epoch 0, to fill a store."""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

Loaded = TypeVar("Loaded")

LINE_EVERY_S = 5.0
"""Where there is no terminal: seconds between two lines of progress."""

_log = logging.getLogger(__name__)


def preload(
    load: Callable[[int], Loaded], ids: Sequence[int], *, num_threads: int, name: str
) -> Generator[Loaded, None, None]:
    """Yield samples `ids` in order, loaded by `num_threads` threads, showing progress as `name`.

    Progress is a bar on a terminal and a log line every few seconds elsewhere. The first failure is raised at its place
    and ends the work. At most `4 * num_threads` samples wait for the consumer. Closing it ends its threads.
    """
    ahead = 4 * num_threads
    report = _bar if sys.stderr.isatty() else _lines
    with report(len(ids), name) as advance, ThreadPoolExecutor(num_threads, "headrace-preload") as pool:
        window = deque(pool.submit(load, id) for id in ids[:ahead])
        for number, id in enumerate(ids):
            try:
                sample = window.popleft().result()
            except Exception as error:
                error.add_note(f"while sample id {id} of {name} was preloaded")
                raise
            if number + ahead < len(ids):
                window.append(pool.submit(load, ids[number + ahead]))
            yield sample
            advance(number)


@contextmanager
def _bar(count: int, name: str) -> Iterator[Callable[[int], object]]:
    with tqdm(total=count, desc=f"preload {name}", unit="img", leave=False) as bar:
        yield lambda _: bar.update()


@contextmanager
def _lines(count: int, name: str) -> Iterator[Callable[[int], object]]:
    said_s = time.monotonic()

    def advance(number: int) -> None:
        nonlocal said_s
        if time.monotonic() - said_s >= LINE_EVERY_S:
            said_s = time.monotonic()
            _log.info("preload %s: %d of %d images", name, number + 1, count)

    yield advance
