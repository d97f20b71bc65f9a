"""config.cache + config.preload -> the callable that loads samples. A part of `build.py`, in a file of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.build_budget import plan_settings, preload_cures, refuse_preload
from pipeline.build_estimate import look_at_some
from pipeline.build_pack import build_pack
from pipeline.cache import LRUCache, PinnedCache
from pipeline.cache.load import HITS, MISSES, CachedLoad, Sample, Store, ValuedLoad
from pipeline.cache.private_store import PrivateStore, sample_bytes
from pipeline.cache.settings import Kind, Settings
from pipeline.cache.theory import bound
from pipeline.config import Cache, CachePolicy, ConfigError, Preload, Transforms
from pipeline.loader.read import AlreadyRead, Decoding, TimedRead
from pipeline.preload import preload
from pipeline.sources import Source
from pipeline.stats import Stats

if TYPE_CHECKING:
    from pipeline.cache.shared_store import SharedStore

CAN_SHARE = sys.platform == "linux"
"""Whether a store can be shared by processes; elsewhere there is one for threads."""


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
    """
    read: Callable[[int], Sample] = source.read
    if preloading.mode == "pack":
        read = _packed(source, cache, preloading, transforms, num_threads, name, stats, resources)
        if cache.store == "decoded":
            return Loading(read)  # a cache before mapped pixels would keep them twice: the configuration refuses it
    policy = CachePolicy.pinned if preloading.mode == "ram" else cache.policy
    if policy is CachePolicy.none:
        return Loading(TimedRead(read, stats))
    sizes = look_at_some(read, len(source), transforms.max_side)
    settings = plan_settings(cache, transforms, sizes, count=len(source), policy=policy)
    cures = preload_cures(settings.kind)
    if preloading.mode == "ram":
        refuse_preload(settings, sizes, name, what="preload=ram", cures=cures)
    read = TimedRead(AlreadyRead(read, sizes.read), stats)
    ranked = shared_store(settings) if policy is CachePolicy.valued else None
    store = ranked or make_store(settings, in_processes=in_processes)
    resources.callback(store.close)
    decoding = Decoding(read, source.where, max_side=transforms.max_side, stats=stats, borrow=store.copies)
    load: CachedLoad | ValuedLoad
    if ranked is not None:
        load = ValuedLoad(read, None if settings.kind is Kind.encoded else decoding.decode, ranked, stats)
    elif settings.kind is Kind.decoded:
        load = CachedLoad(decoding, store, stats, direct=read)
    else:
        load = CachedLoad(read, store, stats)
    if preloading.mode == "ram":
        fill(load, store, len(source), num_threads=num_threads, name=name, cures=cures)
        stats.forget(HITS, MISSES)
    return Loading(load, store, settings, is_preloaded=preloading.mode == "ram")


def make_store(settings: Settings, *, in_processes: bool) -> Store:
    """An empty store. ConfigError where the system cannot do what it needs."""
    # In this process's own memory where that will do: pages that may go must be copied at every hit.
    if not in_processes and (settings.policy is CachePolicy.lru or not CAN_SHARE):
        cache = LRUCache if settings.policy is CachePolicy.lru else PinnedCache
        return PrivateStore(cache(settings.max_images, max_bytes=settings.max_bytes, size_of=sample_bytes))
    return shared_store(settings)


def shared_store(settings: Settings) -> SharedStore:
    """An empty store that processes share. ConfigError where there is no such thing."""
    if not CAN_SHARE:
        raise ConfigError(
            f"cache={settings.policy} needs Linux here; use loader.backend=threads with cache=lru or cache=pinned"
        )
    from pipeline.cache.shared_store import SharedStore  # not above: it needs Linux

    return SharedStore.empty(settings)


def fill(
    load: Callable[[int], Sample], store: Store, count: int, *, num_threads: int, name: str, cures: Sequence[str]
) -> None:
    """Load samples 0 ... count - 1, called `name`, into `store`; ConfigError with `cures` when it has no room."""

    def load_and_check(id: int) -> Sample:
        sample = load(id)
        if not store.has(id) and len(sample) > 0:
            raise ConfigError(
                f"the images of {name} are larger than a few of them looked: there is room for "
                f"{store.stats()['entries']:,} of {count:,}; use {', '.join(cures[:-1])} or {cures[-1]}"
            )
        return sample

    for _ in preload(load_and_check, count, num_threads=num_threads, name=name):
        pass


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
