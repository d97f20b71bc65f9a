"""config.cache -> how much a store may keep, and in which form. A part of `build.py`, in a file of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.build_estimate import Sizes
from pipeline.cache.settings import Kind, Settings
from pipeline.config import Cache, CachePolicy, ConfigError, Transforms
from pipeline.machine import available_bytes

GIB = 2**30
_MARGIN = 1.1
"""Means of a few samples: with less than a tenth to spare, all of them might not fit after all."""


def plan_settings(cache: Cache, transforms: Transforms, sizes: Sizes, *, count: int, policy: CachePolicy) -> Settings:
    """A store for `count` samples of these `sizes`. ConfigError when `cache.max_gib` is more than is free."""
    max_bytes = _budget_bytes(cache)
    # A whole preload keeps everything: `max_images` is the capacity of a cache.
    max_images = cache.max_images if cache.policy is policy else None
    kept = count if max_images is None else min(count, max_images)
    fits = _MARGIN * sizes.decoded * kept <= max_bytes
    return Settings(count, max_bytes, max_images, policy, _kind(cache, transforms, policy, decoded_fits=fits))


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


def _budget_bytes(cache: Cache) -> int:
    free_bytes = available_bytes()
    if cache.max_gib is None:
        return free_bytes // 2
    wanted_bytes = int(cache.max_gib * GIB)
    if wanted_bytes > free_bytes:
        raise ConfigError(
            f"cache.max_gib={cache.max_gib:g} is more than the {free_bytes / GIB:.1f} GiB that are free; "
            "lower it, or use preload=pack"
        )
    return wanted_bytes


def _kind(cache: Cache, transforms: Transforms, policy: CachePolicy, *, decoded_fits: bool) -> Kind:
    if cache.store != "auto":
        return Kind(cache.store)
    if transforms.decode == "scaled":
        return Kind.encoded
    if policy is CachePolicy.valued:
        return Kind.either
    return Kind.decoded if decoded_fits else Kind.encoded
