"""config.cache + config.preload -> the callable that loads samples. A part of `build.py`, in a file of its own."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from pipeline.build_budget import StorePlan, free_bytes, num_stores_beside, preload_cures, promised
from pipeline.build_pack import build_pack
from pipeline.build_store import fill, is_shared, keep_looked_at, shared_store
from pipeline.cache.host import HostRank, host_rank
from pipeline.cache.load import HITS, MISSES, CachedLoad, RankedStore, Sample, Store, ValuedLoad
from pipeline.cache.packed import PackedLoad
from pipeline.cache.private_store import PrivateStore
from pipeline.cache.settings import Kind
from pipeline.cache.theory import bound
from pipeline.config import Cache, CachePolicy, ConfigError, Preload, Transforms
from pipeline.loader.read import Decoding, TimedRead
from pipeline.sources import Source
from pipeline.stats import Stats
from pipeline.transforms.sample import rendering_of


@dataclass(slots=True)
class Loading:
    """Where samples are loaded from: the source itself, or a store or pack before it."""

    load: Callable[[int], Sample]
    store: Store | None = None
    is_preloaded: bool = False
    """Whether it was filled before the first epoch."""

    def stats(
        self, counts: Stats, *, first_epoch_samples: int | None, epoch_samples: float, has_bound: bool
    ) -> dict[str, float]:
        """The store's numbers for people; none without a store.

        The bound is of what was asked for not for the first time: in the first loop, of `first_epoch_samples` (None
        while it lasts), nothing is, and in the next, where that was a part of an epoch's `epoch_samples`, as many. It
        `has_bound` unless samples are drawn with replacement.
        """
        if self.store is None:
            return {}
        hits, misses = counts.total(HITS), counts.total(MISSES)
        asked = hits + misses
        kept = self.store.stats()
        fraction = kept["entries"] / max(1, self.store.settings.num_samples)
        numbers: dict[str, float] = {"cache_hits": hits, "cache_misses": misses}
        numbers |= {f"cache_{name}": number for name, number in kept.items()}
        numbers["cache_kept_pct"] = 100 * fraction
        numbers["cache_capacity_pct"] = 100 * self._capacity(self.store, kept)
        numbers["cache_hit_pct"] = 100 * hits / max(1, asked)
        if has_bound:
            num_cold = 0.0
            if not self.is_preloaded:
                first = asked if first_epoch_samples is None else first_epoch_samples
                num_cold = first + max(0.0, 1 - first / epoch_samples) * min(asked - first, epoch_samples)
            numbers["cache_bound_pct"] = 100 * bound(fraction, asked, num_cold=num_cold)
        return numbers

    @staticmethod
    def _capacity(store: Store, kept: dict[str, int]) -> float:
        """The part of all samples that there is room for, judged by the size of those that are kept."""
        num_samples, num_kept = max(1, store.settings.num_samples), kept["entries"]
        if store.is_full:
            return num_kept / num_samples
        room = store.settings.max_bytes * num_kept / max(1, kept["bytes"]) if num_kept else math.inf
        return min(num_samples, room, store.settings.max_images or math.inf) / num_samples


def build_loading(
    source: Source,
    cache: Cache,
    preloading: Preload,
    transforms: Transforms,
    *,
    num_threads: int,
    name: str,
    stats: Stats,
    resources: ExitStack,
    in_processes: bool = False,
    world_size: int = 1,
    passes_over: Callable[[Exception], bool] = lambda _: False,
) -> Loading:
    """What loads samples by id, through the store that the configuration asks for, preloaded if it says so.

    Args:
        source: what the store is filled from.
        cache: the configuration's group.
        preloading: the configuration's group.
        transforms: their pixel options decide what a decoded store may keep.
        num_threads: threads that preload.
        name: what is preloaded, for the progress bar.
        stats: counts what is really read and decoded, and the store's hits and misses.
        resources: closes a store and a pack file.
        in_processes: worker processes are to load.
        world_size: how many ranks do the same with the same samples; those of one host share a store.
        passes_over: the errors of samples that are not preloaded for them; whoever loads them meets them again.
    """
    making = _Making(source, transforms, stats, name, num_threads, passes_over)
    read: Callable[[int], Sample] = source.read
    if preloading.mode == "pack":
        read = making.packed(cache, preloading, resources)
        if cache.store == "decoded":
            return Loading(read)  # a cache before mapped pixels would keep them twice: the configuration refuses it
    is_preload = preloading.mode == "ram"
    policy = CachePolicy.pinned if is_preload else cache.policy
    if policy is CachePolicy.none:
        return Loading(TimedRead(read, stats))
    rank = host_rank() if world_size > 1 else None
    shares_with_ranks = rank is not None and policy is not CachePolicy.lru
    plan = StorePlan(
        cache=cache,
        transforms=transforms,
        policy=policy,
        is_preload=is_preload,
        name=name,
        read=read,
        num_samples=len(source),
        num_stores=1 if shares_with_ranks else num_stores_beside(world_size, rank),
    )
    store: Store
    if is_shared(policy, in_processes=in_processes):
        store = shared_store(
            plan.settings,
            rank=rank if shares_with_ranks else None,
            name=lambda: f"{name} {hashlib.sha256(plan.identity(source.fingerprint()).encode()).hexdigest()[:16]}",
            resources=resources,
            begin=lambda made: making.begin(made, plan),
        )
    else:
        store = PrivateStore(plan.settings())
        making.begin(store, plan)
    resources.enter_context(promised(store, plan.likely_bytes))
    load = making.through(store, read)
    if is_preload:
        making.fill(load, store, rank)
    return Loading(load, store, is_preloaded=is_preload)


def could_keep_pixels(source: Source, cache: Cache, transforms: Transforms, *, world_size: int = 1) -> bool:
    """Whether `cache`, were it pinned, would have room for all of `source` as pixels; False where it is refused.

    Says what `build_loading` would decide now, by the same look at a few samples.
    """
    rank = host_rank() if world_size > 1 else None
    plan = StorePlan(
        cache=replace(cache, policy=CachePolicy.pinned),
        transforms=transforms,
        policy=CachePolicy.pinned,
        is_preload=False,
        name="samples",
        read=source.read,
        num_samples=len(source),
        num_stores=1 if rank is not None else num_stores_beside(world_size, rank),
    )
    try:
        settings = plan.settings()
    except ConfigError:
        return False
    keeps_all = settings.max_images is None or settings.max_images >= len(source)
    if cache.max_gib is not None and plan.likely_bytes + settings.max_bytes * plan.num_stores > free_bytes():
        return False  # evaluation's store asks for as much again
    return settings.kind is not Kind.encoded and keeps_all and plan.likely_bytes < settings.max_bytes


@dataclass(frozen=True, slots=True)
class _Making:
    """What is the same for every load that is made of one source."""

    source: Source
    transforms: Transforms
    stats: Stats
    name: str
    num_threads: int
    passes_over: Callable[[Exception], bool]

    def packed(self, cache: Cache, preloading: Preload, resources: ExitStack) -> PackedLoad:
        """From a pack of files, or of pixels where `cache.store` says so."""
        decoded = cache.store == "decoded"
        return build_pack(
            self.source,
            preloading,
            self._decoding(TimedRead(self.source.read, self.stats)) if decoded else self.source.read,
            decoded=decoded,
            transforms=self.transforms,
            num_threads=self.num_threads,
            name=self.name,
            resources=resources,
            passes_over=self.passes_over,
        )

    def through(self, store: Store, read: Callable[[int], Sample]) -> CachedLoad | ValuedLoad:
        """From `store`, which `read` fills."""
        read = TimedRead(read, self.stats)
        keeps_pixels = store.settings.kind is not Kind.encoded
        decode = self._decoding(read, borrow=store.copies).decode if keeps_pixels else None
        if store.settings.policy is CachePolicy.valued:
            assert isinstance(store, RankedStore)
            return ValuedLoad(read, decode, store, self.stats)
        return CachedLoad(read, decode, store, self.stats)

    def begin(self, store: Store, plan: StorePlan) -> None:
        """Keep the samples that were read for an estimate: no file is opened a second time for it."""
        keep_looked_at(self.through(store, plan.read), plan.looked_at, self.stats)
        plan.looked_at.clear()

    def fill(self, load: Callable[[int], Sample], store: Store, rank: HostRank | None) -> None:
        """Load all samples into `store`; of several ranks each begins with a part of its own."""
        ids = np.arange(len(self.source))
        if rank is not None:
            ids = np.roll(ids, -(len(ids) * rank.local_rank // rank.local_world_size))
        cures = preload_cures(store.settings.kind)
        name, num_threads = self.name, self.num_threads
        fill(load, store, ids.tolist(), num_threads=num_threads, name=name, cures=cures, passes_over=self.passes_over)
        self.stats.forget(HITS, MISSES)

    def _decoding(self, read: Callable[[int], Sample], *, borrow: bool = False) -> Decoding:
        max_side = self.transforms.max_side
        rendering = rendering_of(self.transforms)
        return Decoding(
            read, self.source.where, max_side=max_side, rendering=rendering, stats=self.stats, borrow=borrow
        )
