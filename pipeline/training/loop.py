"""One epoch of training. The time spent waiting for data is measured here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pipeline.training.compute import Compute

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
    """Sums over (a part of) an epoch's training.

    Attributes:
        wall_s: from asking for the first batch to the end of the last step, on the device.
        wait_s: the part of `wall_s` spent in `iter()` and `next()` of the loader.
        first_batch_s: the first such wait, with the start of the loader's workers in it.
        loss: mean over the samples, with label smoothing.
        top1: fraction in [0, 1] of the samples, as augmented, that the model got right in training mode.
    """

    loss: float
    top1: float
    num_samples: int
    num_steps: int
    wall_s: float
    wait_s: float
    first_batch_s: float

    @property
    def samples_per_sec(self) -> float:
        """Throughput, waits for data included."""
        return self.num_samples / self.wall_s if self.wall_s else math.nan

    @property
    def data_wait_pct(self) -> float:
        """The share of `wall_s` that the loop spent waiting for data."""
        return 100 * self.wait_s / self.wall_s if self.wall_s else math.nan


@dataclass(slots=True, kw_only=True)
class Learner:
    """A model with all that changes it. `num_steps` counts the steps taken in all epochs."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    compute: Compute
    label_smoothing: float = 0.0
    grad_clip: float | None = None
    num_steps: int = 0

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Takes one step and gives the batch's mean loss and number right, as scalars on the device.

        Never waits for the device. The batch must not be empty: its mean would be NaN.
        """
        images, labels = self.compute.place(images, labels)
        with self.compute.autocast():
            logits = self.model(images)
            loss = functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
        if self.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.grad_clip)
        self.optimizer.step()
        self.scheduler.step()
        self.num_steps += 1
        return loss.detach(), (logits.detach().argmax(dim=1) == labels).sum()


def train_epoch(
    learner: Learner,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    observer: Observer,
    every_steps: int,
    max_steps: int | None = None,
    clock: Clock = time.perf_counter,
) -> Totals:
    """Trains on every batch once, or until `learner.num_steps` is `max_steps`, and gives the epoch's totals.

    A batch that `data.on_error=skip` emptied takes no step: its gradient is zero, its mean loss undefined.

    Raises:
        RuntimeError: the loss is not finite, or there was not one sample.
    """
    learner.model.train()
    timer = WaitTimer(batches, clock)
    tally = _Tally()
    start_s = clock()
    for images, labels in timer:
        observer.advance()
        if len(labels) == 0:
            continue
        lr = learner.lr
        loss, num_right = learner.step(images, labels)
        tally.add(learner.num_steps, lr, len(labels), loss, num_right)
        if learner.num_steps % every_steps == 0:
            observer.show(tally.totals(timer, clock, start_s))
        if learner.num_steps == max_steps:
            break
    return tally.totals(timer, clock, start_s)


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


@dataclass(slots=True)
class _Tally:
    """Adds up an epoch without waiting for the device: scalars stay there until `totals` asks for them."""

    loss_sum: float = 0.0
    num_right: float = 0.0
    num_samples: int = 0
    num_steps: int = 0
    pending: list[tuple[int, float, int]] = field(default_factory=list)
    pending_losses: list[Tensor] = field(default_factory=list)
    pending_right: list[Tensor] = field(default_factory=list)

    def add(self, step: int, lr: float, num_samples: int, loss: Tensor, num_right: Tensor) -> None:
        self.pending.append((step, lr, num_samples))
        self.pending_losses.append(loss)
        self.pending_right.append(num_right)

    def totals(self, timer: WaitTimer, clock: Clock, start_s: float) -> Totals:
        self._collect()
        if self.num_samples == 0:
            raise RuntimeError("no sample to train on: data.on_error=skip left every batch empty; see quarantine.csv")
        return Totals(
            loss=self.loss_sum / self.num_samples,
            top1=self.num_right / self.num_samples,
            num_samples=self.num_samples,
            num_steps=self.num_steps,
            wall_s=clock() - start_s,
            wait_s=timer.wait_s,
            first_batch_s=timer.first_batch_s,
        )

    def _collect(self) -> None:
        if not self.pending:
            return
        # Waits for the device: only every `every_steps` steps and at the end of an epoch.
        losses = torch.stack(self.pending_losses).tolist()
        self.num_right += float(torch.stack(self.pending_right).sum())
        for (step, lr, num_samples), loss in zip(self.pending, losses, strict=True):
            if not math.isfinite(loss):
                raise RuntimeError(
                    f"the loss is {loss} at step {step}, with a learning rate of {lr:.3g}; lower optim.lr, "
                    "lengthen schedule.warmup_epochs, set optim.grad_clip=1, or try optim.amp=off"
                )
            self.loss_sum += loss * num_samples
            self.num_samples += num_samples
            self.num_steps += 1
        self.pending.clear()
        self.pending_losses.clear()
        self.pending_right.clear()
