"""Several crops of one image: it is read and decoded once for all of them.

Hoffer and others, "Augment Your Batch", CVPR 2020, train on batches of that kind.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Transforms
from pipeline.decode import Scratch, decode_counted
from pipeline.stats import StageClock
from pipeline.transforms.sample import SampleTransform, rendering_of, shrink_to


class CropsTransform:
    """Turns one sample into a row of `num_crops` images, (num_crops, H, W, 3) or (num_crops, 3, H, W).

    Each is what `SampleTransform` makes of the sample with that crop's part of the draws, which follow one another.
    """

    def __init__(self, options: Transforms, *, normalise: bool, memory_format: str = "channels_last") -> None:
        self._one = SampleTransform(options, normalise=normalise, memory_format=memory_format)
        self._rendering, self._max_side = rendering_of(options), options.max_side
        self.num_crops = options.crops_per_image
        self.num_draws = self.num_crops * self._one.num_draws
        self.channels_last = self._one.channels_last
        self.row_shape = (self.num_crops, *self._one.row_shape)
        self.row_dtype = self._one.row_dtype

    def __call__(
        self,
        sample: bytes | NDArray[np.uint8],
        draws: NDArray[np.float64],
        out: NDArray[Any],
        scratch: Scratch,
        clock: StageClock | None = None,
    ) -> None:
        """Write the crops of `sample`, encoded or upright RGB (H, W, 3), into `out` of `row_shape` and `row_dtype`.

        Raises:
            ValueError: `sample` cannot be decoded; the message says why.
        """
        pixels = decode_counted(sample, scratch, clock, rendering=self._rendering)
        started = perf_counter()
        pixels = shrink_to(pixels, self._max_side)
        for own, row in zip(draws.reshape(self.num_crops, -1), out, strict=True):
            self._one(pixels, own, row, scratch)
        if clock is not None:
            clock.add("transform", perf_counter() - started)


def transform_of(
    options: Transforms, *, normalise: bool, memory_format: str = "channels_last"
) -> SampleTransform | CropsTransform:
    """What makes a row of a sample by `options`."""
    kind = SampleTransform if options.crops_per_image == 1 else CropsTransform
    return kind(options, normalise=normalise, memory_format=memory_format)
