"""What every stage cost in an epoch, as it was measured while the epoch ran."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from timeit import timeit

import psutil

from pipeline.stats import BUSY, COLLATE, MAKING_CPU, READ_CPU, STAGES, TRANSFER, StageClock

OF_PROCESSOR = (MAKING_CPU, READ_CPU)
COUNTED = (*STAGES, BUSY, *OF_PROCESSOR, COLLATE, TRANSFER)
COMPUTE, SAVING, RANKS, OVERHEAD = "compute", "saving", "ranks", "overhead"
LOOP_KINDS = (COMPUTE, TRANSFER, SAVING, RANKS, OVERHEAD)
"""What a loop does between two batches: steps, moving a batch that no prefetcher has moved, checkpoints, waiting for
other ranks, and all else."""
_LOOKS_A_BATCH = 8
"""Pairs of looks at a clock that the loop, the loader and the prefetcher take for a batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Of one epoch of training, or of a part of it, on one rank.

    Attributes:
        num_samples: samples that the loop had, of this rank.
        num_batches: batches of them.
        num_ahead: samples that were made before the epoch began.
        wall_s: the epoch's time, of which `wait_s` went to waiting for data, `first_batch_s` of it for the first batch
            of each part, and `loop_s` to the kinds of `LOOP_KINDS`. Each is measured for itself.
        compute_cpu_s: processor time of the loop's thread in its steps; the rest of `loop_s` for them was
            waiting: for a device, a core, or Python's lock.
        device_s: what a device that is not the CPU spent on steps; None: the CPU takes them.
        cpu_s: processor time of this process and its worker processes.
        sample_s: seconds a sample by stage, of the thread that does it: `read`, `decode`, `transform`, `busy` (all of
            them and what lies between), `making_cpu` and `read_cpu` (processor time of all and of reading), `collate`,
            `transfer` (a prefetcher's).
        measuring_s: seconds that it took to know all this.
        queue_pct: how full the queue of finished batches was when one was asked for; None: there is none.
        prefetch_pct: the same of the prefetcher's.
    """

    num_samples: int
    num_batches: int
    num_ahead: int = 0
    wall_s: float
    wait_s: float = 0.0
    first_batch_s: float = 0.0
    loop_s: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(LOOP_KINDS, 0.0))
    compute_cpu_s: float = 0.0
    device_s: float | None = None
    cpu_s: float
    sample_s: Mapping[str, float]
    measuring_s: float = 0.0
    queue_pct: float | None = None
    prefetch_pct: float | None = None

    @property
    def making_cpu_s(self) -> float:
        """Processor time of making the samples."""
        return self.sample_s[MAKING_CPU] * self.num_samples

    @property
    def other_cpu_s(self) -> float:
        """Processor time of all that makes no samples."""
        return max(0.0, self.cpu_s - self.making_cpu_s)

    def busy_pct(self, num_cores: int) -> float:
        """How busy so many cores were."""
        return min(100.0, 100 * self.cpu_s / max(1e-9, self.wall_s * num_cores))


def stage_costs(begin: Mapping[str, float], end: Mapping[str, float], *, num_crops: int = 1) -> dict[str, float]:
    """Seconds a sample that the loop had, by stage, between two `stats()` of a pipeline with `num_crops` of an image.

    A stage that some samples need not go through (a cache had them) is spread over all that were made, which `busy`
    counts; what is done for a batch, over the samples that it was done for.
    """
    num_made = max(1.0, _count(begin, end, BUSY))
    costs = {}
    for stage in COUNTED:
        num_samples = max(1.0, _count(begin, end, stage)) if stage in (COLLATE, TRANSFER) else num_made
        of_each = 1 if stage == TRANSFER else num_crops  # a prefetcher counts what it moves
        costs[stage] = (_spent_s(end, stage) - _spent_s(begin, stage)) / (num_samples * of_each)
    return costs


def clocking_s(begin: Mapping[str, float], end: Mapping[str, float]) -> float:
    """Seconds that the looks at clocks between two `stats()` took: how many, times what one costs here."""
    of_wall, of_cpu = (cost_of_a_look_s(clock) for clock in (time.perf_counter, time.thread_time))
    num_looks = sum(_count(begin, end, stage) for stage in (*STAGES, BUSY))
    num_looks_of_cpu = sum(_count(begin, end, kind) for kind in OF_PROCESSOR)
    num_batches = end.get("batches", 0) - begin.get("batches", 0)
    return (num_looks + _LOOKS_A_BATCH * num_batches) * of_wall + num_looks_of_cpu * of_cpu


def cost_of_a_look_s(clock: Callable[[], float]) -> float:
    """Seconds that counting one sample's stage takes: two looks at `clock` and their entry."""
    stages, num_looks = StageClock(), 2000

    def count() -> None:
        began = clock()
        stages.add(BUSY, clock() - began)

    return timeit(count, number=num_looks) / num_looks


def cpu_s_of_program(*, has_workers: bool) -> float:
    """Processor time so far of this process, its children and theirs; a child that ended counts with its parent.

    Without worker processes children that live are not looked for: that takes a millisecond and more, twice an epoch.
    """
    total_s = sum(os.times()[:4])
    if not has_workers:
        return total_s
    for child in psutil.Process().children(recursive=True):
        try:
            total_s += sum(child.cpu_times()[:2])
        except psutil.Error:  # it ended meanwhile
            continue
    return total_s


def _count(begin: Mapping[str, float], end: Mapping[str, float], stage: str) -> float:
    return end.get(f"{stage}_count", 0) - begin.get(f"{stage}_count", 0)


def _spent_s(stats: Mapping[str, float], stage: str) -> float:
    return stats.get(f"{stage}_ms", 0.0) * stats.get(f"{stage}_count", 0) / 1e3
