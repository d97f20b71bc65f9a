"""Reads every sample ahead of epoch 0, to fill a store."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from pipeline.cache.load import Sample

_log = logging.getLogger(__name__)


def preload(load: Callable[[int], Sample], count: int, *, num_threads: int, name: str) -> Iterator[Sample]:
    """Yield samples 0 ... count - 1 in order, loaded by `num_threads` threads, showing progress as `name`.

    Progress is a bar on a terminal and a log line at every tenth elsewhere. The first failure is raised at its place
    and ends the work. At most `4 * num_threads` samples wait for the consumer.
    """
    ahead = 4 * num_threads
    bar = tqdm(total=count, desc=f"preload {name}", unit="img", disable=not sys.stderr.isatty(), leave=False)
    with bar, ThreadPoolExecutor(num_threads, thread_name_prefix="headrace-preload") as pool:
        window = deque(pool.submit(load, id) for id in range(min(ahead, count)))
        for id in range(count):
            sample = window.popleft().result()
            if id + ahead < count:
                window.append(pool.submit(load, id + ahead))
            yield sample
            bar.update()
            if bar.disable and (id + 1) * 10 // count > id * 10 // count:
                _log.info("preload %s: %d of %d images", name, id + 1, count)
