"""Caches: what they keep, what they count, and that theory's hit rates are met."""

from __future__ import annotations

import math
import os
import pickle
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipeline.cache import LRUCache, PinnedCache
from pipeline.cache.load import CachedLoad, Sample, sample_bytes
from pipeline.cache.private_store import PrivateStore
from pipeline.cache.settings import Settings
from pipeline.config import CachePolicy
from pipeline.sampler import ShuffleSampler
from pipeline.stats import Stats


def through_lru(load: Callable[[int], Sample]) -> CachedLoad:
    return CachedLoad(load, None, PrivateStore(Settings(100, 1000, 10, CachePolicy.lru)), Stats())


def test_the_least_recently_used_entry_goes_first_and_a_get_is_a_use() -> None:
    cache: LRUCache[str, int] = LRUCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert "b" not in cache
    assert (cache.get("a"), cache.get("c"), len(cache)) == (1, 3, 2)


def test_asking_whether_a_key_is_kept_is_no_use_and_counts_nothing() -> None:
    cache: LRUCache[str, int] = LRUCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert "a" in cache
    cache.put("c", 3)
    assert "a" not in cache
    assert cache.stats()["hits"] == cache.stats()["misses"] == 0


def test_a_miss_gives_the_default() -> None:
    cache: LRUCache[str, int] = LRUCache(1)
    assert cache.get("a") is None
    assert cache.get("a", 7) == 7


def test_hits_misses_evictions_and_bytes_are_counted() -> None:
    cache: LRUCache[int, bytes] = LRUCache(2, size_of=len)
    for key in range(3):
        cache.put(key, b"x" * (key + 1))
    cache.get(0)
    cache.get(2)
    assert cache.stats() == {"hits": 1, "misses": 1, "evictions": 1, "entries": 2, "bytes": 5}
    cache.clear()
    assert cache.stats() == {"hits": 1, "misses": 1, "evictions": 1, "entries": 0, "bytes": 0}


def test_a_replaced_value_gives_its_bytes_back() -> None:
    cache: LRUCache[int, bytes] = LRUCache(None, max_bytes=10, size_of=len)
    cache.put(1, b"x" * 8)
    cache.put(1, b"x" * 3)
    cache.put(2, b"x" * 7)
    assert cache.stats()["bytes"] == 10
    cache.put(3, b"x" * 11)
    assert 3 not in cache, "a value larger than the whole budget is not kept"


def test_the_byte_budget_evicts_as_many_as_it_takes() -> None:
    cache: LRUCache[int, bytes] = LRUCache(None, max_bytes=10, size_of=len)
    for key in range(5):
        cache.put(key, b"xx")
    cache.put(9, b"x" * 9)
    assert len(cache) == 1


def test_capacity_zero_keeps_nothing_and_less_is_refused() -> None:
    cache: LRUCache[int, int] = LRUCache(0)
    cache.put(1, 1)
    assert len(cache) == 0
    with pytest.raises(ValueError, match="capacity must be >= 0, got -1"):
        LRUCache(-1)
    with pytest.raises(ValueError, match="max_bytes must be >= 0, got -1"):
        LRUCache(None, max_bytes=-1)


def test_a_pinned_cache_keeps_the_first_that_fit_for_good() -> None:
    cache: PinnedCache[int, bytes] = PinnedCache(3, max_bytes=10, size_of=len)
    for key, size in ((1, 4), (2, 8), (3, 4), (4, 2), (5, 1)):
        cache.put(key, b"x" * size)
    assert [key for key in range(1, 6) if key in cache] == [1, 3, 4]
    assert cache.stats()["evictions"] == 0


def test_pickling_a_cache_keeps_its_entries_and_leaves_the_lock() -> None:
    cache: LRUCache[int, bytes] = LRUCache(2, size_of=len)
    cache.put(1, b"one")
    again = pickle.loads(pickle.dumps(cache))
    assert again.get(1) == b"one"
    again.put(2, b"two")
    assert len(again) == 2


def test_threads_never_break_the_budget_or_the_counts() -> None:
    cache: LRUCache[int, bytes] = LRUCache(50, size_of=len)

    def use(seed: int) -> int:
        for key in np.random.default_rng(seed).integers(0, 100, 2000).tolist():
            if cache.get(key) is None:
                cache.put(key, b"x" * (key + 1))
        return 2000

    with ThreadPoolExecutor(8) as pool:
        asked = sum(pool.map(use, range(8)))
    stats = cache.stats()
    assert stats["hits"] + stats["misses"] == asked
    assert stats["entries"] == len(cache) == 50
    assert stats["bytes"] == sum(key + 1 for key in range(100) if key in cache)


@pytest.mark.parametrize("fraction", [0.2, 0.35, 0.65])
def test_under_a_reshuffle_every_epoch_hit_rates_are_those_of_theory(fraction: float) -> None:
    count, epochs = 3000, 8
    sampler = ShuffleSampler(count, seed=0)
    rates = {}
    for policy in (LRUCache, PinnedCache):
        cache = policy(round(fraction * count))
        for epoch in range(epochs):
            before = cache.stats()["hits"]
            for id in sampler.ids(epoch, np.arange(count)).tolist():
                if cache.get(id) is None:
                    cache.put(id, True)
            if policy is PinnedCache and epoch:
                assert cache.stats()["hits"] - before == round(fraction * count)
        first_epoch_misses = count
        rates[policy] = cache.stats()["hits"] / (cache.stats()["misses"] + cache.stats()["hits"] - first_epoch_misses)
    expected = fraction + (1 - fraction) * math.log(1 - fraction)
    assert rates[LRUCache] == pytest.approx(expected, abs=0.01)
    assert rates[PinnedCache] == pytest.approx(fraction, abs=1 / count)


def test_a_load_in_flight_is_waited_for_and_never_begun_twice() -> None:
    began, go = threading.Event(), threading.Event()
    calls: list[int] = []

    def load(id: int) -> bytes:
        calls.append(id)
        began.set()
        assert go.wait(60)
        return b"sample"

    cached = through_lru(load)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(cached, 1)
        assert began.wait(60)
        others = [pool.submit(cached, 1) for _ in range(3)]
        go.set()
        assert [future.result(60) for future in (first, *others)] == [b"sample"] * 4
    assert calls == [1]


def test_a_failed_load_is_raised_and_tried_again_by_the_next() -> None:
    answers = iter([OSError("not yet"), b"sample"])

    def load(_: int) -> bytes:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    cached = through_lru(load)
    with pytest.raises(OSError, match="not yet"):
        cached(1)
    assert cached(1) == b"sample"


def test_cached_pixels_cannot_be_written_to() -> None:
    cached = through_lru(lambda _: np.zeros((2, 2, 3), np.uint8))
    for _ in range(2):
        pixels = cached(1)
        assert isinstance(pixels, np.ndarray)
        with pytest.raises(ValueError, match="read-only"):
            pixels[0] = 1
    assert sample_bytes(pixels) == 12
    assert sample_bytes(b"abc") == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_loads_what_the_parent_had_in_flight() -> None:
    began, go = threading.Event(), threading.Event()
    parent = os.getpid()

    def load(_: int) -> bytes:
        if os.getpid() == parent:
            began.set()
            assert go.wait(60)
        return b"sample"

    cached = through_lru(load)
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(cached, 1)
        assert began.wait(60)
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            os._exit(0 if cached(1) == b"sample" else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        go.set()
        assert loading.result(60) == b"sample"


def test_a_value_whose_finalizer_asks_the_cache_does_not_lock_it() -> None:
    cache: LRUCache[int, object] = LRUCache(1)

    class Asking:
        def __del__(self) -> None:
            cache.get(1)

    cache.put(1, Asking())
    cache.put(1, Asking())
    cache.put(2, None)
    cache.clear()
    assert len(cache) == 0
