"""FFCV: pipelines compiled by numba, from a .beton file that holds the files' own bytes."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
import torch
from ffcv.fields.decoders import CenterCropRGBImageDecoder, IntDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage
from torch import Tensor

from pipeline.bench.contender import Contender
from pipeline.bench.peers.beton import JpegField
from pipeline.bench.peers.prepared import prepare_file, prepared_path, read_jpeg
from pipeline.bench.peers.task import CENTRE_CROP, EXIF, Task, forever, on_device, read_file_task
from pipeline.config import Augment, BenchConfig

_BETON = "jpeg.beton"
_BATCHES_AHEAD = 3  # its default


def prepare(cfg: BenchConfig) -> None:
    """Write the .beton file by FFCV's writer, the files' bytes unchanged."""
    _, source = read_file_task(cfg)

    def write(path: Path) -> None:
        for id in range(len(source)):
            read_jpeg(source, id)
        command = [sys.executable, "-P", "-m", "pipeline.bench.peers.beton", str(path)]
        finished = subprocess.run(command, input=pickle.dumps(source), capture_output=True, check=False)
        if finished.returncode != 0:
            raise RuntimeError(f"FFCV's writer failed: {finished.stderr.decode(errors='replace').strip()}")

    prepare_file(source, _BETON, write)


@contextmanager
def open_loader(cfg: BenchConfig, device: torch.device) -> Iterator[Contender]:
    """One loader for all epochs, for it compiles its pipeline once; its thread ends with the block.

    It sets the number of threads of numba and of torch in this process.
    """
    task, source = read_file_task(cfg)
    # More than this cannot be asked for later; read when the first compiled function runs.
    os.environ["NUMBA_NUM_THREADS"] = str(task.num_threads)
    beton = str(prepared_path(source, _BETON))
    loader = Loader(
        beton,
        batch_size=task.batch_size,
        num_workers=task.num_threads,
        os_cache=True,
        order=OrderOption.RANDOM,
        seed=task.seed,
        drop_last=task.drop_last,
        batches_ahead=_BATCHES_AHEAD,
        pipelines={"image": _image_pipeline(task), "id": [IntDecoder(), ToTensor()]},
        custom_fields={"image": JpegField},
    )
    with closing(forever(_Epochs(loader, task.labels()))) as stream:
        yield Contender(
            stream=on_device(stream, device),
            batches_per_epoch=task.batches_per_epoch,
            num_samples=len(source),
            num_ready=_BATCHES_AHEAD + 1,  # the one that waits for a place
            num_workers=task.num_threads,
            resize="area average, enlarging bilinear (OpenCV INTER_AREA)",
            layout="channels-last",
            served_from="a .beton of the files' bytes",
            files=[beton],
            deviations=[*task.deviations, *_deviations(task)],
        )


def _deviations(task: Task) -> Iterator[str]:
    yield "fast IDCT"
    yield "a damaged file shows what was in memory"
    yield EXIF
    if task.transforms.augment is Augment.none:
        yield CENTRE_CROP


def _image_pipeline(task: Task) -> list[Any]:
    options, size = task.transforms, (task.transforms.size, task.transforms.size)
    if options.augment is Augment.none:
        part = options.size / round(options.size * options.resize_ratio)
        steps = [CenterCropRGBImageDecoder(size, ratio=part)]
    else:
        crop = RandomResizedCropRGBImageDecoder(size, scale=tuple(options.scale), ratio=tuple(options.ratio))
        steps = [crop, RandomHorizontalFlip(options.flip)]
    mean, std = 255 * np.array(options.mean), 255 * np.array(options.std)
    return [*steps, NormalizeImage(mean, std, np.float32), ToTensor(), ToTorchImage()]


class _Epochs:
    def __init__(self, loader: Loader, labels: Tensor) -> None:
        self._loader = loader
        self._labels = labels

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = iter(self._loader)
        try:
            for images, ids in epoch:
                yield images, self._labels[ids[:, 0]]
        finally:
            _end(epoch)


def _end(epoch: Any) -> None:
    """Wait for the thread of an epoch, which may be waiting itself for somebody to take a batch."""
    epoch.terminate_event.set()
    while epoch.is_alive():
        try:
            epoch.output_queue.get(timeout=0.1)
        except Empty:
            continue
