"""Every loader there is, held to the one contract; and all of them held to the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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


def processes(**options: Any) -> Callable[..., Any]:
    return api(**({"num_workers": 1, "backend": "processes"} | options))


LOADERS = {
    "serial": api(num_workers=0),
    "one thread": api(num_workers=1),
    "threads": api(num_workers=3, prefetch_factor=4),
    "lru cache": api(cache_size=5),
    "pinned cache": api(cache_size=5, cache_policy="pinned"),
    "valued cache": api(cache_size=6, cache_policy="valued"),
    "encoded cache": api(cache_size=100, store="encoded"),
    "decoded cache": api(cache_size=100, store="decoded"),
    "prefetch on the cpu": api(prefetch_device="cpu"),
    "prefetch over serial": api(num_workers=0, prefetch_device="cpu"),
    "contiguous": api(memory_format="contiguous"),
    "exact resize": api(resize="exact"),
    "scaled decode": api(decode="scaled"),
    "a process": processes(),
    "processes": processes(num_workers=3, prefetch_factor=4),
    "processes of two threads": processes(num_workers=2, threads_per_worker=2),
    "lru cache in a process": processes(cache_size=5),
    "pinned cache in processes": processes(num_workers=2, cache_size=6, cache_policy="pinned"),
    "lru cache in processes": processes(num_workers=3, cache_size=6),
    "valued cache in processes": processes(num_workers=2, cache_size=6, cache_policy="valued"),
    "encoded cache in a process": processes(cache_size=100, store="encoded"),
    "decoded cache in a process": processes(cache_size=100, store="decoded"),
    "prefetch on the cpu over a process": processes(prefetch_device="cpu"),
    "contiguous from a process": processes(memory_format="contiguous"),
}


@pytest.mark.parametrize("name", LOADERS)
def test_every_loader_keeps_the_contract(name: str, jpegs: list[Path], broken_jpeg: Path) -> None:
    assert_loader_contract(LOADERS[name], jpegs, broken_jpeg)


@pytest.mark.parametrize("make", [api, processes], ids=["threads", "processes"])
@pytest.mark.parametrize("preload", ["ram", "pack"])
def test_preloaded_loaders_keep_the_contract_but_meet_bad_files_at_once(
    preload: str,
    make: Callable[..., Any],
    jpegs: list[Path],
    broken_jpeg: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_loader_contract(make(preload=preload, store="encoded"), jpegs, broken_jpeg)


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
        {"preload": "pack", "store": "decoded"},
        {"preload": "pack", "store": "decoded", "num_workers": 0},
        {"backend": "processes", "preload": "pack", "store": "decoded"},
        {"prefetch_device": "cpu"},
        {"backend": "processes"},
        {"backend": "processes", "num_workers": 3, "threads_per_worker": 2, "prefetch_factor": 5},
        {"backend": "processes", "cache_size": 3},
        {"backend": "processes", "cache_size": 30, "cache_policy": "pinned", "store": "decoded"},
        *(
            {"backend": backend, "num_workers": 2, "cache_size": 9, "cache_policy": policy, "store": store}
            for backend in ("threads", "processes")
            for policy in ("lru", "pinned", "valued")
            for store in ("auto", "encoded", "decoded")
        ),
        {"backend": "processes", "num_workers": 2, "cache_size": 9, "preload": "pack"},
        {"backend": "processes", "preload": "ram"},
        {"backend": "processes", "preload": "ram", "store": "encoded"},
        {"backend": "processes", "prefetch_device": "cpu"},
    ]
    loaders = [api(**options)(jpegs, list(range(len(jpegs)))) for options in scheduling]
    assert_same_batches(loaders, epochs=3)
    for loader in loaders:
        loader.close()


CACHES: list[dict[str, Any]] = [
    {},
    {"cache_size": 5},
    {"cache_size": 12, "cache_policy": "pinned", "store": "encoded"},
    {"cache_size": 30, "store": "decoded"},
    {"cache_size": 8, "cache_policy": "valued"},
    {"preload": "ram"},
]


class Seen(NamedTuple):
    """Hashes of what one rank was given in two epochs."""

    batches: list[str]
    samples: dict[tuple[int, int], str]
    """By epoch and id."""


def seen_by(jpegs: list[Path], batch_size: int, rank: int, world_size: int, **options: Any) -> Seen:
    given: dict[str, Any] = {"img_size": SIZE, "cache_size": 0} | options
    seen = Seen([], {})
    with create_dataloader(
        jpegs, list(range(len(jpegs))), batch_size, rank=rank, world_size=world_size, **given
    ) as loader:
        for batch in (batch for _ in range(2) for batch in loader):
            seen.batches.append(digest(batch))
            for id, image in zip(batch.ids.tolist(), batch.images, strict=True):
                seen.samples[batch.epoch, id] = hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()
    return seen


@pytest.fixture(scope="module")
def samples_of_a_serial_run(jpegs: list[Path]) -> dict[tuple[int, int], str]:
    return seen_by(jpegs, BATCH_SIZE, 0, 1, num_workers=0).samples


# Over the three batch sizes every backend with every number of workers meets every world size.
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_no_backend_worker_rank_or_cache_changes_a_hash(
    batch_size: int, world_size: int, jpegs: list[Path], samples_of_a_serial_run: dict[tuple[int, int], str]
) -> None:
    turn = [1, 7, 40].index(batch_size) + world_size
    process_counts = [1, 2, 4] if world_size == 1 else [[1, 2, 4][turn % 3]]
    schedules = [("threads", [1, 2, 4][turn % 3]), *(("processes", count) for count in process_counts)]
    samples: dict[tuple[int, int], str] = {}
    for rank in range(world_size):
        serial = seen_by(jpegs, batch_size, rank, world_size, num_workers=0)
        assert not serial.samples.keys() & samples.keys(), "a sample went to two ranks"
        samples |= serial.samples
        for number, (backend, num_workers) in enumerate(schedules, start=turn + rank):
            options = {"backend": backend, "num_workers": num_workers} | CACHES[number % len(CACHES)]
            assert seen_by(jpegs, batch_size, rank, world_size, **options) == serial, options
    assert samples == samples_of_a_serial_run


@pytest.mark.parametrize("augment", ["light", "standard", "heavy", "none"])
def test_the_number_of_workers_never_changes_a_byte(augment: str, jpegs: list[Path]) -> None:
    makers = [*(api(num_workers=n, augment=augment) for n in (0, 1, 2, 4)), processes(num_workers=2, augment=augment)]
    loaders = [make(jpegs, list(range(len(jpegs)))) for make in makers]
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


@pytest.mark.parametrize("backend", ["threads", "processes"])
@pytest.mark.parametrize(
    "options",
    [
        {"cache_size": 100, "store": "decoded"},
        {"cache_size": 100, "cache_policy": "pinned"},
        {"cache_size": 100, "cache_policy": "valued"},
        {"preload": "ram"},
    ],
    ids=["lru", "pinned", "valued", "ram"],
)
def test_augmentation_differs_between_epochs_from_a_cache_too(
    options: dict[str, Any], backend: str, jpegs: list[Path]
) -> None:
    with api(backend=backend, **options)(jpegs, list(range(len(jpegs)))) as loader:
        epochs = [
            {id: image for batch in loader for id, image in zip(batch.ids.tolist(), batch[0], strict=True)}
            for _ in "12"
        ]
    assert all(not torch.equal(epochs[0][id], epochs[1][id]) for id in epochs[0])
