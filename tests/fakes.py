"""Small stand-ins for tests: a sample function that can be watched, held and made to fail, and tiny image files."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from samples import named

from pipeline.loader.executors import Executor, SerialExecutor, ThreadExecutor
from pipeline.loader.loader import Loader
from pipeline.loader.order import Order
from pipeline.loader.processes import ProcessExecutor
from pipeline.loader.slots import Pin
from pipeline.native import kernel
from pipeline.sampler import Sampler, ShuffleSampler
from pipeline.shared import Arena
from pipeline.stats import Stats

FUSED = pytest.param("fused", marks=pytest.mark.skipif(kernel is None, reason="the native kernel is not built"))
"""A value of `transforms.resize`."""

ROW_SHAPE = (2, 2, 3)


class FakeSample:
    """Writes a sample's id and first draw into its row; counts calls; `before(id)` may wait or raise."""

    def __init__(self, before: Callable[[int], None] | None = None) -> None:
        self.before = before
        self.made: list[int] = []
        self._changed = threading.Condition()

    def __call__(self, id: int, draws: np.ndarray, row: np.ndarray) -> None:
        if self.before is not None:
            self.before(id)
        row[...] = id + draws[0]
        with self._changed:
            self.made.append(id)
            self._changed.notify_all()

    def wait_until_made(self, *ids: int) -> None:
        """Return when all of `ids` have been made."""
        with self._changed:
            assert self._changed.wait_for(lambda: set(ids) <= set(self.made), 60), f"{ids} were never made"

    def wait_until_count(self, count: int) -> None:
        """Return when `count` samples have been made."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.made) >= count, 60), f"only {len(self.made)} were made"


class Gates:
    """One event per id: a sample waits until its gate opens; the test opens gates in the order it wants to see."""

    def __init__(self, closed: set[int]) -> None:
        self._events = {id: threading.Event() for id in closed}
        self.arrived = {id: threading.Event() for id in closed}

    def __call__(self, id: int) -> None:
        if id in self._events:
            self.arrived[id].set()
            assert self._events[id].wait(60), f"gate {id} was never opened"

    def open(self, id: int) -> None:
        self._events[id].set()


class OwnProcesses(ProcessExecutor):
    """Worker processes with an arena of their own, closed with them."""

    def __init__(self, sample: Callable[..., None], *, stats: Stats, **options: Any) -> None:
        self._arena = Arena()
        super().__init__(sample, self._arena, stats=stats, **options)

    def close(self, limit_s: float | None = None) -> None:
        super().close(limit_s)
        self._arena.close()


def make_executor(
    sample: Callable[..., None],
    stats: Stats,
    *,
    backend: str,
    num_workers: int,
    in_flight: int,
    where: Callable[[int], str] = named,
    stall_timeout_s: float = 300.0,
    threads_per_worker: int = 1,
    max_restarts: int = 3,
) -> Executor:
    """What `backend` and `num_workers` stand for."""
    if num_workers == 0:
        return SerialExecutor(sample)
    if backend == "threads":
        return ThreadExecutor(
            sample, num_workers=num_workers, in_flight=in_flight, where=where, stall_timeout_s=stall_timeout_s
        )
    return OwnProcesses(
        sample,
        stats=stats,
        num_workers=num_workers,
        threads_per_worker=threads_per_worker,
        in_flight=in_flight,
        where=where,
        max_restarts=max_restarts,
        stall_timeout_s=stall_timeout_s,
    )


def make_loader(
    sample: Callable[..., None],
    *,
    backend: str = "threads",
    num_samples: int = 20,
    batch_size: int = 4,
    num_workers: int = 0,
    prefetch_factor: int = 2,
    sampler: Sampler | None = None,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    drop_last: bool = False,
    read_ahead: bool = False,
    num_epochs: int | None = None,
    row_shape: tuple[int, ...] = ROW_SHAPE,
    num_draws: int = 1,
    pin: Pin | None = None,
    **options: Any,
) -> Loader:
    """A loader of small float images over `sample`; `options` are `make_executor`'s."""
    stats = Stats()
    executor = make_executor(
        sample, stats, backend=backend, num_workers=num_workers, in_flight=prefetch_factor, **options
    )
    order = Order(
        sampler=sampler or ShuffleSampler(num_samples, seed),
        labels=np.arange(num_samples) * 10,
        seed=seed,
        batch_size=batch_size,
        num_draws=num_draws,
        rank=rank,
        world_size=world_size,
        drop_last=drop_last,
        fingerprint=lambda: f"fake-{num_samples}",
    )
    return Loader(
        order,
        executor,
        row_shape=row_shape,
        row_dtype=np.float32,
        read_ahead=read_ahead,
        num_epochs=num_epochs,
        stats=stats,
        pin=pin,
    )


def photo(seed: int, height: int = 60, width: int = 80) -> np.ndarray:
    """A picture with structure at several scales, as photographs have; uint8 `(height, width, 3)`."""
    random = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3))
    for cells in (2, 5, 13):
        coarse = Image.fromarray(random.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        picture += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) / cells
    picture -= picture.min()
    return (picture * (255 / picture.max())).astype(np.uint8)


def jpeg_bytes(pixels: np.ndarray, quality: int = 90) -> bytes:
    """`pixels` as a baseline JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write_jpegs(directory: Path, count: int, **size: int) -> list[Path]:
    """`count` different JPEG files in `directory`, in order of id."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{id:05d}.jpg" for id in range(count)]
    for id, path in enumerate(paths):
        path.write_bytes(jpeg_bytes(photo(id, **size)))
    return paths
