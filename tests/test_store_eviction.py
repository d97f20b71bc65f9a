"""Stores that evict: what goes for what comes, and that the budget holds at every moment and in real memory."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from keeping import child, data_bytes, keep, kept_ids, number, pages_of, signals, store_of

from pipeline.cache.load import Sample
from pipeline.cache.table import PAGE_BYTES, Field, start_of, whole_pages

EVICTING = ["lru", "valued"]


def sizes_of(kind: str, count: int) -> list[int]:
    random = np.random.default_rng(5)
    drawn = {
        "skewed": random.lognormal(9, 1.2, count),
        "any": random.integers(1, 64 * PAGE_BYTES, count),
        "small": random.integers(1, PAGE_BYTES + 2, count),
        "few large": np.where(random.random(count) < 0.1, 40 * PAGE_BYTES, PAGE_BYTES),
    }[kind]
    sizes: list[int] = np.maximum(1, drawn.astype(np.int64)).tolist()
    return sizes


@pytest.mark.parametrize("policy", EVICTING)
@pytest.mark.parametrize("kind", ["skewed", "any", "few large"])
def test_a_store_that_evicts_is_never_a_byte_above_its_budget_and_gives_memory_back(policy: str, kind: str) -> None:
    sizes, budget_bytes, written_bytes = sizes_of(kind, 300), 64 * PAGE_BYTES, 0
    random = np.random.default_rng(2)
    with store_of(300, pages=64, policy=policy) as store:
        for turn in range(2000):
            id = int(random.integers(300))
            if store.find(id) is None:
                # In a store that goes by value every newcomer is worth more, or nothing would go for long.
                written_bytes += keep(store, id, bytes(sizes[id]), rank=1.0 + turn) * sizes[id]
            assert number(store, Field.kept_bytes) <= budget_bytes
            if turn % 50 == 0:
                really = sum(whole_pages(sizes[id]) for id in kept_ids(store))
                assert number(store, Field.kept_bytes) == really <= budget_bytes
                assert data_bytes(store) <= budget_bytes
        assert written_bytes > 10 * 4 * budget_bytes, "the addresses came round only a few times"


@pytest.mark.parametrize("kind", ["skewed", "any", "small", "few large"])
def test_an_lru_evicts_what_an_ordered_dictionary_would_counted_in_whole_pages(kind: str) -> None:
    sizes, room = sizes_of(kind, 120), 64 * PAGE_BYTES
    oracle: OrderedDict[int, int] = OrderedDict()
    random = np.random.default_rng(3)
    with store_of(120, pages=64, policy="lru") as store:
        for _ in range(2000):
            id = int(random.integers(120))
            found = store.find(id)
            assert (found is not None) == (id in oracle)
            if found is not None:
                oracle.move_to_end(id)
                continue
            size_bytes = whole_pages(sizes[id])
            while room < size_bytes <= 64 * PAGE_BYTES:
                room += oracle.popitem(last=False)[1]
            if size_bytes <= room:
                oracle[id] = size_bytes
                room -= size_bytes
            assert keep(store, id, bytes(sizes[id])) == (id in oracle)
        assert kept_ids(store) == sorted(oracle)
        assert store.stats()["evictions"] > 500


def test_an_lru_finds_room_where_samples_in_use_lie_scattered() -> None:
    with store_of(30, pages=16, policy="lru") as store:
        for turn in range(8):
            keep(store, 10 + turn, pages_of(10 + turn, 7))
            keep(store, turn, pages_of(turn))
            for used in range(turn + 1):
                assert store.find(used) is not None
        assert keep(store, 29, pages_of(29, 8)), "eight pages are free, but no eight in a row"
        assert store.find(29) == pages_of(29, 8)
        assert number(store, Field.kept_bytes) <= 16 * PAGE_BYTES


def test_two_processes_that_take_turns_make_one_lru() -> None:
    random = np.random.default_rng(4)
    ids = random.integers(0, 60, 600).tolist()
    with store_of(60, pages=20, policy="lru") as store, signals(2) as (mine, theirs):

        def use(id: int) -> None:
            if store.find(id) is None:
                keep(store, id, pages_of(id))

        def every_second() -> None:
            for id in ids[1::2]:
                theirs.wait()
                use(id)
                mine.tell()

        oracle: OrderedDict[int, None] = OrderedDict()
        with child(every_second) as other:
            for first, second in zip(ids[::2], ids[1::2], strict=True):
                use(first)
                theirs.tell()
                mine.wait()
                for id in (first, second):
                    oracle[id] = None
                    oracle.move_to_end(id)
                    if len(oracle) > 20:
                        oracle.popitem(last=False)
                assert kept_ids(store) == sorted(oracle)
            assert other.wait() == 0


def test_a_reader_never_takes_another_sample_for_its_own_that_left_and_came_back_to_its_place() -> None:
    def image(id: int) -> np.ndarray:
        return np.full((64, 64, 3), id, np.uint8)  # three pages

    with store_of(60, pages=6, policy="lru") as store:
        keep(store, 0, image(0))
        place, copied = start_of(int(store._words[0])), store._copied

        def copied_late(where: np.ndarray, form: int) -> Sample:
            for id in range(1, 9):  # eight places: the last of these is where sample 0 was
                keep(store, id, image(id))
            copy = copied(where, form)
            for id in range(9, 16):
                keep(store, id, image(id))
            keep(store, 0, image(0))
            assert start_of(int(store._words[0])) == place
            store._copied = copied  # type: ignore[method-assign]
            return copy

        store._copied = copied_late  # type: ignore[method-assign]
        found = store.find(0)
        assert found is None or np.array_equal(found, image(0))


def test_a_reader_meets_no_error_when_a_sample_comes_back_in_another_form() -> None:
    pixels = np.full((64, 42, 3), 7, np.uint8)

    class ChangesMeanwhile:
        """Forms; while one is asked for, sample 0 leaves the end of the data and comes back larger."""

        def __getitem__(self, id: int) -> Any:
            store._forms = forms
            keep(store, 20, pages_of(20, 2), rank=200.0)
            keep(store, 0, pixels, rank=300.0)
            return forms[id]

    with store_of(30, pages=2, policy="valued") as store:
        for id in range(1, 8):
            keep(store, id, pages_of(id), rank=float(id))
        keep(store, 0, pages_of(0), rank=100.0)
        forms, store._forms = store._forms, ChangesMeanwhile()  # type: ignore[assignment]
        assert store.find(0) is None
        np.testing.assert_array_equal(store.find(0), pixels)


@pytest.mark.parametrize("sample", [pages_of(0, 4), np.ones((64, 80, 3), np.uint8)], ids=["bytes", "pixels"])
def test_a_reader_who_comes_when_the_sample_has_gone_takes_no_memory(sample: Sample) -> None:
    with store_of(8, pages=7, policy="valued") as store:
        keep(store, 0, sample, rank=1.0)
        keep(store, 1, pages_of(1), rank=3.0)
        copied = store._copied

        def copied_late(where: np.ndarray, form: int) -> Sample:
            keep(store, 2, pages_of(2, 3), rank=2.0)  # sample 0 goes, and three of its four pages become sample 2's
            assert start_of(int(store._words[2])) == 0
            return copied(where, form)

        store._copied = copied_late  # type: ignore[method-assign]
        assert store.find(0) is None
        assert data_bytes(store) == 4 * PAGE_BYTES
        assert [store.find(id) for id in (1, 2)] == [pages_of(1), pages_of(2, 3)]
