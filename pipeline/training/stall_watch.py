"""What the epochs of a run cost, taken while they run, for the stall report at its end."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import replace

import torch

from pipeline.build import Pipeline
from pipeline.config import TrainConfig
from pipeline.dist import ALONE, World
from pipeline.machine import cores_per_rank
from pipeline.stalls import Costs, Machine, StallReport, clocking_s, cpu_s_of_program, explain, stage_costs
from pipeline.stats import BUSY
from pipeline.training.loop_clock import LoopClock, loop_clock_for

_log = logging.getLogger(__name__)


class StallWatch:
    """Looks at a pipeline's counters when (a part of) an epoch begins and when it ends; every rank has its own."""

    def __init__(self, pipeline: Pipeline, *, device: torch.device, world: World = ALONE) -> None:
        self._pipeline = pipeline
        self._device = device
        self._world = world
        self._epochs: list[Costs] = []
        self._before: Mapping[str, float] = {}
        self._cpu_s = 0.0
        self._looked_s = 0.0

    def begin(self) -> LoopClock:
        """An epoch, or what is left of one, is about to be trained; the clock is for `train_epoch` to keep."""
        began_s = time.perf_counter()
        self._before, self._cpu_s = self._look()
        self._looked_s = time.perf_counter() - began_s
        return loop_clock_for(self._device)

    def end(self, spent: LoopClock) -> None:
        """It was trained."""
        began_s = time.perf_counter()
        after, cpu_s = self._look()
        costs = _costs(self._before, after, spent, cpu_s - self._cpu_s, self._pipeline)
        looked_s = self._looked_s + time.perf_counter() - began_s
        self._epochs.append(replace(costs, measuring_s=clocking_s(self._before, after) + looked_s))

    def _look(self) -> tuple[Mapping[str, float], float]:
        """The pipeline's counters, and the program's processor time."""
        return self._pipeline.stats(), cpu_s_of_program(has_workers=not self._pipeline.lanes.in_threads)

    def report(self, config: TrainConfig, *, may_read: bool = True) -> StallReport | None:
        """Of all epochs that ended, on the rank that waited most; None where nothing was trained, and on other ranks.

        For all ranks together. The first one reads a few samples if it `may_read`, to see whether a cache would hold
        all of them. What goes wrong in it is logged: no run fails for a report.
        """
        every: list[list[Costs]] = self._world.gather_values(self._epochs)
        if not self._world.is_first:
            return None
        waited_s = [sum(costs.wait_s for costs in epochs) for epochs in every]
        rank = waited_s.index(max(waited_s))
        machine = Machine(
            num_cores=cores_per_rank(),
            computes=self._device.type == "cpu",
            num_threads=torch.get_num_threads(),
            num_epochs=num_epochs_of(self._pipeline, config),
            # Of several hosts each fills a store of its own, in more epochs than two.
            keeps_pixels=lambda: (
                may_read and self._world.local_size == self._world.size and reuses_pixels(self._pipeline, config)
            ),
        )
        try:
            return explain(every[rank], self._pipeline.lanes, config, machine, rank=rank, num_ranks=self._world.size)
        except Exception:
            _log.exception("there is no stall report")
            return None


def num_epochs_of(pipeline: Pipeline, config: TrainConfig) -> float:
    """Epochs, or a part of one, that a run of `config` has."""
    max_steps = config.run.max_steps
    return min(config.schedule.epochs, math.inf if max_steps is None else max_steps / len(pipeline))


def reuses_pixels(pipeline: Pipeline, config: TrainConfig) -> bool:
    """Whether a cache would hold every sample decoded, and a run of `config` would ask for each of them again."""
    num_epochs = num_epochs_of(pipeline, config)
    return num_epochs >= 2 and not pipeline.with_replacement and pipeline.could_keep_pixels(config.cache)


def _costs(
    before: Mapping[str, float], after: Mapping[str, float], spent: LoopClock, cpu_s: float, pipeline: Pipeline
) -> Costs:
    def occupancy_pct(ready: str, asked: str, capacity: int) -> float | None:
        if not capacity:
            return None
        return 100 * (after[ready] - before[ready]) / (max(1.0, after[asked] - before[asked]) * capacity)

    return Costs(
        num_samples=spent.num_samples,
        num_batches=spent.num_batches,
        num_ahead=int(before.get(f"{BUSY}_count", 0) - before["samples"]) * pipeline.num_crops,
        wall_s=spent.wall_s,
        wait_s=spent.wait_s,
        first_batch_s=spent.first_batch_s if spent.num_batches else 0.0,
        loop_s=dict(spent.lap_s),
        compute_cpu_s=spent.compute_cpu_s,
        device_s=None if spent.device is None else spent.device.spent_s,
        cpu_s=cpu_s,
        sample_s=stage_costs(before, after, num_crops=pipeline.num_crops),
        queue_pct=occupancy_pct("ready_batches", "batches", pipeline.lanes.queue_batches),
        prefetch_pct=occupancy_pct("prefetched_batches", "prefetcher_batches", pipeline.lanes.prefetched_batches),
    )
