"""`HighPerformanceDataset` under torch's own `DataLoader`: what its worker processes share, however they start."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import write_jpegs
from PIL import Image
from samples import LoggedFiles
from torch.utils.data import DataLoader
from watching import SOAK

from pipeline import HighPerformanceDataset

COUNT = 40

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create .* worker processes:UserWarning"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_jpegs(tmp_path_factory.mktemp("files"), COUNT, height=20, width=30)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a dataset's files are logged, each time that one is opened."""
    path = tmp_path / "opened"
    path.touch()
    monkeypatch.setattr("pipeline.dataset.FileSource", partial(LoggedFiles, log=path))
    return path


def opened(log: Path) -> Counter[int]:
    return Counter(map(int, log.read_text().split()))


ONCE = dict.fromkeys(range(COUNT), 1)


def assert_epoch_is_whole(loader: DataLoader[tuple[torch.Tensor, int]], files: list[Path]) -> None:
    labels = []
    for images, numbers in loader:
        for image, number in zip(images, numbers.tolist(), strict=True):
            assert np.array_equal(image.numpy(), np.asarray(Image.open(files[number])).transpose(2, 0, 1))
        labels += numbers.tolist()
    assert sorted(labels) == list(range(COUNT))


# Workers that are not forked import torch, which takes seconds of each of them.
STARTS = [
    ("fork", True, 4),
    ("fork", False, 4),
    ("forkserver", False, 4 if SOAK else 2),
    ("spawn", True, 4 if SOAK else 2),
    *((("forkserver", True, 4), ("spawn", False, 4)) if SOAK else ()),
]


@pytest.mark.parametrize(("method", "persistent", "num_workers"), STARTS)
def test_worker_processes_open_each_file_once_together_and_none_in_the_next_epoch(
    method: str, persistent: bool, num_workers: int, files: list[Path], log: Path
) -> None:
    with HighPerformanceDataset(files, range(COUNT)) as dataset:
        loader = DataLoader(
            dataset,
            4,
            shuffle=True,
            num_workers=num_workers,
            multiprocessing_context=method,
            persistent_workers=persistent,
        )
        for _ in range(2):
            assert_epoch_is_whole(loader, files)
            assert opened(log) == ONCE
        assert dataset.stats() == {"hits": 0, "misses": 0, "evictions": 0, "entries": 0, "bytes": 0}
        assert dataset._shared.store.stats()["entries"] == COUNT


def test_a_smaller_cache_keeps_what_the_workers_decoded_first_and_the_process_has_an_lru(
    files: list[Path], log: Path
) -> None:
    capacity = 10
    with HighPerformanceDataset(files, range(COUNT), cache_size=capacity) as dataset:
        for index in range(capacity + 2):
            dataset[index]
        assert dataset.stats()["evictions"] == 2
        log.write_text("")
        loader = DataLoader(dataset, 4, num_workers=4, multiprocessing_context="fork")
        for _ in range(3):
            assert_epoch_is_whole(loader, files)
        assert opened(log).total() == COUNT + 2 * (COUNT - capacity)
        log.write_text("")
        for index in range(2, capacity + 2):
            dataset[index]
        assert not opened(log), "what workers keep has changed the process's own cache"
        dataset[0]
        dataset[2]
        assert opened(log) == {0: 1, 2: 1}, "the one used longest ago did not go first"


@pytest.mark.parametrize("method", ["fork", "spawn"] if SOAK else ["fork"])
def test_a_preloaded_dataset_opens_nothing_later_in_any_process(method: str, files: list[Path], log: Path) -> None:
    with HighPerformanceDataset(files, range(COUNT), cache_size=2, preload=True) as dataset:
        log.write_text("")
        loader = DataLoader(dataset, 4, num_workers=2, multiprocessing_context=method)
        assert_epoch_is_whole(loader, files)
        for index in range(COUNT):
            dataset[index]
        assert not opened(log)
        assert dataset.stats()["hits"] == COUNT
