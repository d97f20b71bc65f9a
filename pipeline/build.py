"""config -> `Pipeline`. The only file that knows every room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import torch

from pipeline.build_batches import Batches, Making
from pipeline.build_loader import check_memory, describe_workers, resolve_backend
from pipeline.build_loading import build_loading, could_keep_pixels
from pipeline.build_prefetch import plan_delivery
from pipeline.build_source import build_bad, in_shared_memory, open_source
from pipeline.build_transform import build_transform
from pipeline.cache.theory import advice
from pipeline.config import Backend, Cache, OnError, PipelineConfig, SamplerName, Transforms
from pipeline.decode import PILLOW
from pipeline.loader.batch import Batch
from pipeline.loader.loader import Loader
from pipeline.loader.read import is_of_the_sample
from pipeline.machine import cores_per_rank
from pipeline.main_script import refuse_while_importing
from pipeline.prefetch import PrefetchLoader
from pipeline.quarantine import Quarantine
from pipeline.sources import Source, Split
from pipeline.stats import TRANSFER, Stats, in_ms

if TYPE_CHECKING:
    from PIL import Image


class Pipeline:
    """Source, cache, transforms, loader and prefetcher as one loader of `Batch`; owns all of them.

    Each `iter()` begins the next epoch. Batches are on the device that `prefetch` names, images normalised floats
    `(B, 3, H, W)`. A batch stays valid as long as it is referenced, also after `close`.
    """

    def __init__(
        self,
        *,
        transforms: Transforms,
        making: Making,
        made: Batches,
        resources: ExitStack,
        workers: str,
        own_transform: str | None = None,
    ) -> None:
        """Take ownership of the parts; `assemble` makes them."""
        refuse_while_importing("Pipeline")
        self.source = making.source
        self.transforms = transforms
        self._making = making
        self._made = made
        self._loading = making.loading
        self._num_iters = 0
        self._first_epoch_samples: int | None = None
        """How many the first loop over it had; None while that is not over."""
        self._resources = resources
        self.lanes = made.lanes
        """Who does what at the same time as whom."""
        self.workers = workers
        """Who makes batches, in words: "2 worker processes"."""
        self.keeps = None if self._loading.store is None else self._loading.store.settings.kind.in_words
        """What the store keeps between epochs: "decoded images"; None: there is none."""
        self._own_transform = own_transform
        self.bad = making.bad
        """The bad samples that were passed over; None: the first of them ends the loop."""
        self._is_closed = False

    def __len__(self) -> int:
        """Batches in a whole epoch; the same on every rank."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """Begin the next epoch, or continue a loaded state. RuntimeError when another iterator is live."""
        batches = iter(self._batches)
        self._num_iters += 1
        if self._num_iters == 2:
            self._first_epoch_samples = self._loader.stats_counters.samples
        return batches

    def __repr__(self) -> str:
        what = f"augment={self.transforms.augment}, size={self.transforms.size}"
        if self._own_transform is not None:
            what = f"transform={self._own_transform}"
        return f"Pipeline({self.num_samples} samples, batch_size={self.batch_size}, {self.workers}, {what})"

    @property
    def _loader(self) -> Loader:
        return self._made.loader

    @property
    def _batches(self) -> Loader | PrefetchLoader:
        return self._made.last

    @property
    def with_replacement(self) -> bool:
        """Whether an epoch may have a sample twice, and another not at all."""
        return self._made.with_replacement

    @property
    def dataset(self) -> Source:
        """The source, under the name that users of `DataLoader` look for."""
        return self.source

    @property
    def num_samples(self) -> int:
        """Samples in the source."""
        return len(self.source)

    @property
    def batch_size(self) -> int:
        """Samples per rank in a full batch."""
        return self._loader.batch_size

    @property
    def num_crops(self) -> int:
        """Images of a batch that are of one sample."""
        return self._loader.num_crops

    @property
    def num_workers(self) -> int:
        """Workers that make batches; 0 when the consumer's thread does."""
        return self._loader.num_workers

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the next one; optional. A live iterator is abandoned."""
        self._batches.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """A few numbers that say which batches the loop has had; `load_state_dict` continues after them."""
        state: dict[str, Any] = self._batches.state_dict()
        return state

    def check_size(self, size: int) -> None:
        """ConfigError where memory lacks the room for batches of images of `size` pixels."""
        self._making.plan(replace(self.transforms, size=size))

    def change_size(self, size: int, *, num_epochs: int | None = None) -> None:
        """Let images be `size` pixels high and wide from the next batch on. A live iterator is abandoned.

        The workers end before others begin; what the store has is kept. Nothing is made ahead after `num_epochs`
        epochs, the earlier ones counted.

        Raises:
            ConfigError: there is no such size; or memory lacks the room, and the pipeline can only be closed then.
            RuntimeError: after `close`.
            ValueError: a transform of the user's own decides how large images are.
        """
        if self._own_transform is not None:
            raise ValueError(f"transform={self._own_transform} decides the size of its images; it cannot be changed")
        if self._is_closed:
            raise RuntimeError("close() was already called on this pipeline; its images cannot get another size")
        self.transforms = replace(self.transforms, size=size)
        state, before = self.state_dict(), self._made.prefetcher
        self._made.close()
        self._made = self._making.batches(self.transforms, *self._making.plan(self.transforms), num_epochs=num_epochs)
        # The same samples at the same places: of what the state stands for, only the size is another.
        self.load_state_dict(state | {"order": self.state_dict()["order"]})
        after = self._made.prefetcher
        if before is not None and after is not None:
            after.clock, after.wait_s = before.clock, before.wait_s
            after.batches, after.ready_batches = before.batches, before.ready_batches

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next `iter()` continue where `state` was taken. ValueError for another seed, source or transform.

        The state's global batch size is kept, with a warning where `batch_size` changes by it.
        """
        self._batches.load_state_dict(state)

    def stats(self) -> dict[str, float]:
        """Counts, seconds waited for batches, milliseconds an image per stage, and what the store has had.

        Of `decode_count` images `decoded_by_pillow` were not plain JPEGs; libjpeg-turbo decoded the others.

        `cache_hit_pct` is the part of all samples so far that the store had; `cache_bound_pct` the most that any cache
        of this capacity could have had of them, `cache_kept_pct` the part of the source that is kept now, and
        `cache_capacity_pct` the part that there is room for.
        """
        totals = self._loader.stats_counters.summary()
        totals[PILLOW] = self._loader.stats_counters.total(PILLOW)
        prefetcher = self._made.prefetcher
        if prefetcher is not None:
            totals["wait_s"] = prefetcher.wait_s
            totals["prefetcher_batches"] = prefetcher.batches
            totals["prefetched_batches"] = prefetcher.ready_batches
            totals |= in_ms([prefetcher.clock], [TRANSFER])
        totals |= self._loading.stats(
            self._loader.stats_counters,
            first_epoch_samples=self._first_epoch_samples,
            epoch_samples=self.num_samples / self._loader.order.world_size,
            has_bound=not self.with_replacement,
        )
        return totals

    def could_keep_pixels(self, cache: Cache) -> bool:
        """Whether a pinned store of this budget would have room for all samples as pixels; reads a few of them."""
        return could_keep_pixels(self.source, cache, self.transforms, world_size=self._loader.order.world_size)

    def cache_advice(self) -> str | None:
        """What to change for more hits; None without a cache, and where nothing would help."""
        stats = self.stats()
        if self._loading.store is None or "cache_bound_pct" not in stats:
            return None
        store = self._loading.store
        hit_pct, bound_pct = stats["cache_hit_pct"], stats["cache_bound_pct"]
        return advice(store.settings.policy, is_full=store.is_full, hit_pct=hit_pct, bound_pct=bound_pct)

    def close(self) -> None:
        """End threads, forget slots, close files. May be called twice."""
        self._is_closed = True
        try:
            self._made.close()
        finally:
            self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def build_pipeline(
    config: PipelineConfig,
    *,
    split: Split = "train",
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
    num_epochs: int | None = None,
    quarantine: Quarantine | None = None,
) -> Pipeline:
    """The pipeline of one split.

    Args:
        config: the whole configuration.
        split: `train`, or `val`: then in order, every sample once, with evaluation's geometry.
        device: where the model is; `prefetch.device=auto` follows it.
        rank: which part of every global batch this process gets.
        world_size: how many processes share a global batch.
        num_epochs: epochs that will be asked for, if known, so that nothing is made ahead after the last one.
        quarantine: is told of every bad sample that is passed over; the caller's.
    """
    training = split == "train"
    transforms = config.transforms.resolved() if training else config.transforms.evaluation()
    if not training and config.data.on_error is OnError.replace:  # evaluation has every sample once
        config = replace(config, data=replace(config.data, on_error=OnError.skip))
    return assemble(
        open_source(config.data, split),  # given away: with worker processes it is copied, and let go
        config,
        transforms=transforms,
        sampler=config.loader.sampler if training else SamplerName.sequential,
        device=torch.device(device),
        name=split,
        drop_last=config.loader.drop_last and training,
        rank=rank,
        world_size=world_size,
        num_epochs=num_epochs,
        quarantine=quarantine,
    )


def assemble(
    source: Source,
    config: PipelineConfig,
    *,
    transforms: Transforms,
    sampler: SamplerName,
    device: torch.device,
    name: str,
    function: Callable[[Image.Image], Any] | None = None,
    drop_last: bool = False,
    rank: int = 0,
    world_size: int = 1,
    num_epochs: int | None = None,
    memory_format: str = "channels_last",
    pin_memory: bool = False,
    quarantine: Quarantine | None = None,
) -> Pipeline:
    """Put a pipeline together from an open source; of `config.data` only what bad samples do is looked at.

    The pipeline owns what is made here and closes `source`, if that can be closed. With worker processes it holds a
    copy of `source` whose arrays lie in memory they share, and no reference to `source` itself.
    """
    refuse_while_importing("a pipeline")
    delivery = plan_delivery(config, transforms, device, pin_memory=pin_memory, has_own_transform=function is not None)
    num_workers = config.loader.resolved_num_workers(cores_per_rank())
    backend = resolve_backend(config.loader, num_workers, prefers_processes=delivery.on_device or function is not None)
    stats = Stats()
    with ExitStack() as resources:
        if hasattr(source, "close"):
            resources.callback(source.close)
        # Unless asked otherwise, a device colours and normalises itself: bytes travel there in a quarter of the time.
        transform = build_transform(
            transforms,
            function,
            normalise=not delivery.finishes,
            memory_format=memory_format,
            source=source,
            backend=backend,
            num_workers=num_workers,
            threads_per_worker=config.loader.threads_per_worker,
            prefetches=delivery.device is not None,
        )
        slots_bytes = check_memory(config.loader, num_workers, transform)
        arena = None
        if backend is Backend.processes:
            source, arena = in_shared_memory(source, resources, reserved_bytes=slots_bytes)
        bad = build_bad(config.data, source, name=name, world_size=world_size, quarantine=quarantine)
        loading = build_loading(
            source,
            config.cache,
            config.preload,
            transforms,
            num_threads=max(1, num_workers),
            name=name,
            stats=stats,
            resources=resources,
            in_processes=arena is not None,
            world_size=world_size,
            passes_over=(lambda _: False) if bad is None else is_of_the_sample,
        )
        making = Making(
            config=config,
            source=source,
            loading=loading,
            arena=arena,
            stats=stats,
            sampler=sampler,
            num_workers=num_workers,
            device=device,
            pin_memory=pin_memory,
            memory_format=memory_format,
            function=function,
            drop_last=drop_last,
            rank=rank,
            world_size=world_size,
            bad=bad,
        )
        made = making.batches(transforms, transform, delivery, num_epochs=num_epochs)
        owned = resources.pop_all()
    return Pipeline(
        transforms=transforms,
        making=making,
        made=made,
        resources=owned,
        workers=describe_workers(config.loader, num_workers, backend),
        own_transform=None if function is None else getattr(function, "__qualname__", type(function).__name__),
    )
