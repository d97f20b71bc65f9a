"""Samples that can be loaded -> batches, made ahead. A part of `build.py`, in a file of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch

from pipeline.build_loader import build_executor, check_memory
from pipeline.build_loading import Loading
from pipeline.build_prefetch import Delivery, plan_delivery
from pipeline.build_source import make_sampler, order_fingerprint, tolerance_of
from pipeline.config import PipelineConfig, SamplerName, Transforms
from pipeline.loader.loader import EXIT_LIMIT_S, Loader
from pipeline.loader.order import Order
from pipeline.loader.sample import MakeSample, Transform
from pipeline.prefetch import PrefetchLoader
from pipeline.quarantine import BadSamples
from pipeline.sources import Source
from pipeline.stats import Lanes, Stats
from pipeline.transforms.crops import transform_of

if TYPE_CHECKING:
    from PIL import Image

    from pipeline.shared import Arena


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """A loader with its workers, and the prefetcher behind it, if there is one; owns all of them."""

    loader: Loader
    prefetcher: PrefetchLoader | None
    with_replacement: bool
    lanes: Lanes
    resources: ExitStack

    @property
    def last(self) -> Loader | PrefetchLoader:
        """What the consumer iterates."""
        return self.loader if self.prefetcher is None else self.prefetcher

    def close(self) -> None:
        """End threads and worker processes, forget slots. May be called twice."""
        self.resources.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """All that decides batches but what is done to their pixels; nothing in here ends with a `Batches`."""

    config: PipelineConfig
    source: Source
    loading: Loading
    arena: Arena | None
    """Where worker processes find the source; None: there are none."""
    stats: Stats
    sampler: SamplerName
    num_workers: int
    device: torch.device
    pin_memory: bool
    memory_format: str
    function: Callable[[Image.Image], Any] | None
    drop_last: bool
    rank: int
    world_size: int
    bad: BadSamples | None
    """Is told of bad samples that are passed over; None: the first one raises."""

    def plan(self, transforms: Transforms) -> tuple[Transform, Delivery]:
        """The built-in transforms, and how batches of them are delivered. ConfigError where memory lacks the room."""
        assert self.function is None, "a function is in the place of the built-in transforms"
        delivery = plan_delivery(
            self.config, transforms, self.device, pin_memory=self.pin_memory, has_own_transform=False
        )
        transform = transform_of(transforms, normalise=not delivery.finishes, memory_format=self.memory_format)
        check_memory(self.config.loader, self.num_workers, transform)
        return transform, delivery

    def batches(
        self, transforms: Transforms, transform: Transform, delivery: Delivery, *, num_epochs: int | None
    ) -> Batches:
        """Whoever makes batches by `transform`, which does what `transforms` say, begun at epoch 0."""
        num_crops = transforms.crops_per_image if self.function is None else 1
        order = Order(
            sampler=make_sampler(self.sampler, self.source, self.config.seed),
            labels=self.source.labels,
            seed=self.config.seed,
            batch_size=self.config.loader.batch_size,
            num_draws=transform.num_draws // num_crops,
            num_crops=num_crops,
            rank=self.rank,
            world_size=self.world_size,
            drop_last=self.drop_last,
            fingerprint=cache(partial(order_fingerprint, self.source, self.sampler, transforms, self.function)),
        )
        where, stats = self.source.where, self.stats
        tolerance = None if self.bad is None else tolerance_of(self.config.data, len(self.source), self.config.seed)
        sample = MakeSample(self.loading.load, transform, where=where, stats=stats, tolerance=tolerance)
        with ExitStack() as resources:
            executor = build_executor(
                self.config.loader, self.num_workers, sample, self.arena, where=where, stats=stats
            )
            resources.callback(executor.close, EXIT_LIMIT_S)
            loader = Loader(
                order,
                executor,
                row_shape=transform.row_shape,
                row_dtype=transform.row_dtype,
                channels_last=transform.channels_last,
                num_crops=num_crops,
                read_ahead=self.sampler is not SamplerName.sequential,
                num_epochs=num_epochs,
                stats=stats,
                on_bad=None if self.bad is None else self.bad.add,
                pin=None if delivery.streams is None else delivery.streams.pin,
            )
            prefetcher = delivery.prefetcher(loader)
            if prefetcher is not None:
                resources.callback(prefetcher.close)
            # First of all, for it ends the wait of the prefetcher's thread.
            resources.callback(loader.close)
            owned = resources.pop_all()
        return Batches(
            loader=loader,
            prefetcher=prefetcher,
            with_replacement=order.sampler.with_replacement,
            lanes=Lanes(
                num_threads=self.num_workers * self.config.loader.threads_per_worker,
                queue_batches=executor.in_flight if self.num_workers else 0,
                prefetched_batches=0 if prefetcher is None else prefetcher.num_batches,
                in_threads=self.arena is None,
            ),
            resources=owned,
        )
