"""config.cache + config.preload -> the callable that loads samples. A part of `build.py`, in a file of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.build_budget import StorePlan, preload_cures
from pipeline.build_pack import build_pack
from pipeline.build_store import fill, is_shared, private_store, shared_store
from pipeline.cache.host import HostRank, host_rank
from pipeline.cache.load import HITS, MISSES, CachedLoad, RankedStore, Sample, Store, ValuedLoad
from pipeline.cache.settings import Kind, Settings
from pipeline.cache.theory import bound
from pipeline.config import Cache, CachePolicy, Preload, Transforms
from pipeline.loader.read import AlreadyRead, Decoding, TimedRead
from pipeline.sources import Source
from pipeline.stats import Stats


@dataclass(slots=True)
class Loading:
    """Where samples are loaded from: the source itself, or a store or pack before it."""

    load: Callable[[int], Sample]
    store: Store | None = None
    settings: Settings | None = None
    """What `store` was made with."""
    is_preloaded: bool = False
    """Whether it was filled before the first epoch."""

    def stats(self, counts: Stats, *, num_cold: int | None) -> dict[str, float]:
        """The store's numbers for people; none without a store.

        `num_cold` samples are asked for before any is asked for again: those of a rank's epoch. None where samples are
        drawn with replacement: then theory has no bound.
        """
        if self.store is None or self.settings is None:
            return {}
        hits, misses = counts.total(HITS), counts.total(MISSES)
        kept = self.store.stats()
        numbers: dict[str, float] = {"cache_hits": hits, "cache_misses": misses}
        numbers |= {f"cache_{name}": number for name, number in kept.items()}
        fraction = kept["entries"] / max(1, self.settings.num_samples)
        numbers["cache_kept_pct"] = 100 * fraction
        numbers["cache_hit_pct"] = 100 * hits / max(1, hits + misses)
        if num_cold is not None:
            cold = 0 if self.is_preloaded else num_cold
            numbers["cache_bound_pct"] = 100 * bound(fraction, hits + misses, num_cold=cold)
        return numbers


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
    """
    read: Callable[[int], Sample] = source.read
    if preloading.mode == "pack":
        read = _packed(source, cache, preloading, transforms, num_threads, name, stats, resources)
        if cache.store == "decoded":
            return Loading(read)  # a cache before mapped pixels would keep them twice: the configuration refuses it
    is_preload = preloading.mode == "ram"
    policy = CachePolicy.pinned if is_preload else cache.policy
    if policy is CachePolicy.none:
        return Loading(TimedRead(read, stats))
    rank = host_rank() if world_size > 1 else None
    plan = StorePlan(
        cache=cache,
        transforms=transforms,
        policy=policy,
        is_preload=is_preload,
        name=name,
        read=read,
        num_samples=len(source),
        num_ranks=1 if rank is None or policy is not CachePolicy.lru else rank.local_world_size,
    )
    opened = _open(plan, source, rank, in_processes=in_processes, resources=resources)
    read = TimedRead(AlreadyRead(read, plan.already_read), stats)
    load = _load_through(opened, read, source, transforms, stats)
    if is_preload:
        start = 0 if rank is None else len(source) * rank.local_rank // rank.local_world_size
        cures = preload_cures(opened.settings.kind)
        fill(load, opened.store, range(len(source)), start=start, num_threads=num_threads, name=name, cures=cures)
        stats.forget(HITS, MISSES)
    return Loading(load, opened.store, opened.settings, is_preloaded=is_preload)


class _Opened(NamedTuple):
    store: Store
    settings: Settings
    ranked: RankedStore | None
    """The store, if it goes by value."""


def _open(
    plan: StorePlan, source: Source, rank: HostRank | None, *, in_processes: bool, resources: ExitStack
) -> _Opened:
    if not is_shared(plan.policy, in_processes=in_processes):
        settings = plan.settings()
        return _Opened(private_store(settings), settings, None)
    shared = shared_store(
        plan.settings,
        rank=None if plan.policy is CachePolicy.lru else rank,
        name=lambda: plan.identity(source.fingerprint()),
        resources=resources,
    )
    return _Opened(shared, shared.settings, shared if plan.policy is CachePolicy.valued else None)


def _load_through(
    opened: _Opened, read: Callable[[int], Sample], source: Source, transforms: Transforms, stats: Stats
) -> CachedLoad | ValuedLoad:
    store, kind = opened.store, opened.settings.kind
    decoding = Decoding(read, source.where, max_side=transforms.max_side, stats=stats, borrow=store.copies)
    if opened.ranked is not None:
        return ValuedLoad(read, None if kind is Kind.encoded else decoding.decode, opened.ranked, stats)
    if kind is Kind.decoded:
        return CachedLoad(decoding, store, stats, direct=read)
    return CachedLoad(read, store, stats)


def _packed(
    source: Source,
    cache: Cache,
    preloading: Preload,
    transforms: Transforms,
    num_threads: int,
    name: str,
    stats: Stats,
    resources: ExitStack,
) -> Callable[[int], Sample]:
    """The load from a pack of files, or of pixels where `cache.store` says so."""
    load: Callable[[int], Sample] = source.read
    if cache.store == "decoded":
        timed = TimedRead(source.read, stats)
        load = Decoding(timed, source.where, max_side=transforms.max_side, stats=stats)
    return build_pack(
        source,
        preloading,
        load,
        decoded=cache.store == "decoded",
        max_side=transforms.max_side,
        num_threads=num_threads,
        name=name,
        resources=resources,
    )
