"""How large samples are, from a look at a few of them. A part of `build.py`, in a file of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pipeline.cache.load import Sample
from pipeline.decode import inspect
from pipeline.transforms.geometry import limit_side

LOOKED_AT = 32
"""Samples read, at most."""


class Sizes(NamedTuple):
    """Mean bytes of a sample; infinite where none could be read, which is not for an estimate to say."""

    encoded: float
    decoded: float
    read: dict[int, bytes]
    """The encoded samples that were read, by id."""

    def of(self, *, decoded: bool) -> float:
        """Mean bytes of a sample as it is kept."""
        return self.decoded if decoded else self.encoded


def look_at_some(read: Callable[[int], Sample], num_samples: int, max_side: int | None) -> Sizes:
    """The sizes of a few samples spread over all that `read` gives; decoded ones after `max_side`."""
    encoded: list[int] = []
    decoded: list[int] = []
    read_before: dict[int, bytes] = {}
    for id in np.linspace(0, num_samples - 1, min(LOOKED_AT, num_samples), dtype=np.int64).tolist():
        try:
            sample = read(id)
            if isinstance(sample, bytes):
                encoded.append(len(sample))
                info = inspect(sample)
                height, width = limit_side(info.height, info.width, max_side)
                decoded.append(height * width * 3)
                read_before[id] = sample
            else:
                height, width = limit_side(sample.shape[0], sample.shape[1], max_side)
                encoded.append(height * width * 3)
                decoded.append(height * width * 3)
        except (OSError, ValueError):  # the loop that wants this sample will meet the error, at its place
            continue
    return Sizes(_mean(encoded), _mean(decoded), read_before)


def _mean(sizes: list[int]) -> float:
    return float(np.mean(sizes)) if sizes else math.inf
