"""A pass over some batches of a loader: what takes them, what it cost, and how it begins in the middle of the work."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from pipeline.bench.contender import Stream
from pipeline.bench.memory import CPU_TICK_S, children_cpu_s
from pipeline.config import BenchConfig
from pipeline.sources import Source
from pipeline.training.build import build_compute, build_learner
from pipeline.training.checks import check_last_batch, num_classes_of
from pipeline.training.loop_clock import Clock, WaitTimer

Take = Callable[[Any, Any], object]
"""What the loop does with a batch's images and labels."""

IDLE_CHECK_S, MAX_IDLE_CHECKS = 0.05, 100


def read_batch(images: Any, labels: Any) -> None:
    """Read every byte of a batch, as a model would, and its labels: tensors, arrays, a list of numbers, or None."""
    images.sum()
    if labels is not None:
        labels.sum() if hasattr(labels, "sum") else sum(labels)


def make_step(cfg: BenchConfig, source: Source, *, batches_per_epoch: int) -> Take:
    """The training step of `train.py` on a new model, whose seed is `run.seed`.

    Raises:
        ConfigError: the labels of `source` are no classes, or a setting is wrong for the data.
    """
    check_last_batch(cfg, num_samples=len(source))
    torch.manual_seed(cfg.run.seed)
    compute, num_classes = build_compute(cfg), num_classes_of(cfg, source)
    learner = build_learner(cfg, compute, num_classes=num_classes, steps_per_epoch=batches_per_epoch)
    learner.model.train()
    return learner.step


class Feed:
    """The batches of an endless stream, counted from `step`: whoever takes them knows where epochs begin."""

    def __init__(self, stream: Stream, batches_per_epoch: int, *, step: int = 0) -> None:
        self.step = step
        """How many batches there were before the next one; counts on over epochs."""
        self.batches_per_epoch = batches_per_epoch
        self._stream = stream

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return self

    def __next__(self) -> tuple[Any, Any]:
        batch = next(self._stream)
        self.step += 1
        return batch

    @property
    def left_in_epoch(self) -> int:
        """Batches until the next epoch begins."""
        return self.batches_per_epoch - self.step % self.batches_per_epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What a pass over some batches cost, in seconds of the clock and of the process tree's CPUs.

    `waits_s` are those for each batch; `borders` says which of them were for the first batch of a later epoch.
    """

    num_samples: int
    wall_s: float
    cpu_s: float
    waits_s: list[float]
    borders: list[int]

    @property
    def samples_per_sec(self) -> float:
        """With the time spent on batches in it."""
        return self.num_samples / self.wall_s

    @property
    def samples_per_cpu_sec(self) -> float:
        """By all processes together."""
        return self.num_samples / max(self.cpu_s, CPU_TICK_S)

    @property
    def data_wait_pct(self) -> float:
        """The share of the time in which the loop waited for a batch."""
        return 100 * sum(self.waits_s) / self.wall_s

    @property
    def gaps_s(self) -> list[float]:
        """For each border: what was waited longer there than usual; negative where it was shorter."""
        usual = [wait_s for number, wait_s in enumerate(self.waits_s) if number not in self.borders]
        return [self.waits_s[number] - statistics.median(usual) for number in self.borders] if usual else []


def run_pass(feed: Feed, take: Take, num_batches: int, *, clock: Clock = time.perf_counter) -> Pass:
    """Take `num_batches` batches, as a user's loop does. RuntimeError if the stream ends before."""
    first_step, num_samples, waited_s = feed.step, 0, 0.0
    waits_s: list[float] = []
    timer = WaitTimer(islice(feed, num_batches), clock)
    children_s, own_s, began_s = children_cpu_s(), time.process_time(), clock()
    for images, labels in timer:
        waits_s.append(timer.wait_s - waited_s)
        waited_s = timer.wait_s
        take(images, labels)
        num_samples += len(images)
    synchronize()
    wall_s, own_s = clock() - began_s, time.process_time() - own_s
    if len(waits_s) < num_batches:
        raise RuntimeError(f"the loader's endless stream ended after {feed.step} batches")
    return Pass(
        num_samples=num_samples,
        wall_s=wall_s,
        cpu_s=own_s + children_cpu_s() - children_s,
        waits_s=waits_s,
        borders=[
            number
            for number, step in enumerate(range(first_step, feed.step))
            if step > 0 and step % feed.batches_per_epoch == 0
        ],
    )


def joined(parts: Sequence[Pass]) -> Pass:
    """One pass of several parts, and of no time in between."""
    starts = itertools.accumulate((len(part.waits_s) for part in parts), initial=0)
    return Pass(
        num_samples=sum(part.num_samples for part in parts),
        wall_s=sum(part.wall_s for part in parts),
        cpu_s=sum(part.cpu_s for part in parts),
        waits_s=[wait_s for part in parts for wait_s in part.waits_s],
        borders=[start + border for start, part in zip(starts, parts, strict=False) for border in part.borders],
    )


def settle(feed: Feed, take: Take, num_ready: int) -> None:
    """Bring a loader that may have rested into the middle of its work: what lies ready was made off the clock."""
    wait_until_idle()
    for images, labels in islice(feed, num_ready):
        take(images, labels)
    synchronize()


def wait_until_idle() -> None:
    """Return when this process and its children rest, so that no read-ahead is charged to what comes next."""
    for _ in range(MAX_IDLE_CHECKS):
        children_s, own_s = children_cpu_s(), time.process_time()
        time.sleep(IDLE_CHECK_S)
        own_s = time.process_time() - own_s
        if own_s + children_cpu_s() - children_s <= CPU_TICK_S:
            return


def synchronize() -> None:
    """Wait for the GPU, if there is one: work on it is only queued until then."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
