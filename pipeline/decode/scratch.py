"""Memory that a thread uses again and again."""

from __future__ import annotations

import threading
from math import prod

import numpy as np
from numpy.typing import NDArray

# A larger buffer is made for one image and let go: it costs page faults, which vanish beside decoding 20 megapixels,
# and one huge image would otherwise stay as memory in every thread.
_MAX_KEPT_BYTES = 64 << 20


class Scratch:
    """One thread's working memory: buffers by name that grow to the largest image seen and are used again.

    A view stays valid until the same name is asked for again.
    """

    __slots__ = ("_buffers",)

    def __init__(self) -> None:
        self._buffers: dict[str, NDArray[np.uint8]] = {}

    def pixels(self, name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Uint8 memory of `shape`, contents undefined."""
        return self._bytes(name, prod(shape)).reshape(shape)

    def floats(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Float32 memory of `shape`, contents undefined."""
        return self._bytes(name, 4 * prod(shape)).view(np.float32).reshape(shape)

    def _bytes(self, name: str, num_bytes: int) -> NDArray[np.uint8]:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < num_bytes:
            buffer = np.empty(num_bytes, np.uint8)
            if num_bytes <= _MAX_KEPT_BYTES:
                self._buffers[name] = buffer
        return buffer[:num_bytes]


class ThreadScratch(threading.local):
    """`scratch`, another one for every thread that asks. Its memory does not travel: a pickled one begins anew."""

    def __init__(self) -> None:
        self.scratch = Scratch()

    def __reduce__(self) -> tuple[type[ThreadScratch], tuple[()]]:
        return ThreadScratch, ()
