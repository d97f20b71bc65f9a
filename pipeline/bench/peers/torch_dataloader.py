"""`torch.utils.data.DataLoader` with torchvision on Pillow's images: what a user has without this project."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as torchvision_transforms

from pipeline.bench.contender import Contender
from pipeline.bench.peers.task import EXIF, Task, forever, on_device, read_task
from pipeline.config import Augment, BenchConfig, Transforms
from pipeline.sources import ArraySource, Source, TarSource

_SERVED_FROM = {ArraySource: "memory", TarSource: "tar shards"}


class PilDataset(Dataset[tuple[Tensor, Any]]):
    """One sample at a time, as the tutorials have it."""

    def __init__(self, source: Source, transform: Any) -> None:
        self._source = source
        self._transform = transform

    def __len__(self) -> int:
        """Samples."""
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        """The transformed image and its label."""
        data = self._source.read(index)
        image = Image.open(io.BytesIO(data)).convert("RGB") if isinstance(data, bytes) else Image.fromarray(data)
        return self._transform(image), self._source.label(index)


def torchvision_transform(options: Transforms) -> Any:
    """The same augmentation by torchvision on PIL images, whose resize is Pillow's."""
    tv = torchvision_transforms
    steps: list[Any]
    if options.augment is Augment.none:
        steps = [tv.Resize(round(options.size * options.resize_ratio)), tv.CenterCrop(options.size)]
    else:
        jitter = (options.brightness, options.contrast, options.saturation, options.hue)
        steps = [
            tv.RandomResizedCrop(options.size, scale=tuple(options.scale), ratio=tuple(options.ratio)),
            tv.RandomHorizontalFlip(options.flip),
            *([tv.ColorJitter(*jitter)] if any(jitter) else []),
        ]
    return tv.Compose([*steps, tv.ToTensor(), tv.Normalize(options.mean, options.std)])


def prepare(cfg: BenchConfig) -> None:
    """Nothing but a check of `cfg`."""
    read_task(cfg)


@contextmanager
def open_loader(cfg: BenchConfig, device: torch.device) -> Iterator[Contender]:
    """As many worker processes as the pipeline has workers; they end with the block."""
    task = read_task(cfg)
    loader = _loader(task, pin_memory=device.type == "cuda")
    try:
        with closing(forever(loader)) as stream:
            yield Contender(
                stream=on_device(stream, device),
                batches_per_epoch=len(loader),
                num_samples=len(task.source),
                num_ready=task.prefetch_factor * task.num_workers,
                num_workers=task.num_workers,
                resize="antialiased bilinear (Pillow)",
                layout="contiguous",
                served_from=_SERVED_FROM.get(type(task.source), "files"),
                deviations=[*task.deviations, EXIF],
            )
    finally:
        if loader._iterator is not None:
            loader._iterator._shutdown_workers()  # type: ignore[attr-defined]  # its only way to end them now


def _loader(task: Task, *, pin_memory: bool) -> DataLoader[tuple[Tensor, Any]]:
    with_workers = task.num_workers > 0
    return DataLoader(
        PilDataset(task.source, torchvision_transform(task.transforms)),
        batch_size=task.batch_size,
        shuffle=True,
        num_workers=task.num_workers,
        persistent_workers=with_workers,
        prefetch_factor=task.prefetch_factor if with_workers else None,
        pin_memory=pin_memory,
        drop_last=task.drop_last,
        generator=torch.Generator().manual_seed(task.seed),
    )
