"""Workers that stop or never answer: an error that names what they had in hand, and a loader that can be closed."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from contracts import digest, worker_threads
from crews import expected, processes
from fakes import make_loader
from samples import (
    Block,
    For,
    Painted,
    Tell,
    holds_the_gil_for_ever,
    named,
    sleeps_for_ever,
)
from watching import (
    ANSWER_S,
    GONE_S,
    Fifo,
    Watch,
    run_aside,
    send_signal,
    workers_begun,
    workers_of,
)

from pipeline import create_dataloader
from pipeline.loader.errors import WorkerStalledError
from pipeline.sampler import SequentialSampler

STALLS = {
    "sleeps": (sleeps_for_ever, "sleeps_for_ever"),
    "holds the GIL": (holds_the_gil_for_ever, "holds_the_gil_for_ever"),
    "reads a pipe": (None, "waits_at_a_fifo"),
}


@pytest.mark.parametrize("stall", STALLS)
def test_a_sample_that_never_returns_is_an_error_with_its_workers_stack(stall: str, gate: Fifo) -> None:
    act, function = STALLS[stall]
    sample = Painted(For({6}, act or Block(gate.path)))
    with processes(sample, num_workers=2, stall_timeout_s=0.5) as loader:
        iterator = iter(loader)
        assert digest(next(iterator)) == expected()[0][0]
        result = run_aside(lambda: next(iterator))
        with pytest.raises(WorkerStalledError) as caught:
            result(ANSWER_S)
        words = str(caught.value)
        for word in (function, "sample id 6", named(6), "loader.stall_timeout_s=0.5", "pid "):
            assert word in words
        with Watch(workers_of(os.getpid())) as watch:
            assert not watch.remaining(GONE_S)
        with pytest.raises(RuntimeError, match="ended earlier"):
            iter(loader)
    loader.close()


def test_a_thread_that_never_returns_is_an_error_with_its_name_and_stack(told: Fifo, gate: Fifo) -> None:
    sample = Painted(For({6}, Tell(told.path)), For({6}, Block(gate.path)))
    loader = make_loader(sample, sampler=SequentialSampler(20), num_workers=2, stall_timeout_s=0.5)
    with loader:
        iterator = iter(loader)
        batch = next(iterator)
        result = run_aside(lambda: next(iterator))
        told.told()
        with pytest.raises(WorkerStalledError) as caught:
            result(ANSWER_S)
        words = str(caught.value)
        for word in ("waits_at_a_fifo", "sample id 6", named(6), "stall_timeout_s=0.5", "headrace-worker-"):
            assert word in words
        with pytest.raises(RuntimeError, match="stalled earlier"):
            iter(loader)
    loader.close()  # returns, though a thread is still at it
    assert len(worker_threads()) == 1
    assert digest(batch) == expected()[0][0]
    gate.let_through()
    for thread in worker_threads():
        thread.join(ANSWER_S)
    assert digest(batch) == expected()[0][0], "the stalled thread wrote to a slot that was lent"


@pytest.mark.parametrize("is_busy", [True, False], ids=["with a sample in hand", "with nothing in hand"])
def test_a_worker_that_is_stopped_is_an_error(is_busy: bool, told: Fifo, gate: Fifo) -> None:
    sample = Painted(Tell(told.path), Block(gate.path))
    with processes(sample, batch_size=1, stall_timeout_s=0.5, prefetch_factor=1) as loader:
        gate.let_through()
        iterator = iter(loader)
        pid, _ = told.told()
        if is_busy:
            next(iterator)
            told.told()
        else:
            loader._wait(loader._pending[0])  # made, and nothing else is asked for
        send_signal(pid, signal.SIGSTOP)
        result = run_aside(lambda: [next(iterator), next(iterator)])
        try:
            with pytest.raises(WorkerStalledError, match=f"pid {pid}"):
                result(20.0)
        finally:
            gate.let_through(2)
            send_signal(pid, signal.SIGCONT)
        with Watch({pid}) as watch:
            assert not watch.remaining(GONE_S)


def test_a_worker_that_is_stopped_while_it_starts_is_an_error() -> None:
    with processes(Painted(), stall_timeout_s=1.0) as loader:
        send_signal(min(workers_begun(1)), signal.SIGSTOP)
        result = run_aside(lambda: list(loader))
        with pytest.raises(WorkerStalledError, match="has not finished its imports"):
            result(ANSWER_S)


def test_slow_samples_are_no_stall_while_each_of_them_returns(told: Fifo, gate: Fifo) -> None:
    sample = Painted(Tell(told.path), Block(gate.path))
    with processes(sample, batch_size=4, num_samples=4, stall_timeout_s=2.0) as loader:
        result = run_aside(lambda: [digest(batch) for batch in loader])
        for _ in range(4):
            told.told()
            threading.Event().wait(0.8)  # together longer than a sample may take
            gate.let_through()
        assert result(ANSWER_S) == expected(num_samples=4)[0]


@pytest.mark.parametrize("prefetch_device", [None, "cpu"])
def test_closing_returns_while_a_sample_never_does(
    prefetch_device: str | None, tmp_path: Path, jpegs: list[Path]
) -> None:
    blocked = tmp_path / "blocked.jpg"
    os.mkfifo(blocked)
    paths = [*jpegs[:6], blocked, *jpegs[6:]]
    loader = create_dataloader(
        paths,
        list(range(24)),
        4,
        num_workers=1,
        img_size=16,
        cache_size=0,
        shuffle=False,
        backend="processes",
        prefetch_device=prefetch_device,
    )
    fd = os.open(blocked, os.O_RDWR)  # else its reader would wait for somebody to open it, uninterruptibly for us
    try:
        iterator = iter(loader)
        assert next(iterator).ids.tolist() == [0, 1, 2, 3]
        closing = run_aside(loader.close)
        closing(20.0)
    finally:
        for pid in workers_of(os.getpid()):
            send_signal(pid, signal.SIGKILL)
        os.close(fd)
        loader.close()


@pytest.mark.parametrize("prefetch_device", [None, "cpu"])
@pytest.mark.parametrize("leaves", [False, True], ids=["by close", "by leaving with"])
def test_threads_are_left_to_themselves_when_a_sample_never_returns(
    leaves: bool, prefetch_device: str | None, tmp_path: Path, jpegs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("pipeline.loader.loader", "pipeline.build_batches"):
        monkeypatch.setattr(f"{module}.EXIT_LIMIT_S", 0.2)
    monkeypatch.setattr("pipeline.sources.files._open_regular", os.open)  # a pipe is what a disk that hangs is like
    blocked = tmp_path / "blocked.jpg"
    os.mkfifo(blocked)
    options = {"num_workers": 2, "img_size": 16, "cache_size": 0, "shuffle": False, "backend": "threads"}
    paths = [*jpegs[:6], blocked, *jpegs[6:]]
    loader = create_dataloader(paths, list(range(24)), 4, prefetch_device=prefetch_device, **options)  # type: ignore[arg-type]
    with ExitStack() as resources:
        iterator = iter(loader)
        batch = next(iterator)
        before = digest(batch)
        fd = run_aside(lambda: os.open(blocked, os.O_WRONLY))(ANSWER_S)  # opens when its reader does
        assert isinstance(fd, int)
        resources.callback(os.close, fd)
        run_aside(lambda: loader.__exit__(None, None, None) if leaves else loader.close())(20.0)
        assert len(worker_threads()) == 1
        with pytest.raises(RuntimeError, match=r"close|abandoned"):
            next(iterator)
    for thread in worker_threads():  # its sample has come to an end
        thread.join(ANSWER_S)
    assert digest(batch) == before
