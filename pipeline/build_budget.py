"""config.cache -> how much a store may keep, and in which form. A part of `build.py`, in a file of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from pipeline.build_estimate import Sizes, look_at_some
from pipeline.cache.load import Sample
from pipeline.cache.settings import Kind, Settings
from pipeline.config import Cache, CachePolicy, ConfigError, Transforms
from pipeline.machine import available_bytes

GIB = 2**30
_MARGIN = 1.1
"""Means of a few samples: with less than a tenth to spare, all of them might not fit after all."""


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
    num_ranks: int = 1
    """Of this host, of which each will make one."""
    already_read: dict[int, bytes] = field(default_factory=dict)
    """Samples that were read to estimate sizes, by id."""

    def settings(self) -> Settings:
        """The store's settings, from a look at a few samples. ConfigError when the budget does not do."""
        sizes = look_at_some(self.read, self.num_samples, self.transforms.max_side)
        self.already_read = sizes.read
        max_bytes = _budget_bytes(self.cache, self.num_ranks)
        # A whole preload keeps everything: `max_images` is the capacity of a cache.
        max_images = None if self.is_preload else self.cache.max_images
        kept = self.num_samples if max_images is None else min(self.num_samples, max_images)
        kind = self._kind(decoded_fits=_MARGIN * sizes.decoded * kept <= max_bytes)
        settings = Settings(self.num_samples, max_bytes, max_images, self.policy, kind)
        if self.is_preload:
            refuse_preload(settings, sizes, self.name, what="preload=ram", cures=preload_cures(kind))
        return settings

    def identity(self, fingerprint: str) -> str:
        """Equal for stores that may be one, with samples of this `fingerprint`."""
        pixels = (self.transforms.max_side, str(self.transforms.decode))
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
        f"{what} needs about {needed_bytes / GIB:.1f} GiB ({settings.num_samples:,} {settings.kind} images of {name}, "
        f"{size_bytes / 1e3:,.0f} kB each), {settings.max_bytes / GIB:.1f} GiB may be used of "
        f"{available_bytes() / GIB:.1f} that are free; use {', '.join(cures[:-1])} or {cures[-1]}"
    )


def preload_cures(kind: Kind) -> list[str]:
    """What helps when `preload=ram` has no room, as keys of the configuration."""
    smaller = ["cache.store=encoded", "transforms.max_side=..."] if kind is Kind.decoded else []
    return [*smaller, "preload=pack", "preload=none with cache=pinned", "a higher cache.max_gib"]


def _budget_bytes(cache: Cache, num_ranks: int) -> int:
    free_bytes = available_bytes()
    if cache.max_gib is None:
        return free_bytes // 2 // num_ranks
    wanted_bytes = int(cache.max_gib * GIB)
    if wanted_bytes > free_bytes:
        raise ConfigError(
            f"cache.max_gib={cache.max_gib:g} is more than the {free_bytes / GIB:.1f} GiB that are free; "
            "lower it, or use preload=pack"
        )
    return wanted_bytes
