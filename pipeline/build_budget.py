"""config.cache -> how much a store may keep, and in which form. A part of `build.py`, in a file of its own."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from pipeline.build_estimate import GIB, LookedAt, Sizes, in_gib, look_at_some
from pipeline.cache.host import HostRank
from pipeline.cache.load import Sample, Store
from pipeline.cache.settings import Kind, Settings
from pipeline.config import Cache, CachePolicy, ConfigError, Transforms
from pipeline.machine import available_bytes

_MARGIN = 1.1
"""Means of a few samples: with less than a tenth to spare, all of them might not fit after all."""
_PAGE_BYTES = 4096
"""Stores that evict keep whole pages."""


@dataclass(kw_only=True)
class StorePlan:
    """What decides a store's settings. Whoever makes the store asks for them; who is handed one need not look."""

    cache: Cache
    transforms: Transforms
    policy: CachePolicy
    is_preload: bool
    name: str
    """What messages call the samples."""
    read: Callable[[int], Sample]
    num_samples: int
    num_stores: int = 1
    """How many ranks that share this machine's memory will each make one."""
    looked_at: dict[int, LookedAt] = field(default_factory=dict)
    """Samples that were read to estimate sizes, by id."""
    likely_bytes: int = 0
    """What the store is likely to take in the end."""

    def settings(self) -> Settings:
        """The store's settings, from a look at a few samples. ConfigError when the budget does not do."""
        sizes = look_at_some(self.read, self.num_samples, self.transforms.max_side)
        self.looked_at = sizes.read
        max_bytes = _budget_bytes(self.cache, self.num_stores)
        # A whole preload keeps everything: `max_images` is the capacity of a cache.
        max_images = None if self.is_preload else self.cache.max_images
        kept = self.num_samples if max_images is None else min(self.num_samples, max_images)
        rounding = 0 if self.policy is CachePolicy.pinned else _PAGE_BYTES / 2
        kind = self._kind(decoded_fits=_MARGIN * (sizes.decoded + rounding) * kept <= max_bytes)
        needed = _MARGIN * (sizes.of(decoded=kind is not Kind.encoded) + rounding) * kept
        self.likely_bytes = int(min(max_bytes, needed))
        settings = Settings(self.num_samples, max_bytes, max_images, self.policy, kind)
        if self.is_preload:
            refuse_preload(settings, sizes, self.name, what="preload=ram", cures=preload_cures(kind))
        return settings

    def identity(self, fingerprint: str) -> str:
        """Equal for stores that may be one, with samples of this `fingerprint`."""
        options = self.transforms
        pixels = (options.max_side, str(options.decode), options.background, str(options.icc))
        return repr((self.name, fingerprint, str(self.policy), self.is_preload, asdict(self.cache), pixels))

    def _kind(self, *, decoded_fits: bool) -> Kind:
        if self.cache.store != "auto":
            return Kind(self.cache.store)
        if self.transforms.decode == "scaled":
            return Kind.encoded
        if self.policy is CachePolicy.valued:
            return Kind.either
        return Kind.decoded if decoded_fits else Kind.encoded


def refuse_preload(settings: Settings, sizes: Sizes, name: str, *, what: str, cures: Sequence[str]) -> None:
    """ConfigError, before anything is read, if all samples are estimated to take more than the budget.

    Args:
        settings: of the store that is to be filled.
        sizes: of its samples.
        name: what they are called.
        what: wants to fill it, in the user's words.
        cures: what to do instead.
    """
    size_bytes = sizes.of(decoded=settings.kind is Kind.decoded)
    needed_bytes = size_bytes * settings.num_samples
    if needed_bytes <= settings.max_bytes or size_bytes == math.inf:
        return
    raise ConfigError(
        f"{what} needs about {in_gib(needed_bytes)} GiB ({settings.num_samples:,} {settings.kind} images of {name}, "
        f"{size_bytes / 1e3:,.0f} kB each), {in_gib(settings.max_bytes)} GiB may be used of "
        f"{in_gib(free_bytes())} that are free; use {', '.join(cures[:-1])} or {cures[-1]}"
    )


def preload_cures(kind: Kind) -> list[str]:
    """What helps when `preload=ram` has no room, as keys of the configuration."""
    smaller = ["cache.store=encoded", "transforms.max_side=..."] if kind is Kind.decoded else []
    return [*smaller, "preload=pack", "preload=none with cache=pinned", "a higher cache.max_gib"]


def free_bytes() -> int:
    """Memory that is available and not promised to a store of this process, which has yet to fill."""
    waiting = (max(0, likely_bytes - store.stats()["bytes"]) for store, likely_bytes in tuple(_promises.values()))
    return max(0, available_bytes() - sum(waiting))


@contextmanager
def promised(store: Store, likely_bytes: int) -> Iterator[None]:
    """Nobody else is to have the memory that `store` is likely to take."""
    _promises[id(store)] = store, likely_bytes
    try:
        yield
    finally:
        del _promises[id(store)]


def num_stores_beside(world_size: int, rank: HostRank | None) -> int:
    """Ranks that share this machine's memory: the local ones, or all where no launcher says which are local."""
    if rank is not None:
        return rank.local_world_size
    return 1 if "LOCAL_WORLD_SIZE" in os.environ else world_size


_promises: dict[int, tuple[Store, int]] = {}


def _budget_bytes(cache: Cache, num_stores: int) -> int:
    free = free_bytes()
    if cache.max_gib is None:
        return free // 2 // num_stores
    wanted_bytes = int(cache.max_gib * GIB)
    if wanted_bytes * num_stores > free:
        each = f" for each of {num_stores} ranks" if num_stores > 1 else ""
        raise ConfigError(
            f"cache.max_gib={cache.max_gib:g}{each} is more than the {in_gib(free)} GiB that are free; "
            "lower it, or use preload=pack"
        )
    return wanted_bytes
