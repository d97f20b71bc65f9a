"""SPDL: FFmpeg decodes, crops and resizes in a pool of threads, from the files themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import spdl.io
import spdl.io.utils
import torch
from spdl.pipeline import PipelineBuilder
from torch import Tensor

from pipeline.bench.contender import Contender, Stream
from pipeline.bench.peers.task import EXIF, Task, on_device, read_file_task
from pipeline.config import Augment, BenchConfig, Transforms
from pipeline.sources import FileSource
from pipeline.transforms.geometry import RANDOM_CROP_DRAWS, random_resized_crop

_BUFFER_SIZE = 3  # finished batches; the default of its DataLoader
_QUEUED = 8  # that lie in its queues when nobody asks; counted: 9, 10 and 12 with one, two and four threads
_ERRORS_ONLY = 16  # FFmpeg's number; it warns of every JPEG's colour range


def prepare(cfg: BenchConfig) -> None:
    """Nothing but a check of `cfg`."""
    read_file_task(cfg)


@contextmanager
def open_loader(cfg: BenchConfig, device: torch.device) -> Iterator[Contender]:
    """A pipeline over endless epochs as its ImageNet example builds one; its threads end with the block.

    A thread makes a whole batch. A file that is no image ends the stream with an error.
    """
    task, source = read_file_task(cfg)
    spdl.io.utils.set_ffmpeg_log_level(_ERRORS_ONLY)
    pipeline = (
        PipelineBuilder()
        .add_source(_endless_ids(task))
        .pipe(_MakeBatch(task, source), concurrency=task.num_threads, output_order="input")
        .add_sink(_BUFFER_SIZE)
        .build(num_threads=task.num_threads, max_failures=0)
    )
    with pipeline.auto_stop():
        yield Contender(
            stream=on_device(_batches(pipeline), device),
            batches_per_epoch=task.batches_per_epoch,
            num_samples=len(source),
            num_ready=_QUEUED + task.num_threads,
            num_workers=task.num_threads,
            # On a zone plate and a checkerboard of 500x375 to 224 it differs from Pillow's by 0.3 levels in the mean,
            # and by 20 and 32 from OpenCV's INTER_LINEAR, which is aliased.
            resize="antialiased bilinear (FFmpeg swscale)",
            layout="channels-last",
            served_from="files",
            deviations=[
                *task.deviations,
                "chroma at half the width after resizing (swscale's default)",
                "a damaged file is shown as far as FFmpeg gets",
                EXIF,
            ],
        )


def _batches(pipeline: Any) -> Stream:
    yield from pipeline.get_iterator()


def _endless_ids(task: Task) -> Iterator[list[int]]:
    order, count = np.random.default_rng(task.seed), len(task.source)
    while True:
        ids = order.permutation(count).tolist()
        for batch in range(task.batches_per_epoch):
            yield ids[batch * task.batch_size : (batch + 1) * task.batch_size]


class _MakeBatch:
    """Ids to normalised images, channels-last, and labels. Runs in many threads at once."""

    def __init__(self, task: Task, source: FileSource) -> None:
        self._source = source
        self._labels = task.labels()
        self._options = task.transforms
        self._draws = np.random.default_rng(task.seed)
        std, mean = torch.tensor(task.transforms.std), torch.tensor(task.transforms.mean)
        self._factor = (1 / (255 * std)).view(1, 3, 1, 1)
        self._offset = (-mean / std).view(1, 3, 1, 1)

    def __call__(self, ids: list[int]) -> tuple[Tensor, Tensor]:
        draws = self._draws.random((len(ids), RANDOM_CROP_DRAWS + 1)).tolist()
        frames = [self._image(id, row) for id, row in zip(ids, draws, strict=True)]
        pixels = spdl.io.to_torch(spdl.io.convert_frames(frames)).permute(0, 3, 1, 2)
        return pixels.float().mul_(self._factor).add_(self._offset), self._labels[ids]

    def _image(self, id: int, draws: list[float]) -> Any:
        packets, options = spdl.io.demux_image(self._source.paths[id]), self._options
        if options.augment is Augment.none:
            filters = evaluation_filters(packets.height, packets.width, options)
        else:
            filters = augmenting_filters(packets.height, packets.width, options, draws)
        return spdl.io.decode_packets(packets, filter_desc=f"{filters},format=pix_fmts=rgb24")


def augmenting_filters(height: int, width: int, options: Transforms, draws: list[float]) -> str:
    """FFmpeg's filters for a random resized crop and a flip; `draws` are those of the crop and one more."""
    box = random_resized_crop(height, width, draws, scale=options.scale, ratio=options.ratio)
    size = options.size
    # exact: without it the corner would be moved to where chroma has a sample.
    return (
        f"crop={box.width}:{box.height}:{box.left}:{box.top}:exact=1,"
        f"scale=w={size}:h={size}:flags=bilinear{',hflip' if draws[-1] < options.flip else ''}"
    )


def evaluation_filters(height: int, width: int, options: Transforms) -> str:
    """FFmpeg's filters for torchvision's `Resize`, then `CenterCrop`, rounded as they do."""
    short, size = round(options.size * options.resize_ratio), options.size
    new_height, new_width = (
        (short, int(short * width / height)) if height <= width else (int(short * height / width), short)
    )
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    return f"scale=w={new_width}:h={new_height}:flags=bilinear,format=pix_fmts=rgb24,crop={size}:{size}:{left}:{top}"
