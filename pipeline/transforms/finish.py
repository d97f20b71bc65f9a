"""What is done to a crop's colours, in a worker or on a device: which draws decide it, and the worker's way."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.config import Transforms
from pipeline.decode import Scratch
from pipeline.native import kernel
from pipeline.transforms.blur import Blur, blur_image
from pipeline.transforms.colour import ColourJitter
from pipeline.transforms.erasing import Erasing


class Finish:
    """Colour, blur and erasing of a crop, in this order, and their draws, from `first_column` on."""

    def __init__(self, options: Transforms, *, first_column: int) -> None:
        self.jitter = ColourJitter(options, first_column=first_column)
        column = first_column + self.jitter.num_draws
        self.blur = Blur(options, first_column=column)
        column += self.blur.num_draws
        self.erasing = Erasing(options, first_column=column)
        self.end_column = column + self.erasing.num_draws
        """The column behind its last one: draws of all that is done to a sample."""
        self.num_draws = self.end_column - first_column


class WorkerFinish:
    """Applies a `Finish` to samples in a worker: clamped, normalised float32 written into a batch's rows."""

    def __init__(self, finish: Finish, size: int, memory_format: str) -> None:
        self._finish, self._jitter = finish, finish.jitter
        # One bound a value of some image rows, for NumPy's inner loop to be long: an image of 224 pixels takes 29 us by
        # sixteen rows, 52 by one, and three times that over the 3 channels.
        self._num_lines = size // math.gcd(size, 16)
        self._lower, self._upper = (
            np.tile(bound, size * (size // self._num_lines)) for bound in (self._jitter.lower, self._jitter.upper)
        )
        self._planes = memory_format == "contiguous"

    def __call__(
        self,
        pixels: NDArray[np.uint8],
        draws: NDArray[np.float64],
        rows: NDArray[np.float32],
        scratch: Scratch,
    ) -> None:
        """Finish `pixels`, uint8 (n, H, W, 3), by each sample's `draws` into n `rows`, float32 of the memory format."""
        kernels = _by_row(*self._finish.blur.kernels(draws))
        boxes = _by_row(*self._finish.erasing.boxes(draws))
        for number, matrix in enumerate(self._jitter.matrices(draws)):
            row = rows[number]
            aside = self._planes and (kernel is None or number in kernels)  # OpenCV takes no planes
            floats = scratch.floats("floats", pixels[number].shape) if aside else row
            self._colour(pixels[number], matrix, floats, is_planar=self._planes and not aside)
            if number in kernels:
                blur_image(floats, kernels[number])
            if aside:
                for channel in range(3):
                    written = cv2.extractChannel(floats, channel, dst=row[channel])
                    assert np.may_share_memory(written, row), "OpenCV did not write into the row that it was given"
            if number in boxes:
                top, left, bottom, right = boxes[number]
                image = row.transpose(1, 2, 0) if self._planes else row
                image[top:bottom, left:right] = 0

    def _colour(
        self, pixels: NDArray[np.uint8], matrix: NDArray[np.float32], floats: NDArray[np.float32], *, is_planar: bool
    ) -> None:
        """Both ways give the same bytes; `colour` says why."""
        if kernel is not None:
            kernel.colour(pixels, matrix, self._jitter.lower, self._jitter.upper, floats, is_planar, False)
            return
        np.copyto(floats, pixels)
        written = cv2.transform(floats, matrix, dst=floats)
        assert np.may_share_memory(written, floats), "OpenCV did not write into the buffer that it was given"
        values = floats.reshape(self._num_lines, -1)
        np.maximum(values, self._lower, out=values)
        np.minimum(values, self._upper, out=values)


def _by_row(rows: NDArray[np.int64], values: NDArray[Any]) -> dict[int, NDArray[Any]]:
    return dict(zip(rows.tolist(), values, strict=True))
