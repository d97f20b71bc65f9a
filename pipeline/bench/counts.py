"""What a pipeline counted while the clock ran: its stages' times and its cache's hits, of the timed passes only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.bench.passes import Feed
from pipeline.build import Pipeline
from pipeline.cache.theory import bound
from pipeline.stats import STAGES

_CACHE = ("cache_hits", "cache_misses")


class Counts:
    """Sums over the `with counts.during(feed):` blocks of one pipeline."""

    def __init__(self, pipeline: Pipeline, *, is_preloaded: bool) -> None:
        """Count what `pipeline` does; `is_preloaded` if all samples were in its store before the first epoch."""
        self._last: dict[str, float] = {}
        self._total: dict[str, float] = defaultdict(float)
        self._pipeline = pipeline
        self._is_preloaded = is_preloaded
        self._num_cold = 0
        """Samples that were asked for in the first epoch, when no cache can have them."""

    @contextmanager
    def during(self, feed: Feed) -> Iterator[None]:
        """Counts belong to the block if they come while it lasts, whichever batch of `feed` they are for."""
        before, first_step = self._now(), feed.step
        yield
        self._last = {name: number - before[name] for name, number in self._now().items()}
        for name, number in self._last.items():
            self._total[name] += number
        if not self._is_preloaded:
            num_batches = max(0, min(feed.step, feed.batches_per_epoch) - first_step)
            self._num_cold += num_batches * self._pipeline.batch_size

    def hit_pct(self) -> float | None:
        """Of what the last block asked the store for; None without a store, or where it was asked for nothing."""
        asked = sum(self._last[name] for name in _CACHE)
        return 100 * self._last["cache_hits"] / asked if asked else None

    def summary(self) -> dict[str, float | None]:
        """Milliseconds an image per stage, 0 for one that was not needed, and what the store could have had."""
        stats, total = self._pipeline.stats(), self._total
        numbers: dict[str, float | None] = {
            f"{stage}_ms": 1e3 * total[f"{stage}_s"] / max(1, total[f"{stage}_count"]) for stage in STAGES
        }
        numbers["cache_capacity_pct"] = stats.get("cache_capacity_pct")
        numbers["cache_bound_pct"] = None
        asked = int(sum(total[name] for name in _CACHE))
        if "cache_bound_pct" in stats and asked:
            num_cold = min(asked, self._num_cold)
            numbers["cache_bound_pct"] = 100 * bound(stats["cache_kept_pct"] / 100, asked, num_cold=num_cold)
        return numbers

    def _now(self) -> dict[str, float]:
        stats = self._pipeline.stats()
        now = {name: stats.get(name, 0) for name in _CACHE}
        for stage in STAGES:
            count = now[f"{stage}_count"] = stats[f"{stage}_count"]
            now[f"{stage}_s"] = 1e-3 * stats[f"{stage}_ms"] * count
        return now
