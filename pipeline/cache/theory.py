"""What a cache can do when every epoch asks for every sample once, in a new order."""

from __future__ import annotations

import math

from pipeline.config.cache import CachePolicy


def lru_hit_rate(fraction: float) -> float:
    """Hit rate of an LRU that holds `fraction` of all samples, from the second epoch on.

    Between two uses of a sample, at u of one epoch and v of the next, n [1 - u (1 - v)] others are used; it is still
    there if that is less than `fraction` n. With u and v uniform this is c + (1 - c) ln(1 - c).
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be in [0, 1], got {fraction}")
    return fraction + (1 - fraction) * math.log1p(-fraction) if fraction < 1 else 1.0


def bound(fraction: float, num_asked: int, *, num_cold: float) -> float:
    """The most hits there can be, as a part of `num_asked`, with `fraction` of all samples kept.

    A hit needs a sample that outlasts the border between two epochs, and only `fraction` of all can: so no policy,
    clairvoyant or not, hits more than `fraction` of what is asked for again, which `num_cold` samples are not.
    """
    return fraction * max(0, num_asked - num_cold) / num_asked if num_asked else 0.0


def advice(policy: CachePolicy, *, is_full: bool, hit_pct: float, bound_pct: float) -> str | None:
    """What would bring more hits, for who reads a run's report; None: nothing would."""
    if hit_pct < bound_pct - 1 and policy is CachePolicy.lru:
        return "cache=pinned reaches what is possible: under reshuffling an LRU evicts what comes next"
    if is_full:
        return "keep more: raise cache.max_images or cache.max_gib, or lower transforms.max_side"
    return None
