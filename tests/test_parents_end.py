"""No worker, thread, memory or descriptor outlives who needed it: parents that end, loaders that are collected."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

import pytest
from contracts import digest, worker_threads
from crews import expected, processes
from samples import For, Once, Painted, Starts
from watching import (
    ANSWER_S,
    GONE_S,
    Fifo,
    Watch,
    children,
    run_script,
    script,
    send_signal,
    shared_descriptors,
    workers_left_by,
    workers_of,
)

from pipeline import create_dataloader

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


@pytest.mark.parametrize("ending", ["closed", "killed"])
def test_what_a_transform_started_ends_with_its_worker(ending: str, told: Fifo) -> None:
    with processes(Painted(For({0}, Once(told.path.with_name("begun"), Starts(told.path))))) as loader:
        iterator = iter(loader)
        started, _ = told.told()
        try:
            with Watch({started}) as watch:
                if ending == "closed":
                    loader.close()
                else:
                    send_signal(min(workers_of(os.getpid())), signal.SIGKILL)
                    assert len(list(iterator)) == 5
                assert not watch.remaining(5.0), "it was not killed"
        finally:
            if os.path.exists(f"/proc/{started}/cwd"):  # neither gone nor a zombie
                os.kill(started, signal.SIGKILL)


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
