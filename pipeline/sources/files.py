"""Samples that are one file each, and samples that are in memory already."""

import errno
import os
import stat
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.sources.paths import AnyPath, Paths, PathTable
from pipeline.sources.source import as_labels, hash_order, stamp_bytes, stamp_file


class FileSource:
    """Encoded images in files.

    Args:
        paths: One a sample; they are copied into packed memory, never opened or checked here. A `PathTable` is kept
            as it is, with its own root.
        labels: Numbers, first dimension as long as `paths`.
        class_names: One name a class number; empty when labels are not classes.
        root: Put in front of relative paths. It does not enter the fingerprint, so that a set may be moved.
        weights: How often to draw each sample, for `loader.sampler=weighted`; any positive scale.
    """

    def __init__(
        self,
        paths: Iterable[AnyPath],
        labels: ArrayLike,
        class_names: Sequence[str] = (),
        *,
        root: AnyPath | None = None,
        weights: ArrayLike | None = None,
    ) -> None:
        self.paths = paths if isinstance(paths, PathTable) else PathTable(paths, root=root)
        self.labels: NDArray[Any] = as_labels(labels, len(self.paths))
        self.class_names = tuple(class_names)
        self.weights: NDArray[np.float64] | None = None if weights is None else np.array(weights, np.float64)
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, id: int) -> bytes:
        """Returns the bytes of file `id`; raises OSError."""
        try:
            file = open(self.paths[id], "rb", buffering=0, opener=_open_regular)  # noqa: SIM115  # closed below
        except ValueError as error:  # there is no such file, nor can there be
            raise FileNotFoundError(errno.ENOENT, str(error), self.paths[id]) from error
        with file:
            # `readall` asks for the size once and reads until the end, however short the single reads are.
            return file.readall()

    def label(self, id: int) -> Any:
        """Returns `labels[id]`."""
        return self.labels[id]

    def where(self, id: int) -> str:
        """Returns the path of file `id`."""
        return self.paths[id]

    def files(self) -> Paths:
        """Returns the path of every sample."""
        return self.paths

    def fingerprint(self) -> str:
        """Returns a hash of the paths below `root` and the labels, computed at the first call."""
        if self._fingerprint is None:
            self._fingerprint = hash_order([self.paths.packed], self.labels)
        return self._fingerprint

    def stamp(self, id: int) -> int:
        """Returns 64 bits that change with the size or time of file `id`; raises OSError."""
        return stamp_file(self.paths.encoded(id))


def _open_regular(path: str, flags: int) -> int:
    """Opens a file, and no pipe that would be waited for or device that never ends: OSError ENXIO for those."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(mode := os.fstat(descriptor).st_mode) and not stat.S_ISDIR(mode):  # `open` says directory
        os.close(descriptor)
        raise OSError(errno.ENXIO, "Not a regular file, but a pipe or a device", path)
    return descriptor


class ArraySource:
    """Decoded images of one size in memory.

    Args:
        pixels: RGB (n, H, W, 3) uint8; kept, not copied, and made read-only through this object.
        labels: Numbers, n of them.
        class_names: One name a class number; empty when labels are not classes.
        name: What messages call the whole set.
    """

    def __init__(
        self, pixels: NDArray[np.uint8], labels: ArrayLike, class_names: Sequence[str] = (), *, name: str = "array"
    ) -> None:
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
            raise ValueError(f"pixels must be uint8 (n, H, W, 3), got {pixels.dtype} {pixels.shape}")
        self._pixels = pixels.view()
        self._pixels.flags.writeable = False
        self._name = name
        self.labels: NDArray[Any] = as_labels(labels, len(pixels))
        self.class_names = tuple(class_names)

    def __len__(self) -> int:
        return len(self._pixels)

    def read(self, id: int) -> NDArray[np.uint8]:
        """Returns image `id`, a read-only view (H, W, 3)."""
        if id < 0:
            raise IndexError(f"image {id} of {len(self)}")
        image: NDArray[np.uint8] = self._pixels[id]
        return image

    def label(self, id: int) -> Any:
        """Returns `labels[id]`."""
        return self.labels[id]

    def where(self, id: int) -> str:
        """Returns the set's name and the image's number."""
        return f"{self._name}[{id}]"

    def files(self) -> Paths:
        """Returns no path: nothing is read."""
        return []

    def fingerprint(self) -> str:
        """Returns a hash of the name, the shape and the labels."""
        return hash_order([f"{self._name}{self._pixels.shape}".encode()], self.labels)

    def stamp(self, id: int) -> int:
        """Returns a checksum of image `id`'s pixels."""
        return stamp_bytes(np.ascontiguousarray(self.read(id)).data)
