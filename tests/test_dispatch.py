"""The dispatcher, step by step: the test has its thread's part, and the workers are real."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from crews import processes
from samples import Block, For, Painted, Tell, exits
from watching import ANSWER_S, Fifo

from pipeline.loader.dispatch import POLL_S, Dispatcher
from pipeline.loader.loader import Loader
from pipeline.loader.worker_process import WorkerProcess


class Stepped:
    """A loader's dispatcher whose thread has ended before it began."""

    def __init__(self, dispatcher: Dispatcher, num_workers: int) -> None:
        self.dispatcher = dispatcher
        for number in range(num_workers):
            dispatcher._workers.append(dispatcher._start(number))

    @property
    def workers(self) -> list[WorkerProcess]:
        return self.dispatcher._workers

    def hear_until(self, happened: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + ANSWER_S
        while not happened():
            assert time.monotonic() < deadline_s, "it never happened"
            for key, _ in self.dispatcher._selector.select(POLL_S):
                key.data()

    def hear_until_ready(self) -> None:
        self.hear_until(lambda: all(worker.is_ready for worker in self.workers))

    def hear_of_the_end_of(self, number: int) -> None:
        worker = self.workers[number]
        self.hear_until(lambda: self.workers[number] is not worker)


@contextmanager
def stepped(
    monkeypatch: pytest.MonkeyPatch, sample: Painted, num_workers: int, **options: Any
) -> Iterator[tuple[Loader, Stepped]]:
    """A loader with a batch a sample, all of them submitted, and its dispatcher."""
    made = []
    monkeypatch.setattr(
        "pipeline.loader.processes._dispatch",
        lambda crew, inbox, stats: made.append(Dispatcher(crew, inbox, stats.clock)),
    )
    with processes(sample, num_workers=num_workers, batch_size=1, prefetch_factor=8, **options) as loader:
        loader._executor._thread.join()  # type: ignore[attr-defined]
        iterator = iter(loader)
        try:
            yield loader, Stepped(made[0], num_workers)
        finally:
            made[0]._inbox.closing.set()
            made[0]._end()
            del iterator


def ids_given_to(worker: WorkerProcess) -> list[int]:
    return [id for _, task in worker.outstanding.values() for id in task.job.ids[task.start : task.stop]]


def test_a_suspect_is_given_to_a_worker_that_has_nothing_else_and_gets_nothing_else(
    gate: Fifo, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = Painted(For({0}, exits), For({1}, Block(gate.path)))
    with stepped(monkeypatch, sample, num_workers=2, num_samples=8) as (_, steps):
        steps.hear_until_ready()
        steps.dispatcher._assign()
        assert [ids_given_to(worker) for worker in steps.workers] == [[0, 2], [1, 3]]
        steps.hear_of_the_end_of(0)
        busy = steps.workers[1]
        steps.dispatcher._assign()
        assert ids_given_to(busy) == [1, 3], "the suspect was given to a worker that has something in hand"
        gate.let_through()
        steps.hear_until(lambda: not busy.outstanding)
        steps.dispatcher._assign()
        assert ids_given_to(busy) == [0], "a worker that makes a suspect was given something else"


def test_work_that_a_dead_worker_had_not_begun_waits_in_front_of_all_other(monkeypatch: pytest.MonkeyPatch) -> None:
    with stepped(monkeypatch, Painted(For({0}, exits)), num_workers=1, num_samples=4) as (_, steps):
        steps.hear_until_ready()
        steps.dispatcher._assign()
        assert ids_given_to(steps.workers[0]) == [0, 1]
        steps.hear_of_the_end_of(0)
        assert [task.job.ids[task.start] for _, task in steps.dispatcher._suspects] == [0]
        assert [task.job.ids[task.start] for _, task in steps.dispatcher._inbox.tasks] == [1, 2, 3]


def test_a_suspect_that_was_abandoned_is_not_acquitted_by_rows_that_nobody_made(
    told: Fifo, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = Painted(Tell(told.path), exits)
    with stepped(monkeypatch, sample, num_workers=1, num_samples=3, max_restarts=1) as (loader, steps):
        for id in range(3):
            steps.hear_until_ready()
            steps.dispatcher._assign()
            steps.hear_of_the_end_of(0)  # once too often, if an earlier suspect was acquitted and its crash charged
            assert told.told()[1] == id
            steps.hear_until_ready()
            # The loop is left when the suspect is on its way to the worker.
            loader._executor._hands.abandon(steps.dispatcher._inbox.next_ticket + 1)  # type: ignore[attr-defined]
            steps.dispatcher._assign()
            assert ids_given_to(steps.workers[0]) == [id]
            steps.hear_until(lambda: not steps.workers[0].outstanding)
        assert not told.has_more(), "work that was abandoned was made"
