"""Makes one sample: read, decode, transform, into its row."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipeline.decode import Scratch
from pipeline.stats import Stats
from pipeline.transforms.sample import SampleTransform


class MakeSample:
    """A `SampleFunction` over a `load` callable and a transform; safe to call from several threads.

    Every thread has its own scratch memory and its own clock. An error leaves as itself, with a note that says at which
    stage and for which sample it happened.
    """

    def __init__(
        self,
        load: Callable[[int], bytes | NDArray[np.uint8]],
        transform: SampleTransform,
        *,
        where: Callable[[int], str],
        stats: Stats,
    ) -> None:
        """Use `load(id)` for an encoded image or decoded RGB pixels, and `where(id)` to name a sample in errors."""
        self._load = load
        self._transform = transform
        self._where = where
        self._stats = stats
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
            self._transform(sample, draws, row, scratch, clock)
        except Exception as error:
            if not any("sample id" in note for note in getattr(error, "__notes__", ())):
                error.add_note(f"stage {stage}, sample id {id}, {self._where(id)}, {threading.current_thread().name}")
            raise
