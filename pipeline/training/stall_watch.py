"""What the epochs of a run cost, taken while they run, for the stall report at its end."""

from __future__ import annotations

import math

from pipeline.build import Pipeline
from pipeline.config import TrainConfig
from pipeline.machine import available_bytes, cores_per_rank
from pipeline.stalls import Costs, Machine, Moment, StallReport, cpu_s_of_program, explain, stage_costs
from pipeline.stats import BUSY
from pipeline.training.loop import Totals


class StallWatch:
    """Looks at a pipeline's counters when an epoch begins and when it ends."""

    def __init__(self, pipeline: Pipeline, *, num_ranks: int = 1, computes_on_cpu: bool = True) -> None:
        self._pipeline = pipeline
        self._num_ranks = num_ranks
        self._computes_on_cpu = computes_on_cpu
        self._epochs: list[Costs] = []
        self._began: Moment | None = None

    def begin(self) -> None:
        """An epoch, or what is left of one, is about to be trained."""
        self._began = self._now()

    def end(self, trained: Totals, *, earlier: Totals | None) -> None:
        """It was trained, to these totals, of which `earlier` are from before it began."""
        began, ended = self._began, self._now()
        assert began is not None, "it did not begin"
        self._epochs.append(_costs(began, ended, trained, earlier or Totals(lr=trained.lr), self._pipeline))
        self._began = None

    def report(self, config: TrainConfig) -> StallReport | None:
        """Of all epochs that ended; None where nothing was trained."""
        machine = Machine(
            num_cores=cores_per_rank(),
            computes=self._computes_on_cpu,
            free_bytes=available_bytes,
            decoded_bytes=self._pipeline.decoded_bytes,
        )
        return explain(self._epochs, self._pipeline.lanes, config, machine, num_ranks=self._num_ranks)

    def _now(self) -> Moment:
        return Moment(stats=self._pipeline.stats(), cpu_s=cpu_s_of_program())


def _costs(began: Moment, ended: Moment, trained: Totals, earlier: Totals, pipeline: Pipeline) -> Costs:
    before, after, lanes = began.stats, ended.stats, pipeline.lanes
    sample_s, num_calls = stage_costs(before, after)
    num_taken = max(1.0, after["batches"] - before["batches"])

    def occupancy_pct(name: str, capacity: int) -> float | None:
        return 100 * (after[name] - before[name]) / (num_taken * capacity) if capacity else None

    is_first_part = math.isnan(earlier.first_batch_s)
    return Costs(
        # Of this rank, which counts its own stages; `Totals` are of all.
        num_samples=int(after["samples"] - before["samples"]),
        num_batches=trained.num_batches - earlier.num_batches,
        num_ahead=int(before.get(f"{BUSY}_count", 0) - before["samples"]),
        wall_s=trained.wall_s - earlier.wall_s,
        wait_s=trained.wait_s - earlier.wait_s,
        first_batch_s=trained.first_batch_s if is_first_part else 0.0,
        compute_s=trained.compute_s - earlier.compute_s,
        overhead_s=trained.overhead_s - earlier.overhead_s,
        cpu_s=ended.cpu_s - began.cpu_s,
        sample_s=sample_s,
        num_calls=num_calls,
        queue_pct=occupancy_pct("ready_batches", lanes.queue_batches),
        prefetch_pct=occupancy_pct("prefetched_batches", lanes.prefetched_batches),
    )
