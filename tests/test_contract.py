"""Every loader there is, held to the one contract; and all of them held to the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts import BATCH_SIZE, assert_loader_contract, assert_same_batches, digest

from pipeline import PrefetchLoader, create_dataloader

SIZE = 16


def api(**options: Any) -> Callable[..., Any]:
    def make(paths: Sequence[Path], labels: list[int], seed: int = 0) -> Any:
        given = {"num_workers": 2, "img_size": SIZE, "cache_size": 0} | options
        return create_dataloader(paths, labels, BATCH_SIZE, seed=seed, **given)

    return make


LOADERS = {
    "serial": api(num_workers=0),
    "one thread": api(num_workers=1),
    "threads": api(num_workers=3, prefetch_factor=4),
    "processes": api(num_workers=2, backend="processes"),
    "lru cache": api(cache_size=5),
    "pinned cache": api(cache_size=5, cache_policy="pinned"),
    "encoded cache": api(cache_size=100, store="encoded"),
    "decoded cache": api(cache_size=100, store="decoded"),
    "prefetch on the cpu": api(prefetch_device="cpu"),
    "prefetch over serial": api(num_workers=0, prefetch_device="cpu"),
    "contiguous": api(memory_format="contiguous"),
    "exact resize": api(resize="exact"),
    "scaled decode": api(decode="scaled"),
}


@pytest.mark.parametrize("name", LOADERS)
def test_every_loader_keeps_the_contract(name: str, jpegs: list[Path], broken_jpeg: Path) -> None:
    assert_loader_contract(LOADERS[name], jpegs, broken_jpeg)


@pytest.mark.parametrize("preload", ["ram", "pack"])
def test_preloaded_loaders_keep_the_contract_but_meet_bad_files_at_once(
    preload: str, jpegs: list[Path], broken_jpeg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make = api(preload=preload, store="encoded")
    assert_loader_contract(make, jpegs, broken_jpeg)


def test_scheduling_never_changes_a_byte(jpegs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scheduling: list[dict[str, Any]] = [
        {"num_workers": 0},
        {"num_workers": 1, "prefetch_factor": 1},
        {"num_workers": 4, "prefetch_factor": 5},
        {"cache_size": 3},
        {"cache_size": 30, "cache_policy": "pinned", "store": "decoded"},
        {"cache_size": 30, "store": "encoded"},
        {"preload": "ram"},
        {"preload": "ram", "store": "encoded"},
        {"preload": "pack"},
        {"prefetch_device": "cpu"},
    ]
    loaders = [api(**options)(jpegs, list(range(len(jpegs)))) for options in scheduling]
    assert_same_batches(loaders, epochs=3)
    for loader in loaders:
        loader.close()


@pytest.mark.parametrize("augment", ["light", "standard", "heavy", "none"])
def test_the_number_of_workers_never_changes_a_byte(augment: str, jpegs: list[Path]) -> None:
    loaders = [api(num_workers=n, augment=augment)(jpegs, list(range(len(jpegs)))) for n in (0, 1, 2, 4)]
    assert_same_batches(loaders)
    for loader in loaders:
        loader.close()


@pytest.mark.parametrize("batch_size", [1, 7, 23, 40])
def test_a_samples_pixels_do_not_depend_on_its_batch(batch_size: int, jpegs: list[Path]) -> None:
    labels = list(range(len(jpegs)))

    def pixels(size: int) -> dict[int, str]:
        with create_dataloader(jpegs, labels, size, num_workers=2, img_size=SIZE, cache_size=0) as loader:
            return {
                id: hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()
                for batch in loader
                for id, image in zip(batch.ids.tolist(), batch.images, strict=True)
            }

    assert pixels(batch_size) == pixels(4)


@pytest.mark.parametrize("prefetch_device", [None, "cpu"])
@pytest.mark.parametrize("taken", [0, 1, 3, 6])
def test_a_run_resumed_in_the_middle_of_an_epoch_equals_one_that_was_not(
    prefetch_device: str | None, taken: int, jpegs: list[Path]
) -> None:
    labels = list(range(len(jpegs)))
    with api(prefetch_device=prefetch_device)(jpegs, labels) as loader:
        whole = [digest(batch) for _ in range(2) for batch in loader]
    with api(prefetch_device=prefetch_device)(jpegs, labels) as loader:
        iterator = iter(loader)
        for _ in range(taken):
            next(iterator)
        state = loader.state_dict()
        del iterator
    with api(num_workers=0)(jpegs, labels) as resumed:
        resumed.load_state_dict(state)
        rest = [digest(batch) for batch in resumed]
        if taken < 6:
            rest += [digest(batch) for batch in resumed]
    assert rest == whole[taken:]


def test_wrapping_a_loader_changes_no_byte(jpegs: list[Path]) -> None:
    labels = list(range(len(jpegs)))
    with api()(jpegs, labels) as plain, api()(jpegs, labels) as inner, PrefetchLoader(inner, "cpu") as wrapped:
        assert_same_batches([plain, wrapped], epochs=3)
        assert len(wrapped) == len(plain)
        assert wrapped.batch_size == BATCH_SIZE


def test_augmentation_differs_between_epochs_from_a_cache_too(jpegs: list[Path]) -> None:
    with api(cache_size=100, store="decoded")(jpegs, list(range(len(jpegs)))) as loader:
        epochs = [
            {id: image for batch in loader for id, image in zip(batch.ids.tolist(), batch[0], strict=True)}
            for _ in "12"
        ]
    assert all(not torch.equal(epochs[0][id], epochs[1][id]) for id in epochs[0])
