"""What every other loader is asked to do: the part of a configuration that can mean the same to all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.bench.contender import Stream
from pipeline.build_source import open_source
from pipeline.config import (
    Augment,
    BenchConfig,
    CachePolicy,
    ConfigError,
    Decode,
    ImageDtype,
    PreloadMode,
    SamplerName,
    Transforms,
)
from pipeline.machine import num_cores
from pipeline.sources import FileSource, Source

EXIF = "EXIF orientation is ignored"
CENTRE_CROP = "the centre crop may lie a pixel beside torchvision's"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Samples and what is made of them."""

    source: Source
    transforms: Transforms
    batch_size: int
    num_workers: int
    """Resolved; 0: the loop itself makes batches."""
    prefetch_factor: int
    drop_last: bool
    seed: int
    deviations: tuple[str, ...]
    """What no other loader does of it."""

    @property
    def num_threads(self) -> int:
        """Threads of a loader that cannot work in the loop itself."""
        return max(1, self.num_workers)

    @property
    def batches_per_epoch(self) -> int:
        """Batches, the last of them full only where `drop_last`."""
        whole, rest = divmod(len(self.source), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def labels(self) -> Tensor:
        """A copy of all labels, by id."""
        return torch.tensor(self.source.labels)


def read_task(cfg: BenchConfig) -> Task:
    """What `cfg` asks of `cfg.bench.contender`.

    Raises:
        ConfigError: No other loader can do that, or there is no such data.
    """
    _refuse_what_changes_batches(cfg)
    task = Task(
        source=open_source(cfg.data, "train"),
        transforms=cfg.transforms,
        batch_size=cfg.loader.batch_size,
        num_workers=cfg.loader.resolved_num_workers(num_cores()),
        prefetch_factor=cfg.loader.prefetch_factor,
        drop_last=cfg.loader.drop_last,
        seed=cfg.seed,
        deviations=tuple(_left_out(cfg)),
    )
    if task.batches_per_epoch == 0:
        raise ConfigError(f"loader.drop_last leaves no batch of {len(task.source)} samples; use a smaller batch")
    return task


def read_file_task(cfg: BenchConfig) -> tuple[Task, FileSource]:
    """What `cfg` asks of a loader that reads files and jitters no colours, and the files.

    Raises:
        ConfigError: As `read_task`; or samples are not files, or colours are to be jittered.
    """
    name, transforms = cfg.bench.contender, cfg.transforms
    if transforms.augment is not Augment.none and any(
        (transforms.brightness, transforms.contrast, transforms.saturation, transforms.hue)
    ):
        raise ConfigError(
            f"transforms.augment={transforms.augment} jitters colours, which bench.contender={name} "
            "does not do as torchvision does; use transforms=light"
        )
    task = read_task(cfg)
    source = task.source
    if not isinstance(source, FileSource):
        raise ConfigError(
            f"bench.contender={name} reads samples that are one file each, not data.{_whereabouts(cfg)}; "
            "use data=folder, manifest or synthetic"
        )
    if task.num_workers == 0:
        task = replace(task, deviations=(*task.deviations, "batches are made in a thread, not in the loop"))
    return task, source


def forever(epochs: Iterable[tuple[Any, Any]]) -> Stream:
    """The batches of one `iter(epochs)` after another; keeps none of them."""
    while True:
        for images, labels in epochs:
            yield images, labels
            del images, labels


def on_device(stream: Stream, device: torch.device) -> Stream:
    """The same batches, copied to `device` where that is not the CPU."""
    for images, labels in stream:
        if device.type == "cpu":
            yield images, labels
        else:
            yield (
                torch.as_tensor(images).to(device, non_blocking=True),
                torch.as_tensor(labels).to(device, non_blocking=True),
            )


def _whereabouts(cfg: BenchConfig) -> str:
    pattern = getattr(cfg.data, "pattern", None)
    return f"pattern={pattern}" if pattern is not None else f"root={cfg.data.root}"


def _refuse_what_changes_batches(cfg: BenchConfig) -> None:
    for key, value, working in (
        ("loader.sampler", cfg.loader.sampler, SamplerName.shuffle),
        ("prefetch.dtype", cfg.prefetch.dtype, ImageDtype.float32),
        ("transforms.max_side", cfg.transforms.max_side, None),
        ("data.max_samples", cfg.data.max_samples, None),  # they read files and archives themselves
    ):
        if value != working:
            usable = "null" if working is None else working
            raise ConfigError(f"{key}={value} is not there for bench.contender={cfg.bench.contender}; use {usable}")


def _left_out(cfg: BenchConfig) -> Iterator[str]:
    if cfg.cache.policy is not CachePolicy.none:
        yield f"no cache: cache.policy={cfg.cache.policy} has no effect"
    if cfg.preload.mode is not PreloadMode.none:
        yield f"no preloading: preload.mode={cfg.preload.mode} has no effect"
    if cfg.transforms.decode is Decode.scaled:
        yield "transforms.decode=scaled has no effect"
