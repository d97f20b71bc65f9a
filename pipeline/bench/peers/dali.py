"""NVIDIA DALI on the CPU: crops while it decodes, from the files themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.base_iterator import LastBatchPolicy
from nvidia.dali.plugin.pytorch import DALIGenericIterator
from torch import Tensor

from pipeline.bench.contender import Contender
from pipeline.bench.peers.task import CENTRE_CROP, Task, forever, on_device, read_file_task
from pipeline.config import Augment, BenchConfig, Transforms
from pipeline.sources import FileSource

_READER = "files"
_QUEUE_DEPTH = 2  # batches that it makes ahead, by its own default


def prepare(cfg: BenchConfig) -> None:
    """Nothing but a check of `cfg`."""
    read_file_task(cfg)


@contextmanager
def open_loader(cfg: BenchConfig, device: torch.device) -> Iterator[Contender]:
    """A pipeline without any GPU, whose threads end with the process."""
    task, source = read_file_task(cfg)
    loader = DALIGenericIterator(
        [_pipeline(task, source)],
        ["images", "ids"],
        reader_name=_READER,
        last_batch_policy=LastBatchPolicy.DROP if task.drop_last else LastBatchPolicy.PARTIAL,
        auto_reset=True,
    )
    with closing(forever(_Epochs(loader, task.labels()))) as stream:
        yield Contender(
            stream=on_device(stream, device),
            batches_per_epoch=task.batches_per_epoch,
            num_samples=len(source),
            num_ready=_QUEUE_DEPTH,
            num_workers=task.num_threads,
            # On a zone plate and a checkerboard of 500x375 to 224 it differs from Pillow's by 0.3 levels in the mean,
            # and by 20 and 32 from OpenCV's INTER_LINEAR, which is aliased.
            resize="antialiased triangle (DALI)",
            layout="contiguous",
            served_from="files",
            # Decoding needs none: a region of a photograph is bit for bit what Pillow's decoder gives there.
            deviations=[*task.deviations, *([CENTRE_CROP] if task.transforms.augment is Augment.none else [])],
        )


class _Epochs:
    def __init__(self, loader: Any, labels: Tensor) -> None:
        self._loader = loader
        self._labels = labels

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for (batch,) in self._loader:
            yield batch["images"], self._labels[batch["ids"][:, 0].long()]


def _pipeline(task: Task, source: FileSource) -> Any:
    options = task.transforms

    @pipeline_def(
        batch_size=task.batch_size,
        num_threads=task.num_threads,
        device_id=None,
        seed=task.seed,
        prefetch_queue_depth=_QUEUE_DEPTH,
        exec_dynamic=True,  # its outputs become tensors without a copy
    )  # type: ignore[untyped-decorator]  # DALI has no types
    def graph() -> tuple[Any, Any]:
        files, ids = fn.readers.file(
            files=list(source.paths),
            labels=list(range(len(source))),
            shuffle_after_epoch=True,
            pad_last_batch=True,  # what fills it up is cut off again
            name=_READER,
        )
        images, mirror = _resized(files, options)
        images = fn.crop_mirror_normalize(
            images,
            dtype=types.FLOAT,
            output_layout="CHW",
            crop=(options.size, options.size),
            mean=[255 * value for value in options.mean],
            std=[255 * value for value in options.std],
            mirror=mirror,
        )
        return images, ids

    return graph()


def _resized(files: Any, options: Transforms) -> tuple[Any, Any]:
    """Images before their centre crop, which takes all of an augmented one, and whether each is to be mirrored."""
    if options.augment is Augment.none:
        images = fn.decoders.image(files, device="cpu", output_type=types.RGB)
        return fn.resize(images, resize_shorter=round(options.size * options.resize_ratio)), 0
    images = fn.decoders.image_random_crop(
        files,
        device="cpu",
        output_type=types.RGB,
        random_area=options.scale,
        random_aspect_ratio=options.ratio,
        num_attempts=10,  # as torchvision's
    )
    resized = fn.resize(images, size=(options.size, options.size))
    return resized, fn.random.coin_flip(probability=options.flip)
