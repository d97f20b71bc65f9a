"""Ctrl-C between any two lines that plan, make or hand over a batch: every batch comes once, whatever is done next."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import CodeType, FrameType
from typing import Any

import pytest
from contracts import digest
from fakes import FakeSample, make_loader
from samples import Painted

from pipeline.loader.batch import Batch
from pipeline.loader.executors import SerialExecutor, ThreadExecutor
from pipeline.loader.loader import Loader, _Epoch
from pipeline.loader.processes import ProcessExecutor
from pipeline.loader.slots import SlotRing, max_slots

OPTIONS: dict[str, Any] = {"num_samples": 10, "batch_size": 4}
"""Three batches an epoch, the last of them short."""

BACKENDS: dict[str, dict[str, Any]] = {
    "serial": {"num_workers": 0},
    "threads": {"num_workers": 2, "read_ahead": True},
    "processes": {"num_workers": 2, "backend": "processes", "read_ahead": True},
}
INTERRUPTED: tuple[Callable[..., Any], ...] = (
    Loader._submit_ahead,
    Loader._next_batch,
    Loader._hand_over,
    _Epoch.__next__,
    SlotRing.take,
    SerialExecutor.submit,
    ThreadExecutor.submit,
    ProcessExecutor.submit,
)


class CtrlC:
    """Inside `with`, raises one KeyboardInterrupt before the `number`-th line (from 0) that `INTERRUPTED` run."""

    def __init__(self, number: int) -> None:
        self.came = False
        self.where = ""
        self._remaining = number
        self._codes: set[CodeType] = {function.__code__ for function in INTERRUPTED}

    def __enter__(self) -> CtrlC:
        if not self.came:
            self._before = sys.gettrace()
            sys.settrace(self._call)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.settrace(self._before)

    def _call(self, frame: FrameType, *_: object) -> Any:
        return self._line if frame.f_code in self._codes else None

    def _line(self, frame: FrameType, event: str, _: object) -> Any:
        if event == "line" and not self.came:
            if self._remaining == 0:
                self.came, self.where = True, f"{frame.f_code.co_qualname}, line {frame.f_lineno}"
                raise KeyboardInterrupt
            self._remaining -= 1
        return self._line


def after_every_line() -> Iterator[CtrlC]:
    """One Ctrl-C for each line that an epoch runs, until an epoch ends before its turn comes."""
    number = 0
    while True:
        ctrl_c = CtrlC(number)
        yield ctrl_c
        if not ctrl_c.came:
            assert number > 20, "hardly any line was interrupted"
            return
        number += 1


def make(backend: str) -> Loader:
    sample = Painted() if backend == "processes" else FakeSample()
    return make_loader(sample, **OPTIONS, **BACKENDS[backend])


def taken_to_its_end(iterator: Iterator[Batch], ctrl_c: CtrlC) -> list[Batch]:
    """What one iterator gives somebody who asks it again after Ctrl-C."""
    batches = []
    while True:
        try:
            with ctrl_c:
                batch = next(iterator)
        except KeyboardInterrupt:
            continue
        except StopIteration:
            return batches
        batches.append(batch)


def broken_off(loader: Loader, ctrl_c: CtrlC) -> list[Batch]:
    """What an epoch gives until Ctrl-C ends it, which may come in `iter` too."""
    batches = []
    with suppress(KeyboardInterrupt), ctrl_c:
        for batch in loader:
            batches.append(batch)
    return batches


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_iterator_that_is_asked_again_gives_every_batch_once(backend: str) -> None:
    with make(backend) as loader, make_loader(FakeSample(), **OPTIONS) as undisturbed:
        for ctrl_c in after_every_line():
            batches = taken_to_its_end(iter(loader), ctrl_c)
            assert [batch.step for batch in batches] == [0, 1, 2], ctrl_c.where
            assert list(map(digest, batches)) == list(map(digest, undisturbed)), ctrl_c.where
        assert loader._ring.num_slots <= max_slots(loader._executor.in_flight)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_state_counts_what_the_loop_was_given_before_ctrl_c(backend: str) -> None:
    with make(backend) as loader, make(backend) as resumed:
        for ctrl_c in after_every_line():
            epoch, given = loader._upcoming[0], len(broken_off(loader, ctrl_c))
            if ctrl_c.came:
                assert loader._handed == (epoch, given), ctrl_c.where
        resumed.load_state_dict(loader.state_dict())


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_next_loop_gives_the_next_epoch_whole(backend: str) -> None:
    with make(backend) as loader, make_loader(FakeSample(), **OPTIONS) as undisturbed:
        for ctrl_c in after_every_line():
            given = broken_off(loader, ctrl_c)
            assert list(map(digest, given)) == list(map(digest, undisturbed))[: len(given)], ctrl_c.where
            assert list(map(digest, loader)) == list(map(digest, undisturbed)), ctrl_c.where
        assert loader._ring.num_slots <= max_slots(loader._executor.in_flight)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_epoch_that_is_set_after_ctrl_c_comes_whole(backend: str) -> None:
    with make_loader(FakeSample(), **OPTIONS) as undisturbed:
        again, another = ([digest(batch) for batch in undisturbed] for _ in range(2))
    with make(backend) as loader:
        for ctrl_c in after_every_line():
            loader.set_epoch(0)
            given = broken_off(loader, ctrl_c)
            assert list(map(digest, given)) == again[: len(given)], ctrl_c.where
            loader.set_epoch(1)
            assert list(map(digest, loader)) == another, ctrl_c.where


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_kept_through_ctrl_c_never_change(backend: str) -> None:
    kept: list[tuple[Batch, str]] = []
    with make(backend) as loader:
        for ctrl_c in after_every_line():
            kept = [*kept[-4:], *((batch, digest(batch)) for batch in broken_off(loader, ctrl_c))]
            list(loader)
            assert all(digest(batch) == then for batch, then in kept), ctrl_c.where


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_ctrl_c_while_an_epoch_begins_takes_no_slot_away_however_often(backend: str) -> None:
    with make(backend) as loader, make_loader(FakeSample(), **OPTIONS) as undisturbed:
        for ctrl_c in after_every_line():
            loader.set_epoch(0)
            with suppress(KeyboardInterrupt), ctrl_c:
                iter(loader)
        loader.set_epoch(0)
        assert list(map(digest, loader)) == list(map(digest, undisturbed))
        assert loader._ring.num_slots <= max_slots(loader._executor.in_flight)
