"""Where the time of a rank's loop goes, between looks at the clock of its own for each kind."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Protocol, Self

import torch
from torch import Tensor

from pipeline.stalls import COMPUTE, LOOP_KINDS, OVERHEAD

Clock = Callable[[], float]
"""Seconds from any fixed moment, like `time.perf_counter`."""


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
            del batch  # else it would live on while the next one is waited for
            asked_s = self._clock()


class Event(Protocol):
    """A moment on a device's stream, like `torch.cuda.Event(enable_timing=True)`."""

    def record(self) -> None:
        """Have the device note when all that was issued before is done."""

    def elapsed_time(self, end: Self) -> float:
        """Milliseconds from this one to `end`; both are over."""


class CudaEvent:
    """An event on the stream of `device` that steps are issued to; the current device may be another."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def record(self) -> None:
        """Have the device note when all that was issued before is done."""
        self._event.record(torch.cuda.current_stream(self._device))

    def elapsed_time(self, end: Self) -> float:
        """Milliseconds from this one to `end`; both are over."""
        return float(self._event.elapsed_time(end._event))


class DeviceClock:
    """Seconds that a device spent on steps: from when it could begin one to when that was done."""

    def __init__(self, new_event: Callable[[], Event]) -> None:
        self.spent_s = 0.0
        self._new_event = new_event
        self._begun: Event | None = None
        self._pairs: list[tuple[Event, Event]] = []

    def begin(self) -> None:
        """A step is about to be issued."""
        self._begun = self._new_event()
        self._begun.record()

    def end(self) -> None:
        """It was issued."""
        assert self._begun is not None, "no step was begun"
        ended = self._new_event()
        ended.record()
        self._pairs.append((self._begun, ended))

    def collect(self) -> None:
        """Add up the steps so far; the device has done all of them."""
        self.spent_s += sum(begun.elapsed_time(ended) for begun, ended in self._pairs) / 1e3
        self._pairs.clear()


class LoopClock:
    """Of one rank, in (a part of) one epoch: `train_epoch` keeps it.

    What is not waiting for data is one lap after another, each of a kind of `LOOP_KINDS`.
    """

    def __init__(self, clock: Clock = time.perf_counter, *, device: DeviceClock | None = None) -> None:
        self.lap_s = dict.fromkeys(LOOP_KINDS, 0.0)
        self.compute_cpu_s = 0.0
        """Processor time of this thread in steps."""
        self._step_began_cpu_s = 0.0
        self.num_samples = 0
        """Of this rank, as `num_batches` are: batches without a sample among them."""
        self.num_batches = 0
        self.device = device
        self._clock = clock
        self._timer = WaitTimer((), clock)
        self._began_s = self._lap_began_s = clock()
        self._ended_s: float | None = None

    def watch(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches; begins the time, and a lap with each of them and after the last."""
        self._timer = WaitTimer(batches, self._clock)
        self._began_s = self._clock()
        for batch in self._timer:
            self._lap_began_s = self._clock()
            self.num_batches += 1
            self.num_samples += len(batch[1])
            yield batch
            del batch
        self._lap_began_s = self._clock()

    def lap(self, kind: str) -> None:
        """What went on since the last lap was of this kind."""
        began_s, self._lap_began_s = self._lap_began_s, self._clock()
        self.lap_s[kind] += self._lap_began_s - began_s

    def begin_step(self) -> None:
        """A step begins; what went on before it stood beside steps."""
        self.lap(OVERHEAD)
        self._step_began_cpu_s = time.thread_time()
        if self.device is not None:
            self.device.begin()

    def end_step(self) -> None:
        """The step was taken, or issued to a device."""
        if self.device is not None:
            self.device.end()
        self.compute_cpu_s += time.thread_time() - self._step_began_cpu_s
        self.lap(COMPUTE)

    def end_waiting_for_device(self) -> None:
        """Every step so far is done."""
        if self.device is not None:
            self.device.collect()
        self.lap(COMPUTE)

    def end(self) -> None:
        """The part is over; `wall_s` stays as it is."""
        self.lap(OVERHEAD)
        self._ended_s = self._lap_began_s

    @property
    def wall_s(self) -> float:
        """Since the first batch was asked for."""
        return (self._clock() if self._ended_s is None else self._ended_s) - self._began_s

    @property
    def wait_s(self) -> float:
        """Spent in `iter()` and `next()` of the loader."""
        return self._timer.wait_s

    @property
    def first_batch_s(self) -> float:
        """The first such wait, NaN before it is over."""
        return self._timer.first_batch_s


def loop_clock_for(device: torch.device) -> LoopClock:
    """A clock for steps on `device`."""
    if device.type != "cuda":
        return LoopClock()
    return LoopClock(device=DeviceClock(partial(CudaEvent, device)))
