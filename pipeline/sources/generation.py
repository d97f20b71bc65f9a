"""Makes the missing files of a synthetic set: in parallel, written aside and renamed, after saying what it takes."""

import logging
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.machine import num_cores
from pipeline.sources.pictures import encode, paint

Item = TypeVar("Item")
Result = TypeVar("Result")

log = logging.getLogger(__name__)

_SPARE_BYTES = 64_000_000
"""Room that must stay on the disk beside the images."""


@dataclass(frozen=True, slots=True)
class ImageSize:
    """What is known of one file."""

    height: int
    width: int
    num_bytes: int


class SetSizes(TypedDict):
    """What a set's manifest says about its files; lists are minimum, median and maximum."""

    total_bytes: int
    height: list[float]
    width: list[float]
    bits_per_pixel: list[float]


def generate_missing(
    directory: Path, paths: Sequence[str], num_classes: int, *, seed: int, num_workers: int | None = None
) -> SetSizes:
    """Makes every image of `paths` (below `directory`) that is not there whole.

    Image i is of class i modulo `num_classes`. The caller sees to it that no other process does so at the same time.
    Threads, not processes: the painting is in the loops of NumPy, OpenCV and libjpeg, which release the GIL, and a
    library must not need a `__main__` guard.

    Raises:
        ValueError: The disk lacks the room.
        OSError: A file cannot be written.
    """
    for name in sorted({os.path.dirname(path) for path in paths}):
        (directory / name).mkdir(exist_ok=True)
        for leftover in (directory / name).glob(".*.part"):
            leftover.unlink()
    found = {index: measure_file(directory / path) for index, path in enumerate(paths)}
    sizes = {index: size for index, size in found.items() if size is not None}
    missing = [index for index in range(len(paths)) if index not in sizes]

    def make(index: int) -> tuple[int, ImageSize]:
        pixels = paint(seed, index, index % num_classes)
        data = encode(pixels)
        path = directory / paths[index]
        aside = path.with_name(f".{path.name}.part")
        aside.write_bytes(data)
        aside.replace(path)
        return index, ImageSize(pixels.shape[0], pixels.shape[1], len(data))

    if missing:
        workers = num_workers or num_cores()
        _announce(directory, len(missing), num_classes, num_kept=len(sizes), seed=seed, num_workers=workers)
        sizes.update(_with_progress(_map_in_threads(make, missing, workers), len(missing)))
    return _summarise([sizes[index] for index in range(len(paths))])


def measure_file(path: Path) -> ImageSize | None:
    """Returns the size of a whole JPEG file; None when it is not there or not whole."""
    try:
        data = path.read_bytes()
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except (FileNotFoundError, ValueError):
        return None
    # After a loss of power a file can have its name and lack the end of its data.
    return ImageSize(height, width, len(data)) if data.endswith(b"\xff\xd9") else None


def _announce(
    directory: Path, num_missing: int, num_classes: int, *, num_kept: int, seed: int, num_workers: int
) -> None:
    """Says how many images, GB and minutes are to come, judged by a few made for the purpose; refuses a full disk."""

    def try_one(index: int) -> int:
        return len(encode(paint(seed, index, index % num_classes)))

    num_tried = min(num_missing, 4 * num_workers)
    start = time.perf_counter()
    num_bytes = sum(_map_in_threads(try_one, range(num_tried), num_workers)) * num_missing / num_tried
    minutes = (time.perf_counter() - start) * num_missing / num_tried / 60
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < num_bytes + _SPARE_BYTES:
        raise ValueError(
            f"data.root={directory.parent}: {num_missing:,} images need about {num_bytes / 1e9:.2f} GB but the disk "
            f"has {free_bytes / 1e9:.2f} GB free: choose a data.root elsewhere or a smaller data.num_images"
        )
    log.info(
        "generating %s synthetic images in %s: about %.2f GB and %.1f minutes with %d threads%s",
        *(f"{num_missing:,}", directory, num_bytes / 1e9, minutes, num_workers),
        f"; {num_kept:,} are there already" if num_kept else "",
    )


def _map_in_threads(function: Callable[[Item], Result], items: Iterable[Item], num_workers: int) -> Iterator[Result]:
    """Yields `function(item)` in order, a few ahead, so that an interruption waits for a few only."""
    with ThreadPoolExecutor(num_workers, thread_name_prefix="synthetic") as pool:
        ahead: deque[Future[Result]] = deque()
        try:
            for item in items:
                ahead.append(pool.submit(function, item))
                if len(ahead) > 4 * num_workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _with_progress(items: Iterable[Item], total: int) -> Iterator[Item]:
    """Passes `items` on; shows a bar on a terminal, and elsewhere logs a line for every tenth part."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc="synthetic images", unit="image")
        return
    tenth = -(-total // 10)
    for number, item in enumerate(items, start=1):
        yield item
        if number % tenth == 0 or number == total:
            log.info("generated %s of %s images", f"{number:,}", f"{total:,}")


def _summarise(sizes: Sequence[ImageSize]) -> SetSizes:
    height, width, num_bytes = np.array([(size.height, size.width, size.num_bytes) for size in sizes], np.int64).T

    def spread(values: NDArray[Any]) -> list[float]:
        return [round(float(value), 3) for value in np.quantile(values, [0, 0.5, 1])]

    return SetSizes(
        total_bytes=int(num_bytes.sum()),
        height=spread(height),
        width=spread(width),
        bits_per_pixel=spread(8 * num_bytes / (height * width)),
    )
