"""What a trial measures: the configured pipeline, and others that do the same work on the same files.

A contender is an endless stream of batches over persistent workers, so that a timed pass starts in the middle of its
work and pays for no start-up.
"""

from __future__ import annotations

import io
import itertools
import math
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as torchvision_transforms

from pipeline.build import Pipeline
from pipeline.config import BenchConfig, Transforms
from pipeline.decode import Scratch, decode, inspect
from pipeline.sources import Source

Stream = Generator[Tensor, None, None]
"""Endless images, one batch at a time."""


class Contender(NamedTuple):
    """A stream, and how many of its batches may lie ready while others are measured."""

    stream: Stream
    num_ready: int


def forever(loader: Iterable[Any]) -> Stream:
    """The images of epoch after epoch."""
    for _ in itertools.count():
        for batch in loader:
            yield batch[0]
            del batch  # a kept batch would keep its slot


@contextmanager
def headrace(pipeline: Pipeline, config: BenchConfig) -> Iterator[Contender]:
    """The configured pipeline itself; stays the caller's to close."""
    with closing(forever(pipeline)) as stream:
        yield Contender(stream, config.loader.prefetch_factor + config.prefetch.num_batches)


class PilDataset(Dataset[tuple[Tensor, int]]):
    """What a user has without this project: Pillow and torchvision, a sample at a time."""

    def __init__(self, source: Source, transform: Any) -> None:
        """Read from `source`, whose samples must be encoded images."""
        self._source = source
        self._transform = transform

    def __len__(self) -> int:
        """Samples."""
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The transformed image and its label."""
        data = self._source.read(index)
        if not isinstance(data, bytes):
            raise ValueError("bench.compare=[torch] needs encoded images; this source has pixels")
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return self._transform(image), int(self._source.label(index))


def torchvision_transform(options: Transforms) -> Any:
    """The same augmentation by torchvision on PIL images; its resize is PIL's antialiased bilinear."""
    tv = torchvision_transforms
    steps: list[Any]
    if options.augment == "none":
        steps = [tv.Resize(round(options.size * options.resize_ratio)), tv.CenterCrop(options.size)]
    else:
        jitter = (options.brightness, options.contrast, options.saturation, options.hue)
        steps = [
            tv.RandomResizedCrop(options.size, scale=tuple(options.scale), ratio=tuple(options.ratio)),
            tv.RandomHorizontalFlip(options.flip),
            *([tv.ColorJitter(*jitter)] if any(jitter) else []),
        ]
    return tv.Compose([*steps, tv.ToTensor(), tv.Normalize(options.mean, options.std)])


@contextmanager
def torch_dataloader(
    source: Source, config: BenchConfig, num_workers: int, device: torch.device
) -> Iterator[Contender]:
    """`torch.utils.data.DataLoader` with as many worker processes as the pipeline has threads, batches on `device`."""
    on_gpu = device.type == "cuda"
    loader = DataLoader(
        PilDataset(source, torchvision_transform(config.transforms.resolved())),
        batch_size=config.loader.batch_size,
        shuffle=True,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=on_gpu,
        drop_last=config.loader.drop_last,
    )
    with closing(forever(loader)) as stream:
        moved = (images.to(device, non_blocking=True) for images in stream) if on_gpu else stream
        yield Contender(moved, 2 * num_workers)
    if loader._iterator is not None:
        loader._iterator._shutdown_workers()  # type: ignore[attr-defined]  # its only way to end persistent workers now


@contextmanager
def decode_only(source: Source, batch_size: int, num_workers: int) -> Iterator[Contender]:
    """The same files read and fully decoded, in order, by as many threads, and nothing made of them.

    Yields a one-byte-a-sample tensor, so that counting it is the same code as counting batches.
    """
    num_threads, local = max(1, num_workers), threading.local()
    per_task = math.gcd(batch_size, 8)
    firsts = itertools.cycle(range(0, len(source), per_task))

    def decode_some(first: int) -> None:
        scratch = local.__dict__.setdefault("scratch", Scratch())
        for id in range(first, first + per_task):
            data = source.read(id % len(source))
            if isinstance(data, bytes):
                decode(data, inspect(data), scratch)

    with ThreadPoolExecutor(num_threads) as pool:

        def batches() -> Stream:
            window = deque(pool.submit(decode_some, next(firsts)) for _ in range(4 * num_threads))
            while True:
                for _ in range(batch_size // per_task):
                    window.popleft().result()
                    window.append(pool.submit(decode_some, next(firsts)))
                yield torch.zeros(batch_size, dtype=torch.uint8)

        with closing(batches()) as stream:
            yield Contender(stream, -(-4 * num_threads * per_task // batch_size))
