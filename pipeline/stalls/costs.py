"""What every stage cost in an epoch, as it was measured while the epoch ran."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from timeit import timeit

import psutil

from pipeline.stats import BUSY, COLLATE, MAKING_CPU, STAGES, TRANSFER, StageClock

COUNTED = (*STAGES, BUSY, MAKING_CPU, COLLATE, TRANSFER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What a pipeline's `stats()` said, and the processor time of the program, at one moment of a run."""

    stats: Mapping[str, float]
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Of one epoch of training, or of a part of it, on one rank.

    Attributes:
        num_samples: samples that the loop had.
        num_batches: batches of them.
        num_ahead: samples that were made before the epoch began.
        wall_s: the epoch's time, of which `wait_s` went to waiting for data, `first_batch_s` of it for the first batch,
            `compute_s` to steps, and `overhead_s` to what stands beside both. Each is measured for itself.
        cpu_s: processor time of this process and its worker processes.
        sample_s: seconds a sample by stage, of the thread that does it: `read`, `decode`, `transform`, `busy` (all of
            them and what lies between), `making_cpu` (its processor time), `collate`, `transfer`.
        num_calls: how often a clock was read for this.
        queue_pct: how full the queue of finished batches was when one was asked for; None: there is none.
        prefetch_pct: the same of the prefetcher's.
    """

    num_samples: int
    num_batches: int
    num_ahead: int
    wall_s: float
    wait_s: float
    first_batch_s: float
    compute_s: float
    overhead_s: float
    cpu_s: float
    sample_s: Mapping[str, float]
    num_calls: int
    queue_pct: float | None
    prefetch_pct: float | None


def stage_costs(begin: Mapping[str, float], end: Mapping[str, float]) -> tuple[dict[str, float], int]:
    """Seconds a sample by stage between two `stats()` of a pipeline, and how often a clock was read for them.

    A stage that some samples need not go through (a cache had them) is spread over all: workers made `busy_count`, and
    the loop was handed `samples`.
    """
    num_made, num_handed = (max(1.0, end.get(key, 0) - begin.get(key, 0)) for key in (f"{BUSY}_count", "samples"))
    costs = {}
    num_calls = 0.0
    for stage in COUNTED:
        spent_s = _spent_s(end, stage) - _spent_s(begin, stage)
        costs[stage] = spent_s / (num_handed if stage in (COLLATE, TRANSFER) else num_made)
        num_calls += end.get(f"{stage}_count", 0) - begin.get(f"{stage}_count", 0)
    return costs, int(num_calls)


def cost_of_a_call_s() -> float:
    """Seconds that counting one sample's stage takes: two looks at the clock and their entry."""
    clock, num_calls = StageClock(), 2000

    def count() -> None:
        began = time.perf_counter()
        clock.add(BUSY, time.perf_counter() - began)

    return timeit(count, number=num_calls) / num_calls


def cpu_s_of_program() -> float:
    """Processor time so far of this process, its children and theirs; a child that ended counts with its parent."""
    total_s = sum(os.times()[:4])
    for child in psutil.Process().children(recursive=True):
        try:
            total_s += sum(child.cpu_times()[:2])
        except psutil.Error:  # it ended meanwhile
            continue
    return total_s


def _spent_s(stats: Mapping[str, float], stage: str) -> float:
    return stats.get(f"{stage}_ms", 0.0) * stats.get(f"{stage}_count", 0) / 1e3
