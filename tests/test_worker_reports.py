"""What a program hears of its workers' deaths while the run goes on."""

from __future__ import annotations

import logging
import os
import re
import signal
import time
from pathlib import Path

import pytest
from fakes import make_loader
from samples import Painted
from watching import ANSWER_S, send_signal, workers_of

from pipeline import create_dataloader


def test_a_death_that_was_mended_is_counted_and_logged_with_its_signal(
    jpegs: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    options = {"img_size": 16, "cache_size": 0, "num_workers": 2, "backend": "processes"}
    with create_dataloader(jpegs, range(len(jpegs)), 4, **options) as loader:
        list(loader)
        assert loader.stats()["worker_deaths"] == 0
        (killed, *_) = workers_of(os.getpid())
        assert send_signal(killed, signal.SIGKILL)
        deadline_s = time.monotonic() + ANSWER_S
        while not loader.stats()["worker_deaths"]:
            assert len(list(loader)) == 6
            assert time.monotonic() < deadline_s, "the death was never told"
    assert loader.stats()["worker_deaths"] == 1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert re.search(rf"worker process \d \(pid {killed}\) ended by SIGKILL", record.getMessage())


class ExitsInWorkers:
    """Ends the process for every other sample."""

    def __call__(self, id: int) -> None:
        if id % 2:
            os._exit(3)


def test_many_samples_that_end_their_worker_cost_only_the_deaths_that_the_first_takes() -> None:
    with make_loader(
        Painted(ExitsInWorkers()), backend="processes", num_workers=2, num_samples=64, batch_size=32, max_restarts=5
    ) as loader:
        with pytest.raises(RuntimeError, match="a sample killed 3 workers"):
            list(loader)
        assert loader.stats_counters.worker_deaths <= 2 * 2 + 3
