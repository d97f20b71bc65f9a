"""What stores keep, against theory: the bound of any policy, LRU's hit rate, and the knapsack's optimum."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from keeping import child, keep, kept_ids, pages_of, signals, store_of

from pipeline.cache.load import ValuedLoad
from pipeline.cache.shared_store import SharedStore
from pipeline.cache.table import PAGE_BYTES
from pipeline.cache.theory import bound, lru_hit_rate
from pipeline.sampler import ShuffleSampler
from pipeline.stats import Stats

COUNT = 1500


def hits_of_epoch(store: SharedStore, epoch: int) -> int:
    """Ask for every sample once, in the epoch's order, as loading does."""
    hits = 0
    for id in ShuffleSampler(COUNT, seed=0).ids(epoch, np.arange(COUNT)).tolist():
        if store.find(id) is not None:
            hits += 1
        elif store.wants(id):
            keep(store, id, b"x", rank=1.0)
    return hits


@pytest.mark.parametrize("fraction", [0.2, 0.35])
@pytest.mark.parametrize("policy", ["pinned", "lru", "valued"])
def test_a_shared_stores_hit_rates_under_a_reshuffle_are_those_of_theory(policy: str, fraction: float) -> None:
    capacity = round(fraction * COUNT)
    with store_of(COUNT, images=capacity, policy=policy) as store:
        assert hits_of_epoch(store, 0) == 0
        hits = [hits_of_epoch(store, epoch) for epoch in range(1, 6)]
    if policy == "lru":
        assert sum(hits) / (5 * COUNT) == pytest.approx(lru_hit_rate(fraction), abs=0.01)
    else:  # of samples that are all worth the same, the first to come stay
        assert hits == [capacity] * 5


def test_the_formulas_are_right_at_their_ends_and_refuse_what_is_no_fraction() -> None:
    assert (lru_hit_rate(0), lru_hit_rate(1)) == (0, 1)
    assert lru_hit_rate(0.35) == pytest.approx(0.07, abs=0.001)
    assert (bound(0.35, 400, num_cold=100), bound(0.5, 100, num_cold=100), bound(1, 0, num_cold=0)) == (0.2625, 0, 0)
    for fraction in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"fraction must be in \[0, 1\]"):
            lru_hit_rate(fraction)


class Entry(NamedTuple):
    """What a policy may know of a sample that is kept, or that comes."""

    id: int
    came: int
    used: int
    next_use: int
    """Which only a clairvoyant knows."""


_random = np.random.default_rng(6)
# The entry of the highest score goes; if it is the one that comes, that one is not kept.
POLICIES: dict[str, Callable[[Entry], float]] = {
    "Belady's optimum": lambda entry: entry.next_use,
    "LRU": lambda entry: -entry.used,
    "MRU": lambda entry: entry.used,
    "FIFO": lambda entry: -entry.came,
    "first come, first kept": lambda entry: entry.came,
    "random": lambda _: _random.random(),
    "by number": lambda entry: entry.id,
    "used last epoch go": lambda entry: -abs(entry.used - 400),
    "the worst of all": lambda entry: -entry.next_use,
    "clairvoyant half of the time": lambda entry: entry.next_use if entry.used % 2 else -entry.used,
}


def hits_by_epoch(score: Callable[[Entry], float], orders: np.ndarray, capacity: int, *, must_keep: bool) -> list[int]:
    asked = orders.ravel().tolist()
    next_use, later = [0] * len(asked), {}
    for turn in range(len(asked) - 1, -1, -1):
        next_use[turn] = later.get(asked[turn], 2 * len(asked))
        later[asked[turn]] = turn
    kept: dict[int, Entry] = {}
    hits = [0] * len(orders)
    for turn, id in enumerate(asked):
        found = kept.get(id)
        hits[turn // orders.shape[1]] += found is not None
        if found is None and len(kept) == capacity and must_keep:
            del kept[max(kept.values(), key=score).id]
        kept[id] = Entry(id, turn if found is None else found.came, turn, next_use[turn])
        if len(kept) > capacity:
            del kept[max(kept.values(), key=score).id]
    return hits


@pytest.mark.parametrize("must_keep", [True, False], ids=["keeps what comes", "may refuse what comes"])
@pytest.mark.parametrize("name", POLICIES)
def test_no_policy_clairvoyant_or_not_hits_more_than_it_holds_in_an_epoch(name: str, must_keep: bool) -> None:
    count, capacity = 200, 70
    sampler = ShuffleSampler(count, seed=1)
    orders = np.stack([sampler.ids(epoch, np.arange(count)) for epoch in range(6)])
    first, *later = hits_by_epoch(POLICIES[name], orders, capacity, must_keep=must_keep)
    assert first == 0
    assert max(later) <= capacity
    if name == "Belady's optimum":
        # In the last epoch nothing is used again, so all that go are alike.
        assert min(later) >= capacity - 1
    if name == "first come, first kept" and not must_keep:
        assert later == [capacity] * 5


class Knapsack(NamedTuple):
    """Samples of whole pages, with what a page of each saves."""

    pages: np.ndarray
    ranks: np.ndarray
    budget_pages: int

    @classmethod
    def drawn(cls, seed: int) -> Knapsack:
        random = np.random.default_rng(seed)
        pages = [
            random.integers(1, 9, 300),
            np.maximum(1, random.lognormal(0.7, 1, 300).astype(int)),
            np.where(random.random(300) < 0.05, 60, random.integers(1, 4, 300)),
        ][seed % 3]
        return cls(pages, random.lognormal(0, 1, 300), int((0.1, 0.35, 0.6)[seed // 3 % 3] * pages.sum()))

    def fill(self, store: SharedStore, ids: list[int]) -> None:
        for id in ids:
            if store.find(id) is None and store.wants(id):
                keep(store, id, bytes(int(self.pages[id]) * PAGE_BYTES), rank=float(self.ranks[id]))

    def saved_of_optimum(self) -> float:
        """When the last sample may be cut: no choice of whole samples saves more."""
        order = np.argsort(-self.ranks)
        pages = self.pages[order]
        taken = np.clip(self.budget_pages - (np.cumsum(pages) - pages), 0, pages)
        return float((taken * self.ranks[order]).sum())

    def assert_nearly_best(self, store: SharedStore) -> None:
        saved = self.pages * self.ranks
        assert saved[kept_ids(store)].sum() >= self.saved_of_optimum() - saved.max()


@pytest.mark.parametrize("seed", range(12))
def test_a_valued_store_is_within_a_sample_of_the_best_choice_and_stays_there(seed: int) -> None:
    knapsack = Knapsack.drawn(100 + seed)
    with store_of(300, pages=knapsack.budget_pages, policy="valued") as store:
        for epoch in range(3):
            knapsack.fill(store, ShuffleSampler(300, seed).ids(epoch, np.arange(300)).tolist())
            knapsack.assert_nearly_best(store)


@pytest.mark.parametrize("seed", [102, 103, 109, 110])
def test_two_processes_fill_a_valued_store_as_well_as_one(seed: int) -> None:
    knapsack = Knapsack.drawn(seed)
    with store_of(300, pages=knapsack.budget_pages, policy="valued") as store, signals(2) as (mine, theirs):

        def orders(number: int) -> list[list[int]]:
            sampler = ShuffleSampler(300, seed)
            return [sampler.ids(epoch, np.arange(number, 300, 2)).tolist() for epoch in range(4)]

        def fills() -> None:
            for ids in orders(1):
                for id in ids:
                    theirs.wait()
                    knapsack.fill(store, [id])
                    mine.tell()

        with child(fills) as other:
            for ids in orders(0):
                for id in ids:
                    knapsack.fill(store, [id])
                    theirs.tell()
                    mine.wait()
            assert other.wait() == 0
        knapsack.assert_nearly_best(store)


def test_a_sample_refused_while_all_others_are_being_written_is_wanted_still() -> None:
    with store_of(3, images=1, policy="valued") as store:
        with store.claimed(0):
            store._place(0, 1, 1.0)  # as a writer that has its place, and is not done
            assert not keep(store, 1, b"x", rank=5.0)
            store.keep(0, b"x", rank=1.0)
        assert store.wants(1)
        assert keep(store, 1, b"x", rank=5.0)
        assert kept_ids(store) == [1]


def test_samples_that_take_long_to_read_are_kept_in_the_end() -> None:
    slow = list(range(3, 40, 4))

    def read(id: int) -> bytes:
        if id in slow:
            time.sleep(0.03)
        return pages_of(id)

    with store_of(40, pages=len(slow), policy="valued") as store:
        load = ValuedLoad(read, None, store, Stats())
        for epoch in range(3):
            for id in ShuffleSampler(40, seed=2).ids(epoch, np.arange(40)).tolist():
                assert load(id) == pages_of(id)
        # One or another fast one may have been read while the machine did something else.
        assert len(set(kept_ids(store)) & set(slow)) >= len(slow) - 3


def test_of_a_file_and_its_pixels_the_one_that_saves_more_a_byte_is_kept() -> None:
    def decode(id: int, _: bytes) -> np.ndarray:
        until_s = time.thread_time() + (0.1 if id == 1 else 0.0)
        while time.thread_time() < until_s:
            pass
        return np.full((8, 8, 3), id, np.uint8)

    def read(id: int) -> bytes:
        if id == 0:
            time.sleep(0.05)
        return bytes([id]) * 100

    with store_of(2, policy="valued") as store:
        load = ValuedLoad(read, decode, store, Stats())
        for id in (0, 1):
            np.testing.assert_array_equal(load(id), np.full((8, 8, 3), id, np.uint8))
        assert store.find(0) == bytes(100), "a file half as large saves the same reading"
        assert isinstance(store.find(1), np.ndarray), "its pixels save its decoding too"
        np.testing.assert_array_equal(load(0), np.zeros((8, 8, 3), np.uint8))
        assert isinstance(store.find(0), np.ndarray), "while there is room, a file that is used becomes its pixels"


def test_a_file_whose_pixels_do_not_fit_stays_a_file() -> None:
    def decode(id: int, _: bytes | np.ndarray) -> np.ndarray:
        return np.full((100, 100, 3), id, np.uint8)

    def read(id: int) -> bytes:
        time.sleep(0.01)  # reading a file, so small, is what is worth saving
        return bytes([id]) * 10

    with store_of(3, pages=4, policy="valued") as store:
        load = ValuedLoad(read, decode, store, Stats())
        for _ in range(3):
            for id in range(3):
                load(id)
            assert [store.has(id) for id in range(3)] == [True, True, True]
