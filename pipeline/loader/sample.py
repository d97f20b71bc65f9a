"""Makes one sample: read, decode, transform, into its row."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.decode import Scratch
from pipeline.stats import StageClock, Stats


class Transform(Protocol):
    """What turns a sample into its row; called by several threads at once."""

    @property
    def num_draws(self) -> int:
        """Uniforms that a sample uses."""

    @property
    def channels_last(self) -> bool:
        """Whether rows are (H, W, 3), else (3, H, W)."""

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of a row."""

    @property
    def row_dtype(self) -> np.dtype[Any]:
        """Element type of a row."""

    def __call__(
        self,
        sample: bytes | NDArray[np.uint8],
        draws: NDArray[np.float64],
        out: NDArray[Any],
        scratch: Scratch,
        clock: StageClock | None = None,
    ) -> None:
        """Write the row of `sample`, encoded or RGB pixels, into `out`."""


class MakeSample:
    """A `SampleFunction` over a `load` callable and a transform; safe to call from several threads.

    Every thread has its own scratch memory and its own clock. An error leaves as itself, with a note that says at which
    stage and for which sample it happened.
    """

    def __init__(
        self,
        load: Callable[[int], bytes | NDArray[np.uint8]],
        transform: Transform,
        *,
        where: Callable[[int], str],
        stats: Stats,
    ) -> None:
        """Use `load(id)` for an encoded image or decoded RGB pixels, and `where(id)` to name a sample in errors."""
        self._load = load
        self.transform = transform
        self._where = where
        self._stats = stats
        self._local = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        # Scratch memory belongs to threads of one process.
        return self.__dict__ | {"_local": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._local = threading.local()

    def __call__(self, id: int, draws: NDArray[np.float64], row: NDArray[np.generic]) -> None:
        """Write sample `id` into `row`."""
        local = self._local
        try:
            scratch, clock = local.scratch, local.clock
        except AttributeError:
            scratch = local.scratch = Scratch()
            clock = local.clock = self._stats.clock
        stage = "read"
        try:
            sample = self._load(id)
            stage = "decode or transform"
            self.transform(sample, draws, row, scratch, clock)
        except Exception as error:
            if not any("sample id" in note for note in getattr(error, "__notes__", ())):
                error.add_note(f"stage {stage}, sample id {id}, {self._where(id)}, {threading.current_thread().name}")
            raise
