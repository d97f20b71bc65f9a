"""A store that processes share: what it gives back, what it keeps, and that its budget is real."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keeping import (
    child,
    keep,
    kept_ids,
    lock_without_waiting,
    sample_of,
    signals,
    store_of,
)

from pipeline.cache.extents import ALIGNMENT
from pipeline.cache.load import CachedLoad
from pipeline.cache.settings import Settings
from pipeline.cache.shared_store import SharedStore
from pipeline.cache.table import PAGE_BYTES
from pipeline.shared import Arena, Descriptor, passed_by_multiprocessing
from pipeline.stats import Stats

ForkingPickler.register(Descriptor, passed_by_multiprocessing)

POLICIES = ["pinned", "lru", "valued"]
EVICTING = ["lru", "valued"]


@pytest.mark.parametrize("policy", POLICIES)
def test_bytes_come_back_as_they_were_kept_at_both_ends_of_the_ids(policy: str) -> None:
    with store_of(5, policy=policy) as store:
        samples = {0: b"x", 4: sample_of(4, 3 * PAGE_BYTES + 1), 2: sample_of(2, 64)}
        for id, sample in samples.items():
            assert store.find(id) is None
            assert keep(store, id, sample)
        assert [store.find(id) for id in samples] == list(samples.values())
        assert kept_ids(store) == [0, 2, 4]


@pytest.mark.parametrize("policy", POLICIES)
def test_pixels_of_every_shape_come_back_in_that_shape(policy: str) -> None:
    shapes = [(1, 1, 3), (1, 777, 3), (777, 1, 3), (37, 53, 3), (700, 900, 3)]
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    images.append(random.integers(0, 256, (64, 48, 3), dtype=np.uint8)[::2, ::3])  # a view of something larger
    with store_of(len(images), policy=policy) as store:
        for id, image in enumerate(images):
            assert keep(store, id, image)
        for id, image in enumerate(images):
            np.testing.assert_array_equal(store.find(id), image)


@pytest.mark.parametrize("policy", POLICIES)
def test_an_empty_sample_is_not_kept_and_costs_nothing(policy: str) -> None:
    with store_of(2, policy=policy) as store:
        assert not keep(store, 0, b"")
        assert not keep(store, 1, np.empty((0, 4, 3), np.uint8))
        assert store.stats() == {"entries": 0, "bytes": 0, "evictions": 0}


def test_pixels_of_a_pinned_store_are_read_only_views_that_outlive_it() -> None:
    image = np.arange(300, dtype=np.uint8).reshape(10, 10, 3)
    with store_of(1) as store:
        keep(store, 0, image)
        one, other = store.find(0), store.find(0)
        assert isinstance(one, np.ndarray)
        assert isinstance(other, np.ndarray)
        assert np.shares_memory(one, other)
        with pytest.raises(ValueError, match="read-only"):
            one[0] = 1
    del store
    np.testing.assert_array_equal(one, image)


@pytest.mark.parametrize("policy", EVICTING)
def test_pixels_of_a_store_that_evicts_are_a_copy_that_the_next_find_may_use_again(policy: str) -> None:
    images = [np.full((40, 40, 3), id, np.uint8) for id in range(3)]
    with store_of(3, pages=4, policy=policy) as store:
        keep(store, 0, images[0], rank=1.0)
        held = store.find(0)
        assert isinstance(held, np.ndarray)
        assert not held.flags.writeable
        for id in (1, 2):
            keep(store, id, images[id], rank=2.0 + id)
        assert not store.has(0)
        np.testing.assert_array_equal(held, images[0])


def test_a_pinned_store_keeps_the_first_that_fit_and_never_more_than_its_bytes() -> None:
    random = np.random.default_rng(1)
    sizes = random.lognormal(7, 1.5, 400).astype(int) + 1
    with store_of(400, pages=100) as store:
        room, first = 100 * PAGE_BYTES, []
        for id, size in enumerate(sizes.tolist()):
            footprint = -(-size // ALIGNMENT) * ALIGNMENT
            assert keep(store, id, sample_of(id, size)) == (footprint <= room)
            if footprint <= room:
                room -= footprint
                first.append(id)
            assert store.stats()["bytes"] == 100 * PAGE_BYTES - room
        assert len(first) < 400
        assert kept_ids(store) == first
        assert all(store.find(id) == sample_of(id, int(sizes[id])) for id in first)
        assert store.stats()["evictions"] == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_no_store_keeps_more_images_than_it_may(policy: str) -> None:
    with store_of(50, images=7, policy=policy) as store:
        for id in range(50):
            keep(store, id, sample_of(id, 10 + id), rank=float(id))
            assert len(kept_ids(store)) == store.stats()["entries"] == min(id + 1, 7)
        assert kept_ids(store) == (list(range(7)) if policy == "pinned" else list(range(43, 50)))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("pages", "images"), [(0, None), (4, 0)])
def test_a_budget_of_nothing_keeps_nothing(policy: str, pages: int, images: int | None) -> None:
    with store_of(2, pages=pages, images=images, policy=policy) as store:
        assert not keep(store, 1, b"x")
        assert store.find(1) is None


def test_a_budget_below_nothing_is_refused() -> None:
    for settings in (Settings(1, -1), Settings(1, 1, -1)):
        with pytest.raises(ValueError, match=r"a store's budget must be >= 0, got"):
            SharedStore.empty(settings)


def test_a_sample_in_flight_in_one_process_is_waited_for_by_others_and_read_once(tmp_path: Path) -> None:
    log = tmp_path / "reads"
    with store_of(40) as store, signals(2) as (began, go):

        def read(id: int) -> bytes:
            fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(fd, b"%d\n" % id)
            os.close(fd)
            if id == 0:
                began.tell()
                go.wait()
            return sample_of(id, 100 + id)

        def load_all() -> None:
            load = CachedLoad(read, None, store, Stats())
            assert all(load(id) == sample_of(id, 100 + id) for id in range(40))

        with child(load_all) as first, child(load_all) as second, child(load_all) as third:
            began.wait()
            go.tell(3)  # enough for each of them, if each should read it
            assert [each.wait() for each in (first, second, third)] == [0, 0, 0]
        assert sorted(map(int, log.read_text().split())) == list(range(40))


def test_a_forked_childs_locks_exclude_its_parents() -> None:
    with store_of(3) as store:

        def tries() -> None:
            lock_without_waiting()
            assert keep(store, 2, b"another sample is free")
            with pytest.raises(BlockingIOError), store.claimed(1):
                pass

        with store.claimed(1), child(tries) as other:
            assert other.wait() == 0
        assert kept_ids(store) == [2]


def test_a_forked_childs_end_releases_nothing_of_its_parents() -> None:
    with store_of(3) as store:

        def tries() -> None:
            lock_without_waiting()
            with pytest.raises(BlockingIOError), store.claimed(1):
                pass

        with store.claimed(1):
            for _ in range(2):
                with child(tries) as other:
                    assert other.wait() == 0


def keep_and_tell(store: SharedStore, told: Any) -> None:
    """At the top level, for `multiprocessing` to find by name."""
    found = store.find(0)
    told.put((bytes(found) if isinstance(found, bytes) else None, keep(store, 1, b"the child's")))


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_multiprocessing_passes_the_same_memory(method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    with store_of(2) as store:
        keep(store, 0, b"the parent's")
        told = context.SimpleQueue()
        process = context.Process(target=keep_and_tell, args=(store, told))
        process.start()
        process.join()
        assert process.exitcode == 0
        assert told.get() == (b"the parent's", True)
        told.close()
        assert store.find(1) == b"the child's"


def test_an_arena_passes_the_same_memory_and_a_plain_pickle_begins_empty() -> None:
    with store_of(2, pages=8) as store:
        keep(store, 0, b"kept")
        arena = Arena()
        again = arena.load(arena.store(store))
        arena.close()
        keep(again, 1, b"kept too")
        assert store.find(1) == b"kept too"
        again.close()
        fresh = pickle.loads(pickle.dumps(store))
        assert (fresh.settings, kept_ids(fresh)) == (store.settings, [])
        keep(fresh, 0, b"its own")
        assert store.find(0) == b"kept"
        fresh.close()


def test_after_close_what_is_kept_is_found_and_nothing_more_is_kept() -> None:
    with store_of(2) as store:
        keep(store, 0, b"kept")
        store.close()
        store.close()
        assert store.find(0) == b"kept"
        with pytest.raises(RuntimeError, match=r"close\(\) was already called"):
            keep(store, 1, b"late")
