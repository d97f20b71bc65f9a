"""What the rest of the pipeline asks of a place where samples come from, and what every such place shares."""

import os
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.sources.paths import AnyPath, Paths


class Source(Protocol):
    """A finite, ordered set of labelled images; sample `id` is a number in [0, len). Safe to read from many threads."""

    @property
    def labels(self) -> NDArray[Any]:
        """First dimension `len(self)`, read-only; int64 class numbers for classification."""
        ...

    @property
    def class_names(self) -> Sequence[str]:
        """One name a class number; empty when labels are not classes."""
        ...

    def __len__(self) -> int: ...

    def read(self, id: int) -> bytes | NDArray[np.uint8]:
        """Returns an encoded image, or decoded RGB (H, W, 3) that must not be written to; raises OSError."""
        ...

    def label(self, id: int) -> Any:
        """Returns `labels[id]`."""
        ...

    def where(self, id: int) -> str:
        """Returns what a message calls the sample: its path, or "archive.tar:member"."""
        ...

    def files(self) -> Paths:
        """Returns every file that `read` reads, one perhaps more than once; none where pixels lie in memory."""
        ...

    def fingerprint(self) -> str:
        """Returns a hex hash of which samples these are and in what order; file contents do not enter."""
        ...

    def stamp(self, id: int) -> int:
        """Returns 64 bits that change with the size or time of the file that sample `id` lies in.

        Costs a stat, or for pixels in memory a checksum; raises OSError.
        """
        ...


def as_labels(labels: ArrayLike, num_samples: int) -> NDArray[Any]:
    """Returns a read-only copy of `labels`: int64 for whole numbers, float32 for others, any shape behind the first.

    Raises:
        TypeError: The labels are not numbers.
        ValueError: There is not one label for each sample.
    """
    array = np.asarray(labels)
    if array.ndim == 0 or len(array) != num_samples:
        count = "a single label" if array.ndim == 0 else f"{len(array)} labels"
        raise ValueError(f"there must be one label for each sample, got {count} for {num_samples} samples")
    if array.size > 0 and array.dtype.kind not in "biuf":
        raise TypeError(f"labels must be numbers, got {array.dtype}; use class numbers 0, 1, ... for classes")
    array = array.astype(np.float32 if array.size > 0 and array.dtype.kind == "f" else np.int64)
    array.flags.writeable = False
    return array


def stamp_file(path: AnyPath, *place: int) -> int:
    """Returns 64 bits that change with the size or time of the file at `path`, and with `place`; raises OSError."""
    status = os.stat(path)
    return stamp_bytes(repr((status.st_size, status.st_mtime_ns, *place)).encode())


def stamp_bytes(data: bytes | memoryview) -> int:
    """Returns 64 evenly spread bits of `data`."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def hash_order(names: Sequence[bytes | memoryview], labels: NDArray[Any]) -> str:
    """Returns the fingerprint of samples called `names`, each piece packed in any way that keeps their borders."""
    digest = blake2b(digest_size=16)
    for piece in names:
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    digest.update(f"{labels.dtype.str}{labels.shape}".encode())
    digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()
