"""config.prefetch -> where batches go when they are made, and what happens to them there. A part of `build.py`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.config import ConfigError, PipelineConfig, Place, Transforms
from pipeline.loader.batch import Batch
from pipeline.loader.loader import Loader
from pipeline.prefetch import BatchStage, PrefetchLoader
from pipeline.streams import Streams, streams_for
from pipeline.transforms.device import BatchTransform


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """How batches reach the consumer; `device` is None where the loader's own are handed over."""

    device: torch.device | None
    on_device: bool
    """Whether `device` is another than the CPU."""
    finishes: bool
    """Whether the stage colours and normalises there, and workers give it bytes."""
    stage: BatchStage | None
    streams: Streams | None
    num_batches: int

    def prefetcher(self, loader: Loader) -> PrefetchLoader | None:
        """A new prefetcher over `loader`, which stays the caller's to close; None where there is none."""
        if self.device is None:
            return None
        return PrefetchLoader(loader, self.device, num_batches=self.num_batches, stage=self.stage, streams=self.streams)


def plan_delivery(
    config: PipelineConfig, transforms: Transforms, device: torch.device, *, pin_memory: bool, has_own_transform: bool
) -> Delivery:
    """What `config.prefetch` asks for, for a model on `device`.

    Args:
        config: the configuration.
        transforms: what is left of them for the device to do.
        device: where the model is.
        pin_memory: for a user who copies to the device himself: pages of torch's own allocator, never slots of ours.
        has_own_transform: a user's callable has done all there is to do.

    Raises:
        ConfigError: there is no such device, or the group contradicts itself.
    """
    target = _target(config, transforms, device)
    on_device = target is not None and target.type != "cpu"
    finishes = not has_own_transform and (
        transforms.place is Place.device or (transforms.place is Place.auto and on_device)
    )
    stage = _stage(config, transforms if finishes else None)
    if pin_memory and not on_device and torch.cuda.is_available():
        target, stage = torch.device("cpu"), _pinned(stage)
    return Delivery(
        device=target,
        on_device=on_device,
        finishes=finishes,
        stage=stage,
        streams=streams_for(target) if on_device and target is not None else None,  # or refuse before anything is read
        num_batches=config.prefetch.num_batches,
    )


def _target(config: PipelineConfig, transforms: Transforms, device: torch.device) -> torch.device | None:
    wanted = config.prefetch.device
    converts = config.prefetch.dtype != "float32"
    has_stage = converts or transforms.place is Place.device
    if wanted == "auto":
        # On the CPU the loader's own workers are ahead already: another thread would only be in their way.
        # Other devices than CUDA's are used where they are asked for: nobody has measured there what is best.
        return device if device.type == "cuda" or has_stage else None
    if wanted == "none":
        if converts:
            raise ConfigError(f"prefetch.dtype={config.prefetch.dtype} needs prefetch=cpu, cuda or mps")
        if has_stage:
            raise ConfigError(
                "transforms.place=device needs prefetch=cpu, cuda, mps or auto; or use transforms.place=worker"
            )
        return None
    return device if device.type == wanted else torch.device(str(wanted))


def _pinned(stage: BatchStage | None) -> BatchStage:
    return Batch.pin_memory if stage is None else lambda batch: stage(batch).pin_memory()


def _stage(config: PipelineConfig, transforms: Transforms | None) -> BatchStage | None:
    """Colour and normalisation by `transforms`, and the element type."""
    dtype: torch.dtype = getattr(torch, config.prefetch.dtype)
    if transforms is not None:
        transform = BatchTransform(transforms)
        return lambda batch: batch.with_images(transform(batch.images, batch.draws, dtype))
    if dtype is torch.float32:
        return None
    return lambda batch: batch.with_images(batch.images.to(dtype))
