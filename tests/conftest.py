"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from contracts import worker_threads
from fakes import write_jpegs
from runs import FAULT
from watching import Fifo, children, fifo, shared_descriptors

# oneDNN of torch 2.14 gives other results each time in half precision on CPUs with AMX or AVX512-FP16 (three equal runs
# of a small ResNet: weights apart by up to 0.09 with fp16, NaN with bf16), and the same ones without. Read at its first
# use, also by the processes that tests start.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

CLOSING_LIMIT_S = 5.0


@pytest.fixture(scope="session")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """23 small JPEG files: five batches of four and a short one."""
    return write_jpegs(tmp_path_factory.mktemp("jpegs"), 23)


@pytest.fixture(scope="session")
def trial_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of two classes for training: six batches of four."""
    root = tmp_path_factory.mktemp("trial_folder")
    for name in ("cats", "dogs"):
        write_jpegs(root / "train" / name, 12)
        write_jpegs(root / "val" / name, 1)
    return root


@pytest.fixture(scope="session")
def broken_jpeg(tmp_path_factory: pytest.TempPathFactory, jpegs: list[Path]) -> Path:
    """A JPEG cut in the middle of its scan."""
    path = tmp_path_factory.mktemp("broken") / "cut.jpg"
    data = jpegs[0].read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    return path


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, for whole runs: 17 images to train on, four batches of four and one left out, and 7 to evaluate."""
    root = tmp_path_factory.mktemp("images")
    for name in ("cats", "dogs"):
        write_jpegs(root / name, 12)
    return root


@pytest.fixture(scope="session")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH, which strikes processes down as `runs.FAULT` says."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "sitecustomize.py").write_text(FAULT)
    return folder


@pytest.fixture
def torch_as_before() -> Iterator[None]:
    """For what sets torch's threads and seed for the whole process."""
    num_threads, generator = torch.get_num_threads(), torch.random.get_rng_state()
    yield
    torch.set_num_threads(num_threads)
    torch.random.set_rng_state(generator)


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Fifo]:
    """Where samples tell what they do."""
    with fifo(tmp_path / "told") as made:
        yield made


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Fifo]:
    """Where samples wait; all of them are let through when the test is over."""
    with fifo(tmp_path / "gate") as made:
        yield made
        made.let_through(1000)


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    threads, processes, descriptors = worker_threads(), children(), shared_descriptors()
    yield
    assert worker_threads() <= threads, "the test left worker threads behind"
    assert children() <= processes, "the test left child processes behind"
    deadline_s = time.monotonic() + CLOSING_LIMIT_S
    while not shared_descriptors() <= descriptors and time.monotonic() < deadline_s:
        time.sleep(0.01)  # connections are closed by the thread of their event loop, which has no word for us
    assert shared_descriptors() <= descriptors, "the test left descriptors behind"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, and say so."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
