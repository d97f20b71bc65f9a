"""config.cache + config.preload -> the callable that loads samples. A part of `build.py`, in a file of its own."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.cache import LRUCache, PinnedCache
from pipeline.cache.filled import Filled
from pipeline.cache.load import CachedLoad, Sample, sample_bytes
from pipeline.cache.pack import PackFile, open_or_build
from pipeline.config import Cache, ConfigError, Preload, Transforms
from pipeline.decode import inspect
from pipeline.loader.read import Decoding, TimedRead
from pipeline.machine import available_bytes
from pipeline.preload import preload
from pipeline.sources import Source
from pipeline.stats import Stats
from pipeline.transforms.geometry import limit_side

if TYPE_CHECKING:
    from pipeline.shared import Arena

GIB = 2**30
HEADERS_READ = 32
"""Images whose header is read to estimate how large all of them are when decoded."""


@dataclass(slots=True)
class Store:
    """Where samples are loaded from: the source itself, or a cache or pack before it."""

    load: Callable[[int], Sample]
    cache: LRUCache[int, Sample] | None = None
    kind: str | None = None
    """What is kept, `encoded` or `decoded`; None: nothing is."""


def build_store(
    source: Source,
    cache: Cache,
    preloading: Preload,
    transforms: Transforms,
    *,
    num_threads: int,
    name: str,
    stats: Stats,
    resources: ExitStack,
    arena: Arena | None = None,
    num_processes: int = 1,
) -> Store:
    """The store that the configuration asks for, preloaded if it says so.

    Args:
        source: what the store is filled from.
        cache: the configuration's group.
        preloading: the configuration's group.
        transforms: their pixel options decide what a decoded store may keep.
        num_threads: threads that preload.
        name: what is preloaded, for the progress bar.
        stats: counts what is really read and decoded; what a cache answers is in neither.
        resources: closes a pack file.
        arena: memory shared with worker processes, if those are to load; a whole preload is put there.
        num_processes: worker processes; each has a cache of its own, and so a part of its budget.
    """
    if preloading.mode == "pack":
        pack = _build_pack(source, preloading, num_threads=num_threads, name=name)
        resources.callback(pack.close)
        read: Callable[[int], Sample] = TimedRead(pack, stats)
    else:
        read = TimedRead(source.read, stats)
    if cache.policy == "none" and preloading.mode != "ram":
        return Store(read)
    budget_bytes = _budget_bytes(cache)
    kind = _resolve_kind(cache, source, transforms, budget_bytes)
    load = Decoding(read, source.where, max_side=transforms.max_side, stats=stats) if kind == "decoded" else read
    policy: type[LRUCache[int, Sample]] = LRUCache if cache.policy == "lru" else PinnedCache
    if arena is not None:
        if preloading.mode == "ram":
            kept_images = min(len(source), cache.max_images or len(source))
            samples = preload(load, kept_images, num_threads=num_threads, name=name)
            return Store(Filled(_within(samples, kept_images, budget_bytes, name), arena, rest=load), kind=kind)
        max_images = None if cache.max_images is None else -(-cache.max_images // num_processes)
        own = policy(max_images, max_bytes=budget_bytes // num_processes, size_of=sample_bytes)
        return Store(CachedLoad(load, own), kind=kind)
    kept = policy(cache.max_images, max_bytes=budget_bytes, size_of=sample_bytes)
    cached = CachedLoad(load, kept)
    if preloading.mode == "ram":
        _fill(cached, len(source), cache, num_threads=num_threads, name=name)
        kept.reset_counts()  # filling it asked for what could not be there
    return Store(cached, kept, kind)


def _budget_bytes(cache: Cache) -> int:
    free = available_bytes()
    if cache.max_gib is None:
        return free // 2
    wanted = int(cache.max_gib * GIB)
    if wanted > free:
        raise ConfigError(
            f"cache.max_gib={cache.max_gib:g} is more than the {free / GIB:.1f} GiB that are free; "
            "lower it, or use preload=pack"
        )
    return wanted


def _resolve_kind(cache: Cache, source: Source, transforms: Transforms, budget_bytes: int) -> str:
    if cache.store != "auto":
        return str(cache.store)
    if transforms.decode == "scaled":
        return "encoded"
    kept = len(source) if cache.max_images is None else min(len(source), cache.max_images)
    # An estimate: with less than a tenth to spare, all of them might not fit after all.
    needed_bytes = 1.1 * _mean_decoded_bytes(source, transforms) * kept
    return "decoded" if needed_bytes <= budget_bytes else "encoded"


def _mean_decoded_bytes(source: Source, transforms: Transforms) -> float:
    """Mean over a few samples' headers; infinite if none of them can be read, which is not for an estimate to say."""
    sizes = []
    for id in np.linspace(0, len(source) - 1, min(HEADERS_READ, len(source)), dtype=np.int64).tolist():
        try:
            sample = source.read(id)
            if isinstance(sample, bytes):
                info = inspect(sample)
                height, width = limit_side(info.height, info.width, transforms.max_side)
                sizes.append(height * width * 3)
            else:
                sizes.append(sample.nbytes)
        except (OSError, ValueError):  # the loop that wants this sample will meet the error, at its place
            continue
    return float(np.mean(sizes)) if sizes else math.inf


def _fill(load: CachedLoad, count: int, cache: Cache, *, num_threads: int, name: str) -> None:
    kept = count if cache.max_images is None else min(count, cache.max_images)
    for loaded, _ in enumerate(preload(load, kept, num_threads=num_threads, name=name), start=1):
        if len(load.cache) < loaded:
            raise _no_room(loaded - 1, kept, name)


def _within(samples: Iterable[Sample], count: int, budget_bytes: int, name: str) -> Iterator[Sample]:
    """`samples`, as long as all of them together are no more than `budget_bytes`."""
    total_bytes = 0
    for loaded, sample in enumerate(samples):
        total_bytes += sample_bytes(sample)
        if total_bytes > budget_bytes:
            raise _no_room(loaded, count, name)
        yield sample


def _no_room(loaded: int, count: int, name: str) -> ConfigError:
    return ConfigError(
        f"preload=ram has room for {loaded} of {count} images of {name}; "
        "raise cache.max_gib, use cache.store=encoded, or use preload=pack"
    )


def _build_pack(source: Source, preloading: Preload, *, num_threads: int, name: str) -> PackFile:
    directory = Path(preloading.dir or "data/.packs")
    key = hashlib.blake2b(source.content_key().encode(), digest_size=32).hexdigest()

    def samples() -> Iterable[bytes]:
        for sample in preload(source.read, len(source), num_threads=num_threads, name=name):
            if not isinstance(sample, bytes):
                raise ConfigError("preload=pack keeps encoded images and this source has none; use preload=ram")
            yield sample

    # Named after the samples and keyed by their contents too: a changed file's pack replaces the old one.
    path = directory / f"{name}-{source.fingerprint()[:16]}.pack"
    return open_or_build(path, key, len(source), samples)
