"""Fixtures that several rooms' tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from contracts import worker_threads
from fakes import write_jpegs


@pytest.fixture(scope="session")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """23 small JPEG files: five batches of four and a short one."""
    return write_jpegs(tmp_path_factory.mktemp("jpegs"), 23)


@pytest.fixture(scope="session")
def broken_jpeg(tmp_path_factory: pytest.TempPathFactory, jpegs: list[Path]) -> Path:
    """A JPEG cut in the middle of its scan."""
    path = tmp_path_factory.mktemp("broken") / "cut.jpg"
    data = jpegs[0].read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    return path


@pytest.fixture(autouse=True)
def _no_thread_is_left_behind() -> Iterator[None]:
    before = worker_threads()
    yield
    assert worker_threads() <= before, "the test left worker threads behind"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, and say so."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
