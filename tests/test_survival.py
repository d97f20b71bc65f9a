"""Worker processes that die: what is made again, who is blamed, and when it is enough."""

from __future__ import annotations

import gc
import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from contracts import digest
from crews import expected, processes
from fakes import FakeSample, make_loader
from samples import (
    Block,
    Both,
    For,
    Once,
    Painted,
    Tell,
    aborts,
    exits,
    is_killed,
    named,
    reads_a_null_pointer,
    takes_a_millisecond,
)
from watching import (
    ANSWER_S,
    GONE_S,
    SOAK,
    Fifo,
    Killer,
    Watch,
    children,
    run_aside,
    send_signal,
    wait_until_ready,
    workers_begun,
    workers_of,
)

from pipeline import create_dataloader
from pipeline.loader import dispatch
from pipeline.loader.errors import WorkerDiedError

CRASHES = {
    "segmentation fault": (reads_a_null_pointer, "SIGSEGV"),
    "abort": (aborts, "SIGABRT"),
    "exit": (exits, "exit code 3"),
}


@pytest.mark.soak
@pytest.mark.parametrize("threads_per_worker", [1, 2])
def test_random_kills_lose_nothing_repeat_nothing_change_nothing_and_blame_nobody(threads_per_worker: int) -> None:
    options: dict[str, Any] = {"num_samples": 397, "batch_size": 16, "sampler": None, "read_ahead": True}
    loader = processes(
        Painted(takes_a_millisecond),
        num_workers=3,
        threads_per_worker=threads_per_worker,
        max_restarts=1000,
        **options,
    )
    with loader, make_loader(FakeSample(), **options) as undisturbed:
        with Killer(200 if SOAK else 20, seed=threads_per_worker) as killer:
            while killer.remaining:
                assert [digest(batch) for batch in loader] == [digest(batch) for batch in undisturbed]
        assert [digest(batch) for batch in loader] == [digest(batch) for batch in undisturbed]
        assert loader._executor._thread.is_alive()  # type: ignore[attr-defined]


@pytest.mark.parametrize("threads_per_worker", [1, 2])
@pytest.mark.parametrize("crash", CRASHES)
def test_a_sample_that_crashes_its_workers_is_blamed_at_its_own_position(crash: str, threads_per_worker: int) -> None:
    act, words = CRASHES[crash]
    sample = Painted(For({9}, act))
    with processes(sample, num_workers=2, threads_per_worker=threads_per_worker, max_restarts=1) as loader:
        iterator = iter(loader)
        (whole,) = expected()
        assert [digest(next(iterator)) for _ in range(2)] == whole[:2]
        with pytest.raises(WorkerDiedError, match=words) as caught:
            next(iterator)
        told = "\n".join([str(caught.value), *caught.value.__notes__])
        assert "sample id 9" in told
        assert named(9) in told
        assert "3 workers" in told
        with pytest.raises(StopIteration):
            next(iterator)
        del iterator
        assert digest(next(iter(loader))), "the restarts were used up"


def test_the_stack_of_a_crash_is_in_its_error() -> None:
    with processes(Painted(For({0}, reads_a_null_pointer))) as loader:
        with pytest.raises(WorkerDiedError, match="Segmentation fault") as caught:
            next(iter(loader))
        assert "reads_a_null_pointer" in str(caught.value)


def test_many_samples_that_crash_at_once_do_not_use_up_the_restarts() -> None:
    bad = {9, 10, 14}
    sample = Painted(For(bad, exits))
    with processes(sample, num_workers=3, prefetch_factor=5, max_restarts=1) as loader:
        iterator = iter(loader)
        assert [digest(next(iterator)) for _ in range(2)] == expected()[0][:2]
        with pytest.raises(WorkerDiedError, match=r"a sample killed 3 workers") as caught:
            next(iterator)
        assert "sample id 9" in caught.value.__notes__[0], "not the first of the bad ones"


def test_a_sample_that_its_worker_is_killed_for_each_time_is_blamed_too() -> None:
    sample = Painted(For({5}, is_killed))
    with processes(sample, max_restarts=3) as loader:
        iterator = iter(loader)
        next(iterator)
        with pytest.raises(WorkerDiedError, match=r"a sample killed 3 workers(.|\n)*SIGKILL"):
            next(iterator)


@pytest.mark.parametrize("threads_per_worker", [1, 2])
def test_a_crash_that_does_not_happen_again_blames_nobody_and_changes_nothing(
    tmp_path: Path, threads_per_worker: int
) -> None:
    sample = Painted(For({6}, Once(tmp_path / "crashed", aborts)))
    with processes(sample, threads_per_worker=threads_per_worker, max_restarts=1) as loader:
        assert [digest(batch) for batch in loader] == expected()[0]
        assert (tmp_path / "crashed").exists()


def test_crashes_that_blame_nobody_count_as_restarts(tmp_path: Path) -> None:
    acts = [For({id}, Once(tmp_path / str(id), exits)) for id in (2, 7, 12, 17)]
    with processes(Painted(*acts), max_restarts=2) as loader, pytest.raises(WorkerDiedError, match="max_restarts=2"):
        list(loader)


@pytest.mark.parametrize("max_restarts", [0, 2])
def test_one_kill_too_many_is_one_error_that_says_what_happened(max_restarts: int, told: Fifo, gate: Fifo) -> None:
    sample = Painted(For({6}, Tell(told.path)), For({6}, Block(gate.path)))
    loader = processes(sample, num_workers=2, max_restarts=max_restarts)
    with loader:
        iterator = iter(loader)
        (whole,) = expected()
        assert digest(next(iterator)) == whole[0]
        result = run_aside(lambda: next(iterator))
        for _ in range(max_restarts + 1):
            pid, _ = told.told()
            assert send_signal(pid, signal.SIGKILL)
        with pytest.raises(WorkerDiedError) as caught:
            result(ANSWER_S)
        words = str(caught.value)
        for word in (f"pid {pid}", "SIGKILL", "sample id 6", named(6), " MB", "oom_kill", "loader.max_restarts="):
            assert word in words
        assert f"loader.max_restarts={max_restarts}" in words
        with Watch(workers_of(os.getpid())) as watch:
            assert not watch.remaining(GONE_S)
        with pytest.raises(RuntimeError, match="ended earlier"):
            iter(loader)
        with pytest.raises(RuntimeError, match="ended earlier"):
            loader.set_epoch(3)
    loader.close()
    assert not children() & workers_of(os.getpid())


def test_the_memory_in_the_error_is_the_workers_and_not_the_parents() -> None:
    assert psutil.Process().memory_info().rss > 200e6, "this parent is no larger than a worker"
    with processes(Painted(For({0}, exits)), max_restarts=0) as loader:
        with pytest.raises(WorkerDiedError) as caught:
            list(loader)
        held_mb = re.search(r"held (\d+) MB", str(caught.value))
        assert held_mb is not None
        assert 10 < int(held_mb[1]) < 150


def test_a_worker_killed_while_it_starts_is_replaced() -> None:
    with processes(Painted(), num_workers=2, max_restarts=5) as loader:
        iterator = iter(loader)
        assert send_signal(min(workers_begun(1)), signal.SIGKILL)
        assert [digest(batch) for batch in iterator] == expected()[0]


def test_all_workers_killed_between_two_epochs_are_replaced() -> None:
    (first, second) = expected(2, sampler=None)
    with processes(Painted(), num_workers=3, sampler=None) as loader:
        assert [digest(batch) for batch in loader] == first
        pids = workers_of(os.getpid())
        with Watch(pids) as watch:
            for pid in pids:
                send_signal(pid, signal.SIGKILL)
            assert not watch.remaining(GONE_S)
        assert [digest(batch) for batch in loader] == second
        assert not pids & workers_of(os.getpid())


class SlowReport:
    """A `where` that stops the dispatcher in the middle of its first report of a death, until it may go on."""

    def __init__(self) -> None:
        self.began, self.may_go_on = threading.Event(), threading.Event()

    def __call__(self, id: int) -> str:
        self.began.set()
        assert self.may_go_on.wait(ANSWER_S)
        return named(id)


def kill_one_then_another_while_the_first_is_reported(told: Fifo, report: SlowReport) -> int:
    """The dispatcher hears of the second one's end late, all at once."""
    busy, _ = told.told()
    (other,) = workers_of(os.getpid()) - {busy}
    send_signal(busy, signal.SIGKILL)
    assert report.began.wait(ANSWER_S)
    with Watch({other}) as watch:
        send_signal(other, signal.SIGKILL)
        assert not watch.remaining(GONE_S)
    return other


def held_once(told: Fifo, gate: Fifo) -> Painted:
    """The first sample tells and waits for ever; made again, it does neither."""
    return Painted(For({0}, Once(told.path.with_name("held"), Both(Tell(told.path), Block(gate.path)))))


@pytest.mark.parametrize("num_samples", [1, 20], ids=["and knew no slots", "and knew the slots"])
def test_a_worker_that_dies_while_another_death_is_reported_is_replaced(
    num_samples: int, told: Fifo, gate: Fifo
) -> None:
    report = SlowReport()
    loader = processes(held_once(told, gate), num_samples=num_samples, num_workers=2, batch_size=1, where=report)
    with loader:
        wait_until_ready(workers_begun(2))
        result = run_aside(lambda: [digest(batch) for batch in loader])
        kill_one_then_another_while_the_first_is_reported(told, report)
        report.may_go_on.set()
        assert result(ANSWER_S) == expected(num_samples=num_samples, batch_size=1)[0]


def test_a_death_may_be_heard_of_by_the_process_before_the_socket(
    told: Fifo, gate: Fifo, monkeypatch: pytest.MonkeyPatch
) -> None:
    class LastFirst(dispatch.selectors.DefaultSelector):
        """The kernel may tell of both ends at once, in either order."""

        def select(self, timeout: float | None = None) -> list[Any]:
            return super().select(timeout)[::-1]

    monkeypatch.setattr(dispatch.selectors, "DefaultSelector", LastFirst)
    report = SlowReport()
    spare = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
    with processes(held_once(told, gate), num_workers=2, batch_size=1, where=report) as loader:
        wait_until_ready(workers_begun(2))
        result = run_aside(lambda: [digest(batch) for batch in loader])
        kill_one_then_another_while_the_first_is_reported(told, report)
        for fd in spare:  # the next worker's descriptors have other numbers than the dead one's
            os.close(fd)
        report.may_go_on.set()
        assert result(ANSWER_S) == expected(batch_size=1)[0]


def test_a_dead_worker_that_the_program_has_waited_for_is_replaced(told: Fifo, gate: Fifo) -> None:
    report = SlowReport()
    with processes(held_once(told, gate), num_workers=2, batch_size=1, where=report) as loader:
        wait_until_ready(workers_begun(2))
        result = run_aside(lambda: [digest(batch) for batch in loader])
        other = kill_one_then_another_while_the_first_is_reported(told, report)
        assert os.waitpid(-1, 0)[0] == other  # as programs do that look after children of their own
        report.may_go_on.set()
        assert result(ANSWER_S) == expected(batch_size=1)[0]


def kill_all_workers() -> None:
    """Return when they are dead."""
    pids = workers_of(os.getpid())
    assert pids
    with Watch(pids) as watch:
        for pid in pids:
            send_signal(pid, signal.SIGKILL)
        assert not watch.remaining(GONE_S)


IMAGES: dict[str, Any] = {"num_workers": 2, "img_size": 16, "cache_size": 0, "backend": "processes", "seed": 5}


@pytest.mark.parametrize("prefetch_device", [None, "cpu"])
def test_a_loader_that_only_its_loop_knows_replaces_its_workers(prefetch_device: str | None, jpegs: list[Path]) -> None:
    paths, labels = jpegs * 4, list(range(92))
    with create_dataloader(paths, labels, 4, **IMAGES | {"num_workers": 0}) as serial:
        undisturbed = [(images.clone(), labels) for images, labels in serial]
    seen: list[Any] = []
    for images, numbers in create_dataloader(paths, labels, 4, prefetch_device=prefetch_device, **IMAGES):
        if not seen:
            gc.collect()
            kill_all_workers()
        seen.append((images.clone(), numbers))
    gc.collect()
    assert len(seen) == len(undisturbed)
    for (images, numbers), (other_images, other_numbers) in zip(seen, undisturbed, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(numbers, other_numbers)


@pytest.mark.parametrize("prefetch_device", [None, "cpu"])
def test_a_batch_of_a_loader_that_nobody_knows_outlives_it(prefetch_device: str | None, jpegs: list[Path]) -> None:
    with create_dataloader(jpegs, range(23), 4, **IMAGES | {"num_workers": 0}) as serial:
        undisturbed = digest(next(iter(serial)))
    batch = next(iter(create_dataloader(jpegs, range(23), 4, prefetch_device=prefetch_device, **IMAGES)))
    gc.collect()
    assert not workers_of(os.getpid())
    assert digest(batch) == undisturbed


def test_a_replaced_worker_finds_relative_paths_where_the_loader_was_made(
    jpegs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with create_dataloader(jpegs * 4, list(range(92)), 4, **IMAGES | {"num_workers": 0}) as serial:
        undisturbed = [digest(batch) for batch in serial]
    monkeypatch.chdir(jpegs[0].parent)
    names = [path.name for path in jpegs] * 4
    with create_dataloader(names, list(range(92)), 4, **IMAGES | {"num_workers": 1}) as loader:
        iterator = iter(loader)
        digests = [digest(next(iterator))]
        monkeypatch.chdir(tmp_path)
        kill_all_workers()
        assert digests + [digest(batch) for batch in iterator] == undisturbed


def test_sigterm_ends_no_worker() -> None:
    with processes(Painted(), num_workers=2) as loader:
        wait_until_ready(workers_begun(2))
        iterator = iter(loader)
        digests = [digest(next(iterator))]
        pids = workers_of(os.getpid())
        for pid in pids:
            assert send_signal(pid, signal.SIGTERM)
        digests += [digest(batch) for batch in iterator]
        assert digests == expected()[0]
        assert workers_of(os.getpid()) == pids
