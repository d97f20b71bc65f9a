"""Worker processes that die, crash, stop or never answer; and parents that end at the worst moment."""

from __future__ import annotations

import gc
import os
import random
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from contracts import digest, worker_threads
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
    holds_the_gil_for_ever,
    is_killed,
    named,
    reads_a_null_pointer,
    sleeps_for_ever,
    takes_a_millisecond,
)
from watching import (
    ANSWER_S,
    GONE_S,
    SOAK,
    Fifo,
    Watch,
    children,
    run_aside,
    run_script,
    script,
    send_signal,
    shared_descriptors,
    wait_until_ready,
    workers_begun,
    workers_left_by,
    workers_of,
)

from pipeline import create_dataloader
from pipeline.loader import dispatch
from pipeline.loader.errors import WorkerDiedError, WorkerStalledError
from pipeline.loader.loader import Loader
from pipeline.sampler import SequentialSampler

CRASHES = {
    "segmentation fault": (reads_a_null_pointer, "SIGSEGV"),
    "abort": (aborts, "SIGABRT"),
    "exit": (exits, "exit code 3"),
}


def processes(sample: Callable[..., None], **options: Any) -> Loader:
    """Worker processes over `sample`, in order of id unless told otherwise."""
    num_samples = options.setdefault("num_samples", 20)
    options.setdefault("sampler", SequentialSampler(num_samples))
    options.setdefault("num_workers", 1)
    return make_loader(sample, backend="processes", **options)


def expected(epochs: int = 1, **options: Any) -> list[list[str]]:
    """The digests of an undisturbed run, epoch by epoch."""
    num_samples = options.setdefault("num_samples", 20)
    options.setdefault("sampler", SequentialSampler(num_samples))
    with make_loader(FakeSample(), **options) as loader:
        return [[digest(batch) for batch in loader] for _ in range(epochs)]


# Deaths.


class Killer:
    """Kills workers of this process at random moments, so many times."""

    def __init__(self, count: int, seed: int) -> None:
        self.remaining = count
        self._random = random.Random(seed)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while self.remaining and not self._stopping.wait(self._random.uniform(0, 0.3)):
            pids = sorted(workers_of(os.getpid()))
            if pids and send_signal(self._random.choice(pids), signal.SIGKILL):
                self.remaining -= 1

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._thread.join()


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


# Stalls.

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
        with pytest.raises(WorkerStalledError, match="has not started"):
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


# The parent's end.

PARENT = """
import os, signal, sys, threading
from pathlib import Path
from fakes import make_loader
from pipeline.sampler import SequentialSampler
from samples import Block, Both, For, Painted, Tell, holds_the_gil_for_ever, takes_a_millisecond

moment, gate, told = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
never_ends = {"blocked": Block(gate), "holding the GIL": holds_the_gil_for_ever}.get(moment)
act = For({40}, Both(Tell(told), never_ends)) if never_ends else takes_a_millisecond
many = {"num_samples": 100_000, "sampler": SequentialSampler(100_000)}
loader = make_loader(Painted(act), backend="processes", num_workers=2, **many)
if moment == "start":
    print("now", os.getpid(), flush=True)
    threading.Event().wait()
iterator = iter(loader)
next(iterator)
if moment == "sibling":
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("sibling", os.getpid(), flush=True)
        threading.Event().wait()
print("now", os.getpid(), flush=True)
for _ in iterator:
    pass
"""


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGKILL, "start"),
        (signal.SIGKILL, "middle"),
        (signal.SIGKILL, "holding the GIL"),
        (signal.SIGKILL, "sibling"),
        (signal.SIGINT, "blocked"),
        (signal.SIGTERM, "middle"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_no_worker_outlives_its_parent(
    number: signal.Signals, moment: str, tmp_path: Path, gate: Fifo, told: Fifo
) -> None:
    with script(tmp_path, PARENT, moment, gate.path, told.path) as parent:
        assert parent.stdout is not None
        lines: dict[str, int] = {}
        while "now" not in lines or (moment == "sibling" and "sibling" not in lines):
            word, pid = parent.stdout.readline().split()
            lines[word] = int(pid)
        if moment in ("blocked", "holding the GIL"):
            told.told()
        workers = workers_of(parent.pid)
        try:
            assert moment == "start" or len(workers) == 2
            with Watch(workers) as watch:
                parent.send_signal(number)
                parent.wait(ANSWER_S)
                assert not watch.remaining(GONE_S)
            assert not workers_left_by(parent.pid)
        finally:
            if "sibling" in lines:
                os.kill(lines["sibling"], signal.SIGKILL)


def test_the_interpreter_exits_with_a_loader_of_processes_left_open(tmp_path: Path) -> None:
    text = (
        "from fakes import make_loader\nfrom samples import Painted, takes_a_millisecond\n"
        "loader = make_loader(Painted(takes_a_millisecond), backend='processes', num_samples=1000, num_workers=2)\n"
        "iterator = iter(loader); kept = [next(iterator) for _ in range(20)]\n"
        "print('left', len(kept))\n"
    )
    assert run_script(tmp_path, text) == "left 20\n"


@pytest.mark.parametrize("backend", ["processes", "threads"])
def test_the_interpreter_exits_while_a_sample_never_returns(backend: str, tmp_path: Path, gate: Fifo) -> None:
    text = (
        "import sys\nfrom pathlib import Path\nfrom fakes import make_loader\n"
        "from pipeline.loader.errors import WorkerStalledError\nfrom samples import Block, For, Painted\n"
        "sample = Painted(For({6}, Block(Path(sys.argv[1]))))\n"
        f"loader = make_loader(sample, backend={backend!r}, num_workers=2, stall_timeout_s=0.5)\n"
        "try:\n    list(loader)\nexcept WorkerStalledError:\n    print('stalled')\n"
    )
    assert run_script(tmp_path, text, gate.path) == "stalled\n"


def test_a_collected_loader_of_processes_leaves_nothing() -> None:
    descriptors, processes_before = shared_descriptors(), children()
    loader = processes(Painted(), num_workers=2)
    iterator = iter(loader)
    batch = next(iterator)
    with Watch(workers_of(os.getpid())) as watch:
        del loader, iterator
        gc.collect()
        assert not watch.remaining(GONE_S)
    assert (shared_descriptors(), children(), worker_threads()) == (descriptors, processes_before, set())
    assert digest(batch) == expected()[0][0], "a batch died with its loader"


def test_a_collected_pipeline_of_processes_leaves_nothing(jpegs: list[Path]) -> None:
    before = shared_descriptors()
    loader = create_dataloader(jpegs, list(range(23)), 4, num_workers=1, img_size=16, cache_size=0, backend="processes")
    next(iter(loader))
    arenas = [fd for fd in os.listdir("/proc/self/fd") if _refers_to(fd, "memfd:headrace-data")]
    del loader
    gc.collect()
    left = shared_descriptors()
    for fd in arenas:  # so that only this test fails
        if _refers_to(fd, "memfd:headrace-data"):
            os.close(int(fd))
    assert left == before


def _refers_to(fd: str, name: str) -> bool:
    path = f"/proc/self/fd/{fd}"
    return os.path.lexists(path) and name in os.readlink(path)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("ending", ["exits", "closes", "collects"])
def test_a_forked_child_does_not_disturb_its_parents_loader(ending: str) -> None:
    with processes(Painted(), num_workers=2) as loader:
        iterator = iter(loader)
        digests = [digest(next(iterator))]
        pids = workers_of(os.getpid())
        child = os.fork()
        if child == 0:
            try:
                if ending == "closes":
                    loader.close()
                elif ending == "collects":
                    del loader, iterator
                    gc.collect()
                else:
                    loader._finalizer()  # what the interpreter's exit calls
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        digests += [digest(batch) for batch in iterator]
        assert digests == expected()[0]
        assert workers_of(os.getpid()) == pids
        with pytest.raises(StopIteration):
            next(iterator)
