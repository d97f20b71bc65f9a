"""One epoch of training. The time spent waiting for data is measured here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipeline.dist import World
from pipeline.stalls import OVERHEAD, RANKS
from pipeline.stats import TRANSFER
from pipeline.training.learner import Learner
from pipeline.training.loop_clock import LoopClock
from pipeline.training.stopping import RunError


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
    spent: LoopClock | None = None,
) -> Totals:
    """Trains on every batch once, or until `after_batch` says so, and gives the epoch's totals.

    `earlier` are the totals of the part of the epoch that came before `batches`. A global batch that
    `data.on_error=skip` emptied takes no step: its gradient is zero, its mean loss undefined. Every rank has as many
    batches. `spent`, a new clock, is for the caller to read afterwards.

    Raises:
        RunError: the loss is not finite.
        RuntimeError: there was not one sample in the whole epoch.
    """
    learner.model.train()
    spent = spent or LoopClock()
    tally = _Tally(earlier or Totals(lr=learner.lr), spent, learner.world)
    is_over = False
    for images, labels in spent.watch(batches):
        observer.advance()
        tally.num_batches += 1
        spent.lap(OVERHEAD)
        num_samples = int(learner.world.sum(torch.tensor(len(labels))))
        spent.lap(RANKS)
        if num_samples > 0:
            _step(learner, images, labels, num_samples, tally, spent)
            if learner.num_steps % every_steps == 0:
                observer.show(tally.totals())
        spent.lap(OVERHEAD)
        is_over = after_batch is not None and after_batch(tally.totals)
        spent.lap(OVERHEAD)
        if is_over:
            break
        del images, labels  # else they would live on while the next ones are waited for
    totals = tally.totals()
    spent.end()
    if totals.num_samples == 0 and not is_over:
        raise RuntimeError("no sample to train on: data.on_error=skip left every batch empty; see quarantine.csv")
    return totals


def _step(learner: Learner, images: Tensor, labels: Tensor, num_samples: int, tally: _Tally, spent: LoopClock) -> None:
    images, labels = learner.compute.place(images, labels)  # here, where its time can be told from the step's
    spent.lap(TRANSFER)
    lr = learner.lr
    spent.begin_step()
    loss, num_right = learner.step(images, labels, num_samples=num_samples)
    spent.end_step()
    tally.add(learner.num_steps, lr, len(labels), loss, num_right)


class _Tally:
    """Adds up an epoch without waiting for the device: scalars stay there until `totals` asks for them.

    `totals` is for all ranks at the same step.
    """

    def __init__(self, earlier: Totals, spent: LoopClock, world: World) -> None:
        self.num_batches = earlier.num_batches
        self._world = world
        self._earlier = earlier
        self._loss_sum = earlier.loss_sum
        self._num_right = earlier.num_right
        self._num_samples = earlier.num_samples
        self._num_steps = earlier.num_steps
        self._spent = spent
        self._pending: list[tuple[int, float, int]] = []
        self._pending_losses: list[Tensor] = []
        self._pending_right: list[Tensor] = []

    def add(self, step: int, lr: float, num_samples: int, loss: Tensor, num_right: Tensor) -> None:
        self._pending.append((step, lr, num_samples))
        self._pending_losses.append(loss)
        self._pending_right.append(num_right)

    def totals(self) -> Totals:
        self._collect()
        earlier, spent = self._earlier, self._spent
        first_batch_s = spent.first_batch_s if math.isnan(earlier.first_batch_s) else earlier.first_batch_s
        spent.lap(OVERHEAD)
        # One rank's, so that they belong together.
        every = self._world.gather(torch.tensor((spent.wait_s, spent.wall_s), dtype=torch.float64))
        wait_s, wall_s = max(row.tolist() for row in every)
        first_batch_s = self._world.greatest(first_batch_s)
        spent.lap(RANKS)
        return Totals(
            lr=earlier.lr,
            loss_sum=self._loss_sum,
            num_right=self._num_right,
            num_samples=self._num_samples,
            num_steps=self._num_steps,
            num_batches=self.num_batches,
            wall_s=earlier.wall_s + wall_s,
            wait_s=earlier.wait_s + wait_s,
            first_batch_s=first_batch_s,
        )

    def _collect(self) -> None:
        if not self._pending:
            return
        self._spent.lap(OVERHEAD)
        # Waits for the device: only every `every_steps` steps, for a checkpoint, and at the end of an epoch.
        means = torch.stack(self._pending_losses).to("cpu", torch.float64)
        num_right = torch.stack(self._pending_right).to("cpu", torch.float64)
        self._spent.end_waiting_for_device()
        counts = torch.tensor([num_samples for _, _, num_samples in self._pending], dtype=torch.float64)
        sums = self._world.sum(torch.stack([means * counts, num_right, counts])).T.tolist()
        self._spent.lap(RANKS)
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
