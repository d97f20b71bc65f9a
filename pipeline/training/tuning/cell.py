"""What is tried, and how fast it should be by the costs that were measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipeline.stalls import COMPUTE, Costs
from pipeline.stalls.advice import without_decoding
from pipeline.stalls.bound import find_bound
from pipeline.stats import MAKING_CPU, Lanes

MOST_THREADS_A_CORE = 8
"""Threads that wait for storage take no core; more than these take memory for nothing."""


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class Cell:
    """Settings that go together: who makes samples, and torch's threads. Ordered by what they take."""

    num_workers: int
    threads_per_worker: int
    num_threads: int

    @property
    def overrides(self) -> list[str]:
        """What to add to a command line to have it."""
        each = [] if self.threads_per_worker == 1 else [f"loader.threads_per_worker={self.threads_per_worker}"]
        return [f"loader.num_workers={self.num_workers}", *each, f"run.num_threads={self.num_threads}"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a sample and a step cost here, each while nothing else ran.

    Attributes:
        costs: of samples made in the loop's own thread.
        sample_cpu_s: processor time of making a sample: less than its time where storage is waited for.
        step_s: seconds a sample of a step, by torch's threads.
        step_cpu_s: the same of processor time.
        num_cores: what is lent to this rank.
        prefetched_batches: what a prefetcher holds; 0: none.
    """

    costs: Costs
    sample_cpu_s: float
    step_s: Mapping[int, float]
    step_cpu_s: Mapping[int, float]
    num_cores: int
    prefetched_batches: int

    def per_sec(self, cell: Cell) -> float:
        """Samples a second by these costs: the slowest of workers, prefetcher and loop, and the cores for all of it."""
        lanes = Lanes(
            num_threads=cell.num_workers * cell.threads_per_worker,
            queue_batches=2 if cell.num_workers else 0,
            prefetched_batches=self.prefetched_batches,
        )
        step_s = self.step_s[cell.num_threads] * self.costs.num_samples
        costs = replace(self.costs, loop_s={**self.costs.loop_s, COMPUTE: step_s})
        cpu_s = (self.sample_cpu_s + self.step_cpu_s[cell.num_threads]) / self.num_cores
        return 1 / max(find_bound(costs, lanes).pace_s, cpu_s)

    def with_kept_pixels(self) -> Served:
        """The same where a store has every sample decoded."""
        kept = without_decoding(self.costs)
        saved_cpu_s = self.costs.sample_s[MAKING_CPU] - kept.sample_s[MAKING_CPU]
        return replace(self, costs=kept, sample_cpu_s=max(0.0, self.sample_cpu_s - saved_cpu_s))


def all_cells(num_cores: int, *, in_processes: bool) -> list[Cell]:
    """Every cell that is worth a thought; with processes no more of them than cores, of several threads each."""
    numbers = [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128]
    many = [number for number in numbers if number <= MOST_THREADS_A_CORE * num_cores]
    return [
        Cell(num_workers=-(-number // each), threads_per_worker=each, num_threads=num_threads)
        for number in many
        for each in [max(1, -(-number // num_cores)) if in_processes else 1]
        for num_threads in thread_counts(num_cores)
    ]


def thread_counts(num_cores: int) -> list[int]:
    """Torch's threads to try: powers of two, and all cores."""
    powers = [2**power for power in range(num_cores.bit_length()) if 2**power <= num_cores]
    return sorted({*powers, num_cores})


def shortlist(cells: list[Cell], served: Served, *, beside: Cell, count: int) -> list[Cell]:
    """The `count` cells that promise most, and `beside` in any case.

    Of cells that promise the same with as many of torch's threads, where workers wait for the loop, only the one that
    takes least is tried, and one with a worker for each core: they have the cores between the loop's steps.
    """
    ranked = sorted(cells, key=lambda cell: (-round(served.per_sec(cell), 1), cell.num_workers + cell.num_threads))
    chosen: dict[tuple[float, int, bool], Cell] = {}
    for cell in ranked:
        has_all_cores = cell.num_workers * cell.threads_per_worker >= served.num_cores
        chosen.setdefault((round(served.per_sec(cell), 1), cell.num_threads, has_all_cores), cell)
    return list(dict.fromkeys([*list(chosen.values())[:count], beside]))
