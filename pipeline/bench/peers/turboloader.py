"""TurboLoader: a thread for each core, one pass a batch, from an uncompressed tar of the files."""

from __future__ import annotations

import math
import os
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import turboloader
from numpy.typing import NDArray
from torch import Tensor

from pipeline.bench.contender import Contender
from pipeline.bench.peers.prepared import prepare_file, prepared_path, read_jpeg
from pipeline.bench.peers.task import EXIF, Task, forever, on_device, read_file_task
from pipeline.config import Augment, BenchConfig, ConfigError
from pipeline.sources import FileSource

_ARCHIVE = "images.tar"
_SCALE, _RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # built in
_PREFETCH_BATCHES = 4  # its default


def prepare(cfg: BenchConfig) -> None:
    """Write the tar, byte for byte the files, in the order of ids."""
    _, source = _read_task(cfg)

    def write(path: Path) -> None:
        with tarfile.open(path, "w") as archive:
            for id in range(len(source)):
                data = read_jpeg(source, id)
                member = tarfile.TarInfo(f"{id:08d}.jpg")
                member.size = len(data)
                archive.addfile(member, BytesIO(data))

    prepare_file(source, _ARCHIVE, write)


@contextmanager
def open_loader(cfg: BenchConfig, device: torch.device) -> Iterator[Contender]:
    """Its documented fast path for local archives; what it makes ahead ends with the block."""
    task, source = _read_task(cfg)
    options = task.transforms
    archive = str(prepared_path(source, _ARCHIVE))
    loader = turboloader.DataLoader(
        archive,
        batch_size=task.batch_size,
        shuffle=True,
        seed=task.seed,
        drop_last=task.drop_last,
        image_size=options.size,
        output_format="pytorch",
        transform=turboloader.Normalize(list(options.mean), list(options.std)),
        train_aug=True,
        hflip_prob=options.flip,
        antialias=True,
        prefetch_batches=_PREFETCH_BATCHES,
    )
    num_threads = _num_threads()
    with closing(loader), closing(forever(_Epochs(loader, task.labels()))) as stream:
        yield Contender(
            stream=on_device(stream, device),
            batches_per_epoch=task.batches_per_epoch,
            num_samples=len(source),
            num_ready=_PREFETCH_BATCHES + 1,  # the one that waits for a place
            num_workers=num_threads,
            resize="antialiased triangle (TurboLoader, antialias=True)",
            layout="contiguous",
            served_from="a tar of the files",
            files=[archive],
            deviations=[*task.deviations, *_deviations(task, num_threads)],
        )


class _Epochs:
    def __init__(self, loader: Any, labels: Tensor) -> None:
        self._loader = loader
        self._labels = labels
        self._epoch = 0

    def __iter__(self) -> Iterator[tuple[NDArray[np.float32], Tensor]]:
        self._loader.set_epoch(self._epoch)  # the order and the crops follow from it
        self._epoch += 1
        for images, about in self._loader:
            yield images, self._labels[about["indices"]]


def _read_task(cfg: BenchConfig) -> tuple[Task, FileSource]:
    task, source = read_file_task(cfg)
    options = task.transforms
    if options.augment is Augment.none:
        raise ConfigError(
            "transforms.augment=none is not there for bench.contender=turboloader, which resizes whole images only; "
            "use transforms=light"
        )
    for key, given, built_in in (("scale", options.scale, _SCALE), ("ratio", options.ratio, _RATIO)):
        if not all(map(math.isclose, given, built_in)):
            raise ConfigError(
                f"transforms.{key}={given} is not there for bench.contender=turboloader; leave it at {list(built_in)}"
            )
    return task, source


def _num_threads() -> int:
    """Those of its own pool, whose number cannot be chosen."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(2, cores)


def _deviations(task: Task, num_threads: int) -> Iterator[str]:
    if num_threads != task.num_workers:
        yield f"{num_threads} threads: it takes no number"
    # A checkerboard of single pixels keeps 0.02 of contrast in crops of any size, where torchvision's small ones keep
    # 0.17: the scale is that of the whole image, 5/8 from 500x375 to 224, before anything is cut out.
    yield "decodes at a scale for the whole image, then crops"
    # Up to 17 levels from libjpeg's accurate one.
    yield "fast IDCT"
    yield "a damaged file becomes a grey or black image"
    yield EXIF
