"""A map-style dataset with the store behind it, for who stays with torch's `DataLoader`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from os import PathLike
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image
from torch.utils.data import Dataset

from pipeline.build_budget import free_bytes, refuse_preload
from pipeline.build_estimate import look_at_some
from pipeline.build_store import CAN_SHARE, fill, keep_looked_at, shared_store
from pipeline.cache.load import HITS, MISSES, CachedLoad, Store
from pipeline.cache.private_store import PrivateStore
from pipeline.cache.settings import Kind, Settings
from pipeline.config import CachePolicy
from pipeline.config.checks import whole
from pipeline.loader.read import Decoding
from pipeline.machine import num_cores
from pipeline.sources import FileSource
from pipeline.stats import Stats

if CAN_SHARE:
    from multiprocessing.reduction import ForkingPickler

    from pipeline.shared import Descriptor, passed_by_multiprocessing

    # How a dataset's cache reaches the workers that a `DataLoader` spawns.
    ForkingPickler.register(Descriptor, passed_by_multiprocessing)


class HighPerformanceDataset(Dataset[tuple[Any, Any]]):
    """Image files as a map-style dataset that remembers decoded images, for any torch `DataLoader`.

    `dataset[i]` is `(image, label)`: the image is what `transform` makes of a `PIL.Image` in RGB, and without a
    transform a uint8 tensor `(3, H, W)` of the caller's own. What is remembered lies before `transform`, so a random
    transform stays random.

    In the process that made it the cache is an LRU. Worker processes of a `DataLoader`, however they are started, share
    one more cache, in anonymous memory: the first `cache_size` images that any of them decodes stay there, for all of
    them and as long as the dataset lives. Preloaded images are there for everybody.
    """

    def __init__(
        self,
        data_paths: Sequence[str | PathLike[str]],
        labels: ArrayLike,
        transform: Callable[[Image.Image], Any] | None = None,
        cache_size: int = 1000,
        preload: bool = False,
    ) -> None:
        """Pack the paths; nothing is read unless `preload`.

        Args:
            data_paths: image files.
            labels: any numeric array-like of first dimension `len(data_paths)`.
            transform: called with the `PIL.Image`, for example a torchvision `Compose`.
            cache_size: decoded images kept, the ones used last; 0 keeps none.
            preload: decode all images now and keep them all, whatever `cache_size` says.
        """
        if not isinstance(preload, bool):
            raise TypeError(f"preload must be True or False, got {preload!r}; create_dataloader has others")
        cache_size = whole("cache_size", cache_size, low=0, cure="0 keeps none")
        self.source = FileSource(data_paths, labels)
        self.transform = transform
        self._stats = Stats()
        self._pid = os.getpid()
        self._decoding = Decoding(self.source.read, self.source.where)
        self._resources = ExitStack()
        # The cache of this process and that of the workers may both fill.
        max_bytes = free_bytes() // (2 if preload else 4)
        shared = Settings(len(self), max_bytes, None if preload else cache_size, CachePolicy.pinned, Kind.decoded)
        store: Store
        if CAN_SHARE and (preload or cache_size > 0):
            store = shared_store(lambda: shared, rank=None, name=str, resources=self._resources)
        else:
            store = PrivateStore(shared)
        self._shared = self._through(store)
        """For processes that did not make this object, and for all if it was preloaded."""
        if preload:
            self._own = self._shared
            self._preload(shared, store)
        else:
            self._own = self._through(PrivateStore(shared._replace(policy=CachePolicy.lru)))

    def _through(self, store: Store) -> CachedLoad:
        return CachedLoad(self.source.read, self._decoding.decode, store, self._stats)

    def _preload(self, settings: Settings, store: Store) -> None:
        cures = ["cache_size=... with preload=False", "smaller images"]
        sizes = look_at_some(self.source.read, len(self), None)
        refuse_preload(settings, sizes, "images", what="preload=True", cures=cures)
        keep_looked_at(self._own, sizes.read, self._stats)
        fill(self._own, store, range(len(self)), num_threads=num_cores(), name="images", cures=cures)
        self._stats.forget(HITS, MISSES)

    def __getstate__(self) -> dict[str, Any]:
        # The LRU is the maker's own.
        return self.__dict__ | {"_own": self._shared, "_pid": None, "_resources": ExitStack()}

    def close(self) -> None:
        """Free the shared cache's descriptor, where it is not left to garbage collection. May be called twice."""
        self._resources.close()
        self._shared.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Image and label; IndexError outside the dataset, otherwise what reading or decoding raises."""
        id = range(len(self))[index]
        load = self._own if os.getpid() == self._pid else self._shared
        pixels = self._decoding.decode(id, load(id))
        label = self.source.label(id)
        if np.ndim(label) == 0:
            label = np.asarray(label).item()
        if self.transform is not None:
            return self.transform(Image.fromarray(pixels)), label
        return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C")), label

    def stats(self) -> dict[str, int]:
        """Hits and misses of this process, and the evictions, entries and bytes of the cache that it uses."""
        store = (self._own if os.getpid() == self._pid else self._shared).store
        return {"hits": self._stats.total(HITS), "misses": self._stats.total(MISSES), **store.stats()}
