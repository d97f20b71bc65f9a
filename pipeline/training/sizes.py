"""How large the training images of each epoch are: `schedule.sizes`. Epochs count from 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from pipeline.build_loader import NoRoomError
from pipeline.config import TrainConfig


def size_at(cfg: TrainConfig, epoch: int) -> int:
    """Height and width of the training images of `epoch`, in pixels."""
    return [size for first, size in _pairs(cfg) if first <= epoch][-1]


def last_of_size(cfg: TrainConfig, epoch: int) -> int:
    """The last epoch in a row from `epoch` on whose images are as large as its."""
    now = size_at(cfg, epoch)
    changes = (first for first, size in _pairs(cfg) if first > epoch and size != now)
    return next(changes, cfg.schedule.epochs + 1) - 1


def training_sizes(cfg: TrainConfig) -> list[int]:
    """The sizes of all training images, each once, in ascending order."""
    return sorted({size for _, size in _pairs(cfg)})


def longest_size(cfg: TrainConfig) -> int:
    """The size that most epochs have; of several the largest."""
    epochs = [size_at(cfg, epoch) for epoch in range(1, cfg.schedule.epochs + 1)]
    return max(training_sizes(cfg), key=lambda size: (epochs.count(size), size))


def with_size(cfg: TrainConfig, size: int) -> TrainConfig:
    """`cfg` with training images of `size` throughout, and evaluation's too."""
    return replace(cfg, transforms=replace(cfg.transforms, size=size), schedule=replace(cfg.schedule, sizes=None))


@contextmanager
def key_of_size_named(cfg: TrainConfig, size: int) -> Iterator[None]:
    """Has a NoRoomError of the block, where training images are of `size`, name the key that says so."""
    try:
        yield
    except NoRoomError as error:
        if cfg.schedule.sizes is None:
            raise
        raise NoRoomError(error.needs, size_key=f"the {size} pixels in schedule.sizes") from None


def sizes_in_words(cfg: TrainConfig) -> str:
    """For the run's first line: "images of 32 pixels, from epoch 5 on 48"."""
    (_, size), *changes = _pairs(cfg)
    return f"images of {size} pixels" + "".join(f", from epoch {first} on {size}" for first, size in changes)


def _pairs(cfg: TrainConfig) -> list[list[int]]:
    return cfg.schedule.sizes or [[1, cfg.transforms.size]]
