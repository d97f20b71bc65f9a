"""Short runs of the training loop itself: what a sample and a step cost, and how fast a cell is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch

from pipeline.build import Pipeline, build_pipeline
from pipeline.config import Cache, Preload, TrainConfig
from pipeline.loader.batch import Batch
from pipeline.stalls import Costs, stage_costs
from pipeline.training.build import build_learner
from pipeline.training.checks import num_classes_of
from pipeline.training.compute import Compute
from pipeline.training.stall_watch import reuses_pixels
from pipeline.training.tuning.cell import Cell, Served

SERVE_S = 0.6
"""Seconds of making samples one after another."""
TRIAL_S = 0.35
"""Seconds that a cell is measured at a time."""
LEAST_BATCHES = 2
_EPOCHS_A_VISIT = 10_000


def configured(cfg: TrainConfig, cell: Cell) -> TrainConfig:
    """`cfg` with the settings of `cell`."""
    loader = replace(cfg.loader, num_workers=cell.num_workers, threads_per_worker=cell.threads_per_worker)
    return replace(cfg, loader=loader, run=replace(cfg.run, num_threads=cell.num_threads))


def uncached(cfg: TrainConfig) -> TrainConfig:
    """`cfg` without a store, which would be filled for every trial."""
    return replace(cfg, cache=Cache(), preload=Preload())


class Trials:
    """Measures cells with one learner, which is thrown away; owns a pipeline for each cell until `close`."""

    def __init__(self, cfg: TrainConfig, compute: Compute) -> None:
        self._cfg = cfg
        self._device = compute.device
        self._pipelines: dict[Cell, Pipeline] = {}
        self._resources = ExitStack()
        self._num_visits = 0
        self._alone = self._pipeline(Cell(num_workers=0, threads_per_worker=1, num_threads=1))
        num_classes = num_classes_of(cfg, self._alone.source)
        self._learner = build_learner(cfg, compute, num_classes=num_classes, steps_per_epoch=len(self._alone))

    def keeps_pixels(self) -> bool:
        """Whether a cache would hold every sample decoded, and be asked for them again."""
        return reuses_pixels(self._alone, self._cfg)

    def close(self) -> None:
        """End the workers of all pipelines."""
        self._resources.close()

    def serve(self, num_cores: int, thread_counts: Sequence[int]) -> Served:
        """What samples, and steps with so many of torch's threads, cost while nothing else runs."""
        pipeline = self._alone
        batches = self._batches(pipeline)
        held = next(batches)
        before, began_s, began_cpu_s = pipeline.stats(), time.perf_counter(), time.process_time()
        while time.perf_counter() - began_s < SERVE_S:
            held = next(batches)
        wall_s, cpu_s, after = time.perf_counter() - began_s, time.process_time() - began_cpu_s, pipeline.stats()
        num_samples = int(after["samples"] - before["samples"]) * self._alone.num_crops
        steps = {count: self._step_costs(held, count) for count in thread_counts}
        return Served(
            costs=Costs(
                num_samples=num_samples,
                num_batches=int(after["batches"] - before["batches"]),
                wall_s=wall_s,
                wait_s=wall_s,
                cpu_s=cpu_s,
                sample_s=stage_costs(before, after, num_crops=self._alone.num_crops),
            ),
            sample_cpu_s=cpu_s / num_samples,
            step_s={count: wall_s for count, (wall_s, _) in steps.items()},
            step_cpu_s={count: cpu_s for count, (_, cpu_s) in steps.items()},
            num_cores=num_cores,
            prefetched_batches=pipeline.lanes.prefetched_batches,
        )

    def measure(self, cell: Cell) -> float:
        """Samples a second of some batches, after those that the queues held."""
        pipeline = self._pipeline(cell)
        torch.set_num_threads(cell.num_threads)
        batches = self._batches(pipeline)
        began_s = time.perf_counter()
        for number in range(1 + pipeline.lanes.queue_batches + pipeline.lanes.prefetched_batches):
            self._step(next(batches))
            if number and time.perf_counter() - began_s > TRIAL_S:
                break  # steps so slow are what it waits for: batches that lay ready change nothing
        began_s, num_samples, num_batches = time.perf_counter(), 0, 0
        while num_batches < LEAST_BATCHES or time.perf_counter() - began_s < TRIAL_S:
            batch = next(batches)
            self._step(batch)
            num_samples, num_batches = num_samples + len(batch.labels), num_batches + 1
        return num_samples / (time.perf_counter() - began_s)

    def _pipeline(self, cell: Cell) -> Pipeline:
        if cell not in self._pipelines:
            cfg = configured(uncached(self._cfg), cell)
            self._pipelines[cell] = self._resources.enter_context(build_pipeline(cfg, device=self._device))
        return self._pipelines[cell]

    def _step_costs(self, batch: Batch, num_threads: int) -> tuple[float, float]:
        """Seconds, and seconds of processor time, that a sample of `batch` takes in a step."""
        torch.set_num_threads(num_threads)
        self._step(batch)  # the first one allocates, and chooses kernels
        began_s, began_cpu_s, num_steps = time.perf_counter(), time.process_time(), 0
        while num_steps < LEAST_BATCHES or time.perf_counter() - began_s < TRIAL_S:
            self._step(batch)
            num_steps += 1
        num_samples = num_steps * len(batch.labels)
        return (time.perf_counter() - began_s) / num_samples, (time.process_time() - began_cpu_s) / num_samples

    def _step(self, batch: Batch) -> None:
        loss, _ = self._learner.step(batch.images, batch.labels)
        loss.item()  # on a device, a step has ended when its loss is known

    def _batches(self, pipeline: Pipeline) -> Iterator[Batch]:
        """Without end, from an epoch that no visit had: what was read before is in the page cache."""
        self._num_visits += 1
        pipeline.set_epoch(_EPOCHS_A_VISIT * self._num_visits)
        while True:
            yield from pipeline
