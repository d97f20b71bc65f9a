"""8-bit pixels to normalised float32 by one table look-up a value, straight into a batch's row."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.decode import Scratch


class Normaliser:
    """`(pixel / 255 - mean) / std` per channel, each of the 256 x 3 results computed once in float64.

    A row is float32, (H, W, 3) for `channels_last` and (3, H, W) for `contiguous`.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], memory_format: str) -> None:
        levels = np.arange(256)[:, None] / 255
        self._table = ((levels - np.asarray(mean)) / np.asarray(std)).astype(np.float32).reshape(256, 1, 3)
        self._tables = [np.ascontiguousarray(self._table[:, 0, channel]) for channel in range(3)]
        self._planes = memory_format == "contiguous"

    def __call__(self, pixels: NDArray[np.uint8], rows: NDArray[np.float32], scratch: Scratch) -> None:
        """Normalise `pixels`, uint8 (n, H, W, 3), into n `rows`."""
        n, height, width, _ = pixels.shape
        pixels = pixels.reshape(n * height, width, 3)
        if not self._planes:
            written = cv2.LUT(pixels, self._table, dst=rows.reshape(pixels.shape))
            assert np.may_share_memory(written, rows), "OpenCV did not write into the rows that it was given"
            return
        plane = scratch.pixels("plane", (n * height, width))
        planes = rows.reshape(n, 3, height * width)
        for channel, table in enumerate(self._tables):
            cv2.extractChannel(pixels, channel, dst=plane)
            written = cv2.LUT(plane.reshape(n, height * width), table, dst=planes[:, channel])
            assert np.may_share_memory(written, rows), "OpenCV did not write into the rows that it was given"
