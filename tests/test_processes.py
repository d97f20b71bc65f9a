"""Worker processes: what they are started with, what they import, print, raise, and leave."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
import torch
from contracts import assert_same_batches, digest
from fakes import FakeSample, jpeg_bytes, make_loader, photo, write_jpegs
from samples import (
    ERRORS,
    Block,
    For,
    Painted,
    Pixels,
    Raise,
    Record,
    Tell,
    exits,
    named,
    raises_with_a_cause,
    takes_a_millisecond,
)
from watching import ANSWER_S, SOAK, TESTS, Fifo, environment, run_aside, run_script, script, workers_of

from pipeline import create_dataloader
from pipeline.build import build_pipeline
from pipeline.config import (
    ConfigError,
    Data,
    FolderData,
    ManifestData,
    PipelineConfig,
    SyntheticData,
    TarData,
    Transforms,
)
from pipeline.config import Loader as LoaderConfig
from pipeline.loader.sample import MakeSample
from pipeline.loader.wire import Hello
from pipeline.loader.worker_process import Death, Launch, WorkerProcess
from pipeline.sampler import SequentialSampler
from pipeline.stats import Stats
from pipeline.transforms.sample import SampleTransform


def processes(sample: Callable[..., None], **options: Any) -> Any:
    return make_loader(sample, backend="processes", **({"num_workers": 1} | options))


def images(paths: list[Path], **options: Any) -> Any:
    given = {"num_workers": 1, "img_size": 16, "cache_size": 0, "backend": "processes"} | options
    return create_dataloader(paths, list(range(len(paths))), 4, **given)


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# What a worker is.


def test_a_worker_is_a_lean_interpreter_on_the_same_path_with_one_thread_for_sums(tmp_path: Path) -> None:
    with processes(Painted(Record(tmp_path / "seen")), num_workers=2) as loader:
        list(loader)
        seen = records(tmp_path / "seen")
        assert {record["pid"] for record in seen} <= workers_of(os.getpid())
    for record in seen:
        assert record["heavy"] == ["PIL"] or not record["heavy"], "something heavy was imported"
        assert not [name for name in record["maps"] if "libtorch" in name]
        assert not [name for name in record["maps"] if name.startswith("/dev/shm")]
        assert set(record["environment"].values()) == {"1"}
        assert record["path"] == [entry or os.getcwd() for entry in sys.path]
        assert Path(record["pipeline"]).parent == Path(sys.modules["pipeline"].__file__ or "").parent


def test_images_are_made_without_torch_in_at_most_60_mb_a_worker(tmp_path: Path) -> None:
    paths = write_jpegs(tmp_path / "large", 24, height=375, width=500)
    with images(paths, num_workers=2, img_size=224) as loader:
        for _ in range(2):
            for _ in loader:
                pass
        for pid in workers_of(os.getpid()):
            maps = psutil.Process(pid).memory_maps()
            assert not [part.path for part in maps if "libtorch" in part.path]
            private = sum(
                part.private_clean + part.private_dirty for part in maps if not part.path.startswith("/memfd:headrace")
            )
            assert private <= 60e6


def test_workers_stay_from_epoch_to_epoch_and_through_a_break() -> None:
    with processes(Painted(), num_workers=2, num_samples=100) as loader:
        list(loader)
        pids = workers_of(os.getpid())
        assert len(pids) == 2
        for _ in loader:
            break
        loader.set_epoch(7)
        list(loader)
        loader.load_state_dict(loader.state_dict())
        list(loader)
        assert workers_of(os.getpid()) == pids
    assert not workers_of(os.getpid())


def test_a_worker_is_reaped_only_when_it_has_ended() -> None:
    worker = WorkerProcess(0, Hello(0, b"", 0, 0, 1, None), [], Launch.here())
    try:
        os.kill(worker.pid, signal.SIGSTOP)  # so that it neither works nor ends
        reaped = run_aside(worker.reap)
        with pytest.raises(AssertionError, match="no answer"):
            reaped(0.3)
    finally:
        worker.kill()
        worker.close()
    assert reaped(ANSWER_S) == Death(signal.SIGKILL, None)


def test_all_threads_of_all_workers_take_part(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    sample = Painted(Record(seen), takes_a_millisecond)
    with processes(sample, num_workers=2, threads_per_worker=3, num_samples=300, prefetch_factor=4) as loader:
        list(loader)
        pids = workers_of(os.getpid())
        for pid in pids:
            assert len(os.listdir(f"/proc/{pid}/task")) == 1 + 3
    assert {record["pid"] for record in records(seen)} == pids
    assert sorted(record["id"] for record in records(seen)) == list(range(300))


def test_work_that_was_abandoned_is_not_made(told: Fifo, gate: Fifo) -> None:
    sample = Painted(Tell(told.path), Block(gate.path))
    with processes(sample, num_samples=16, batch_size=16, sampler=SequentialSampler(16)) as loader:
        iterator = iter(loader)
        assert told.told()[1] == 0
        loader._executor.abandon()
        gate.let_through(16)
        assert loader._pending[0].wait(ANSWER_S)
        assert not told.has_more(), "the rest of the task in hand was made"
        del iterator


def test_what_workers_print_arrives(tmp_path: Path) -> None:
    text = (
        "from fakes import make_loader\nfrom samples import Painted, prints\n"
        "with make_loader(Painted(prints), backend='processes', num_workers=1, num_samples=3) as loader:\n"
        "    print(len(list(loader)), flush=True)\n"
    )
    with script(tmp_path, text) as process:
        out, errors = process.communicate(timeout=120)
    assert sorted(errors.splitlines()) == [f"sample {id} complains" for id in range(3)]
    assert sorted(out.splitlines()) == ["1", *(f"sample {id} says hello" for id in range(3))]


# Where it works.


def test_no_guard_is_needed_in_the_users_script(tmp_path: Path, jpegs: list[Path]) -> None:
    text = (
        "import sys\nfrom pipeline import create_dataloader\nprint('once')\n"
        "loader = create_dataloader(sys.argv[1:], [0] * 23, 4, num_workers=2, img_size=16, backend='processes')\n"
        "print(sum(len(ids) for ids in (batch.ids for batch in loader)))\nloader.close()\n"
    )
    assert run_script(tmp_path, text, *jpegs) == "once\n23\n"


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A directory with another package called `pipeline`, and modules that hide the standard library's."""
    directory = tmp_path / "trap"
    (directory / "pipeline").mkdir(parents=True)
    for name in ("pipeline/__init__.py", "json.py", "socket.py", "numpy.py"):
        (directory / name).write_text("raise SystemExit('this is the wrong module')\n")
    return directory


def test_another_package_of_the_same_name_in_the_working_directory_is_not_imported(
    trap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trap)
    with processes(Painted()) as loader:
        assert len(list(loader)) == 5


def test_nor_when_the_path_begins_with_the_working_directory(trap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trap)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    (trap / "json.py").unlink()
    (trap / "socket.py").unlink()
    (trap / "numpy.py").unlink()
    with processes(Painted(), max_restarts=0) as loader:
        assert len(list(loader)) == 5


def test_the_working_directory_in_the_path_is_the_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, ""])
    with processes(Painted(Record(tmp_path / "seen")), num_samples=1) as loader:
        list(loader)
    assert records(tmp_path / "seen")[0]["path"][-1] == str(tmp_path)


def test_entries_of_the_path_that_are_no_text_do_no_harm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path, "/not/\udcff/utf-8"])
    with processes(Painted()) as loader:
        assert len(list(loader)) == 5


def test_nothing_is_put_into_dev_shm(jpegs: list[Path]) -> None:
    before = set(os.listdir("/dev/shm"))
    with images(jpegs, num_workers=2, cache_size=10) as loader:
        for number, _ in enumerate(loader):
            assert set(os.listdir("/dev/shm")) == before, f"batch {number}"


def test_a_small_dev_shm_is_no_limit(tmp_path: Path) -> None:
    allowed = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    if allowed.returncode:
        pytest.skip("this user may not mount a smaller /dev/shm")
    text = (
        "from fakes import make_loader\nfrom samples import Painted\n"
        "large = {'num_samples': 64, 'row_shape': (512, 512, 3)}\n"
        "with make_loader(Painted(), backend='processes', num_workers=2, **large) as loader:\n"
        "    print(sum(batch.images.nbytes for batch in loader))\n"
    )
    (tmp_path / "script.py").write_text(text)
    command = f"mount -t tmpfs -o size=64k none /dev/shm && exec {sys.executable} {tmp_path / 'script.py'}"
    finished = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=120,
        check=False,
    )
    assert (finished.stdout, finished.stderr) == (f"{64 * 512 * 512 * 3 * 4}\n", "")


SOURCES: dict[str, Callable[[Path], Data]] = {
    "synthetic": lambda root: SyntheticData(root=str(root / "made"), num_images=24),
    "folder": lambda root: FolderData(root=str(root / "folder")),
    "manifest": lambda root: ManifestData(path=str(root / "list.csv")),
    "tar": lambda root: TarData(pattern=str(root / "shards/*.tar")),
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same few images as folders, a manifest and shards."""
    root = tmp_path_factory.mktemp("sets")
    rows = ["path,label"]
    (root / "shards").mkdir()
    with tarfile.open(root / "shards/0.tar", "w") as tar:
        for id in range(12):
            data = jpeg_bytes(photo(id, 24, 32))
            path = root / "folder" / f"class{id % 3}" / f"{id:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            rows.append(f"{path},{id % 3}")
            for name, content in ((f"{id:03d}.jpg", data), (f"{id:03d}.cls", str(id % 3).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    (root / "list.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_the_same_bytes_from_processes(name: str, sets: Path) -> None:
    loaders = []
    for backend, num_workers in (("threads", 0), ("processes", 1)):
        config = PipelineConfig(
            data=SOURCES[name](sets),
            loader=LoaderConfig(backend=backend, num_workers=num_workers, batch_size=5, sampler="shuffle"),
            transforms=Transforms.named("light", size=16),
        )
        loaders.append(build_pipeline(config))
    assert_same_batches(loaders)
    for loader in loaders:
        loader.close()


def test_pixels_in_memory_are_shared_with_the_workers() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2000, 32, 32, 3), dtype=np.uint8)
    loaders, stats = [], Stats()
    for backend, num_workers in (("threads", 0), ("processes", 2)):
        transform = SampleTransform(Transforms.named("none", size=32).resolved(), normalise=True)
        sample = MakeSample(Pixels(pixels), transform, where=named, stats=stats)
        loaders.append(
            make_loader(
                sample, backend=backend, num_workers=num_workers, num_samples=2000, batch_size=50, row_shape=(32, 32, 3)
            )
        )
    with loaders[0], loaders[1]:
        assert_same_batches(loaders)
        for pid in workers_of(os.getpid()):
            arena = [part for part in psutil.Process(pid).memory_maps() if part.path.startswith("/memfd:headrace-data")]
            assert sum(part.size for part in arena) >= pixels.nbytes
            assert sum(part.private_dirty for part in arena) < 1e6, "a worker has pixels of its own"


# Errors.


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_arrives_with_its_type_its_words_its_traceback_and_its_sample(name: str) -> None:
    error = ERRORS[name]()
    transform = SampleTransform(Transforms.named("none", size=8).resolved(), normalise=True)
    sample = MakeSample(Raise(name), transform, where=named, stats=Stats())
    options = {"num_samples": 3, "batch_size": 1, "row_shape": (8, 8, 3), "stall_timeout_s": 300.0}
    with processes(sample, **options) as loader:
        result = run_aside(lambda: next(iter(loader)))
        with pytest.raises(Exception) as caught:  # noqa: PT011  each has its own type
            result(20.0)
        arrived = caught.value
        told = "\n".join([type(arrived).__name__, _words(arrived), *getattr(arrived, "__notes__", ())])
        assert type(error).__name__ in told
        for word in ("stage read", "sample id", "images/0000", "in worker process", "fails_to_load"):
            assert word in told, told
        if name in ("CalledProcessError", "KeyError", "text that raises", "pickling that forgets notes"):
            assert type(arrived) is type(error)
            assert arrived.args == error.args
        else:
            assert isinstance(arrived, (RuntimeError, type(error)))
        if "text that raises" not in name:
            assert str(error) in told
        assert len(workers_of(os.getpid())) == 1, "an error ended its worker"


def test_the_cause_of_an_error_is_told_beside_it() -> None:
    with processes(Painted(For({0, 1, 2, 3}, raises_with_a_cause)), num_samples=4) as loader:
        with pytest.raises(ValueError, match="outer") as caught:
            next(iter(loader))
        told = "\n".join(caught.value.__notes__)
    for words in ("KeyError: 'inner'", "direct cause", "ValueError: outer", "in raises_with_a_cause"):
        assert words in told


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except ValueError:
        return ""


def test_what_cannot_be_pickled_is_refused_before_any_process_starts() -> None:
    before = workers_of(os.getpid())
    with pytest.raises((AttributeError, TypeError), match="pickle"):
        processes(Painted(lambda _: None))
    assert workers_of(os.getpid()) == before


def test_a_worker_that_cannot_load_the_sample_function_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "passing.py").write_text("def acts(id):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import passing  # type: ignore[import-not-found]

    (tmp_path / "passing.py").write_text("raise ImportError('not here')\n")
    with processes(Painted(passing.acts)) as loader, pytest.raises(ImportError, match="not here"):
        list(loader)
    sys.modules.pop("passing")


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_slots_that_do_not_fit_are_refused_before_the_first_batch(
    backend: str, num_workers: int, jpegs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = (2 * 2 + 2) if num_workers else (2 * 1 + 2)
    needed = slots * 4 * 16 * 16 * 3 * 4
    monkeypatch.setattr("pipeline.build_loader.available_bytes", lambda: needed - 1)
    with pytest.raises(ConfigError) as caught:
        images(jpegs, backend=backend, num_workers=num_workers)
    words = str(caught.value)
    for word in (f"{needed:,}", f"{needed - 1:,}", "loader.batch_size", "loader.prefetch_factor", "transforms.size"):
        assert word in words
    assert "\n" not in words
    assert not workers_of(os.getpid())
    monkeypatch.setattr("pipeline.build_loader.available_bytes", lambda: needed)
    images(jpegs, backend=backend, num_workers=num_workers).close()


def test_slots_and_what_workers_share_must_fit_together(jpegs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    slots_bytes = (2 * 2 + 2) * 4 * 16 * 16 * 3 * 4
    for module in ("pipeline.build_loader", "pipeline.shared"):
        monkeypatch.setattr(f"{module}.available_bytes", lambda: slots_bytes + 100)
    with pytest.raises(ConfigError) as caught:
        images(jpegs)
    words = str(caught.value)
    shared = re.search(r"needs ([\d,]+) bytes beside ([\d,]+) of batches in flight", words)
    assert shared is not None, words
    assert int(shared[2].replace(",", "")) == slots_bytes
    assert 100 < int(shared[1].replace(",", "")) < slots_bytes, "each of them must fit alone"
    assert f"{slots_bytes + 100:,} are available" in words
    assert "\n" not in words
    assert not workers_of(os.getpid())
    for module in ("pipeline.build_loader", "pipeline.shared"):
        monkeypatch.setattr(f"{module}.available_bytes", lambda: slots_bytes + 1_000_000)
    images(jpegs).close()


# Starting under load.


@contextmanager
def busy_parent() -> Iterator[None]:
    """Threads that sum with torch, resize with OpenCV, and hold the logging locks all the time."""
    stopping, held = threading.Event(), threading.Event()

    def sums() -> None:
        matrix = torch.ones(200, 200)
        while not stopping.is_set():
            matrix @ matrix

    def resizes() -> None:
        picture = np.zeros((400, 400, 3), np.uint8)
        while not stopping.is_set():
            cv2.resize(picture, (100, 100), interpolation=cv2.INTER_AREA)

    def holds() -> None:
        handler = logging.StreamHandler()
        logging.getLogger("headrace-test").addHandler(handler)
        with logging._lock:  # type: ignore[attr-defined]
            handler.acquire()
            held.set()
            stopping.wait()
            handler.release()

    threads = [threading.Thread(target=target) for target in (sums, resizes, holds)]
    for thread in threads:
        thread.start()
    held.wait()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


@pytest.mark.soak
def test_loaders_start_whatever_locks_and_threads_the_parent_has() -> None:
    with busy_parent():
        for _ in range(100 if SOAK else 6):
            with processes(Painted(), num_samples=8, stall_timeout_s=60) as loader:
                assert len(list(loader)) == 2


@pytest.mark.soak
def test_batches_held_and_dropped_at_random_take_no_descriptor_and_no_thread(tmp_path: Path) -> None:
    text = (TESTS / "held_batches.py").read_text()
    num_batches, held = (20_000, 2_000) if SOAK else (2_000, 1_000)
    out = run_script(tmp_path, text, num_batches, held, limit_s=550)
    counts = [json.loads(line) for line in out.splitlines()]
    assert len(counts) == 10
    assert len({(count["descriptors"], count["threads"]) for count in counts}) == 1, counts


def test_a_worker_that_never_starts_is_one_error_with_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\necho no such interpreter >&2\nexit 9\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    with processes(Painted(), max_restarts=1) as loader, pytest.raises(RuntimeError, match="exit code 9"):
        list(loader)
    assert "no such interpreter" in capfd.readouterr().err


def test_an_interpreter_that_is_missing_is_an_error_and_not_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with processes(Painted()) as loader, pytest.raises(FileNotFoundError):
        list(loader)


# Stages and counts.


def test_the_workers_stages_are_counted_by_the_loader(jpegs: list[Path]) -> None:
    with images(jpegs, num_workers=2) as loader:
        for _ in range(2):
            list(loader)
        stats = loader.stats()
    assert stats["samples"] == 46
    assert stats["read_count"] >= 46
    assert stats["decode_count"] == stats["transform_count"] == stats["read_count"]
    assert stats["decode_ms"] > 0


def test_a_loader_without_workers_left_open_is_no_trouble_to_another() -> None:
    with processes(Painted()) as one, processes(Painted(For({3}, exits)), max_restarts=0) as other:
        with pytest.raises(RuntimeError, match="max_restarts=0"):
            list(other)
        with make_loader(FakeSample()) as serial:
            assert [digest(batch) for batch in one] == [digest(batch) for batch in serial]


FORKS_WHILE_AN_INTERPRETER_STARTS = """
import os, subprocess, threading
from pipeline.loader import worker_process

inside, forked = threading.Event(), threading.Event()
start = subprocess.Popen

def slow_start(*arguments, **options):
    inside.set()
    if not forked.wait(0.5):  # as if this were between making its pipe and closing it
        print("it waited", flush=True)
    return start(*arguments, **options)

subprocess.Popen = slow_start
started = []
thread = threading.Thread(
    target=lambda: started.append(worker_process._start_interpreter(2, worker_process.Launch.here()))
)
thread.start()
inside.wait()
child = os.fork()
if child == 0:
    os._exit(0)
forked.set()
os.waitpid(child, 0)
thread.join()
(process,) = started
process.kill()
process.wait()
"""


def test_a_fork_waits_while_an_interpreter_starts_and_takes_no_pipe_of_it_along(tmp_path: Path) -> None:
    assert run_script(tmp_path, FORKS_WHILE_AN_INTERPRETER_STARTS) == "it waited\n"
