"""What a trial measures: the configured pipeline, and others that do the same work on the same files.

A contender is an endless stream of batches over persistent workers, so that a timed pass starts in the middle of its
work and pays for no start-up.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as torchvision_transforms

from pipeline.build import Pipeline
from pipeline.config import BenchConfig, Transforms
from pipeline.decode import Scratch, decode, inspect
from pipeline.sources import Source

Stream = Iterator[Tensor]
"""Endless images, one batch at a time."""


def forever(loader: Iterable[Any]) -> Stream:
    """The images of epoch after epoch."""
    for _ in itertools.count():
        for batch in loader:
            yield batch[0]
            del batch  # a kept batch would keep its slot


def headrace_stream(pipeline: Pipeline) -> AbstractContextManager[Stream]:
    """The configured pipeline itself; stays the caller's to close."""

    @contextmanager
    def opened() -> Iterator[Stream]:
        stream = forever(pipeline)
        try:
            yield stream
        finally:
            stream.close()  # type: ignore[attr-defined]  # a generator's

    return opened()


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
def torch_stream(source: Source, config: BenchConfig, num_workers: int) -> Iterator[Stream]:
    """`torch.utils.data.DataLoader` with as many worker processes as the pipeline has threads."""
    loader = DataLoader(
        PilDataset(source, torchvision_transform(config.transforms.resolved())),
        batch_size=config.loader.batch_size,
        shuffle=True,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        drop_last=config.loader.drop_last,
    )
    stream = forever(loader)
    try:
        yield stream
    finally:
        stream.close()  # type: ignore[attr-defined]  # a generator's
        iterator = loader._iterator
        if iterator is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]  # its only way to end persistent workers now


@contextmanager
def decode_stream(source: Source, batch_size: int, num_workers: int) -> Iterator[Stream]:
    """The ceiling: the same files only read and decoded, in order, by as many threads, with nothing made of them.

    Yields a one-byte-a-sample tensor, so that counting it is the same code as counting batches.
    """
    scratches = [Scratch() for _ in range(max(1, num_workers))]

    def decode_all(ids: NDArray[np.int64], scratch: Scratch) -> None:
        for id in ids.tolist():
            data = source.read(id)
            if isinstance(data, bytes):
                decode(data, inspect(data), scratch)

    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(len(scratches)))

        def stream() -> Stream:
            start = 0
            while True:
                ids = np.arange(start, start + batch_size) % len(source)
                list(pool.map(decode_all, np.array_split(ids, len(scratches)), scratches))
                start += batch_size
                yield torch.zeros(batch_size, dtype=torch.uint8)

        yield stream()
