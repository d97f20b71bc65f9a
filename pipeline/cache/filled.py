"""The first samples of a source, mostly all of them, in memory that worker processes map."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.load import Sample

if TYPE_CHECKING:
    from pipeline.shared import Arena


class Filled:
    """`load(id)` over what `samples` yielded, in order of id; holds one copy for all processes.

    Pixels come as read-only views, encoded images as bytes of the caller's own.
    """

    def __init__(self, samples: Iterable[Sample], arena: Arena, *, rest: Callable[[int], Sample]) -> None:
        """Write `samples` to a segment of `arena`; ids beyond them are loaded by `rest`."""
        self._rest = rest
        sizes: list[int] = []
        shapes: list[tuple[int, int]] = []

        def pieces() -> Iterable[memoryview]:
            for sample in samples:
                if isinstance(sample, np.ndarray):
                    piece = np.ascontiguousarray(sample).reshape(-1).data
                    shapes.append((sample.shape[0], sample.shape[1]))
                else:
                    piece = memoryview(sample)
                    shapes.append((0, 0))  # encoded
                sizes.append(len(piece))
                yield piece

        self._bytes = arena.append(pieces())
        self._ends = np.cumsum([0, *sizes], dtype=np.int64)
        self._shapes = np.array(shapes, np.int32).reshape(-1, 2)

    def __len__(self) -> int:
        """Samples that lie here."""
        return len(self._shapes)

    def __call__(self, id: int) -> Sample:
        """Sample `id`."""
        if id >= len(self._shapes):
            return self._rest(id)
        piece: NDArray[np.uint8] = self._bytes[self._ends[id] : self._ends[id + 1]]
        height, width = self._shapes[id].tolist()
        return piece.reshape(height, width, 3) if height else piece.tobytes()
