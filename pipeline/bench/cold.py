"""Passes over files that are in the page cache, and passes over files that are not."""

from __future__ import annotations

from itertools import islice

from pipeline.bench import page_cache
from pipeline.bench.contender import Contender
from pipeline.bench.passes import Feed, Pass, Take, run_pass, settle, wait_until_idle
from pipeline.bench.result import greatest
from pipeline.config import BenchConfig, ConfigError, PreloadMode
from pipeline.config.bench import ContenderName
from pipeline.sources import Source
from pipeline.training.loop_clock import Clock


class Files:
    """The files that a contender reads while the clock runs."""

    def __init__(self, contender: Contender, source: Source) -> None:
        """Those of `contender`, or else all that `source` has."""
        self.stayed_pct: float | None = None
        """The greatest part of their pages that stayed in the page cache when they were dropped; None: never yet."""
        self._paths = source.files() if contender.files is None else contender.files
        self._num_ready = contender.num_ready

    def warm(self) -> None:
        """Have them in the page cache, if memory has room for all."""
        page_cache.warm(self._paths)

    def check(self, feed: Feed) -> None:
        """Raises ConfigError if a pass of `feed` over cold files cannot be had. Leaves the files cold."""
        if len(self._paths) == 0:
            raise ConfigError(
                "bench.cold=true has nothing to drop: the samples lie in memory or on a server; use bench.cold=false"
            )
        if feed.batches_per_epoch <= self._num_ready:
            raise ConfigError(
                f"bench.cold=true needs epochs of more than the {self._num_ready} batches that lie ready, got "
                f"{feed.batches_per_epoch}; lower loader.batch_size or loader.prefetch_factor"
            )
        self._drop()

    def cold_pass(self, feed: Feed, take: Take, num_batches: int, *, clock: Clock) -> Pass:
        """A pass of at most `num_batches`, all of one epoch, so that no file is read a second time in it."""
        num_batches = min(num_batches, feed.batches_per_epoch - self._num_ready)
        if feed.left_in_epoch < self._num_ready + num_batches:
            for images, labels in islice(feed, feed.left_in_epoch):
                take(images, labels)
        self._drop()
        settle(feed, take, self._num_ready)
        return run_pass(feed, take, num_batches, clock=clock)

    def _drop(self) -> None:
        wait_until_idle()
        self.stayed_pct = greatest([self.stayed_pct, page_cache.drop(self._paths)])


def check_cold(cfg: BenchConfig) -> None:
    """Raises ConfigError if `cfg` asks for cold files and reads none."""
    if cfg.bench.cold and cfg.bench.contender is ContenderName.headrace and cfg.preload.mode is PreloadMode.ram:
        raise ConfigError(
            "bench.cold=true has nothing to drop with preload=ram, whose files are not read again; "
            "use preload=none, or bench.cold=false"
        )
