"""Processes that are killed while they use a store: no byte is ever wrong, nobody waits, and the budget holds."""

from __future__ import annotations

import mmap
import os
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from keeping import (
    Child,
    Signal,
    child,
    data_bytes,
    keep,
    kept_ids,
    limit_s,
    number,
    pages_of,
    sample_of,
    signals,
    store_of,
)
from watching import SOAK

from pipeline.cache import extents
from pipeline.cache.shared_store import SharedStore
from pipeline.cache.table import PAGE_BYTES, Field

POLICIES = ["pinned", "lru", "valued"]
AT_ONCE_S = 30


def stands_still(told: Signal) -> None:
    """Tell, and wait for SIGKILL."""
    told.tell()
    with signals(1) as (never,):
        never.wait()


class HalfWritten:
    """Data whose writer stands still in the middle of a sample."""

    def __init__(self, data: np.ndarray, told: Signal) -> None:
        self._data = data
        self._told = told

    def __setitem__(self, place: slice, content: np.ndarray) -> None:
        half = len(content) // 2
        self._data[place.start : place.start + half] = content[:half]
        stands_still(self._told)


def dies_after(store: SharedStore, owner: Any, name: str, told: Signal) -> None:
    """`owner.name` works once more and then stands still."""
    whole = getattr(owner, name)

    def does_it_and_stands_still(*arguments: Any) -> None:
        whole(*arguments)
        stands_still(told)

    setattr(owner, name, does_it_and_stands_still)


def dies_while_it_writes(store: SharedStore, told: Signal) -> None:
    store._data = HalfWritten(store._data, told)  # type: ignore[assignment]


PLACES: dict[str, Callable[[SharedStore, Signal], None]] = {
    "when it had room": lambda store, told: dies_after(store, store._extents, "reserve", told),
    "when it had said where": lambda store, told: dies_after(store, store, "_place", told),
    "half way through the bytes": dies_while_it_writes,
}


def kill_where(
    store: SharedStore, die: Callable[[SharedStore, Signal], None], id: int, sample: Any, rank: float = 1e6
) -> None:
    """Let a child keep `sample` and kill it where `die` has it stand still."""
    with signals(1) as (told,):

        def dies() -> None:
            die(store, told)
            keep(store, id, sample, rank=rank)

        with child(dies) as killed:
            told.wait()
            killed.kill()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("where", PLACES)
def test_a_sample_whose_writer_was_killed_is_not_there_and_can_be_kept_at_once(where: str, policy: str) -> None:
    with store_of(8, pages=6, policy=policy) as store:
        keep(store, 1, pages_of(1), rank=5.0)
        kill_where(store, PLACES[where], 3, pages_of(3, 2))
        with limit_s(AT_ONCE_S):
            assert store.find(3) is None
            assert not store.has(3)
            assert store.wants(3)
            assert keep(store, 3, pages_of(3, 2), rank=5.0)
            assert keep(store, 4, pages_of(4), rank=5.0)
        assert [store.find(id) for id in (1, 3, 4)] == [pages_of(1), pages_of(3, 2), pages_of(4)]
        assert number(store, Field.kept_bytes) <= 6 * PAGE_BYTES


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("where", ["when it had said where", "half way through the bytes"])
def test_a_dead_writers_place_is_written_again_and_counted_once(where: str, policy: str) -> None:
    with store_of(8, pages=2, policy=policy) as store:
        for _ in range(3):
            kill_where(store, PLACES[where], 3, pages_of(3, 2))
            assert number(store, Field.kept_bytes) == 2 * PAGE_BYTES
        word = int(store._words[3])
        with limit_s(AT_ONCE_S):
            assert keep(store, 3, pages_of(3, 2), rank=5.0)
        assert int(store._words[3]) == -word
        assert store.find(3) == pages_of(3, 2)
        assert (number(store, Field.kept_bytes), number(store, Field.kept_images)) == (2 * PAGE_BYTES, 1)
        assert data_bytes(store) == 2 * PAGE_BYTES


@pytest.mark.parametrize("policy", ["lru", "valued"])
def test_a_dead_writers_place_serves_another_form_of_the_sample_too(policy: str) -> None:
    pixels = np.arange(PAGE_BYTES * 3 // 2, dtype=np.int64).astype(np.uint8).reshape(32, 64, 3)
    with store_of(8, pages=2, policy=policy) as store:
        kill_where(store, PLACES["when it had said where"], 3, pages_of(3))
        with limit_s(AT_ONCE_S):
            assert keep(store, 3, pixels, rank=5.0), "the budget is still counted as taken"
        np.testing.assert_array_equal(store.find(3), pixels)
        assert number(store, Field.kept_bytes) <= 2 * PAGE_BYTES


@pytest.mark.parametrize("policy", ["lru", "valued"])
def test_what_died_where_there_was_room_is_counted_anew_by_the_next_to_come(policy: str) -> None:
    with store_of(20, pages=6, policy=policy) as store:
        for id in range(3):
            kill_where(store, PLACES["when it had room"], id, pages_of(id, 2))
        assert number(store, Field.kept_bytes) == 2 * PAGE_BYTES, "what the last one counted, and nobody has kept"
        for id in range(3, 9):
            assert keep(store, id, pages_of(id), rank=1.0)
        assert kept_ids(store) == list(range(3, 9))
        assert number(store, Field.kept_bytes) == 6 * PAGE_BYTES


def test_a_pinned_store_whose_writers_die_wastes_their_bytes_and_gives_no_place_twice() -> None:
    with store_of(8, pages=4) as store:
        for _ in range(2):
            kill_where(store, PLACES["when it had room"], 3, pages_of(3))
        kept = [keep(store, id, pages_of(id)) for id in (3, 4, 5)]
        assert kept == [True, True, False]
        assert [store.find(id) for id in (3, 4)] == [pages_of(3), pages_of(4)]


def test_a_dead_writers_sample_is_wanted_however_little_it_is_worth() -> None:
    with store_of(8, pages=2, policy="valued") as store:
        keep(store, 1, pages_of(1), rank=10.0)
        kill_where(store, PLACES["when it had said where"], 3, pages_of(3), rank=1.0)
        assert not keep(store, 4, pages_of(4), rank=5.0), "the only one that could go is worth more"
        assert store.wants(3), "its place is lost for ever"
        assert keep(store, 3, pages_of(3), rank=1.0)
        assert store.find(3) == pages_of(3)
        assert keep(store, 5, pages_of(5), rank=20.0), "the place is not to be had again"


def test_a_process_killed_while_a_file_gives_way_to_its_pixels_leaves_nothing_that_is_not_counted() -> None:
    with store_of(8, pages=6, policy="valued") as store:
        for _ in range(3):
            keep(store, 1, bytes(PAGE_BYTES), rank=1.0)
            with signals(1) as (told,):

                def dies() -> None:
                    extents._punch_hole = lambda *_: stands_still(told)
                    with store.claimed(1):
                        store.exchange(1, np.zeros((10, 10, 3), np.uint8), rank=2.0)

                with child(dies) as killed:
                    told.wait()
                    killed.kill()
            assert store.find(1) is None
        assert keep(store, 2, bytes(PAGE_BYTES), rank=1.0)
        assert number(store, Field.kept_bytes) == PAGE_BYTES
        assert data_bytes(store) == PAGE_BYTES


@pytest.mark.parametrize("policy", ["lru", "valued"])
def test_the_next_to_come_gives_back_the_memory_that_a_killed_process_had_evicted(policy: str) -> None:
    def dies_before_the_hole(_: SharedStore, told: Signal) -> None:
        extents._punch_hole = lambda *_: stands_still(told)

    with store_of(40, pages=8, policy=policy) as store:
        for id in range(4):
            keep(store, id, pages_of(id, 2), rank=1.0 + id)
        kill_where(store, dies_before_the_hole, 10, pages_of(10, 3))  # no place for it where one of the others lay
        with limit_s(AT_ONCE_S):
            assert [store.find(id) for id in (0, 1)] == [None, None]
            assert [store.find(id) for id in (2, 3)] == [pages_of(id, 2) for id in (2, 3)]
            assert data_bytes(store) == 8 * PAGE_BYTES, "the dead one gave back what it had evicted"
            assert keep(store, 10, pages_of(10, 3), rank=10.0)
        assert number(store, Field.kept_bytes) == 7 * PAGE_BYTES
        assert data_bytes(store) == 7 * PAGE_BYTES, "what the dead one left was not found"
        assert [store.find(id) for id in (2, 3, 10)] == [pages_of(2, 2), pages_of(3, 2), pages_of(10, 3)]


def test_a_claim_goes_to_the_next_at_once_when_its_holder_is_killed() -> None:
    with store_of(8) as store, signals(1) as (told,):

        def holds() -> None:
            with store.claimed(3):
                stands_still(told)

        with child(holds) as killed:
            told.wait()
            killed.kill()
        with limit_s(AT_ONCE_S):
            assert keep(store, 3, b"kept")


class Crowd:
    """Readers that check every byte, and one writer at a time that is killed over and over."""

    def __init__(self, store: SharedStore, samples: list[bytes]) -> None:
        self._store = store
        self._samples = samples
        self._stop = mmap.mmap(-1, 1)  # forked children see it change

    def read(self, seed: int) -> None:
        os.nice(5)  # or those that write would seldom come to it
        ids, found = random.Random(seed), 0
        while not self._stop[0] or not found:
            for _ in range(200):
                id = ids.randrange(len(self._samples))
                sample = self._store.find(id)
                assert sample is None or sample == self._samples[id], f"sample {id} is torn"
                found += sample is not None

    def write(self, seed: int, keeps: int, told: Signal) -> None:
        ids, turn = random.Random(seed), 0
        while True:
            id = ids.randrange(len(self._samples))
            if self._store.find(id) is None:
                keep(self._store, id, self._samples[id], rank=time.monotonic())
            turn += 1
            if turn == keeps:
                told.tell()

    def kill_writers(self, count: int) -> None:
        """Each at some moment after it has kept a few, while another goes on."""
        moments = random.Random(count)
        with signals(1) as (told,), child(lambda: self.write(count, 10**9, told)):
            for turn in range(count):
                keeps, spin_s = moments.randrange(1, 20), moments.uniform(0, 2e-3)
                with child(lambda turn=turn, keeps=keeps: self.write(turn, keeps, told)) as killed:  # type: ignore[misc]
                    told.wait()
                    until_s = time.perf_counter() + spin_s
                    while time.perf_counter() < until_s:
                        pass
                    killed.kill()

    def end(self, readers: list[Child]) -> None:
        self._stop[0] = 1
        assert [reader.wait() for reader in readers] == [0] * len(readers)
        self._stop.close()


@pytest.mark.soak
@pytest.mark.parametrize(("policy", "pages"), [("pinned", 5000), ("lru", 64), ("lru", 6), ("valued", 64)])
def test_writers_killed_at_random_tear_no_sample_hold_up_nobody_and_break_no_budget(policy: str, pages: int) -> None:
    sizes = np.random.default_rng(0).integers(1, min(5, pages // 2) * PAGE_BYTES, 1000 if policy == "pinned" else 100)
    samples = [sample_of(id, size) for id, size in enumerate(sizes.tolist())]
    with store_of(len(samples), pages=pages, policy=policy) as store:
        crowd = Crowd(store, samples)
        with (
            child(lambda: crowd.read(1)) as one,
            child(lambda: crowd.read(2)) as other,
            child(lambda: crowd.read(3)) as third,
        ):
            crowd.kill_writers(200 if SOAK else 20)
            crowd.end([one, other, third])
        assert number(store, Field.kept_bytes) > 0
        with limit_s(AT_ONCE_S):
            for id, sample in enumerate(samples):
                assert keep(store, id, sample, rank=1e9 + id)
                assert store.find(id) == sample
                assert number(store, Field.kept_bytes) <= pages * PAGE_BYTES
        assert all(store.find(id) == samples[id] for id in kept_ids(store))
        if policy != "pinned":
            assert data_bytes(store) <= pages * PAGE_BYTES
        assert os.fstat(store._locks.fd).st_nlink == 0
