"""Where the time goes: seconds and counts per stage, kept without locks.

Every thread writes a `StageClock` of its own, so counting costs two dictionary updates and never waits for another
thread; `Stats` adds the clocks up when somebody asks.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

STAGES = ("read", "decode", "transform")
BUSY = "busy"
"""All that a worker does for a sample, the stages included; what is left of it is what no stage counts."""
MAKING_CPU = "making_cpu"
"""The processor time of the same."""
READ_CPU = "read_cpu"
"""The processor time of reading: that of a file takes next to none, that of Python code holds Python's lock."""
COLLATE = "collate"
"""All that is done for a batch besides making its samples and waiting for them."""
TRANSFER = "transfer"
"""Issuing the move of a batch to its device, and what is done to it there."""


class StageClock:
    """Seconds and calls per stage, written by one thread and read by any.

    A reader may see a stage's seconds one call ahead of its count; nothing else can go wrong, so no lock is taken.
    """

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)

    def add(self, stage: str, seconds: float, count: int = 1) -> None:
        """Count `count` samples for which `stage` took `seconds` altogether (wall time of the calling thread)."""
        self.seconds[stage] += seconds
        self.counts[stage] += count

    def tally(self, event: str, count: int = 1) -> None:
        """Count `count` more of an `event`, which takes no time."""
        self.counts[event] += count

    def take(self) -> tuple[dict[str, float], dict[str, int]]:
        """Seconds and counts so far, forgotten here; for the clock's own thread."""
        taken = dict(self.seconds), dict(self.counts)
        self.seconds.clear()
        self.counts.clear()
        return taken

    def merge(self, taken: tuple[dict[str, float], dict[str, int]]) -> None:
        """Add what another clock's `take` gave."""
        seconds, counts = taken
        for stage, value in seconds.items():
            self.seconds[stage] += value
        for stage, count in counts.items():
            self.counts[stage] += count


@dataclass(frozen=True, slots=True, kw_only=True)
class Lanes:
    """Who does what at the same time as whom, on the way of a batch to the loop."""

    num_threads: int
    """Threads that make samples, in all workers; 0: whoever asks for a batch makes it."""
    queue_batches: int
    """Batches between the workers and whoever takes them, at most; 0: no workers."""
    prefetched_batches: int
    """Batches between the prefetcher's thread and the loop, at most; 0: the loop takes them from the workers."""
    in_threads: bool = False
    """Whether workers are threads of the loop's process, which take turns at Python."""


class Stats:
    """All clocks of one pipeline, and what its consumer saw."""

    def __init__(self) -> None:
        self._clocks: list[StageClock] = []
        self._owners: dict[threading.Thread, StageClock] = {}
        self._local = threading.local()
        self.batches = 0
        self.samples = 0
        self.wait_s = 0.0
        self.copied_batches = 0
        self.ready_batches = 0
        self.worker_deaths = 0

    def __reduce__(self) -> tuple[type[Stats], tuple[()]]:
        # What another process counts, it counts from 0; its clocks' contents come back by `StageClock.take`.
        return Stats, ()

    @property
    def clock(self) -> StageClock:
        """The calling thread's own clock; made and registered on first use."""
        clock: StageClock | None = getattr(self._local, "clock", None)
        if clock is None:
            clock = self._local.clock = self._of_ended_thread() or StageClock()
            if clock not in self._clocks:
                self._clocks.append(clock)  # atomic: a lock might be held by another thread when a process forks
            self._owners[threading.current_thread()] = clock
        return clock

    def _of_ended_thread(self) -> StageClock | None:
        """A clock that nobody writes any more: a prefetcher has another thread every epoch."""
        for thread in tuple(self._owners):
            if not thread.is_alive() and (clock := self._owners.pop(thread, None)) is not None:
                return clock
        return None

    def handed_over(self, samples: int, waited_s: float, *, num_ready: int) -> None:
        """Count one batch given to the consumer, who waited `waited_s` and found `num_ready` made when it asked."""
        self.batches += 1
        self.samples += samples
        self.wait_s += waited_s
        self.ready_batches += num_ready

    def total(self, event: str) -> int:
        """How often `event` was tallied."""
        return sum(clock.counts.get(event, 0) for clock in tuple(self._clocks))

    def forget(self, *events: str) -> None:
        """Count these events from 0; nobody may be tallying them now."""
        for clock in tuple(self._clocks):
            for event in events:
                clock.counts.pop(event, None)

    def summary(self) -> dict[str, float]:
        """Totals so far: counts, seconds waited by the consumer, and per stage milliseconds an image."""
        clocks = tuple(self._clocks)
        totals: dict[str, float] = {
            "batches": self.batches,
            "samples": self.samples,
            "wait_s": self.wait_s,
            "copied_batches": self.copied_batches,
            "ready_batches": self.ready_batches,
            "worker_deaths": self.worker_deaths,
        }
        stages = dict.fromkeys(STAGES) | dict.fromkeys(name for clock in clocks for name in tuple(clock.seconds))
        return totals | in_ms(clocks, stages)


def in_ms(clocks: Iterable[StageClock], stages: Iterable[str]) -> dict[str, float]:
    """Per stage the count of all `clocks` together, and the milliseconds that one of what was counted took."""
    numbers: dict[str, float] = {}
    clocks = tuple(clocks)
    for stage in stages:
        count = sum(clock.counts.get(stage, 0) for clock in clocks)
        seconds = sum(clock.seconds.get(stage, 0.0) for clock in clocks)
        numbers[f"{stage}_count"] = count
        numbers[f"{stage}_ms"] = 1e3 * seconds / count if count else 0.0
    return numbers
