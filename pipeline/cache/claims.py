"""Who loads a sample that nobody has yet: one thread, while every other that wants it waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.cache.forks import renew_after_fork


class Claims:
    """Exclusive claims on numbers between the threads of this process. A copy in another process has none."""

    def __init__(self) -> None:
        self.renew_locks()

    def __reduce__(self) -> tuple[type[Claims], tuple[()]]:
        return Claims, ()

    def renew_locks(self) -> None:
        """Forget what other threads have claimed, as a forked child must: they do not exist there."""
        self._lock = threading.Lock()
        self._held: dict[int, threading.Event] = {}
        renew_after_fork(self)

    @contextmanager
    def hold(self, number: int) -> Iterator[None]:
        """Wait until no other thread holds `number`, then hold it."""
        while True:
            with self._lock:
                held = self._held.get(number)
                if held is None:
                    released = self._held[number] = threading.Event()
                    break
            held.wait()
        try:
            yield
        finally:
            with self._lock:
                self._held.pop(number, None)
            released.set()
