"""The plain-Python face: a loader, and a dataset, a prefetcher and a cache, for somebody else's training script."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike

from pipeline.build import Pipeline, assemble
from pipeline.cache import LRUCache
from pipeline.config import (
    Backend,
    Cache,
    CachePolicy,
    Data,
    Loader,
    OnError,
    PipelineConfig,
    Prefetch,
    PrefetchDevice,
    Preload,
    PreloadMode,
    SamplerName,
    Transforms,
)
from pipeline.config import Store as StoreKind
from pipeline.config.checks import choice, whole
from pipeline.dataset import HighPerformanceDataset
from pipeline.main_script import refuse_while_importing
from pipeline.prefetch import PrefetchLoader
from pipeline.quarantine import Quarantine, TooManyBadError
from pipeline.sources import FileSource

__all__ = ["HighPerformanceDataset", "LRUCache", "PrefetchLoader", "TooManyBadError", "create_dataloader"]


def create_dataloader(
    data_paths: Sequence[str | PathLike[str]],
    labels: ArrayLike,
    batch_size: int = 32,
    num_workers: int = 4,
    img_size: int = 224,
    cache_size: int = 1000,
    preload: bool | str = False,
    augment: bool | str = True,
    pin_memory: bool = True,
    prefetch_device: torch.device | str | None = None,
    *,
    transform: Callable[..., Any] | None = None,
    backend: str = "auto",
    threads_per_worker: int = 1,
    prefetch_factor: int = 2,
    shuffle: bool | None = None,
    sampler: str | None = None,
    drop_last: bool = False,
    seed: int = 0,
    on_error: str = "raise",
    max_bad_fraction: float = 0.1,
    quarantine: str | PathLike[str] | None = None,
    max_restarts: int = 3,
    stall_timeout_s: float = 300,
    cache_policy: str = "lru",
    store: str = "auto",
    decode: str = "full",
    resize: str | None = None,
    background: Sequence[int] = (255, 255, 255),
    icc: str = "ignore",
    crops_per_image: int = 1,
    memory_format: str = "channels_last",
    rank: int | None = None,
    world_size: int | None = None,
) -> Pipeline:
    """A loader of image files: yields `Batch`es that unpack as `images, labels`.

    Images are normalised float32 `(B, 3, img_size, img_size)` with ImageNet's mean and deviation; labels are int64 or
    float32, one row a sample. The same (files, options, seed) give the same bytes for every number of workers, cache
    and prefetcher. Use it in a `with`, or `close()` it. Importing it sets `cv2.setNumThreads(0)` for the process.

    Args:
        data_paths: image files; packed at once, no reference to the sequence is kept. A file is first looked at when
            its turn comes.
        labels: any numeric array-like of first dimension `len(data_paths)`.
        batch_size: samples in a batch, for each rank.
        num_workers: threads or processes that make batches; 0 makes them in the loop.
        img_size: height and width in pixels.
        cache_size: images kept between epochs; 0 keeps none.
        preload: True or "ram" reads everything before the first epoch, "pack" keeps it in one file for later runs, in
            `data/.packs` of the working directory: encoded, or with `store="decoded"` their pixels.
        augment: "light" is RandomResizedCrop and flip, "standard" (True) adds colour jitter, "heavy" more; "none"
            (False) is evaluation's resize and centre crop, in order.
        pin_memory: put batches in page-locked memory; nothing happens without CUDA.
        prefetch_device: yield batches that are already on this device.
        transform: your own callable, from a `PIL.Image` (RGB, upright) to a (3, H, W) tensor or array, instead of all
            built-in transforms; of `augment` only the bools may stand beside it, for `shuffle`. In worker processes,
            and with `num_workers=0`, `random`, `numpy.random` and torch are seeded for every sample; threads cannot do
            that. It is tried on one image at once. If your script defines it, keep the rest of the script under
            `if __name__ == "__main__"`.
        backend: "threads", "processes", or "auto": processes for a `transform` and for a CUDA `prefetch_device`.
        threads_per_worker: threads in each worker process.
        prefetch_factor: batches in flight beyond the one the loop holds.
        shuffle: a new order every epoch; None: when augmenting.
        sampler: "shuffle", "sequential" or "balanced", instead of `shuffle`.
        drop_last: leave out an epoch's last batch if it is not full.
        seed: decides order and augmentation.
        on_error: "raise" stops at a file that cannot be decoded and names it; "skip" shortens its batch, to none if
            need be; "replace" puts another image in its place, which one depends on (seed, epoch, id) alone.
        max_bad_fraction: with those, the part of all images that may be bad; one more raises `TooManyBadError`. Of
            several ranks none raises by itself, or it would leave the others waiting: ask `loader.bad.check()`.
        quarantine: with those, a CSV file that every bad image goes into once; rank r writes one of its own, with `-r`
            before the ending. None: they are in `loader.bad.causes` only.
        max_restarts: how often dead worker processes are replaced.
        stall_timeout_s: seconds after which a sample that does not come raises.
        cache_policy: "lru"; "pinned": the first images to come stay, which suits shuffled epochs better; or "valued":
            those that save most time a byte.
        store: keep files' bytes ("encoded"), pixels ("decoded"), or pixels if they fit ("auto").
        decode: "full", or "scaled": decode at 1/2, 1/4 or 1/8 where the crop allows; changes pixels.
        resize: "exact", "fast", or "fused", which needs the native kernel; None: exact when not augmenting, else fused
            where the kernel is built and fast where not.
        background: R, G, B in 0..255 that transparent pixels are laid over.
        icc: embedded colour profiles: "ignore", or "convert" pixels to sRGB.
        crops_per_image: crops of each image, decoded once, in its batch: that has so many times `batch_size` images.
        memory_format: of the images, "channels_last" or "contiguous".
        rank: which part of every global batch; by default torch.distributed's.
        world_size: how many ranks share a global batch; by default torch.distributed's.

    Raises:
        ValueError: an option is wrong; the message names its key in the configuration, whose meaning it shares.
    """
    refuse_while_importing("create_dataloader")
    if transform is not None:
        _refuse_beside_transform(
            augment=isinstance(augment, str),
            img_size=img_size != 224,
            resize=resize is not None,
            decode=decode != "full",
            crops_per_image=crops_per_image != 1,
        )
    if isinstance(augment, bool):
        augment = "standard" if augment else "none"
    if isinstance(preload, bool):
        preload = "ram" if preload else "none"
    transforms = Transforms.named(
        augment,
        size=img_size,
        decode=decode,
        resize=resize or "auto",
        background=list(background),
        icc=icc,
        crops_per_image=crops_per_image,
    ).resolved()
    if sampler is not None and shuffle is not None:
        raise ValueError(f"give shuffle or sampler, not both, got shuffle={shuffle} and sampler={sampler!r}")
    if shuffle is None:
        shuffle = transforms.augment != "none"
    order = sampler or ("shuffle" if shuffle else "sequential")
    cache_size = whole("cache_size", cache_size, low=0, cure="0 keeps none")
    prefetch_to = "none" if prefetch_device is None else torch.device(prefetch_device).type
    needs_no_policy = preload == "ram" or (preload == "pack" and store == "decoded")  # everything is decoded already
    policy = choice("cache.policy", cache_policy, CachePolicy)
    keeps_some = cache_size > 0 and not needs_no_policy
    rank, world_size = _ranks(rank, world_size)
    config = PipelineConfig(
        data=Data(on_error=choice("data.on_error", on_error, OnError), max_bad_fraction=max_bad_fraction),
        cache=Cache(
            policy=policy if keeps_some else CachePolicy.none,
            max_images=cache_size if keeps_some else None,
            store=choice("cache.store", store, StoreKind),
        ),
        preload=Preload(mode=choice("preload.mode", preload, PreloadMode)),
        loader=Loader(
            backend=choice("loader.backend", backend, Backend),
            num_workers=num_workers,
            batch_size=batch_size,
            prefetch_factor=prefetch_factor,
            threads_per_worker=threads_per_worker,
            max_restarts=max_restarts,
            stall_timeout_s=stall_timeout_s,
            drop_last=drop_last,
            sampler=choice("loader.sampler", order, SamplerName),
        ),
        prefetch=Prefetch(device=choice("prefetch.device", prefetch_to, PrefetchDevice)),
        transforms=transforms,
        seed=seed,
    )
    return assemble(
        _file_source(data_paths, labels),  # given away: with worker processes it is copied, and let go
        config,
        transforms=transforms,
        sampler=config.loader.sampler,
        device=torch.device("cpu" if prefetch_device is None else prefetch_device),
        name="images",
        function=transform,
        drop_last=drop_last,
        rank=rank,
        world_size=world_size,
        memory_format=memory_format,
        pin_memory=pin_memory,
        quarantine=_quarantine(quarantine, on_error=config.data.on_error, rank=rank),
    )


def _refuse_beside_transform(**given: bool) -> None:
    names = [name for name, is_given in given.items() if is_given]
    if names:
        raise ValueError(f"transform replaces the built-in transforms; leave out {' and '.join(names)} beside it")


def _file_source(data_paths: Sequence[str | PathLike[str]], labels: ArrayLike) -> FileSource:
    source = FileSource(data_paths, labels)
    if len(source) == 0:
        raise ValueError("data_paths is empty; look at the pattern or directory that it was made from")
    return source


def _quarantine(path: str | PathLike[str] | None, *, on_error: OnError, rank: int) -> Quarantine | None:
    if path is None:
        return None
    if on_error is OnError["raise"]:
        raise ValueError('quarantine has no use with on_error="raise", which stops at once; use "skip" or "replace"')
    own = Path(path)
    return Quarantine(own if rank == 0 else own.with_name(f"{own.stem}-{rank}{own.suffix}"))


def _ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank and world_size go together, got rank={rank} and world_size={world_size}")
    if rank is not None and world_size is not None:
        return rank, world_size
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    launched = os.environ.get("WORLD_SIZE", "1")
    if launched != "1":
        warnings.warn(
            f"WORLD_SIZE={launched} but torch.distributed is not initialised: every rank gets every sample; "
            "call torch.distributed.init_process_group first, or pass rank= and world_size=",
            stacklevel=3,
        )
    return 0, 1
