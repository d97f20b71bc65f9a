"""One epoch of training. The time spent waiting for data is measured here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipeline.dist import World
from pipeline.training.learner import Learner
from pipeline.training.stopping import RunError

Clock = Callable[[], float]
"""Seconds from any fixed moment, like `time.perf_counter`."""


class Observer(Protocol):
    """What hears of an epoch while it runs."""

    def advance(self) -> None:
        """Another batch came."""

    def show(self, totals: Totals) -> None:
        """The epoch's totals so far, every `logger.every_steps` steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sums over (a part of) an epoch's training: plain numbers, from which `train_epoch` can go on.

    They are of all ranks together; seconds are of the rank that waited most for data.

    Attributes:
        lr: learning rate of the epoch's first step.
        loss_sum: of every sample's loss, with label smoothing.
        num_right: samples, as augmented, that the model got right in training mode.
        num_batches: batches that came; more than `num_steps` where some were empty.
        wall_s: from asking for the first batch to the end of the last step, on the device, with the checkpoints saved
            in between; without the time between an interruption and the next part's beginning.
        wait_s: the part of `wall_s` spent in `iter()` and `next()` of the loader.
        compute_s: the part spent in steps, and in waiting for the device to end them.
        overhead_s: the part spent beside both: on progress, loggers, checkpoints, and other ranks' counts.
        first_batch_s: the first such wait of the epoch, with the start of the loader's workers in it.
    """

    lr: float
    loss_sum: float = 0.0
    num_right: int = 0
    num_samples: int = 0
    num_steps: int = 0
    num_batches: int = 0
    wall_s: float = 0.0
    wait_s: float = 0.0
    compute_s: float = 0.0
    overhead_s: float = 0.0
    first_batch_s: float = math.nan

    @property
    def loss(self) -> float:
        """Mean over the samples."""
        return self.loss_sum / self.num_samples if self.num_samples else math.nan

    @property
    def top1(self) -> float:
        """Fraction of the samples that the model got right, in [0, 1]."""
        return self.num_right / self.num_samples if self.num_samples else math.nan

    @property
    def samples_per_sec(self) -> float:
        """Throughput, waits for data included."""
        return self.num_samples / self.wall_s if self.wall_s else math.nan

    @property
    def data_wait_pct(self) -> float:
        """The share of `wall_s` that the loop spent waiting for data."""
        return 100 * self.wait_s / self.wall_s if self.wall_s else math.nan


AfterBatch = Callable[[Callable[[], Totals]], bool]
"""Told after each batch how to ask for the epoch's totals so far, which waits for the device; True ends the part."""


def train_epoch(
    learner: Learner,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    observer: Observer,
    every_steps: int,
    earlier: Totals | None = None,
    after_batch: AfterBatch | None = None,
    clock: Clock = time.perf_counter,
) -> Totals:
    """Trains on every batch once, or until `after_batch` says so, and gives the epoch's totals.

    `earlier` are the totals of the part of the epoch that came before `batches`. A global batch that
    `data.on_error=skip` emptied takes no step: its gradient is zero, its mean loss undefined. Every rank has as many
    batches.

    Raises:
        RunError: the loss is not finite.
        RuntimeError: there was not one sample in the whole epoch.
    """
    learner.model.train()
    timer, laps = WaitTimer(batches, clock), _Laps(clock)
    tally = _Tally(earlier or Totals(lr=learner.lr), timer, laps, clock, learner.world)
    for images, labels in timer:
        laps.begin()
        observer.advance()
        tally.num_batches += 1
        num_samples = int(learner.world.sum(torch.tensor(len(labels))))
        if num_samples > 0:
            lr = learner.lr
            laps.end_overhead()
            loss, num_right = learner.step(images, labels, num_samples=num_samples)
            laps.end_compute()
            tally.add(learner.num_steps, lr, len(labels), loss, num_right)
            if learner.num_steps % every_steps == 0:
                observer.show(tally.totals())
        is_over = after_batch is not None and after_batch(tally.totals)
        laps.end_overhead()
        if is_over:
            return tally.totals()
    laps.begin()
    totals = tally.totals()
    if totals.num_samples == 0:
        raise RuntimeError("no sample to train on: data.on_error=skip left every batch empty; see quarantine.csv")
    return totals


class WaitTimer:
    """Iterates over batches and adds up the seconds spent in their `iter()` and `next()`."""

    def __init__(self, batches: Iterable[tuple[Tensor, Tensor]], clock: Clock) -> None:
        self.wait_s = 0.0
        self.first_batch_s = math.nan
        self._batches = batches
        self._clock = clock

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        asked_s = self._clock()
        iterator = iter(self._batches)
        while True:
            batch = next(iterator, None)
            waited_s = self._clock() - asked_s
            self.wait_s += waited_s
            if batch is None:
                return
            if math.isnan(self.first_batch_s):
                self.first_batch_s = waited_s
            yield batch
            asked_s = self._clock()


class _Laps:
    """Seconds of the loop between two waits for data, by what they went to."""

    def __init__(self, clock: Clock) -> None:
        self.compute_s = 0.0
        self.overhead_s = 0.0
        self._clock = clock
        self._began_s = clock()

    def begin(self) -> None:
        self._began_s = self._clock()

    def end_compute(self) -> None:
        self.compute_s += self._lap_s()

    def end_overhead(self) -> None:
        self.overhead_s += self._lap_s()

    def _lap_s(self) -> float:
        began_s, self._began_s = self._began_s, self._clock()
        return self._began_s - began_s


class _Tally:
    """Adds up an epoch without waiting for the device: scalars stay there until `totals` asks for them.

    `totals` is for all ranks at the same step.
    """

    def __init__(self, earlier: Totals, timer: WaitTimer, laps: _Laps, clock: Clock, world: World) -> None:
        self.num_batches = earlier.num_batches
        self._world = world
        self._earlier = earlier
        self._loss_sum = earlier.loss_sum
        self._num_right = earlier.num_right
        self._num_samples = earlier.num_samples
        self._num_steps = earlier.num_steps
        self._timer = timer
        self._laps = laps
        self._clock = clock
        self._start_s = clock()
        self._pending: list[tuple[int, float, int]] = []
        self._pending_losses: list[Tensor] = []
        self._pending_right: list[Tensor] = []

    def add(self, step: int, lr: float, num_samples: int, loss: Tensor, num_right: Tensor) -> None:
        self._pending.append((step, lr, num_samples))
        self._pending_losses.append(loss)
        self._pending_right.append(num_right)

    def totals(self) -> Totals:
        self._collect()
        earlier, timer, laps = self._earlier, self._timer, self._laps
        first_batch_s = timer.first_batch_s if math.isnan(earlier.first_batch_s) else earlier.first_batch_s
        mine = (timer.wait_s, self._clock() - self._start_s, laps.compute_s, laps.overhead_s)
        # One rank's, so that they add up: the others wait for it where gradients meet, which is compute to them.
        every = self._world.gather(torch.tensor(mine, dtype=torch.float64))
        wait_s, wall_s, compute_s, overhead_s = max(row.tolist() for row in every)
        return Totals(
            lr=earlier.lr,
            loss_sum=self._loss_sum,
            num_right=self._num_right,
            num_samples=self._num_samples,
            num_steps=self._num_steps,
            num_batches=self.num_batches,
            wall_s=earlier.wall_s + wall_s,
            wait_s=earlier.wait_s + wait_s,
            compute_s=earlier.compute_s + compute_s,
            overhead_s=earlier.overhead_s + overhead_s,
            first_batch_s=self._world.greatest(first_batch_s),
        )

    def _collect(self) -> None:
        if not self._pending:
            return
        self._laps.end_overhead()
        # Waits for the device: only every `every_steps` steps, for a checkpoint, and at the end of an epoch.
        means = torch.stack(self._pending_losses).to("cpu", torch.float64)
        num_right = torch.stack(self._pending_right).to("cpu", torch.float64)
        self._laps.end_compute()
        counts = torch.tensor([num_samples for _, _, num_samples in self._pending], dtype=torch.float64)
        sums = self._world.sum(torch.stack([means * counts, num_right, counts])).T.tolist()
        # One by one, in order: the sum is then the same whenever it is asked for, to the bit.
        for (step, lr, _), (loss_sum, right, num_samples) in zip(self._pending, sums, strict=True):
            if not math.isfinite(loss_sum):
                raise RunError(
                    f"the loss is {loss_sum / num_samples} at step {step}, with a learning rate of {lr:.3g}; lower "
                    "optim.lr, lengthen schedule.warmup_epochs, set optim.grad_clip=1, or try optim.amp=off"
                )
            self._loss_sum += loss_sum
            self._num_right += int(right)
            self._num_samples += int(num_samples)
            self._num_steps += 1
        self._pending.clear()
        self._pending_losses.clear()
        self._pending_right.clear()
