"""The stall report itself: numbers for `summary.json`, lines for people."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import TrainConfig
from pipeline.stalls.advice import NAMES, Advice, Machine, advise, none_for_slow_starts
from pipeline.stalls.bound import FIRST_BATCH, PYTHON, START, Bound, find_bound_of_starts, predicted_s, python_s
from pipeline.stalls.costs import COMPUTE, COUNTED, LOOP_KINDS, OF_PROCESSOR, Costs
from pipeline.stalls.lock import find_bound_or_lock
from pipeline.stats import BUSY, MAKING_CPU, READ_CPU, Lanes


@dataclass(frozen=True, slots=True, kw_only=True)
class StallReport:
    """Of the epochs of a run, on one rank: of several, the one that waited most for data.

    `costs` are all of them added up, `bound` is what bounded them for most of the time, `predicted_per_sec` the samples
    a second that their costs make, beside `measured_per_sec`.
    """

    costs: Costs
    lanes: Lanes
    bound: Bound
    advice: Advice
    predicted_per_sec: float
    measured_per_sec: float
    num_cores: int
    rank: int
    num_ranks: int

    def numbers(self) -> dict[str, Any]:
        """For `summary.json`: shares of the training time in per cent, milliseconds a sample of one thread."""
        costs = self.costs
        return {
            "bound": self.bound.stage,
            "bound_lane": self.bound.lane.value,
            "override": self.advice.override,
            "override_speedup": self.advice.speedup if self.advice.override else None,
            "why": self.advice.why,
            "predicted_samples_per_sec": self.predicted_per_sec,
            "measured_samples_per_sec": self.measured_per_sec,
            "wall_s": costs.wall_s,
            "wait_s": costs.wait_s,
            "compute_s": costs.loop_s[COMPUTE],
            "overhead_s": self._overhead_s,
            "overhead_parts_s": self._overhead_parts_s,
            "device_s": costs.device_s,
            "first_batches_s": costs.first_batch_s,
            "stages_ms": {stage: 1e3 * spent_s for stage, spent_s in self._stages_s.items()},
            "worker_ms": 1e3 * costs.sample_s[BUSY],
            "loader_cpu_ms": 1e3 * costs.sample_s[MAKING_CPU],
            "other_cpu_ms": 1e3 * costs.other_cpu_s / costs.num_samples,
            "workers_busy_pct": self._workers_busy_pct,
            "queue_pct": costs.queue_pct,
            "prefetch_queue_pct": costs.prefetch_pct,
            "read_cpu_ms": 1e3 * costs.sample_s[READ_CPU],
            "cpu_busy_pct": costs.busy_pct(self.num_cores),
            "measuring_pct": 100 * costs.measuring_s / costs.wall_s,
            "rank": self.rank,
            "num_ranks": self.num_ranks,
        }

    def lines(self) -> list[str]:
        """For people, of at most 100 columns."""
        costs = self.costs
        wait_pct, compute_pct, overhead_pct = (
            100 * spent_s / costs.wall_s for spent_s in (costs.wait_s, costs.loop_s[COMPUTE], self._overhead_s)
        )
        busy = "" if self._workers_busy_pct is None else f", workers busy {self._workers_busy_pct:.0f} %"
        queue = "" if costs.queue_pct is None else f", their queue {costs.queue_pct:.0f} % full"
        stages = ", ".join(f"{stage} {1e3 * spent_s:.2f}" for stage, spent_s in self._stages_s.items() if spent_s)
        helps = self.advice.why
        if self.advice.override is not None:
            helps = (
                f"{self.advice.override} would help: up to {self.advice.speedup:.1f} times as fast{self.advice.when}"
            )
        return [
            f"  data-wait  {wait_pct:.1f} % of the training time; compute {compute_pct:.1f} %, "
            f"overhead {overhead_pct:.1f} %",
            f"  bound by   {NAMES[self.bound.stage]}{busy}{queue}",
            f"             {self.predicted_per_sec:.0f} images/s by the stages' costs, "
            f"{self.measured_per_sec:.0f} measured{self._whose}",
            f"  stages     {stages} ms an image",
            f"  cpu        {1e3 * costs.sample_s[MAKING_CPU]:.2f} ms an image in making samples, "
            f"{1e3 * costs.other_cpu_s / costs.num_samples:.2f} in the model and all else",
            f"  advice     {helps}",
        ]

    @property
    def _whose(self) -> str:
        return "" if self.num_ranks == 1 else f" in rank {self.rank} of {self.num_ranks}, which waits most"

    @property
    def _stages_s(self) -> dict[str, float]:
        """Seconds a sample by stage, what lies between them among them."""
        sample_s = self.costs.sample_s
        return {stage: sample_s[stage] for stage in COUNTED if stage not in (BUSY, *OF_PROCESSOR)} | {
            PYTHON: python_s(sample_s)
        }

    @property
    def _overhead_parts_s(self) -> dict[str, float]:
        return {kind: self.costs.loop_s[kind] for kind in LOOP_KINDS if kind != COMPUTE}

    @property
    def _overhead_s(self) -> float:
        return sum(self._overhead_parts_s.values())

    @property
    def _workers_busy_pct(self) -> float | None:
        if not self.lanes.num_threads or not self.costs.wall_s:
            return None
        making_s = self.costs.sample_s["busy"] * self.costs.num_samples / self.lanes.num_threads
        return min(100.0, 100 * making_s / self.costs.wall_s)


def explain(
    epochs: Sequence[Costs],
    lanes: Lanes,
    config: TrainConfig,
    machine: Machine,
    *,
    rank: int = 0,
    num_ranks: int = 1,
) -> StallReport | None:
    """The report of epochs that were trained; None where there is no sample in them."""
    epochs = [costs for costs in epochs if costs.num_samples and costs.wall_s > 0]
    if not epochs:
        return None
    weights: dict[tuple[str, str], float] = defaultdict(float)
    starts = find_bound_of_starts(epochs, lanes)
    bounds = [starts or find_bound_or_lock(costs, lanes, machine.num_cores) for costs in epochs]
    for bound, costs in zip(bounds, epochs, strict=True):
        weights[bound.lane, bound.stage] += costs.wall_s
    chosen = max(weights, key=lambda key: weights[key])
    # The advice is for the epochs that are like the most: a cache's first one is like no other.
    like_it = [costs for bound, costs in zip(bounds, epochs, strict=True) if (bound.lane, bound.stage) == chosen]
    total = add_up(epochs)
    bound = next(bound for bound in reversed(bounds) if (bound.lane, bound.stage) == chosen)
    return StallReport(
        costs=total,
        lanes=lanes,
        bound=bound,
        advice=none_for_slow_starts(bound)
        if bound.stage in (FIRST_BATCH, START)
        else advise(add_up(like_it), lanes, config, machine),
        predicted_per_sec=total.num_samples / sum(predicted_s(costs, lanes) for costs in epochs),
        measured_per_sec=total.num_samples / total.wall_s,
        num_cores=machine.num_cores,
        rank=rank,
        num_ranks=num_ranks,
    )


def add_up(epochs: Sequence[Costs]) -> Costs:
    """The costs of all `epochs` together, each a mean by samples or a sum."""
    num_samples = sum(costs.num_samples for costs in epochs)

    def mean(stage: str) -> float:
        return sum(costs.sample_s[stage] * costs.num_samples for costs in epochs) / num_samples

    def mean_pct(name: str) -> float | None:
        known = [(getattr(costs, name), costs.num_samples) for costs in epochs if getattr(costs, name) is not None]
        return sum(pct * number for pct, number in known) / sum(number for _, number in known) if known else None

    on_device = [costs.device_s for costs in epochs if costs.device_s is not None]
    return Costs(
        num_samples=num_samples,
        loop_s={kind: sum(costs.loop_s[kind] for costs in epochs) for kind in LOOP_KINDS},
        device_s=sum(on_device) if on_device else None,
        sample_s={stage: mean(stage) for stage in COUNTED},
        queue_pct=mean_pct("queue_pct"),
        prefetch_pct=mean_pct("prefetch_pct"),
        **{name: sum(getattr(costs, name) for costs in epochs) for name in _SUMS},
    )


_SUMS = ("num_batches", "num_ahead", "wall_s", "wait_s", "first_batch_s", "compute_cpu_s", "cpu_s", "measuring_s")
